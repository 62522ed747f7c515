//! A pod and itself: by its service, by its own address, on localhost; and the ports of its own proxy, by every
//! address there is.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_test::client::exchange;
use mesh_test::manifest::peer_authentication;
use mesh_test::place::Place;
use mesh_test::server::Server;
use mesh_test::topology::{App, Families, NAMESPACE, Topology};
use mesh_test::wait::{self, PATIENCE};
use mesh_test::world::World;
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

/// What a server's sidecar counts of a client that has proven who it is.
const MTLS: [(&str, &str); 2] = [("reporter", "destination"), ("connection_security_policy", "mutual_tls")];

pub(super) fn pair() -> Topology {
    Topology::pair("reviews", App::Http, "http")
}

pub(super) async fn calls_itself(world: &World) -> Result<()> {
    let pod = world.pod("reviews")?;
    let local = SocketAddr::from(([127, 0, 0, 1], 9_999));
    let _local = Server::start_in(pod.place(), App::Http, local, "local", "").await?;
    let client = world.client("reviews")?;
    for (round, mode) in [(1, "PERMISSIVE"), (2, "STRICT")] {
        world.edit("mode.yaml", &peer_authentication(NAMESPACE, mode))?;
        for _ in 0..5 {
            client.get("http://reviews/").await?.echo().with_context(|| format!("by its service, {mode}"))?;
        }
        for host in [pod.address().to_string(), local.to_string()] {
            client
                .get(&format!("http://{host}/"))
                .await?
                .echo()
                .with_context(|| format!("{host}, {mode}"))?;
        }
        // Through the service it is a client and a server of the mesh like others; else nobody is between.
        world.counted("reviews", "istio_requests_total", &MTLS, round * 5).await?;
        world.counted("reviews", "istio_requests_total", &[("reporter", "source")], round * 5).await?;
        world.counted("reviews", "istio_requests_total", &[], round * 10).await?;
    }
    Ok(())
}

pub(super) async fn own_ports_are_refused(world: &World) -> Result<()> {
    let (web, reviews) = (world.pod("web")?, world.pod("reviews")?);
    let inside = ["127.0.0.1", "127.0.0.2", &web.ip().to_string(), "[::1]"].map(str::to_owned);
    let outside = [web.ip().to_string()];
    let froms = [("the application", web.place(), &inside[..]), ("the network", &Place::Here, &outside[..])];
    let mut tried = 0;
    for (who, from, hosts) in froms {
        for host in hosts {
            for port in [15_001, 15_006] {
                tried += 1;
                let address: SocketAddr = format!("{host}:{port}").parse()?;
                let answered = is_answered(from, address).await;
                ensure!(!answered, "{who} got an answer from {address}");
            }
        }
    }
    // Through the mesh, to a pod's proxy by the pod's address: refused there, and counted.
    for port in [15_001, 15_006, 15_000] {
        let address = SocketAddr::new(reviews.ip(), port);
        ensure!(!is_answered(web.place(), address).await, "{address} answered through the mesh");
        tried += 1;
    }
    crate::runner::figure("dials of the proxy's own ports", tried);
    wait::until_ok("the refusals are counted", PATIENCE, async || {
        let metrics = reviews.sidecar()?.metrics().await?;
        let refused = metrics.sum("mesh_inbound_refused_total", &[("reason", "own_port")]);
        ensure!(refused >= 3.0, "counted {refused}");
        Ok(())
    })
    .await?;
    // Nothing goes round: the proxies have no open connection left, and still work.
    world.client("web")?.get("http://reviews/").await?.echo().map(drop)
}

/// Whether an HTTP request to this address gets an answer.
async fn is_answered(from: &Place, address: SocketAddr) -> bool {
    let ask = async {
        let stream = from.connect(address).await?;
        exchange(stream, "reviews", "/").await
    };
    matches!(timeout(PATIENCE, ask).await, Ok(Ok(reply)) if reply.status == 200)
}

pub(super) async fn says_why(world: &World) -> Result<()> {
    // A port that the service does not have: the application learns it in its own protocol.
    let reply = world.client("web")?.get("http://reviews:81/").await?;
    ensure!(reply.status.is_server_error() && reply.reason().contains("no such port"), "{reply}");
    // Who does not speak HTTP is disconnected at once.
    let mut stream = world.pod("web")?.dial("reviews", 81).await?;
    let closed = timeout(Duration::from_secs(5), stream.read(&mut [0])).await;
    ensure!(matches!(closed, Ok(Ok(0) | Err(_))), "the connection stayed open: {closed:?}");
    Ok(())
}

pub(super) fn dual_stack() -> Topology {
    pair().families(Families::Dual)
}

pub(super) fn ipv6_only() -> Topology {
    pair().families(Families::V6)
}

pub(super) async fn every_family(world: &World) -> Result<()> {
    world.edit("mode.yaml", &peer_authentication(NAMESPACE, "STRICT"))?;
    let (web, reviews) = (world.client("web")?, world.pod("reviews")?);
    let services = world.service_ips("reviews")?.into_iter().map(|ip| SocketAddr::new(ip, 80));
    let pods = reviews.ips().iter().map(|&ip| SocketAddr::new(ip, world.port()));
    let mut sent = 0;
    for address in services.chain(pods) {
        for _ in 0..5 {
            let echo =
                web.get(&format!("http://{address}/")).await?.echo().with_context(|| address.to_string())?;
            ensure!(echo.pod == "reviews", "{address} is {}", echo.pod);
            sent += 1;
        }
    }
    world.counted("reviews", "istio_requests_total", &MTLS, sent).await?;
    world.counted("web", "istio_requests_total", &[("reporter", "source")], sent).await?;
    // By every family: what is not of the mesh stays out, and a pod reaches itself.
    for &ip in reviews.ips() {
        let address = SocketAddr::new(ip, world.port());
        wait::until("plaintext is refused", PATIENCE, async || {
            (!is_answered(&Place::Here, address).await).then_some(())
        })
        .await?;
        world.client("reviews")?.get(&format!("http://{address}/")).await?.echo()?;
    }
    world.client("reviews")?.get("http://reviews/").await?.echo()?;
    world.counted("reviews", "istio_requests_total", &MTLS, sent + 1).await
}
