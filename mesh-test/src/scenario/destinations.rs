//! What a client may dial: pods by their own address, names outside of the mesh, services with several ports,
//! services whose endpoints somebody else says, services of another namespace.

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{MTLS, add_up};
use crate::client::Dialer;
use crate::manifest::{self, bare_slice};
use crate::topology::{App, NAMESPACE, PodSpec, ServiceSpec, Topology};
use crate::wait::{self, PATIENCE};
use crate::world::{OUTSIDE, World};

const CLIENT_CERT: &str = "x-forwarded-client-cert";
const WEB: &str = "URI=spiffe://cluster.local/ns/shop/sa/web";

pub(super) fn stateful_world() -> Topology {
    let replica = |name: &str| PodSpec::server(name, App::Http).app("db").service_account(name);
    Topology::pair("reviews", App::Http, "http")
        .pod(replica("db-0"))
        .pod(replica("db-1"))
        .service(ServiceSpec::new("db", "http").headless())
}

pub(super) async fn pods_by_address(world: &World) -> Result<()> {
    let client = world.client("web")?;
    for name in ["reviews", "db-0", "db-1"] {
        let pod = world.pod(name)?;
        for _ in 0..10 {
            let echo = client.get(&format!("http://{}/", pod.address())).await?.echo()?;
            ensure!(echo.pod == name, "the address of {name} leads to {}", echo.pod);
            let cert = echo.headers.get(CLIENT_CERT).map(String::as_str).unwrap_or_default();
            ensure!(cert.ends_with(WEB), "{name} was told the client {cert:?}");
        }
        // Its own identity, not that of some service.
        let principal = format!("spiffe://cluster.local/ns/shop/sa/{name}");
        let source = [("reporter", "source"), ("destination_principal", &*principal)];
        world.counted("web", "istio_requests_total", &source, 10).await?;
        world.counted(name, "istio_requests_total", &MTLS, 10).await?;
        world.counted(name, "istio_requests_total", &[], 10).await?;
    }
    // By the name that a StatefulSet's pod has.
    let db0 = world.pod("db-0")?.address();
    for host in ["db-0.db", "db-0.db.shop.svc.cluster.local"] {
        let echo = client.get(&format!("http://{host}:{}/", db0.port())).await?.echo()?;
        ensure!(echo.pod == "db-0", "{host} leads to {}", echo.pod);
    }
    let headless = [("reporter", "source"), ("destination_service_name", "db")];
    world.counted("web", "istio_requests_total", &headless, 22).await?;
    world.counted("db-0", "istio_requests_total", &MTLS, 12).await
}

pub(super) fn partner_world() -> Topology {
    Topology::default()
        .pod(PodSpec::client("web"))
        .service(ServiceSpec::new("partner", "http").external_name(OUTSIDE))
}

pub(super) async fn external_name(world: &World) -> Result<()> {
    let (http, tcp) = (world.outside(App::Http).await?, world.outside(App::TcpEcho).await?);
    let client = world.client("web")?;
    for host in ["partner", "partner.shop.svc.cluster.local"] {
        for _ in 0..5 {
            let echo = client.get(&format!("http://{host}:{}/", http.address().port())).await?.echo()?;
            ensure!(echo.pod == "outside", "{host} leads to {}", echo.pod);
            ensure!(!echo.headers.contains_key(CLIENT_CERT), "it was told {:?}", echo.headers);
        }
    }
    let mut stream = world.pod("web")?.dial("partner", tcp.address().port()).await?;
    ping(&mut stream).await?;
    drop(stream);
    if let Dialer::Straight(..) = world.pod("web")?.dialer() {
        // The application has asked DNS, and the mesh sees an address that is none of its own: it passes, as
        // bytes. The client keeps the connection of its requests.
        let passed = [("reporter", "source"), ("destination_service_name", "PassthroughCluster")];
        return world.counted("web", "istio_tcp_connections_closed_total", &passed, 1).await;
    }
    let service = ("destination_service", "partner.shop.svc.cluster.local");
    let requests = [("reporter", "source"), service, ("destination_principal", "unknown")];
    world.counted("web", "istio_requests_total", &requests, 10).await?;
    let connections = [("reporter", "source"), service];
    world.counted("web", "istio_tcp_connections_closed_total", &connections, 1).await
}

const SETTINGS: &str = "mesh.yaml";

fn policy(mode: &str) -> String {
    format!("kind: MeshConfig\noutboundTrafficPolicy:\n  mode: {mode}\n")
}

pub(super) fn registry_world() -> Topology {
    Topology::pair("reviews", App::Http, "http")
        .service(ServiceSpec::new("partner", "http").external_name(OUTSIDE))
        .file(SETTINGS, policy("REGISTRY_ONLY"))
}

pub(super) async fn registry_only(world: &World) -> Result<()> {
    let (outside, client) = (world.outside(App::Http).await?, world.client("web")?);
    let port = outside.address().port();
    let url = format!("http://{OUTSIDE}:{port}/");
    // With a reason where an answer is possible.
    if let Ok(reply) = client.get(&url).await {
        ensure!(reply.status == 503 && reply.reason().contains("REGISTRY_ONLY"), "let through: {reply}");
    }
    if let Ok(mut stream) = world.pod("web")?.dial(OUTSIDE, port).await {
        ensure!(ping(&mut stream).await.is_err(), "the tunnel is let through");
    }
    ensure!(outside.connections() == 0, "{} connections arrived", outside.connections());
    // What somebody registered is let through.
    client.get("http://reviews/").await?.echo()?;
    world.counted("reviews", "istio_requests_total", &MTLS, 1).await?;
    if let Dialer::Straight(..) = world.pod("web")?.dialer() {
        // Seen by its address it is one connection like the other; no request was read.
        let refused = ("mesh_outbound_refused_total", [("reason", "blocked")]);
        world.counted("web", refused.0, &refused.1, 2).await?;
    } else {
        client.get(&format!("http://partner:{port}/")).await?.echo()?;
        let refused = [("reporter", "source"), ("destination_service_name", "BlackHoleCluster")];
        world.counted("web", "istio_requests_total", &refused, 1).await?;
    }
    world.edit(SETTINGS, &policy("ALLOW_ANY"))?;
    wait::until_ok("everything is let through", PATIENCE, async || client.get(&url).await?.echo()).await?;
    let passed = ("destination_service_name", "PassthroughCluster");
    match world.pod("web")?.dialer() {
        Dialer::Straight(..) | Dialer::System => {
            world.counted("web", "istio_tcp_connections_opened_total", &[passed], 1).await
        }
        Dialer::Forward(_) => {
            world.counted("web", "istio_requests_total", &[passed, ("response_code", "200")], 1).await
        }
    }
}

pub(super) async fn ping(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"ping").await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    ensure!(answer == *b"ping", "heard {answer:?}");
    Ok(())
}

/// Version 2 has the service's port `http` at another number, and runs as somebody else.
pub(super) fn ports_world() -> Topology {
    let reviews = |name, version| {
        let pod = PodSpec::server(name, App::Http).app("reviews").version(version).service_account(name);
        pod.also(2, App::Http).also(3, App::TcpEcho)
    };
    let rules = "
  - filters:
    - type: ResponseHeaderModifier
      responseHeaderModifier:
        set:
        - name: x-routed
          value: \"yes\"
    backendRefs:
    - name: reviews
      port: 81
";
    let parent = "name: reviews\n    port: 81";
    let service = ServiceSpec::new("reviews", "http").port(81, "http-admin", 2).port(82, "tcp-raw", 3);
    Topology::default()
        .pod(PodSpec::client("web"))
        .pod(reviews("reviews-v1", "v1"))
        .pod(reviews("reviews-v2", "v2").at(4))
        .service(service)
        .file("route.yaml", manifest::http_route_for(NAMESPACE, "admin", parent, rules))
}

pub(super) async fn several_ports(world: &World) -> Result<()> {
    const REQUESTS: u64 = 60;
    let client = world.client("web")?;
    let pods = ["reviews-v1", "reviews-v2"];
    for (url, routed) in [("http://reviews/", ""), ("http://reviews:81/", "yes")] {
        for _ in 0..REQUESTS {
            let reply = client.get(url).await?;
            reply.echo()?;
            ensure!(reply.header("x-routed") == routed, "{url}: x-routed is {:?}", reply.header("x-routed"));
        }
    }
    for name in pods {
        let pod = world.pod(name)?;
        let (main, admin) = (pod.server()?, pod.server_at(world.port() + 2)?);
        let (main, admin) = (main.requests(), admin.requests());
        ensure!(main.min(admin) > REQUESTS / 6, "{name} got {main} and {admin} of {REQUESTS}");
        world.counted(name, "istio_requests_total", &MTLS, main + admin).await?;
        let principal = format!("spiffe://cluster.local/ns/shop/sa/{name}");
        let source = [("reporter", "source"), ("destination_principal", &*principal)];
        world.counted("web", "istio_requests_total", &source, main + admin).await?;
    }
    for _ in 0..20 {
        ping(&mut world.pod("web")?.dial("reviews", 82).await?).await?;
    }
    world.counted("web", "istio_tcp_connections_opened_total", &[("reporter", "source")], 20).await?;
    add_up(world, &pods, "istio_tcp_connections_opened_total", &MTLS, 20).await?;
    // A port that the service does not have is nobody's.
    let nobody = client.get("http://reviews:83/").await;
    if let Ok(reply) = nobody {
        ensure!(reply.status == 503 && reply.reason().contains("no such port"), "port 83 answers: {reply}");
    }
    add_up(world, &pods, "istio_requests_total", &[], 2 * REQUESTS).await
}

pub(super) fn bare_world() -> Topology {
    Topology::pair("reviews", App::Http, "http")
        .pod(PodSpec::server("machine", App::Http).unknown())
        .service(ServiceSpec::new("outer", "http").without_selector())
        .service(ServiceSpec::new("inner", "http").without_selector())
}

pub(super) async fn without_selector(world: &World) -> Result<()> {
    let client = world.client("web")?;
    let nobody = client.get("http://outer/").await?;
    ensure!(nobody.status == 503 && nobody.reason().starts_with("UH"), "nobody is there: {nobody}");
    for (service, pod, mark) in [("outer", "machine", 231), ("inner", "reviews", 232)] {
        let address = world.pod(pod)?.address();
        let slice = bare_slice((NAMESPACE, service), &[("http", address.port())], &[world.pod(pod)?.ip()]);
        world.edit(&format!("slice-{service}.yaml"), &slice)?;
        let echo = wait::until_ok("the endpoint is there", PATIENCE, async || {
            client.get(&format!("http://{service}/")).await?.echo()
        });
        let echo = echo.await?;
        ensure!(echo.pod == pod, "{service} leads to {}", echo.pod);
        ensure!(echo.headers.contains_key(CLIENT_CERT) == (pod == "reviews"), "{:?}", echo.headers);
        for _ in 0..5 {
            client.get(&format!("http://{service}/status/{mark}")).await?;
        }
    }
    let to = |service, code| [("destination_service_name", service), ("response_code", code)];
    world.counted("web", "istio_requests_total", &to("outer", "231"), 5).await?;
    world.counted("web", "istio_requests_total", &to("inner", "232"), 5).await?;
    // An address that nobody says to be a pod, but is one of the mesh, still proves who it is.
    world
        .counted("reviews", "istio_requests_total", &[MTLS[0], MTLS[1], ("response_code", "232")], 5)
        .await?;
    let uh = [("reporter", "source"), ("response_flags", "UH"), ("response_code", "503")];
    let metrics = world.pod("web")?.sidecar()?.metrics().await?;
    ensure!(metrics.sum("istio_requests_total", &uh) >= 1.0, "no UH is counted");
    Ok(())
}

const CONSUMER: &str = "consumer.yaml";

/// The service's own route takes two paths; that of the namespace `partner` one of them.
pub(super) fn consumer_world() -> Topology {
    let rule = |path: &str, backend: &str| {
        format!(
            "  - matches:
    - path:
        value: {path}
    backendRefs:
    - name: {backend}
      namespace: shop
      port: 80
"
        )
    };
    let producer = rule("/both", "reviews-v1") + &rule("/producer", "reviews-v1");
    let parent = "name: reviews\n    namespace: shop\n    port: 80";
    let consumer = manifest::http_route_for("partner", "own", parent, &rule("/both", "reviews-v2"));
    Topology::reviews()
        .pod(PodSpec::client("visitor").namespace("partner"))
        .file("producer.yaml", manifest::http_route(NAMESPACE, "all", "reviews", &producer))
        .file(CONSUMER, consumer)
}

pub(super) async fn consumer_routes(world: &World) -> Result<()> {
    let (web, visitor) = (world.client("web")?, world.client("visitor")?);
    let url = |path: &str| format!("http://reviews.shop.svc.cluster.local{path}");
    for _ in 0..10 {
        for (client, path, pod) in [
            (&web, "/both", "reviews-v1"),
            (&web, "/producer", "reviews-v1"),
            (&visitor, "/both", "reviews-v2"),
        ] {
            let echo = client.get(&url(path)).await?.echo().with_context(|| format!("{path} of {pod}"))?;
            ensure!(echo.pod == pod, "{path}: {} instead of {pod}", echo.pod);
        }
    }
    // Replaced, never merged.
    let reply = visitor.get(&url("/producer")).await?;
    ensure!(reply.status == 404 && reply.reason().starts_with("NR"), "the routes were merged: {reply}");
    let partner = ("source_workload_namespace", "partner");
    world.counted("reviews-v1", "istio_requests_total", &MTLS, 20).await?;
    world.counted("reviews-v2", "istio_requests_total", &[MTLS[0], MTLS[1], partner], 10).await?;
    world.counted("visitor", "istio_requests_total", &[partner, ("response_code", "200")], 10).await?;
    world.counted("visitor", "istio_requests_total", &[partner, ("response_flags", "NR")], 1).await?;
    world.counted("web", "istio_requests_total", &[("reporter", "source")], 20).await?;
    // Without a route of its own, the service's counts.
    world.remove(CONSUMER)?;
    wait::until("the service's own route counts", PATIENCE, async || {
        (visitor.get(&url("/both")).await.ok()?.echo().ok()?.pod == "reviews-v1").then_some(())
    })
    .await
}
