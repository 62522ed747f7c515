//! How a pod ends: its application at once, its sidecar when nobody needs it any more; and what kubelet and Prometheus
//! ask a pod's sidecar for.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use http::Request;
use http_body_util::Full;

use super::figure;
use super::routing::REVIEWS;
use crate::client::{Dialer, HttpClient, Names, Reply};
use crate::load::Load;
use crate::place::Place;
use crate::topology::{App, PodSpec, ServiceSpec, Topology};
use crate::wait::{self, PATIENCE};
use crate::world::World;

/// Two of three pods go, one after the other, before anybody has heard of it.
pub(super) async fn applications_exit_under_load(world: &World) -> Result<()> {
    let load = Load::start(&world.client("web")?, "http://pool/", 200);
    let go_on = async |requests: u64| {
        let sent = load.report().sent;
        let more = async || (load.report().sent > sent + requests).then_some(());
        wait::until("the load goes on", PATIENCE, more).await
    };
    wait::until("the load runs", PATIENCE, async || (load.report().by_pod.len() == 3).then_some(())).await?;
    let mut ends = Vec::new();
    for name in ["pool-a", "pool-b"] {
        let pod = world.pod(name)?;
        // On a cluster both are told at the same time, and the application is the faster one.
        let told = load.elapsed();
        pod.server()?.exit().await;
        ends.push((told, load.elapsed()));
        go_on(100).await?;
        pod.sidecar()?.command(&["drain"]).await?;
        pod.sidecar()?.terminate().await?;
        go_on(100).await?;
    }
    world.set_endpoints("pool", &["pool-c"])?;
    for name in ["pool-a", "pool-b"] {
        ensure!(world.pod(name)?.sidecar()?.ended(PATIENCE * 2).await?, "{name} did not exit with 0");
    }
    go_on(100).await?;
    let report = load.stop().await?;
    // Nobody may send those again that were inside an application when it ended.
    let (inside, lost) = report.lost(&ends);
    figure("requests inside two applications when they ended", inside);
    ensure!(lost.is_empty(), "{} of {} were lost: {lost:#?}", lost.len(), report.sent);
    Ok(())
}

/// A request over a connection of its own, which takes a while.
async fn slowly(world: &World, url: &str) -> Result<()> {
    let request = Request::post(format!("{url}delay/100")).body(Full::from("x"))?;
    world.client("web")?.send(request).await?.echo().map(drop)
}

pub(super) async fn outbound_while_draining(world: &World) -> Result<()> {
    let web = world.pod("web")?.sidecar()?;
    web.command(&["wait", "--timeout=10s"]).await?;
    for _ in 0..2 {
        web.command(&["drain"]).await.context("again is no error")?;
    }
    // Longer than the window for inbound connections, and than the application may rest after SIGTERM.
    for told in ["preStop", "SIGTERM"] {
        if told == "SIGTERM" {
            web.terminate().await?;
        }
        for _ in 0..25 {
            slowly(world, REVIEWS).await.with_context(|| format!("after {told}"))?;
        }
    }
    ensure!(web.ended(PATIENCE).await?, "it did not exit with 0");
    let gone = web.command(&["drain"]).await;
    ensure!(gone.as_ref().is_err_and(|error| error.to_string().contains("no proxy answers")), "{gone:?}");
    world.counted("reviews", "istio_requests_total", &[], 50).await
}

const PROBES: &str = r#"{"/app-health/app/readyz":{"httpGet":{"path":"/status/204","port":PORT}},
    "/app-health/app/livez":{"httpGet":{"path":"/status/500","port":PORT}},
    "/app-health/app/startupz":{"tcpSocket":{"port":PORT}}}"#;

pub(super) fn pages_world() -> Topology {
    let server = PodSpec::server("reviews", App::Http)
        .argument(&format!("--app-probes={PROBES}"))
        .argument(r#"--app-metrics={"port":PORT,"path":"/metrics"}"#);
    Topology::default().pod(PodSpec::client("web")).pod(server).service(ServiceSpec::new("reviews", "http"))
}

pub(super) async fn pages_of_the_pod(world: &World) -> Result<()> {
    let (pod, sidecar) = (world.pod("reviews")?, world.pod("reviews")?.sidecar()?);
    let at = |addresses: &[SocketAddr]| {
        let port = addresses.first().context("the port is not open")?.port();
        anyhow::Ok(SocketAddr::new(pod.ip(), port))
    };
    let addresses = &sidecar.addresses;
    let (status, ready, stats) = (at(&addresses.status)?, at(&addresses.ready)?, at(&addresses.stats)?);
    world.client("web")?.get(REVIEWS).await?.echo()?;
    for (port, path, expected, words) in [
        (ready, "/healthz/ready", 200, "ready"),
        (status, "/healthz/ready", 200, "ready"),
        (stats, "/stats/prometheus", 200, "# TYPE istio_requests_total counter"),
        (status, "/stats/prometheus", 200, "# TYPE istio_requests_total counter"),
        (status, "/app-health/app/readyz", 200, "passed"),
        (status, "/app-health/app/livez", 503, "status 500"),
        (status, "/app-health/app/startupz", 200, "passed"),
        (status, "/app-health/other/readyz", 404, "no page"),
        (status, "/", 404, "no page"),
        (ready, "/stats/prometheus", 404, "no page"),
        (stats, "/healthz/ready", 404, "no page"),
    ] {
        let reply = get(port, path).await?;
        let body = String::from_utf8_lossy(&reply.body);
        ensure!(reply.status == expected && body.contains(words), "{port}{path}: {reply}");
    }
    sidecar.command(&["drain"]).await?;
    let draining = get(ready, "/healthz/ready").await?;
    ensure!(draining.status == 503 && draining.body == "draining\n", "{draining}");
    Ok(())
}

/// As kubelet asks: from outside of the pod, and of the mesh.
async fn get(port: SocketAddr, path: &str) -> Result<Reply> {
    let client = HttpClient::with(Dialer::Straight(Place::Here, Names::default()));
    client.get(&format!("http://{port}{path}")).await
}
