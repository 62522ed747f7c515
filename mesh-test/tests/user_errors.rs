//! What a user can get wrong: each mistake ends in one sentence that names it and says what to do.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_test::binaries::binaries;
use mesh_test::certs::Authority;
use mesh_test::client::HttpClient;
use mesh_test::fake::LoneSidecar;
use mesh_test::topology::Topology;
use mesh_test::wait::{self, PATIENCE};
use mesh_test::world::{Way, World};

const CONTROL: &str =
    "--config-dir DIR/empty --state-dir DIR/state --xds-address 127.0.0.1:0 --admin-address 127.0.0.1:0";
const PROXY: &str = "run --control NOBODY --namespace shop --pod web-1 --service-account web --pod-ip 127.0.0.1 \
                     --admin 127.0.0.1:0 --trust-bundle DIR/root.pem --token-file DIR/token";
const TOKEN: &str = "token --state-dir DIR/state --namespace shop --pod web-1 --service-account web";

/// Program, arguments that a good command line is given in addition (a flag that is there already is replaced),
/// what the sentence must hold. `DIR` is a folder with `empty/`, `file`, `token`, `root.pem` and `half/`, a state
/// folder with one half of a root; `TAKEN` is an address that somebody has, `NOBODY` one that nobody has.
const MISTAKES: &[(&str, &str, &str, &[&str])] = &[
    ("mesh-control", CONTROL, "--bogus", &["--bogus", "--help"]),
    ("mesh-control", "--config-dir DIR/empty", "", &["--state-dir", "--help"]),
    ("mesh-control", CONTROL, "--leaf-lifetime 1s", &["--leaf-lifetime", "between 10s and"]),
    ("mesh-control", CONTROL, "--ca-key DIR/file", &["--ca-cert-chain"]),
    ("mesh-control", CONTROL, "--log-level a=b=c", &["a=b=c", "write error, warn"]),
    ("mesh-control", CONTROL, "--config-dir DIR/nowhere", &["DIR/nowhere", "existing folder"]),
    ("mesh-control", CONTROL, "--config-dir DIR/file", &["DIR/file", "existing folder"]),
    ("mesh-control", CONTROL, "--state-dir DIR/file", &["DIR/file", "this user may write"]),
    ("mesh-control", CONTROL, "--state-dir DIR/half", &["root-key.pem", "restore"]),
    ("mesh-control", CONTROL, "--xds-address TAKEN", &["--xds-address TAKEN", "another address"]),
    ("mesh-control", CONTROL, "--admin-address TAKEN", &["--admin-address TAKEN", "another address"]),
    ("mesh-control", CONTROL, "--address-file DIR/nowhere/a", &["--address-file", "DIR/nowhere/a"]),
    (
        "mesh-control",
        CONTROL,
        "--ca-cert-chain DIR/nowhere --ca-key DIR/file",
        &["DIR/nowhere", "this user may"],
    ),
    ("mesh-control", CONTROL, "--ca-cert-chain DIR/file --ca-key DIR/file", &["DIR/file", "certificate"]),
    ("mesh-control", CONTROL, "--ca-cert-chain DIR/root.pem --ca-key DIR/file", &["DIR/file", "PKCS#8"]),
    ("mesh-proxy", "", "", &["mesh-proxy run"]),
    ("mesh-proxy", "run", "", &["--control <HOST:PORT>", "--help"]),
    ("mesh-proxy", PROXY, "--bogus", &["--bogus", "--help"]),
    ("mesh-proxy", PROXY, "--inbound 8080", &["--inbound", "LISTEN=APP"]),
    ("mesh-proxy", PROXY, "--lookup-timeout 5", &["--lookup-timeout", "write it like 30s"]),
    ("mesh-proxy", PROXY, "--pod-ip web", &["--pod-ip", "web"]),
    ("mesh-proxy", PROXY, "--trust-bundle DIR/nowhere", &["DIR/nowhere", "--trust-bundle"]),
    ("mesh-proxy", PROXY, "--trust-bundle DIR/file", &["DIR/file", "--trust-bundle"]),
    ("mesh-proxy", PROXY, "--token-file DIR/nowhere", &["DIR/nowhere", "--token-file"]),
    ("mesh-proxy", PROXY, "--admin TAKEN", &["TAKEN", "--admin"]),
    ("mesh-proxy", PROXY, "--outbound TAKEN", &["TAKEN", "another process"]),
    ("mesh-proxy", PROXY, "--inbound TAKEN=127.0.0.1:9", &["TAKEN", "another process"]),
    ("mesh-proxy", PROXY, "--inbound 192.0.2.1:80=127.0.0.1:9", &["192.0.2.1:80", "address"]),
    ("mesh-proxy", PROXY, "--address-file DIR/nowhere/a", &["DIR/nowhere/a", "--address-file"]),
    ("mesh-proxy", PROXY, "--trust-bundle-pem x", &["MESH_TRUST_BUNDLE", "PEM"]),
    ("mesh-proxy", PROXY, "--status-port 99999", &["--status-port", "99999"]),
    ("mesh-proxy", PROXY, "--app-probes {}x", &["--app-probes", "trailing characters"]),
    ("mesh-proxy", PROXY, "--app-probes {\"/x\":{}}", &["--app-probes", "/app-health/"]),
    ("mesh-proxy", PROXY, "--app-metrics {}", &["--app-metrics", "port"]),
    ("mesh-proxy", "wait", "--timeout soon", &["--timeout", "write it like 30s"]),
    ("mesh-proxy", "wait --timeout 100ms", "--admin NOBODY", &["NOBODY", "mesh-proxy run", "--admin"]),
    ("mesh-proxy", "drain", "--admin NOBODY", &["NOBODY", "mesh-proxy run", "--admin"]),
    ("meshctl", "", "", &["meshctl demo", "--help"]),
    ("meshctl", "frobnicate", "", &["frobnicate", "--help"]),
    ("meshctl", "demo", "--seconds soon", &["--seconds", "soon"]),
    ("meshctl", "status", "--output xml", &["--output", "text, json"]),
    ("meshctl", "status", "--control-admin NOBODY", &["NOBODY", "is it running"]),
    ("meshctl", "routes", "--control-admin NOBODY", &["NOBODY", "is it running"]),
    ("meshctl", "config NOBODY", "", &["NOBODY", "is it running"]),
    ("meshctl", "config web-1.shop", "--control-admin NOBODY", &["NOBODY", "is it running"]),
    ("meshctl", "config nonsense", "", &["nonsense", "POD.NAMESPACE"]),
    ("meshctl", TOKEN, "--state-dir DIR/empty", &["DIR/empty", "start mesh-control"]),
    ("meshctl", TOKEN, "--pod Web!", &["--pod", "Web!", "lower-case"]),
    ("meshctl", TOKEN, "--namespace -", &["--namespace", "lower-case"]),
    ("meshctl", TOKEN, "--service-account A", &["--service-account", "lower-case"]),
    ("meshctl", TOKEN, "--lifetime 5", &["--lifetime", "write it like 30s"]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_mistake_is_one_sentence() -> Result<()> {
    tokio::task::spawn_blocking(binaries).await??;
    let folder = tempfile::tempdir()?;
    let holder = TcpListener::bind("127.0.0.1:0")?;
    let places = Places { dir: fill(folder.path())?, taken: holder.local_addr()?, nobody: nobody()? };
    let mut wrong = Vec::new();
    for (program, given, more, words) in MISTAKES {
        let said = refused(program, &places.arguments(given, more)).await;
        let said = match said {
            Ok(said) => said,
            Err(error) => {
                wrong.push(format!("{program} {given} {more}\n  {error:#}"));
                continue;
            }
        };
        let missing: Vec<String> =
            words.iter().map(|word| places.fill_in(word)).filter(|word| !said.contains(word)).collect();
        let sentence = said.lines().count() == 1 && said.starts_with(&format!("{program}: "));
        // What the system says once need not be said twice.
        let twice = said.matches("(os error").count() > 1;
        if !missing.is_empty() || !sentence || twice {
            wrong.push(format!("{program} {given} {more}\n  lacks {missing:?}, twice {twice}: {said}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

struct Places {
    dir: String,
    taken: SocketAddr,
    nobody: SocketAddr,
}

impl Places {
    fn fill_in(&self, text: &str) -> String {
        text.replace("DIR", &self.dir)
            .replace("TAKEN", &self.taken.to_string())
            .replace("NOBODY", &self.nobody.to_string())
    }

    /// What was given, less the flags that are replaced.
    fn arguments(&self, given: &str, more: &str) -> Vec<String> {
        let split = |text: &str| text.split_whitespace().map(|word| self.fill_in(word)).collect::<Vec<_>>();
        let (mut given, more) = (split(given), split(more));
        for flag in more.iter().filter(|word| word.starts_with("--")) {
            if let Some(at) = given.iter().position(|known| known == flag) {
                given.drain(at..at + 2);
            }
        }
        given.into_iter().chain(more).collect()
    }
}

fn fill(folder: &Path) -> Result<String> {
    for name in ["empty", "half"] {
        std::fs::create_dir(folder.join(name))?;
    }
    let root = Authority::new("root")?;
    for (name, text) in [
        ("file", "x"),
        ("token", "a.b.c"),
        ("root.pem", root.root_pem()),
        ("half/root-cert.pem", root.root_pem()),
    ] {
        std::fs::write(folder.join(name), text)?;
    }
    Ok(folder.to_str().context("the folder has a strange name")?.to_owned())
}

/// Bound and dropped: nobody listens there.
fn nobody() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Runs a program that must refuse; what it said beside its log.
async fn refused(program: &str, arguments: &[String]) -> Result<String> {
    let all = binaries()?;
    let path = match program {
        "mesh-control" => &all.control,
        "mesh-proxy" => &all.proxy,
        _ => &all.meshctl,
    };
    let output =
        tokio::process::Command::new(path).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(20), output).await.context("it runs")??;
    ensure!(!output.status.success(), "it ends with success");
    let said = String::from_utf8(output.stderr)?;
    ensure!(!said.contains("panicked"), "{said}");
    let is_log = |line: &&str| line.contains(" INFO ") || line.contains(" WARN ");
    Ok(said.lines().filter(|line| !is_log(line)).collect::<Vec<_>>().join("\n"))
}

/// Files in the folder of manifests: name, text, line, what the reason must hold.
const FILES: &[(&str, &str, u64, &[&str])] = &[
    ("broken.yaml", "kind: Service\na: [\n", 2, &["bracket"]),
    (
        "field.yaml",
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\nspec:\n  prots: 1\n",
        6,
        &["spec.prots", "spelling"],
    ),
    ("kind.yaml", "apiVersion: v1\nkind: Gizmo\nmetadata:\n  name: a\n", 2, &["Gizmo", "HTTPRoute"]),
    ("version.yaml", "apiVersion: v7\nkind: Service\nmetadata:\n  name: b\n", 1, &["v7", "v1"]),
    ("nameless.yaml", "apiVersion: v1\nkind: Service\n", 1, &["Service", "name"]),
    (
        "type.yaml",
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: c\nspec:\n  ports: [{port: x}]\n",
        6,
        &["spec.ports[0].port", "x"],
    ),
    (
        "value.yaml",
        // What the mesh cannot use is named with the line where its object begins.
        "# d\napiVersion: v1\nkind: Service\nmetadata:\n  name: d\nspec:\n  ports: [{port: 99999}]\n",
        2,
        &["spec.ports[0].port", "65535"],
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_bad_file_is_named_with_its_line() -> Result<()> {
    let world = Box::pin(World::start(&Topology::default(), Way::Loopback)).await?;
    for (name, text, ..) in FILES {
        world.edit(name, text)?;
    }
    let page = wait::until("every file is named", PATIENCE, async || {
        let page = world.control_page("/debug/config-errors").await.ok()?;
        (page.as_array()?.len() == FILES.len()).then_some(page)
    })
    .await?;
    let errors = page.as_array().context("no list")?;
    for (name, _, line, words) in FILES {
        let of_file: Vec<_> =
            errors.iter().filter(|e| e["file"].as_str().is_some_and(|file| file.ends_with(name))).collect();
        ensure!(of_file.len() == 1, "{name}: {page:#}");
        let reason = of_file[0]["reason"].as_str().unwrap_or_default();
        ensure!(of_file[0]["line"] == *line, "{name}: {:#}", of_file[0]);
        ensure!(words.iter().all(|word| reason.contains(word)) && !reason.contains('\n'), "{name}: {reason}");
    }
    ensure!(errors.len() == FILES.len(), "{page:#}");
    let log = world.control_log().await;
    ensure!(FILES.iter().all(|(name, ..)| log.contains(name)), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_control_plane_is_said_in_the_log_and_to_clients() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (control, root) = (nobody()?, Authority::new("root")?);
    let sidecar = LoneSidecar::start(control, root.root_pem(), folder.path()).await?;
    wait::until("the log names the address", PATIENCE, async || {
        sidecar.log().contains(&control.to_string()).then_some(())
    })
    .await
    .with_context(|| sidecar.log())?;
    let reply = HttpClient::new(sidecar.addresses.outbound.context("no outbound port")?)
        .get("http://reviews/")
        .await?;
    ensure!(reply.status == 503 && reply.reason().starts_with("NC"), "{reply}");
    ensure!(reply.reason().contains("control plane"), "{reply}");
    ensure!(!sidecar.is_ready().await, "it says that it is ready");
    Ok(())
}
