//! A stock Envoy as the sidecar of a captured pod: it gets what is captured by the original destination, as a client
//! and as a server, among our own and among itself.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use mesh_test::client::{HttpClient, exchange};
use mesh_test::envoy::{self, Envoy, Form};
use mesh_test::manifest::peer_authentication;
use mesh_test::place::Place;
use mesh_test::topology::{App, NAMESPACE, PodSpec, ServiceSpec, Topology};
use mesh_test::wait::{self, PATIENCE};
use mesh_test::world::World;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

const REVIEWS: &str = "http://reviews/";
/// The distance of the port that speaks TCP, and the service's number for it.
const TCP: (u16, u16) = (2, 90);
/// What our own server's sidecar knows of a client with an Envoy.
const FROM_WEB: [(&str, &str); 3] = [
    ("reporter", "destination"),
    ("source_principal", "spiffe://cluster.local/ns/shop/sa/web"),
    ("connection_security_policy", "mutual_tls"),
];

/// `web` and `reviews` have an Envoy, `caller` and `ratings` a sidecar of ours.
pub(super) fn world() -> Topology {
    Topology::default()
        .pod(PodSpec::client("web").impersonated())
        .pod(PodSpec::server("reviews", App::Http).also(TCP.0, App::TcpEcho).with_a_strange_sidecar())
        .pod(PodSpec::client("caller"))
        .pod(PodSpec::server("ratings", App::Http))
        .service(ServiceSpec::new("reviews", "http").port(TCP.1, "tcp", TCP.0))
        .service(ServiceSpec::new("ratings", "http"))
}

pub(super) async fn captured_by_an_envoy(world: &World) -> Result<()> {
    let Some(program) = envoy::program()? else { return Ok(()) };
    let web = start(&program, world, "web").await?;
    let reviews = start(&program, world, "reviews").await?;
    from_an_envoy(world, &web).await?;
    to_an_envoy(world, &web).await.context("PERMISSIVE")?;
    strict(world).await?;
    to_an_envoy(world, &web).await.context("STRICT")?;
    own_ports_are_refused(world).await?;
    web.refused_nothing().await?;
    reviews.refused_nothing().await
}

async fn start(program: &Path, world: &World, pod: &str) -> Result<Envoy> {
    Envoy::start(program, world, pod, pod, Form::Delta, None).await
}

/// To one of ours over mutual TLS, and out of the mesh untouched.
async fn from_an_envoy(world: &World, web: &Envoy) -> Result<()> {
    let client = web.client();
    for _ in 0..20 {
        let echo = client.get("http://ratings/").await?.echo()?;
        ensure!(echo.pod == "ratings", "{} answered", echo.pod);
    }
    world.counted("ratings", "istio_requests_total", &FROM_WEB, 20).await?;
    world.counted("ratings", "istio_requests_total", &[], 20).await?;
    let outside = world.outside(App::Http).await?;
    let url = format!("http://{}:{}/", world.outside_address(), outside.address().port());
    let echo = client.get(&url).await?.echo().context("outside of the mesh")?;
    ensure!(echo.pod == "outside", "{} answered", echo.pod);
    Ok(())
}

/// From one of ours and from another Envoy: the application is told who calls. TCP stays TCP.
async fn to_an_envoy(world: &World, web: &Envoy) -> Result<()> {
    for (who, client) in [("caller", world.client("caller")?), ("web", web.client())] {
        let echo = client.get(REVIEWS).await?.echo().context(who)?;
        let shown = echo.headers.get("x-forwarded-client-cert").context("the application was not told")?;
        let identity = format!("URI=spiffe://cluster.local/ns/shop/sa/{who}");
        ensure!(shown.split(';').any(|part| part == identity), "{who} is {shown}");
    }
    for who in ["caller", "web"] {
        let mut stream = world.pod(who)?.dial("reviews", TCP.1).await?;
        stream.write_all(b"hello").await?;
        let mut answer = [0; 5];
        timeout(PATIENCE, stream.read_exact(&mut answer)).await.context("no answer")?.context(who)?;
        ensure!(answer == *b"hello", "{who} heard {answer:?}");
    }
    Ok(())
}

/// Plaintext by the pod's own address, from outside of the mesh: taken until the mode is STRICT.
async fn strict(world: &World) -> Result<()> {
    let pod = world.pod("reviews")?;
    let url = format!("http://{}/", pod.address());
    let plaintext = async || HttpClient::new(pod.address()).get(&url).await?.echo();
    let echo = plaintext().await.context("plaintext to a PERMISSIVE port")?;
    ensure!(!echo.headers.contains_key("x-forwarded-client-cert"), "nobody proved who he is");
    world.edit("mode.yaml", &peer_authentication(NAMESPACE, "STRICT"))?;
    wait::until("plaintext is refused", PATIENCE, async || plaintext().await.err().map(drop)).await?;
    let seen = pod.server()?.requests();
    for _ in 0..5 {
        if let Ok(echo) = plaintext().await {
            bail!("{} answered plaintext", echo.pod);
        }
    }
    ensure!(pod.server()?.requests() == seen, "the application saw plaintext");
    Ok(())
}

/// Dialled from outside, the ports that capture leads to give no answer; Envoy does not dial itself for ever.
async fn own_ports_are_refused(world: &World) -> Result<()> {
    for port in [15_001, 15_006] {
        let address = SocketAddr::new(world.pod("reviews")?.ip(), port);
        let ask = async { exchange(Place::Here.connect(address).await?, "reviews", "/").await };
        let answer =
            timeout(PATIENCE, ask).await.with_context(|| format!("{address} keeps the connection"))?;
        ensure!(answer.is_err(), "{address} answered: {}", answer?);
    }
    Ok(())
}
