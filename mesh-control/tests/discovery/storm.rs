//! A thousand proxies that come back at once, against the real program: it must not need much more memory than
//! with the thousand connected, and all of them have to be in sync soon.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use mesh_common::trust::TrustBundle;
use mesh_common::xds::ResourceType::{Cluster, Endpoints, Listener, Secret};
use mesh_test::process::Process;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::{NamedPod, SERVER_NAME, Stream, connect_from, node_of, versions};
use crate::world::{Signer, service_manifest, slice_of, until, write};

const PROXIES: usize = 1_000;
const SERVICES: usize = 20;
/// Of both ends, with what the test needs beside the connections.
const DESCRIPTORS: u64 = 1_200;

fn pods() -> Vec<NamedPod> {
    let pod = |n: usize| NamedPod {
        name: format!("pod-{n}"),
        account: format!("account-{}", n % SERVICES),
        ip: format!("127.31.{}.{}", n / 250, n % 250 + 1),
    };
    (0..PROXIES).map(pod).collect()
}

fn write_manifests(config: &Path, pods: &[NamedPod]) {
    for chunk in pods.chunks(100) {
        let text: Vec<String> = chunk.iter().map(NamedPod::manifest).collect();
        write(config, &format!("{}.yaml", chunk[0].name), &text.join("---\n"));
    }
    for n in 0..SERVICES {
        let own: Vec<(&str, &str)> =
            pods.iter().skip(n).step_by(SERVICES).map(|pod| (pod.name.as_str(), pod.ip.as_str())).collect();
        let service = service_manifest(&format!("service-{n}"), &format!("10.96.1.{n}"));
        write(
            config,
            &format!("service-{n}.yaml"),
            &(service + "---\n" + &slice_of(&format!("service-{n}"), &own)),
        );
    }
}

/// What a proxy holds that calls three services. `held`: from its last stream.
async fn synced(
    at: SocketAddr,
    bundle: TrustBundle,
    pod: NamedPod,
    token: String,
    held: HashMap<String, String>,
) -> (Stream, HashMap<String, String>) {
    let channel = loop {
        let from = format!("{}:0", pod.ip).parse().unwrap();
        match connect_from(from, at, &bundle, SERVER_NAME, None).await {
            Ok(channel) => break channel,
            // The server's queue is full: a proxy waits and tries again.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    let mut stream = Stream::over(channel, Some(&token), node_of(&pod)).await.unwrap();
    let number: usize = pod.name["pod-".len()..].parse().unwrap();
    let services: Vec<usize> = (0..3).map(|n| (number + n * 7) % SERVICES).collect();
    let clusters: Vec<String> =
        services.iter().map(|n| format!("outbound|80||service-{n}.shop.svc.cluster.local")).collect();
    let mut listeners: Vec<String> = services.iter().map(|n| format!("10.96.1.{n}:80")).collect();
    listeners.extend(["virtualOutbound".to_owned(), format!("inbound/shop/{}", pod.name)]);
    let mut seen = HashMap::new();
    for (kind, names) in [
        (Secret, &vec!["ROOTCA".to_owned()]),
        (Listener, &listeners),
        (Cluster, &clusters),
        (Endpoints, &clusters),
    ] {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        if held.is_empty() {
            let response = stream.look_up(kind, &names).await;
            assert_eq!(response.resources.len(), names.len());
            seen.extend(
                versions(&response).into_iter().map(|(name, version)| (format!("{kind:?}/{name}"), version)),
            );
        } else {
            let prefix = format!("{kind:?}/");
            let own =
                held.iter().filter_map(|(key, v)| Some((key.strip_prefix(&prefix)?.to_owned(), v.clone())));
            stream.resume(kind, &names, own.collect()).await;
        }
    }
    if !held.is_empty() {
        // Answered after all that was asked before: the stream is in sync.
        let marker = stream.look_up(Secret, &["default"]).await;
        assert_eq!(
            (marker.resources.len(), marker.removed_resources.len()),
            (0, 1),
            "only what changed is sent"
        );
        seen = held;
    }
    (stream, seen)
}

fn descriptor_limit() -> u64 {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    line.split_whitespace().nth(3).unwrap().parse().unwrap_or(u64::MAX)
}

struct Control {
    process: Process,
    config: tempfile::TempDir,
    state: tempfile::TempDir,
    xds: SocketAddr,
}

async fn start(pods: &[NamedPod]) -> Control {
    let (config, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_manifests(config.path(), pods);
    let file = state.path().join("addresses.json");
    let (config_dir, state_dir) = (config.path().as_os_str(), state.path().as_os_str());
    let free = "127.0.0.1:0".as_ref();
    let arguments = [
        ("--config-dir".as_ref(), config_dir),
        ("--state-dir".as_ref(), state_dir),
        ("--xds-address".as_ref(), free),
        ("--admin-address".as_ref(), free),
        ("--address-file".as_ref(), file.as_os_str()),
    ];
    let arguments =
        arguments.into_iter().flat_map(|(flag, value): (&std::ffi::OsStr, _)| [flag.into(), value.into()]);
    let program = Path::new(env!("CARGO_BIN_EXE_mesh-control"));
    let log = state.path().join("log");
    let mut process = Process::start("mesh-control", program, arguments.collect(), log).await.unwrap();
    let probe = async || {
        let text = std::fs::read_to_string(&file).ok()?;
        let addresses: serde_json::Value = serde_json::from_str(&text).ok()?;
        addresses["xds"].as_str()?.parse().ok()
    };
    let (xds, _) = process.wait(probe).await.unwrap();
    Control { process, config, state, xds }
}

type Connected = Vec<(NamedPod, Stream, HashMap<String, String>)>;

async fn connect_all(
    control: &Control,
    pods: Vec<(NamedPod, HashMap<String, String>)>,
    at_once: usize,
) -> (Connected, f64) {
    let bundle = std::fs::read_to_string(control.state.path().join("root-cert.pem")).unwrap();
    let bundle = TrustBundle::from_pem(&bundle).unwrap();
    let signer = Signer::of(control.state.path());
    let (mut running, mut connected, mut peak) = (JoinSet::new(), Vec::new(), 0.0_f64);
    let mut pods = pods.into_iter();
    loop {
        while running.len() < at_once {
            let Some((pod, held)) = pods.next() else { break };
            let (bundle, xds) = (bundle.clone(), control.xds);
            let token = signer.token(&pod.name, &pod.account, "mesh-ca", 600);
            running.spawn(async move {
                let (stream, held) = synced(xds, bundle, pod.clone(), token, held).await;
                (pod, stream, held)
            });
        }
        let Some(done) = running.join_next().await else { break };
        connected.push(done.unwrap());
        if connected.len() % 20 == 0 {
            peak = peak.max(control.process.resident_mb().unwrap());
        }
    }
    (connected, peak.max(control.process.resident_mb().unwrap()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_proxies_come_back_at_once() {
    assert!(descriptor_limit() >= DESCRIPTORS, "this test needs `ulimit -n {DESCRIPTORS}`");
    let pods = pods();
    let mut control = start(&pods).await;
    let empty = control.process.resident_mb().unwrap();
    let fresh = pods.into_iter().map(|pod| (pod, HashMap::new())).collect();
    let begin = Instant::now();
    let (connected, _) = connect_all(&control, fresh, 20).await;
    let steady = control.process.resident_mb().unwrap();
    println!(
        "{PROXIES} proxies connected in {:?}: {empty:.1} MB before, {steady:.1} MB with them",
        begin.elapsed()
    );

    let mut back = Vec::new();
    for (pod, stream, held) in connected {
        drop(stream);
        back.push((pod, held));
    }
    let begin = Instant::now();
    let (connected, peak) = connect_all(&control, back, PROXIES).await;
    let took = begin.elapsed();
    println!("all came back at once: in sync after {took:?}, {peak:.1} MB at most");
    assert_eq!(connected.len(), PROXIES);
    assert!(took < Duration::from_secs(30), "{took:?}");
    assert!(peak <= 2.0 * steady, "{peak:.1} MB is more than twice {steady:.1} MB");

    // And they are told of changes.
    let mut connected = connected;
    let name = "outbound|80||service-0.shop.svc.cluster.local";
    write(control.config.path(), "service-0.yaml", &service_manifest("service-0", "10.96.1.0"));
    let (_, stream, _) = connected
        .iter_mut()
        .find(|(_, _, held)| held.contains_key(&format!("{Endpoints:?}/{name}")))
        .expect("somebody watches it");
    until("the change", async || stream.told().await.contains(&format!("eds {name}")).then_some(())).await;
    control.process.terminate().await.unwrap();
    drop(connected);
    assert!(control.process.ended(Duration::from_secs(20)).await.unwrap().success());
}
