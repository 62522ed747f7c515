//! Networks that lose packets, peers that are gone without a word, and proxies that are killed.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_test::client::HttpClient;
use mesh_test::load::{self, Load};
use mesh_test::manifest::peer_authentication;
use mesh_test::namespace;
use mesh_test::slow_wire::{Quality, SlowWire};
use mesh_test::topology::{App, NAMESPACE, PodSpec, ServiceSpec, Topology};
use mesh_test::wait::{self, PATIENCE};
use mesh_test::world::World;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::runner::figure;

const MARKER: &str = "the-payloads-own-marker";

pub(super) fn echo_world() -> Topology {
    Topology::default()
        .pod(PodSpec::client("web"))
        .pod(PodSpec::server("echo", App::TcpEcho))
        .pod(PodSpec::server("reviews", App::Http))
        .service(ServiceSpec::new("echo", "tcp"))
        .service(ServiceSpec::new("reviews", "http"))
}

pub(super) async fn a_silent_peer_is_noticed(world: &World) -> Result<()> {
    let client = world.client("web")?;
    client.get("http://reviews/").await?.echo()?;
    let mut idle = world.pod("web")?.dial("echo", 80).await?;
    idle.write_all(b"hello").await?;
    idle.read_exact(&mut [0; 5]).await?;
    let mut waiting = world.pod("web")?.dial("reviews", 80).await?;
    waiting.write_all(b"GET /delay/60000 HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n").await?;
    let reviews = world.pod("reviews")?.server()?;
    wait::until("the request is under way", PATIENCE, async || (reviews.requests() == 2).then_some(()))
        .await?;
    let mut late = world.pod("web")?.dial("reviews", 80).await?;
    // The wires of both servers are cut: no word reaches anyone.
    for pod in ["pod2", "pod3"] {
        namespace::ip(&format!("link set {pod} down"))?;
    }
    let cut = Instant::now();
    let ended = async |mut stream: TcpStream| {
        let mut said = Vec::new();
        let end = stream.read_to_end(&mut said).await;
        (cut.elapsed(), String::from_utf8_lossy(&said).into_owned(), end)
    };
    late.write_all(b"GET / HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n").await?;
    let all = async { tokio::join!(ended(waiting), ended(late), ended(idle)) };
    let (waiting, late, idle) =
        timeout(Duration::from_secs(200), all).await.context("a silent peer is not noticed")?;
    for (what, (took, said, end), limit) in [
        ("a request that waits for its answer", waiting, 110),
        ("a request that is sent then", late, 110),
        ("an idle connection", idle, 90),
    ] {
        figure(&format!("{what}, the peer is gone: ends after"), format!("{took:?}"));
        ensure!(took < Duration::from_secs(limit), "{what} ended after {took:?}");
        let reset = said.is_empty() && what == "an idle connection";
        ensure!(reset || said.starts_with("HTTP/1.1 50"), "{what}: {said:?}, {end:?}");
    }
    for pod in ["pod2", "pod3"] {
        namespace::ip(&format!("link set {pod} up"))?;
    }
    wait::until_ok("the mesh is whole again", PATIENCE, async || {
        client.get("http://reviews/").await?.echo().map(drop)
    })
    .await
}

pub(super) async fn a_lossy_network(world: &World) -> Result<()> {
    const QUALITY: Quality = Quality { delay: Duration::from_millis(50), lost_per_mille: 20 };
    let mut wires = Vec::new();
    for (host, pod) in [(1, "web"), (2, "echo"), (3, "reviews")] {
        world.pod(pod)?.place().run(|| namespace::run("ethtool", "-K eth0 tx off")).await??;
        wires.push(SlowWire::of(host, QUALITY)?);
    }
    let report = load::send(&world.client("web")?, "http://reviews/", 500, 10).await;
    report.no_failure()?;
    figure("500 requests, 2 % lost and 50 ms late: the slowest took", format!("{:?}", report.slowest));
    // There and back over two wires each: what is faster did not take them.
    ensure!(report.slowest > QUALITY.delay * 4, "the wires are not slow");
    let mut stream = world.pod("web")?.dial("echo", 80).await?;
    let sent: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    let mut back = vec![0; sent.len()];
    let (mut read, mut write) = stream.split();
    let through = async { tokio::try_join!(write.write_all(&sent), read.read_exact(&mut back)) };
    timeout(Duration::from_secs(120), through).await.context("a megabyte did not get through")??;
    ensure!(sent == back, "other bytes came back");
    let lost: u64 = wires.iter().map(|wire| wire.counts().1).sum();
    figure("frames lost meanwhile", lost);
    ensure!(lost > 10, "only {lost} frames were lost");
    world.counted("web", "istio_requests_total", &[("response_code", "200")], 500).await?;
    let mtls = [("reporter", "destination"), ("connection_security_policy", "mutual_tls")];
    world.counted("reviews", "istio_requests_total", &mtls, 500).await
}

pub(super) fn killed_world() -> Topology {
    Topology::default()
        .pod(PodSpec::client("web").relayed())
        .pod(PodSpec::server("reviews", App::Http))
        .service(ServiceSpec::new("reviews", "http"))
        .file("mode.yaml", peer_authentication(NAMESPACE, "STRICT"))
}

pub(super) async fn proxies_killed(world: &World) -> Result<()> {
    let url = format!("http://reviews/{MARKER}");
    let (client, wire) = (world.client("web")?, world.pod("web")?.wire()?);
    client.get(&url).await?.echo()?;
    let straight = async || HttpClient::new(world.pod("reviews")?.address()).get("http://reviews/").await;
    for with_control in [true, false] {
        if !with_control {
            world.kill_control().await?;
        }
        for name in ["web", "reviews"] {
            let what = format!("{name} killed, mesh-control runs: {with_control}");
            let sidecar = world.pod(name)?.sidecar()?;
            let load = Load::start(&client, &url, 100);
            wait::until("the load runs", PATIENCE, async || (load.report().sent > 20).then_some(())).await?;
            sidecar.kill().await?;
            // Meanwhile nothing gets out of the pod, nor in, but by the proxy that is not there.
            let sent = load.report().sent;
            wait::until("the load goes on", PATIENCE, async || {
                (load.report().sent > sent + 30).then_some(())
            })
            .await?;
            ensure!(straight().await.is_err(), "{what}: plaintext got in");
            let started = Instant::now();
            sidecar.restart().await.with_context(|| what.clone())?;
            wait::until_ok("it serves again", PATIENCE, async || client.get(&url).await?.echo().map(drop))
                .await
                .with_context(|| what.clone())?;
            let took = started.elapsed();
            figure(&what, format!("serves again after {took:?}"));
            ensure!(took < Duration::from_secs(2), "{what}: served again only after {took:?}");
            load.stop().await?;
            ensure!(wire.count(MARKER.as_bytes()) == 0, "{what}: the payload was on the wire");
        }
    }
    ensure!(wire.len() > 10_000, "nobody looked at the wire");
    Ok(())
}
