//! The control plane: killed under load, lied to, run twice; and the figures that are promised.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use mesh_common::trust::{identity_of, parse_certificates};
use mesh_common::xds::ResourceType;
use mesh_common::xds::names::TOKEN_AUDIENCE;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use super::figure;
use super::routing::{REVIEWS, only, split};
use crate::binaries::binaries;
use crate::certs::signing_request;
use crate::client::{ControlClient, NodeName};
use crate::load::Load;
use crate::place::Place;
use crate::process::Process;
use crate::topology::{App, NAMESPACE};
use crate::wait::{self, PATIENCE};
use crate::world::{ControlAddresses, World};

pub(super) async fn control_killed_under_load(world: &World) -> Result<()> {
    let load = Load::start(&world.client("web")?, REVIEWS, 200);
    let running = async |more: u64| {
        let sent = load.report().sent;
        wait::until("the load runs", PATIENCE, async || (load.report().sent > sent + more).then_some(()))
            .await
    };
    running(200).await?;
    let before = versions(world).await?;
    world.kill_control().await?;
    running(400).await?;
    // A destination outside of the mesh that nobody asked for before.
    let outside = world.outside(App::TcpEcho).await?;
    let address = world.outside_address().to_string();
    let mut stream = world.pod("web")?.dial(&address, outside.address().port()).await?;
    stream.write_all(b"still there?").await?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await?;
    ensure!(answer == *b"still there?", "the new external address answered {answer:?}");
    for pod in ["web", "reviews-v1"] {
        ensure!(world.pod(pod)?.sidecar()?.is_ready().await, "{pod} is not ready any more");
    }
    world.restart_control().await?;
    wait::until_ok("all streams are back", PATIENCE, async || {
        let after = versions(world).await?;
        ensure!(after.len() == before.len() && after == before, "before {before:#?}\nafter {after:#?}");
        Ok(())
    })
    .await?;
    running(200).await?;
    // The new process met three proxies that had everything: it sent no resource.
    let metrics = world.control_metrics().await?;
    ensure!(metrics.sum("mesh_control_streams", &[]) == 3.0, "not three streams");
    let sent = metrics.sum("mesh_control_pushed_resources_total", &[]);
    ensure!(sent == 0.0, "{sent} resources were sent again");
    load.stop().await?.no_failure()
}

/// (pod, type, name, version) of all streams.
async fn versions(world: &World) -> Result<Vec<(String, String, String, String)>> {
    let page = world.control_page("/debug/streams").await?;
    let mut all = Vec::new();
    for stream in page.as_array().context("no list of streams")? {
        for (kind, held) in stream["types"].as_object().context("no types")? {
            for name in held["names"].as_array().context("no names")? {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                all.push((text(&stream["pod"]), kind.clone(), text(&name["name"]), text(&name["sent"])));
            }
        }
    }
    all.sort();
    Ok(all)
}

pub(super) async fn callers_without_right(world: &World) -> Result<()> {
    let root = std::fs::read_to_string(world.state().join("root-cert.pem"))?;
    let xds = world.addresses().xds;
    let good = world.token("web", "web", TOKEN_AUDIENCE).await?;
    let client = ControlClient::connect(xds, &root, Some(&good)).await?;
    // A request for another identity is signed with the caller's own, or not at all.
    let (csr, _) = signing_request("spiffe://cluster.local/ns/shop/sa/reviews")?;
    if let Ok(chain) = client.sign(&csr).await {
        let leaf = &parse_certificates(&chain.concat())?[0];
        ensure!(identity_of(leaf)?.service_account() == "web", "another's identity was signed");
    }
    let web = world.pod("web")?.ip();
    let node = NodeName { namespace: NAMESPACE, pod: "web", service_account: "web", ip: web };
    let name = "inbound/shop/web";
    client.ask(&node, ResourceType::Listener, name).await.context("an honest caller")?;
    let reviews = world.pod("reviews-v1")?.ip();
    for (what, node) in [
        ("another pod", NodeName { pod: "reviews-v1", service_account: "reviews", ip: reviews, ..node }),
        ("another's name", NodeName { pod: "reviews-v1", ..node }),
        ("another's account", NodeName { service_account: "reviews", ..node }),
        ("another's address", NodeName { ip: reviews, ..node }),
        ("nobody's address", NodeName { ip: Ipv4Addr::new(10, 9, 9, 9).into(), ..node }),
        ("another namespace", NodeName { namespace: "kube-system", ..node }),
    ] {
        match client.ask(&node, ResourceType::Listener, name).await {
            Ok(answer) => bail!("a stream for {what} got {answer:?}"),
            Err(status) => ensure!(is_refusal(&status), "{what}: {status}"),
        }
    }
    let tokens = [
        ("no token", None),
        ("no token at all", Some("a.b.c".to_owned())),
        ("another audience", Some(world.token("web", "web", "https://kubernetes.default.svc").await?)),
        ("a pod that does not exist", Some(world.token("ghost", "web", TOKEN_AUDIENCE).await?)),
        ("an account that is not the pod's", Some(world.token("web", "reviews", TOKEN_AUDIENCE).await?)),
        ("another pod's", Some(world.token("reviews-v1", "reviews", TOKEN_AUDIENCE).await?)),
    ];
    for (what, token) in tokens {
        let client = ControlClient::connect(xds, &root, token.as_deref()).await?;
        match client.ask(&node, ResourceType::Listener, name).await {
            Ok(answer) => bail!("a stream with {what} got {answer:?}"),
            Err(status) => ensure!(is_refusal(&status), "{what}: {status}"),
        }
        if what != "another pod's" {
            let (csr, _) = signing_request("spiffe://cluster.local/ns/shop/sa/web")?;
            ensure!(client.sign(&csr).await.is_err(), "a certificate was signed with {what}");
        }
    }
    Ok(())
}

fn is_refusal(status: &tonic::Status) -> bool {
    matches!(status.code(), tonic::Code::Unauthenticated | tonic::Code::PermissionDenied)
        && !status.message().is_empty()
}

pub(super) async fn two_controls_agree(world: &World) -> Result<()> {
    // Make every kind of resource exist at the first one.
    world.client("web")?.get(REVIEWS).await?.echo()?;
    let file = world.scratch().join("second.json");
    let mut arguments = vec!["--config-dir".into(), world.manifests().into_os_string()];
    arguments.extend(["--state-dir".into(), world.state().into_os_string()]);
    arguments.extend(["--xds-address=127.0.0.1:0".into(), "--admin-address=127.0.0.1:0".into()]);
    arguments.extend(["--address-file".into(), file.clone().into_os_string()]);
    let log = world.scratch().join("second.log");
    let mut second = Process::start("the second mesh-control", &binaries()?.control, arguments, log).await?;
    let read = async || serde_json::from_str::<ControlAddresses>(&std::fs::read_to_string(&file).ok()?).ok();
    let (second_addresses, _) = second.wait(read).await?;
    second.wait(async || crate::world::is_ready(&Place::Here, second_addresses.admin).await).await?;
    let mut compared = 0;
    for (pod, kind, name, version) in versions(world).await? {
        let name = http::Uri::builder()
            .path_and_query(format!("/?{name}"))
            .build()
            .map_or(name, |uri| uri.query().unwrap_or_default().to_owned());
        let name = name.replace('|', "%7C");
        let path = format!("/debug/resource?type={kind}&name={name}&namespace={NAMESPACE}&pod={pod}");
        let Ok(page) = crate::world::page(&Place::Here, second_addresses.admin, &path).await else {
            ensure!(version.is_empty(), "the second has no {kind} {name} for {pod}");
            continue;
        };
        ensure!(
            page["version"] == version.as_str(),
            "{kind} {name} for {pod}: {version} and {}",
            page["version"]
        );
        compared += 1;
    }
    ensure!(compared >= 10, "only {compared} resources were compared");
    Ok(())
}

pub(super) async fn figures(world: &World) -> Result<()> {
    let mut slowest = Duration::ZERO;
    let mut largest: f64 = 0.0;
    for pod in ["web", "reviews-v1", "reviews-v2"] {
        let sidecar = world.pod(pod)?.sidecar()?;
        slowest = slowest.max(sidecar.ready);
        largest = largest.max(sidecar.resident_mb().await?);
    }
    figure("sidecar, start to ready", format!("{slowest:?}"));
    figure("sidecar, resident memory when idle", format!("{largest:.1} MB"));
    let client = world.client("web")?;
    let before = Instant::now();
    client.get(REVIEWS).await?.echo()?;
    let first = before.elapsed();
    let before = Instant::now();
    client.get(REVIEWS).await?.echo()?;
    figure(
        "first request to a new destination adds",
        format!("{:?}", first.saturating_sub(before.elapsed())),
    );
    // From here on each split gives all to one, so that the first answer of the other tells.
    world.edit("route.yaml", &split(1, 0))?;
    only(&client, "reviews-v1").await?;
    let mut times = Vec::new();
    for round in 0..9 {
        let (v1, v2, pod) = if round % 2 == 0 { (0, 1, "reviews-v2") } else { (1, 0, "reviews-v1") };
        world.edit("route.yaml", &split(v1, v2))?;
        let edited = Instant::now();
        wait::until("the edit takes effect", PATIENCE, async || {
            (client.get(REVIEWS).await.ok()?.echo().ok()?.pod == pod).then_some(())
        })
        .await?;
        times.push(edited.elapsed());
    }
    times.sort();
    let median = times[times.len() / 2];
    figure("file change to effect, median", format!("{median:?}"));
    ensure!(median < Duration::from_millis(500), "an edit takes {median:?} at the median");
    // What holds for the optimised build only.
    if !cfg!(debug_assertions) {
        ensure!(largest < 15.0, "an idle sidecar has {largest} MB");
        ensure!(slowest < Duration::from_millis(200), "a sidecar is ready after {slowest:?}");
    }
    Ok(())
}
