//! Pages of docs/reference that come from the programs themselves: `UPDATE_GOLDEN=1 cargo test` writes them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_test::binaries::binaries;
use mesh_test::client::HttpClient;
use mesh_test::topology::{App, Topology};
use mesh_test::wait;
use mesh_test::world::{Way, World};

const METRICS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/metrics.md");
const FLAGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/flags.md");

#[test]
fn flags() -> Result<()> {
    let all = binaries()?;
    let mut page =
        "# Flags\n\nWhat each program says of itself with `--help`. A flag that has an environment variable \
                    is read from there when it is not given.\n"
            .to_owned();
    for (program, commands) in [
        (&all.control, &[""][..]),
        (&all.proxy, &["run", "wait", "drain"]),
        (&all.injector, &[""]),
        (&all.meshctl, &["", "demo", "status", "routes", "config", "token"]),
    ] {
        for command in commands {
            let name = program.file_name().and_then(|name| name.to_str()).context("no name")?;
            let title = format!("{name} {command}");
            page += &format!("\n## {}\n\n```\n{}```\n", title.trim(), help(program, command)?);
        }
    }
    golden(Path::new(FLAGS), &page)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics() -> Result<()> {
    let world = Box::pin(World::start(&Topology::pair("reviews", App::Http, "http"), Way::Loopback)).await?;
    world.client("web")?.get("http://reviews/").await?.echo()?;
    let pages = [
        ("mesh-control", world.addresses().admin),
        ("mesh-proxy", world.pod("web")?.sidecar()?.addresses.admin),
    ];
    // A series appears when something was counted, which may be a little after the answer.
    wait::until_ok("the page is whole", Duration::from_secs(10), async || {
        golden(Path::new(METRICS), &metrics_page(&pages).await?)
    })
    .await
}

async fn metrics_page(pages: &[(&str, SocketAddr)]) -> Result<String> {
    let mut page =
        "# Metrics\n\nWhat each program serves at `/metrics` of its admin address while nothing is wrong. \
                    Counters of what goes wrong appear with the first time it does. What to look at, and the \
                    labels: [../metrics.md](../metrics.md).\n"
            .to_owned();
    for (program, admin) in pages {
        let served = HttpClient::new(*admin).get(&format!("http://{admin}/metrics")).await?;
        page += &format!("\n## {program}\n\n| metric | kind | what |\n|---|---|---|\n");
        page += &table(std::str::from_utf8(&served.body)?)?;
    }
    Ok(page)
}

/// Name, kind and help of every metric of a page, sorted.
fn table(page: &str) -> Result<String> {
    let after =
        |start: &'static str| page.lines().filter_map(move |line| line.strip_prefix(start)?.split_once(' '));
    let kinds: BTreeMap<&str, &str> = after("# TYPE ").collect();
    let mut rows = Vec::new();
    for (name, help) in after("# HELP ") {
        let kind = kinds.get(name).with_context(|| format!("{name} has no type"))?;
        let suffix = match *kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        rows.push(format!("| `{name}{suffix}` | {kind} | {} |\n", help.trim_end_matches('.')));
    }
    rows.sort();
    Ok(rows.concat())
}

/// The same on every machine: no environment, no width of a terminal.
fn help(program: &Path, command: &str) -> Result<String> {
    let arguments = command.split_whitespace().chain(["--help"]);
    let output = Command::new(program).args(arguments).env_clear().output()?;
    ensure!(output.status.success(), "{} {command} --help fails", program.display());
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().map(|line| format!("{}\n", line.trim_end())).collect())
}

fn golden(path: &Path, text: &str) -> Result<()> {
    #[allow(clippy::disallowed_methods, reason = "a switch of the test runner, not of the mesh")]
    if std::env::var("UPDATE_GOLDEN").is_ok() {
        std::fs::create_dir_all(path.parent().context("no folder")?)?;
        std::fs::write(path, text)?;
    }
    let known = std::fs::read_to_string(path).unwrap_or_default();
    ensure!(known == text, "{} is not what the programs say; UPDATE_GOLDEN=1 writes it anew", path.display());
    Ok(())
}
