//! Who may speak: STRICT, certificates of every wrong kind at both ends, rotation.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use mesh_common::xds::names::{ALPN_HTTP1, ALPN_HTTP2, ALPN_TCP};
use rustls_pki_types::ServerName;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::routing::{REVIEWS, split_world};
use crate::certs::{Authority, Certificate, Leaf, client_config};
use crate::client::{HttpClient, Reply, exchange};
use crate::load::Load;
use crate::manifest;
use crate::metrics::Metrics;
use crate::topology::{App, NAMESPACE, PodSpec, ServiceSpec, Topology};
use crate::wait::{self, PATIENCE};
use crate::world::World;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
pub(super) const REVIEWS_ID: &str = "spiffe://cluster.local/ns/shop/sa/reviews";

pub(super) fn strict_world() -> Topology {
    Topology::pair("reviews", App::Http, "http")
        .file("strict.yaml", manifest::peer_authentication(NAMESPACE, "STRICT"))
}

/// A service whose only pod is played by the scenario.
pub(super) fn impostor_world() -> Topology {
    Topology::default()
        .pod(PodSpec::client("web"))
        .pod(PodSpec::client("reviews").impersonated())
        .service(ServiceSpec::new("reviews", "http"))
}

pub(super) fn short_world() -> Topology {
    split_world().leaf_lifetime("1m")
}

pub(super) async fn plaintext_to_strict(world: &World) -> Result<()> {
    let pod = world.pod("reviews")?;
    let straight = HttpClient::new(pod.address());
    let answer = straight.get(&format!("http://{}/", pod.address())).await;
    ensure!(answer.is_err(), "plaintext got an answer: {}", answer?);
    let refused = async || -> Result<()> {
        let metrics = pod.sidecar()?.metrics().await?;
        ensure!(refusals(&metrics) >= 1.0, "no mesh_inbound_refused_total");
        Ok(())
    };
    wait::until_ok("the refusal is counted", PATIENCE, refused).await?;
    let log = pod.sidecar()?.log().await;
    ensure!(log.to_lowercase().contains("plaintext"), "the log does not say why:\n{log}");
    ensure!(pod.server()?.requests() == 0, "the application saw it");
    // The same request, from a pod of the mesh.
    world.client("web")?.get(REVIEWS).await?.echo()?;
    // PERMISSIVE takes plaintext, and says so in the counters.
    world.edit("strict.yaml", &manifest::peer_authentication(NAMESPACE, "PERMISSIVE"))?;
    wait::until_ok("plaintext is taken", PATIENCE, async || {
        HttpClient::new(pod.address()).get(&format!("http://{}/", pod.address())).await?.echo()
    })
    .await?;
    let plain = [("reporter", "destination"), ("connection_security_policy", "none")];
    world.counted("reviews", "istio_requests_total", &plain, 1).await
}

fn refusals(metrics: &Metrics) -> f64 {
    metrics.sum("mesh_inbound_refused_total", &[])
}

pub(super) async fn clients_without_right(world: &World) -> Result<()> {
    let ours = Authority::of_state(&world.state())?;
    let foreign = Authority::new("somebody else")?;
    let good = Leaf { uris: &[WEB], ..Leaf::default() };
    // The way is right: a good certificate gets an answer.
    ours_speaks(world, Some(&ours.leaf(&good)?)).await?.echo().context("a good certificate")?;
    let other_domain = Leaf { uris: &["spiffe://elsewhere/ns/shop/sa/web"], ..Leaf::default() };
    let two_names = Leaf { uris: &[WEB, REVIEWS_ID], ..Leaf::default() };
    let cases = [
        ("expired", Some(ours.leaf(&Leaf { expired: true, ..good.clone() })?)),
        ("foreign", Some(foreign.leaf(&good)?)),
        ("other trust domain", Some(ours.leaf(&other_domain)?)),
        ("two identities", Some(ours.leaf(&two_names)?)),
        ("no identity", Some(ours.leaf(&Leaf { dns: &["web.shop"], ..Leaf::default() })?)),
        ("no certificate", None),
    ];
    for (what, certificate) in cases {
        let sidecar = world.pod("reviews")?.sidecar()?;
        let before = sidecar.metrics().await?;
        if let Ok(reply) = ours_speaks(world, certificate.as_ref()).await {
            bail!("{what}: the server answered {reply}");
        }
        let counted = async || -> Result<()> {
            let now = sidecar.metrics().await?;
            ensure!(refusals(&now) > refusals(&before), "{what}: not counted as refused");
            Ok(())
        };
        wait::until_ok("the refusal is counted", PATIENCE, counted).await?;
    }
    ensure!(world.pod("reviews")?.server()?.requests() == 1, "the application saw a refused one");
    Ok(())
}

/// A request over mutual TLS to the server's sidecar, with this certificate.
pub(super) async fn ours_speaks(world: &World, certificate: Option<&Certificate>) -> Result<Reply> {
    let config = client_config(certificate, ALPN_HTTP1)?;
    let stream = TcpStream::connect(world.pod("reviews")?.address()).await?;
    let name = ServerName::try_from("outbound_.80_._.reviews.shop.svc.cluster.local")?;
    let stream = TlsConnector::from(config).connect(name, stream).await?;
    exchange(stream, "reviews", "/").await
}

pub(super) async fn servers_without_right(world: &World) -> Result<()> {
    let ours = Authority::of_state(&world.state())?;
    let foreign = Authority::new("somebody else")?;
    let good = Leaf { uris: &[REVIEWS_ID], ..Leaf::default() };
    let cases = [
        ("another identity", ours.leaf(&Leaf { uris: &[WEB], ..Leaf::default() })?),
        ("expired", ours.leaf(&Leaf { expired: true, ..good.clone() })?),
        ("foreign", foreign.leaf(&good)?),
    ];
    let listener = world.pod("reviews")?.listen().await?;
    for (what, certificate) in cases {
        let acceptor = TlsAcceptor::from(certificate.server_config(&[ALPN_HTTP2, ALPN_HTTP1, ALPN_TCP])?);
        let client = world.client("web")?;
        let ask = client.get(REVIEWS);
        let serve = impostor(&listener, &acceptor);
        let reply = tokio::select! {
            reply = ask => reply?,
            got = serve => bail!("{what}: the impostor was sent {} bytes", got?),
        };
        ensure!(reply.status == 503, "{what}: {reply}");
        ensure!(reply.reason().starts_with("UF"), "{what}: the reason is {:?}", reply.reason());
    }
    world.counted("web", "istio_requests_total", &[("response_code", "503")], 3).await
}

/// Accepts connections until one of them carries a byte of a request.
pub(super) async fn impostor(listener: &TcpListener, acceptor: &TlsAcceptor) -> Result<usize> {
    loop {
        let (stream, _) = listener.accept().await?;
        let Ok(mut stream) = acceptor.accept(stream).await else { continue };
        let mut bytes = [0; 256];
        match stream.read(&mut bytes).await {
            Ok(n) if n > 0 => return Ok(n),
            _ => {}
        }
    }
}

pub(super) async fn certificates_rotate_under_load(world: &World) -> Result<()> {
    let serial = async |pod: &str| -> Result<String> {
        let page = world.pod(pod)?.sidecar()?.page("/certs").await?;
        find(&page, "serial").with_context(|| format!("no serial in {page}"))
    };
    let load = Load::start(&world.client("web")?, REVIEWS, 100);
    // A minute's certificate is renewed at half of its life; with the time for clocks that differ, sooner.
    for rotation in 1..=2 {
        let (web, reviews) = (serial("web").await?, serial("reviews-v1").await?);
        wait::until("both certificates are new", Duration::from_secs(90), async || {
            let renewed = serial("web").await.ok()? != web && serial("reviews-v1").await.ok()? != reviews;
            renewed.then_some(())
        })
        .await
        .with_context(|| format!("rotation {rotation}"))?;
    }
    let sent = load.report().sent;
    wait::until("the load goes on", PATIENCE, async || (load.report().sent > sent + 300).then_some(()))
        .await?;
    let report = load.stop().await?;
    report.no_failure()?;
    let mtls = [("reporter", "source"), ("response_code", "200")];
    world.counted("web", "istio_requests_total", &mtls, report.sent).await
}

/// The first text of this name, wherever it stands.
fn find(value: &serde_json::Value, name: &str) -> Option<String> {
    match value {
        serde_json::Value::Object(fields) => {
            let own = fields.get(name).and_then(|value| value.as_str()).map(str::to_owned);
            own.or_else(|| fields.values().find_map(|value| find(value, name)))
        }
        serde_json::Value::Array(items) => items.iter().find_map(|item| find(item, name)),
        _ => None,
    }
}
