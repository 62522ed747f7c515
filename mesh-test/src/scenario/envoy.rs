//! A stock Envoy in the mesh: as a client of our sidecars, and as a server for them. The same observations as
//! among our own.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use http::Request;
use http_body_util::Full;
use mesh_common::xds::names::ALPN_HTTP1;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::identity::{REVIEWS_ID, impostor};
use super::routing::{REVIEWS, canary_world, split};
use crate::client::{HttpClient, Reply};
use crate::envoy::{Envoy, Form};
use crate::load::{Load, send};
use crate::manifest;
use crate::server::{Echo, Server};
use crate::topology::{App, NAMESPACE, PodSpec, ServiceSpec, Topology};
use crate::wait::{self, PATIENCE};
use crate::world::{Way, World};

/// A story of a world and an Envoy program.
type Play = for<'a> fn(&'a Path, &'a World, Form) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const FROM_WEB: [(&str, &str); 3] =
    [("reporter", "destination"), ("source_principal", WEB), ("connection_security_policy", "mutual_tls")];
const POLICY: &str = "peer-authentication.yaml";

/// A story.
struct Story {
    name: &'static str,
    world: fn() -> Topology,
    play: Play,
}

/// A row of the table.
macro_rules! story {
    ($name:ident, $world:expr) => {
        Story {
            name: stringify!($name),
            world: || $world,
            play: |program, world, form| Box::pin($name(program, world, form)),
        }
    };
}

/// Every story.
const ALL: [Story; 6] = [
    story!(split_followed_by_an_envoy, client_world(Topology::reviews().file("route.yaml", split(90, 10)))),
    story!(names_known_to_an_envoy, client_world(canary_world())),
    story!(endpoints_removed_under_an_envoys_load, client_world(Topology::reviews())),
    story!(an_envoy_serves, server_world()),
    story!(two_envoys, two_envoys_world()),
    story!(impostors_get_no_byte_from_an_envoy, two_envoys_world()),
];

/// Plays the story of this name, if there is an Envoy.
///
/// # Errors
/// When it goes otherwise.
pub async fn play(name: &str, form: Form) -> Result<()> {
    let Some(program) = crate::envoy::program()? else { return Ok(()) };
    let story = ALL.iter().find(|story| story.name == name).context("no such story")?;
    let world =
        Box::pin(World::start(&(story.world)(), Way::Loopback)).await.context("the world did not start")?;
    let played = (story.play)(&program, &world, form).await;
    played.with_context(|| format!("{name}, {form:?}"))
}

/// Nothing of ours runs in the pod `web`: an Envoy will.
fn client_world(mut topology: Topology) -> Topology {
    topology.pods[0] = PodSpec::client("web").impersonated();
    topology
}

/// Nothing of ours runs in `reviews`: an Envoy will. `web` is ours, `outsider` has no sidecar.
fn server_world() -> Topology {
    Topology::default()
        .pod(PodSpec::client("web"))
        .pod(PodSpec::client("reviews").impersonated())
        .service(ServiceSpec::new("reviews", "http"))
        .service(ServiceSpec::new("reviews-grpc", "grpc").of("reviews", "v1").on(90))
        .service(ServiceSpec::new("reviews-tcp", "tcp").of("reviews", "v1").on(91))
}

fn two_envoys_world() -> Topology {
    let mut topology = server_world();
    topology.pods[0] = PodSpec::client("web").impersonated();
    topology
}

async fn client(program: &Path, world: &World, form: Form) -> Result<Envoy> {
    Envoy::start(program, world, "web", "web", form, None).await
}

async fn split_followed_by_an_envoy(program: &Path, world: &World, form: Form) -> Result<()> {
    const REQUESTS: u64 = 4000;
    let envoy = client(program, world, form).await?;
    let report = send(&envoy.client(), REVIEWS, REQUESTS, 8).await;
    report.no_failure()?;
    let share = report.share("reviews-v2");
    ensure!((share - 0.10).abs() < 0.02, "v2 got {share}");
    // The servers know who called, by a certificate, and counted each request once.
    for pod in ["reviews-v1", "reviews-v2"] {
        world.counted(pod, "istio_requests_total", &FROM_WEB, report.by_pod[pod]).await?;
        world.counted(pod, "istio_requests_total", &[], report.by_pod[pod]).await?;
    }
    let load = Load::start(&envoy.client(), REVIEWS, 100);
    let followed = |pod: &'static str| {
        let load = &load;
        async move {
            let from = load.elapsed();
            wait::until(&format!("all goes to {pod}"), PATIENCE, async || {
                let answers = load.report().answers;
                let last: Vec<_> = answers.iter().rev().take(50).collect();
                (last.len() == 50 && last.iter().all(|(at, by)| *at > from && by == pod)).then_some(())
            })
            .await
        }
    };
    world.edit("route.yaml", &split(0, 100))?;
    followed("reviews-v2").await?;
    world.edit("route.yaml", &split(100, 0))?;
    followed("reviews-v1").await?;
    load.stop().await?.no_failure()?;
    envoy.refused_nothing().await
}

async fn get(client: &HttpClient, url: &str, canary: Option<&str>) -> Result<Reply> {
    let mut request = Request::get(url);
    if let Some(value) = canary {
        request = request.header("x-canary", value);
    }
    client.send(request.body(Full::default())?).await
}

async fn names_known_to_an_envoy(program: &Path, world: &World, form: Form) -> Result<()> {
    let envoy = client(program, world, form).await?;
    let client = envoy.client();
    let address = world.service_ip("reviews")?;
    let mut sent = 0;
    for host in [
        "reviews",
        "reviews:80",
        "reviews.shop",
        "reviews.shop.svc",
        "reviews.shop.svc.cluster.local",
        "reviews.shop.svc.cluster.local:80",
        &address.to_string(),
        &format!("{address}:80"),
    ] {
        for (canary, pod) in [(Some("yes"), "reviews-v2"), (Some("no"), "reviews-v1"), (None, "reviews-v1")] {
            let url = format!("http://{host}/");
            let echo = get(&client, &url, canary).await?.echo().with_context(|| url.clone())?;
            ensure!(echo.pod == pod, "{url} with {canary:?} went to {}", echo.pod);
            sent += 1;
        }
    }
    for host in ["nobody", "reviews:81", "reviews.other", "example.com"] {
        let reply = client.get(&format!("http://{host}/")).await?;
        ensure!(
            reply.status == 502 && reply.to_string().contains("no service of the mesh"),
            "{host}: {reply}"
        );
    }
    world.counted("reviews-v1", "istio_requests_total", &FROM_WEB, sent / 3 * 2).await?;
    world.counted("reviews-v2", "istio_requests_total", &FROM_WEB, sent / 3).await?;
    envoy.refused_nothing().await
}

async fn endpoints_removed_under_an_envoys_load(program: &Path, world: &World, form: Form) -> Result<()> {
    let envoy = client(program, world, form).await?;
    let load = Load::start(&envoy.client(), REVIEWS, 200);
    for pods in [&["reviews-v1"][..], &["reviews-v2"], &["reviews-v1", "reviews-v2"], &["reviews-v2"]] {
        world.set_endpoints("reviews", pods)?;
        let from = load.elapsed();
        wait::until(&format!("all goes to {pods:?}"), PATIENCE, async || {
            let answers = load.report().answers;
            let last: Vec<_> = answers.iter().rev().take(60).map(|(at, pod)| (*at, pod.as_str())).collect();
            let all_there = pods.iter().all(|pod| last.iter().any(|(_, by)| by == pod));
            let no_other = last.iter().all(|(at, by)| *at > from && pods.contains(by));
            (last.len() == 60 && all_there && no_other).then_some(())
        })
        .await?;
    }
    // A service that comes and goes beside it.
    let spec = manifest::Service {
        namespace: NAMESPACE,
        name: "passing",
        ports: &[("http", 80)],
        address: manifest::Address::Virtual(&[Ipv4Addr::new(10, 99, 0, 1).into()]),
    };
    world.edit("passing.yaml", &manifest::service(&spec))?;
    let clusters = async || envoy.sum("cluster_manager.active_clusters").await;
    let before = clusters().await?;
    wait::until("the service is known", PATIENCE, async || {
        let reply = envoy.client().get("http://passing/").await.ok()?;
        // A cluster that Envoy does not have would be answered so, too.
        (reply.status == 503 && clusters().await.ok()? > before).then_some(())
    })
    .await?;
    world.remove("passing.yaml")?;
    wait::until("its cluster is gone", PATIENCE, async || {
        let reply = envoy.client().get("http://passing/").await.ok()?;
        (reply.status == 502 && clusters().await.ok()? <= before).then_some(())
    })
    .await?;
    load.stop().await?.no_failure()?;
    envoy.refused_nothing().await
}

async fn impostors_get_no_byte_from_an_envoy(program: &Path, world: &World, form: Form) -> Result<()> {
    use crate::certs::{Authority, Leaf};
    let (ours, foreign) = (Authority::of_state(&world.state())?, Authority::new("another mesh")?);
    let envoy = client(program, world, form).await?;
    let http = envoy.client();
    let listener = TcpListener::bind(world.pod("reviews")?.address()).await?;
    let good = Leaf { uris: &[REVIEWS_ID], ..Leaf::default() };
    for (what, certificate) in [
        ("another identity", ours.leaf(&Leaf { uris: &[WEB], ..Leaf::default() })?),
        ("expired", ours.leaf(&Leaf { expired: true, ..good.clone() })?),
        ("foreign", foreign.leaf(&good)?),
    ] {
        let acceptor = TlsAcceptor::from(certificate.server_config(&[ALPN_HTTP1])?);
        let reply = tokio::select! {
            reply = http.get(REVIEWS) => reply?,
            got = impostor(&listener, &acceptor) => bail!("{what}: the impostor was sent {} bytes", got?),
        };
        ensure!(reply.status == 503, "{what}: {reply}");
    }
    // The way is right: a good one is spoken to.
    let acceptor = TlsAcceptor::from(ours.leaf(&good)?.server_config(&[ALPN_HTTP1])?);
    tokio::select! {
        reply = http.get(REVIEWS) => bail!("nobody should answer: {}", reply?),
        got = impostor(&listener, &acceptor) => { got?; }
    }
    envoy.refused_nothing().await
}

/// Envoy takes up each new certificate that is written beside it, while requests flow.
///
/// # Errors
/// When it does not, or a request fails.
pub async fn certificates_rotate_under_an_envoys_load() -> Result<()> {
    let Some(program) = crate::envoy::program()? else { return Ok(()) };
    let topology = client_world(Topology::reviews().leaf_lifetime("60s"));
    let world = Box::pin(World::start(&topology, Way::Loopback)).await?;
    let envoy = client(&program, &world, Form::Delta).await?;
    let load = Load::start(&envoy.client(), REVIEWS, 100);
    let before = envoy.serials().await?;
    ensure!(!before.is_empty(), "Envoy shows no certificate");
    wait::until("all of Envoy's certificates are new", ROTATION, async || {
        let now = envoy.serials().await.ok()?;
        (!now.is_empty() && now.is_disjoint(&before)).then_some(())
    })
    .await?;
    let sent = load.report().sent;
    wait::until("the load goes on", PATIENCE, async || (load.report().sent > sent + 200).then_some(()))
        .await?;
    load.stop().await?.no_failure()?;
    envoy.refused_nothing().await
}

/// A minute's certificate is renewed at half of its life.
const ROTATION: Duration = Duration::from_secs(90);

/// An application, and the Envoy before it.
async fn server(program: &Path, world: &World, form: Form) -> Result<(Server, Envoy)> {
    let app = Server::start(App::Http, SocketAddr::from(([127, 0, 0, 1], 0)), "reviews", "v1").await?;
    let envoy = Envoy::start(program, world, "reviews", "reviews", form, Some(app.address())).await?;
    Ok((app, envoy))
}

async fn an_envoy_serves(program: &Path, world: &World, form: Form) -> Result<()> {
    let (app, envoy) = server(program, world, form).await?;
    let web = world.client("web")?;
    says_who_calls(&web.get(REVIEWS).await?.echo()?)?;
    // We verified who serves.
    let labels =
        [("reporter", "source"), ("destination_principal", "spiffe://cluster.local/ns/shop/sa/reviews")];
    world.counted("web", "istio_requests_total", &labels, 1).await?;
    send(&web, REVIEWS, 500, 4).await.no_failure()?;
    // HTTP/2 stays HTTP/2, opaque bytes stay opaque.
    let stream = world.pod("web")?.dial("reviews-grpc", 90).await?;
    let grpc = crate::client::Http2Client::new(stream, "reviews-grpc").await?;
    let reply = grpc.call("/echo.Echo/Call", b"hello").await?;
    ensure!(reply.body.ends_with(b"hello"), "{reply}");
    let stream = world.pod("web")?.dial("reviews-tcp", 91).await?;
    let reply = crate::client::exchange(stream, "reviews", "/").await?;
    let echo = reply.echo()?;
    ensure!(echo.pod == "reviews", "{reply}");
    // Whoever took it for HTTP would have said so.
    ensure!(
        !echo.headers.keys().any(|name| name.starts_with("x-")),
        "not as it was sent: {:?}",
        echo.headers
    );

    // In plaintext, from outside of the mesh: taken, until the mode is STRICT.
    let door = SocketAddr::from((world.pod("reviews")?.ip(), world.port()));
    let plaintext = async || HttpClient::new(door).get(&format!("http://{door}/")).await;
    let echo = plaintext().await?.echo()?;
    ensure!(!echo.headers.contains_key("x-forwarded-client-cert"), "nobody proved who he is");
    let load = Load::start(&web, REVIEWS, 100);
    world.edit(POLICY, &manifest::peer_authentication(NAMESPACE, "STRICT"))?;
    wait::until("plaintext is refused", PATIENCE, async || plaintext().await.err().map(drop)).await?;
    let served = app.requests();
    for _ in 0..5 {
        if let Ok(reply) = plaintext().await {
            bail!("plaintext was answered: {reply}");
        }
    }
    strangers_are_refused(world).await?;
    wait::until("the mesh goes on", PATIENCE, async || (app.requests() > served + 50).then_some(())).await?;
    load.stop().await?.no_failure()?;
    envoy.refused_nothing().await
}

/// Envoy verified who calls, and says so to the application.
fn says_who_calls(echo: &Echo) -> Result<()> {
    let shown = echo.headers.get("x-forwarded-client-cert").context("the application was not told")?;
    ensure!(shown.split(';').any(|part| part == format!("URI={WEB}")), "the client is {shown}");
    Ok(())
}

/// Certificates that are not good do not get a byte through.
async fn strangers_are_refused(world: &World) -> Result<()> {
    use crate::certs::{Authority, Leaf};
    let (ours, foreign) = (Authority::of_state(&world.state())?, Authority::new("another mesh")?);
    let web = Leaf { uris: &[WEB], ..Leaf::default() };
    let other_domain = Leaf { uris: &["spiffe://other.domain/ns/shop/sa/web"], ..Leaf::default() };
    for (what, certificate, good) in [
        ("a good one", Some(ours.leaf(&web)?), true),
        ("none", None, false),
        ("a foreign root", Some(foreign.leaf(&web)?), false),
        ("another trust domain", Some(ours.leaf(&other_domain)?), false),
        ("an expired one", Some(ours.leaf(&Leaf { expired: true, ..web.clone() })?), false),
        ("no identity", Some(ours.leaf(&Leaf { dns: &["web.shop"], ..Leaf::default() })?), false),
    ] {
        let answered = super::identity::ours_speaks(world, certificate.as_ref());
        let answered = tokio::time::timeout(PATIENCE, answered).await.context("no answer in time")?;
        match (answered, good) {
            (Ok(reply), false) => bail!("a client with {what} was answered: {reply}"),
            (Err(error), true) => return Err(error.context("a good client was refused")),
            (Ok(_), true) | (Err(_), false) => {}
        }
    }
    Ok(())
}

async fn two_envoys(program: &Path, world: &World, form: Form) -> Result<()> {
    world.edit(POLICY, &manifest::peer_authentication(NAMESPACE, "STRICT"))?;
    let (_app, server) = server(program, world, form).await?;
    let client = client(program, world, form).await?;
    let http = client.client();
    wait::until_ok("the first answer", PATIENCE, async || http.get(REVIEWS).await?.echo().map(drop)).await?;
    says_who_calls(&http.get(REVIEWS).await?.echo()?)?;
    send(&http, REVIEWS, 500, 4).await.no_failure()?;
    server.refused_nothing().await?;
    client.refused_nothing().await
}
