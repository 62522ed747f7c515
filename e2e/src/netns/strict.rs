//! STRICT, seen from outside of the mesh: no plaintext gets in, whichever address and port it is sent to. And
//! what is meant to pass by: clients and servers without the mesh, excluded ports and ranges, UDP.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_test::client::{Dialer, HttpClient, Names};
use mesh_test::manifest::peer_authentication;
use mesh_test::namespace;
use mesh_test::place::Place;
use mesh_test::server::Server;
use mesh_test::topology::{App, NAMESPACE, PodSpec, ServiceSpec, Topology};
use mesh_test::wait::{self, PATIENCE};
use mesh_test::world::World;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

/// How long a refusal may take.
const SOON: Duration = Duration::from_secs(3);
/// What the mesh knows of; what it does not; what others use; and all that the mesh itself uses.
const PORTS: [u16; 14] =
    [8080, 8081, 80, 22, 443, 9999, 15_000, 15_001, 15_006, 15_008, 15_020, 15_021, 15_053, 15_090];

/// Where the proxy answers the kubelet and Prometheus, whatever the policy.
const OWN_PAGES: [u16; 3] = [15020, 15021, 15090];

pub(super) fn strict_world() -> Topology {
    Topology::default()
        .pod(PodSpec::client("web"))
        .pod(PodSpec::server("reviews", App::Http).also(1, App::TcpEcho))
        .pod(PodSpec::client("stranger").outside_the_mesh())
        .service(ServiceSpec::new("reviews", "http"))
        .file("mode.yaml", peer_authentication(NAMESPACE, "STRICT"))
}

pub(super) async fn strict_refuses_plaintext(world: &World) -> Result<()> {
    let (pod, stranger) = (world.pod("reviews")?, world.pod("stranger")?);
    let service = world.service_ip("reviews")?;
    // A network that sends the service's address to the pod as it is, as some load balancers do.
    let route = format!("route add {service}/32 via {}", pod.ip());
    namespace::ip(&route)?;
    stranger.place().run(move || namespace::ip(&route)).await??;
    let mut tried = 0;
    for (who, from) in [("the node", &Place::Here), ("a pod without the mesh", stranger.place())] {
        for ip in [pod.ip(), service] {
            for port in PORTS {
                for (what, bytes) in
                    [("HTTP", &b"GET / HTTP/1.1\r\nHost: reviews\r\n\r\n"[..]), ("TCP", b"hello\r\n")]
                {
                    let heard = heard(from, SocketAddr::new(ip, port), bytes).await;
                    // The proxy itself answers there, the kubelet and Prometheus alone have something to ask.
                    let refused = [&b"HTTP/1.1 404 "[..], b"HTTP/1.1 400 "];
                    let own = OWN_PAGES.contains(&port) && refused.iter().any(|head| heard.starts_with(head));
                    ensure!(heard.is_empty() || own, "{who} sent {what} to {ip}:{port} and heard {heard:?}");
                    tried += 1;
                }
            }
        }
    }
    crate::runner::figure("ways of plaintext to STRICT that were refused", tried);
    let server = pod.server()?;
    ensure!(server.requests() == 0, "the application saw {} requests", server.requests());
    let log = pod.sidecar()?.log().await;
    ensure!(log.contains("10.77.0.1:"), "the log does not say where plaintext came from:\n{log}");
    world.client("web")?.get("http://reviews/").await?.echo().context("a client of the mesh")?;
    // The same ways are open as soon as the policy says so: what was seen is the policy.
    world.edit("mode.yaml", &peer_authentication(NAMESPACE, "PERMISSIVE"))?;
    for (port, bytes) in [(8080, &b"GET / HTTP/1.1\r\nHost: reviews\r\n\r\n"[..]), (8081, b"hello\r\n")] {
        wait::until_ok("plaintext is taken", PATIENCE, async || {
            for from in [&Place::Here, stranger.place()] {
                let heard = heard(from, SocketAddr::new(pod.ip(), port), bytes).await;
                ensure!(!heard.is_empty(), "nothing heard from port {port}");
            }
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// What comes back from `to` when these bytes are sent to it.
async fn heard(from: &Place, to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut heard = vec![0; 256];
    let talk = async {
        let mut stream = from.connect(to).await?;
        stream.write_all(bytes).await?;
        anyhow::Ok(stream.read(&mut heard).await?)
    };
    let length = timeout(SOON, talk).await.map_or(0, |heard| heard.unwrap_or(0));
    heard.truncate(length);
    heard
}

pub(super) fn legacy_world() -> Topology {
    Topology::default()
        .pod(PodSpec::client("web"))
        .pod(PodSpec::server("reviews", App::Http))
        .pod(PodSpec::server("legacy", App::Http).outside_the_mesh())
        .service(ServiceSpec::new("reviews", "http"))
        .service(ServiceSpec::new("legacy", "http"))
}

pub(super) async fn neighbours_without_the_mesh(world: &World) -> Result<()> {
    let web = world.client("web")?;
    for _ in 0..4 {
        let echo = web.get("http://legacy/").await?.echo()?;
        ensure!(echo.pod == "legacy", "it was {}", echo.pod);
    }
    let to_legacy = [("reporter", "source"), ("destination_service_name", "legacy")];
    world.counted("web", "istio_requests_total", &to_legacy, 4).await?;
    // And the other way round: the client does not know of the mesh.
    let legacy = HttpClient::with(Dialer::Straight(world.pod("legacy")?.place().clone(), Names::default()));
    for _ in 0..3 {
        legacy.get(&format!("http://{}/", world.pod("reviews")?.address())).await?.echo()?;
    }
    let plain = [("reporter", "destination"), ("connection_security_policy", "none")];
    world.counted("reviews", "istio_requests_total", &plain, 3).await
}

pub(super) fn excluded_world() -> Topology {
    Topology::default()
        .pod(
            PodSpec::client("web")
                .redirect("--exclude-outbound-ports=9000-9010,9999")
                .redirect("--exclude-outbound-ranges=198.18.0.0/16"),
        )
        .pod(
            PodSpec::server("reviews", App::Http).also(1, App::Http).redirect("--exclude-inbound-ports=8081"),
        )
        .pod(PodSpec::server("open", App::Http).redirect("--exclude-inbound-ranges=10.77.0.1/32"))
        .service(ServiceSpec::new("reviews", "http"))
        .file("mode.yaml", peer_authentication(NAMESPACE, "STRICT"))
}

pub(super) async fn excluded_ports_bypass(world: &World) -> Result<()> {
    // Into the pod: STRICT holds for what is captured only.
    let straight = HttpClient::with(Dialer::Straight(Place::Here, Names::default()));
    let at =
        |pod: &str, port: u16| Ok::<_, anyhow::Error>(format!("http://{}:{port}/", world.pod(pod)?.ip()));
    straight.get(&at("reviews", 8081)?).await?.echo().context("an excluded port")?;
    straight.get(&at("open", 8080)?).await?.echo().context("an excluded range")?;
    ensure!(straight.get(&at("reviews", 8080)?).await.is_err(), "a captured port took plaintext");
    for pod in ["reviews", "open"] {
        world.counted(pod, "istio_requests_total", &[], 0).await?;
    }
    // Out of the pod: what passes by is not counted either.
    let web = world.client("web")?;
    let mut servers = Vec::new();
    for port in [9_000, 9_010, 9_999, 9_011] {
        let any = SocketAddr::from(([0, 0, 0, 0], port));
        servers.push(Server::start_in(&Place::Here, App::Http, any, "outside", "").await?);
    }
    for (target, captured) in [
        ("198.19.0.1:9000", false),
        ("198.19.0.1:9010", false),
        ("198.19.0.1:9999", false),
        ("198.18.0.1:9011", false),
        ("198.19.0.1:9011", true),
    ] {
        let before = opened(world).await?;
        web.get(&format!("http://{target}/")).await?.echo().with_context(|| target.to_owned())?;
        wait::until_ok(target, PATIENCE, async || {
            let new = opened(world).await? - before;
            ensure!(new == f64::from(u8::from(captured)), "{new} connections were counted");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// Opaque connections that the client's sidecar has carried.
async fn opened(world: &World) -> Result<f64> {
    let metrics = world.pod("web")?.sidecar()?.metrics().await?;
    Ok(metrics.sum("istio_tcp_connections_opened_total", &[]))
}

pub(super) async fn udp_is_untouched(world: &World) -> Result<()> {
    let (web, reviews) = (world.pod("web")?, world.pod("reviews")?);
    // The ports of DNS, of the mesh itself, and any other.
    for port in [53, 15_001, 15_006, 9_999] {
        let at = SocketAddr::new(reviews.ip(), port);
        let server = reviews.place().udp(at).await?;
        let client = web.place().udp(SocketAddr::new(web.ip(), 0)).await?;
        client.send_to(b"ping", at).await?;
        let mut bytes = [0; 16];
        let (length, peer) =
            timeout(PATIENCE, server.recv_from(&mut bytes)).await.context("no datagram")??;
        ensure!(bytes[..length] == *b"ping" && peer == client.local_addr()?, "{peer} sent another datagram");
        server.send_to(b"pong", peer).await?;
        let (length, from) = timeout(PATIENCE, client.recv_from(&mut bytes)).await.context("no answer")??;
        ensure!(bytes[..length] == *b"pong" && from == at, "{from} answered");
    }
    Ok(())
}
