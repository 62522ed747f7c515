//! gRPC without a sidecar: resolved, split and secured by its own xDS client.

use anyhow::{Context as _, Result, ensure};
use tokio::time::Instant;

use super::routing::split;
use crate::grpc::{Calls, GrpcClient};
use crate::manifest;
use crate::stranger::PYTHON_WITH_GRPC;
use crate::topology::{App, NAMESPACE, PodSpec, ServiceSpec, Topology};
use crate::wait::{self, PATIENCE};
use crate::world::{Way, World};

const POLICY: &str = "mode.yaml";
const TARGET: &str = "xds:///reviews.shop.svc.cluster.local:80";

/// The service `reviews` and its versions, all of which speak gRPC; nothing of ours runs in the pod `web`.
fn world() -> Topology {
    Topology::default()
        .pod(PodSpec::client("web").impersonated())
        .pod(PodSpec::server("reviews-v1", App::Http).app("reviews").version("v1"))
        .pod(PodSpec::server("reviews-v2", App::Http).app("reviews").version("v2"))
        .service(ServiceSpec::new("reviews", "grpc"))
        .service(ServiceSpec::new("reviews-v1", "grpc").of("reviews", "v1"))
        .service(ServiceSpec::new("reviews-v2", "grpc").of("reviews", "v2"))
}

fn share(calls: &Calls, pod: &str) -> f64 {
    let all: u64 = calls.pods.values().sum();
    calls.pods.get(pod).copied().unwrap_or_default() as f64 / all as f64
}

async fn all_to(client: &mut GrpcClient, pod: &str) -> Result<()> {
    let started = Instant::now();
    loop {
        let calls = client.call(30).await?;
        ensure!(calls.errors.is_empty(), "{calls:?}");
        if share(&calls, pod) == 1.0 {
            return Ok(());
        }
        ensure!(started.elapsed() < PATIENCE, "not all goes to {pod}: {calls:?}");
    }
}

/// In plaintext: endpoints, a split, and each change of both.
///
/// # Errors
/// When the story goes otherwise.
pub async fn resolves_and_follows() -> Result<()> {
    let Some(python) = PYTHON_WITH_GRPC.find()? else { return Ok(()) };
    let world = Box::pin(World::start(&world(), Way::Loopback)).await?;
    let mut client = GrpcClient::start(&python, &world, "web", TARGET, false).await?;
    let calls = client.call(200).await?;
    ensure!(calls.errors.is_empty(), "{calls:?}");
    ensure!((share(&calls, "reviews-v1") - 0.5).abs() < 0.1, "round robin: {calls:?}");
    world.edit("route.yaml", &split(0, 100))?;
    all_to(&mut client, "reviews-v2").await?;
    world.edit("route.yaml", &split(70, 30))?;
    wait::until("the split is followed", PATIENCE, async || {
        let calls = client.call(400).await.ok()?;
        ((share(&calls, "reviews-v1") - 0.7).abs() < 0.1 && calls.errors.is_empty()).then_some(())
    })
    .await?;
    world.remove("route.yaml")?;
    wait::until("both get calls again", PATIENCE, async || {
        let calls = client.call(100).await.ok()?;
        (calls.pods.len() == 2 && (share(&calls, "reviews-v1") - 0.5).abs() < 0.1).then_some(())
    })
    .await?;
    // Endpoints of a cluster that is in use.
    for pod in ["reviews-v1", "reviews-v2"] {
        world.set_endpoints("reviews", &[pod])?;
        all_to(&mut client, pod).await?;
    }
    refused_nothing(&world).await
}

/// Over mutual TLS with its own certificate, to servers that take nothing else, and to those that also take plaintext.
///
/// # Errors
/// When the story goes otherwise.
pub async fn secured(mode: &str) -> Result<()> {
    let Some(python) = PYTHON_WITH_GRPC.find()? else { return Ok(()) };
    let topology = world().file(POLICY, manifest::peer_authentication(NAMESPACE, mode));
    let world = Box::pin(World::start(&topology, Way::Loopback)).await?;
    let mut client = GrpcClient::start(&python, &world, "web", TARGET, true).await?;
    let calls = client.call(100).await?;
    ensure!(calls.errors.is_empty() && calls.pods.len() == 2, "{calls:?}");
    for (pod, count) in &calls.pods {
        let labels = [
            ("reporter", "destination"),
            ("source_principal", "spiffe://cluster.local/ns/shop/sa/web"),
            ("connection_security_policy", "mutual_tls"),
            ("request_protocol", "grpc"),
        ];
        world.counted(pod, "istio_requests_total", &labels, *count).await.with_context(|| pod.clone())?;
    }
    refused_nothing(&world).await
}

/// Without a provider of certificates it speaks plaintext, which such servers refuse, and say so. The same client is
/// served once they take it.
///
/// # Errors
/// When the story goes otherwise.
pub async fn plaintext_is_refused_by_strict_servers() -> Result<()> {
    let Some(python) = PYTHON_WITH_GRPC.find()? else { return Ok(()) };
    let topology = world().file(POLICY, manifest::peer_authentication(NAMESPACE, "STRICT"));
    let world = Box::pin(World::start(&topology, Way::Loopback)).await?;
    let mut client = GrpcClient::start(&python, &world, "web", TARGET, false).await?;
    let calls = client.call(1).await?;
    ensure!(calls.pods.is_empty() && calls.errors.values().sum::<u64>() == 1, "{calls:?}");
    for name in ["reviews-v1", "reviews-v2"] {
        let pod = world.pod(name)?;
        let metrics = pod.sidecar()?.metrics().await?;
        let refused = metrics.sum("mesh_inbound_refused_total", &[]);
        let because = metrics.sum("mesh_inbound_refused_total", &[("reason", "plaintext_to_mutual_tls")]);
        ensure!(because >= 1.0 && because == refused, "{name} refused {refused}, {because} for plaintext");
        let log = pod.sidecar()?.log().await;
        ensure!(
            log.contains("the port takes mutual TLS only, and the connection is plaintext"),
            "{name} does not say why:\n{log}"
        );
        ensure!(pod.server()?.requests() == 0, "the application of {name} saw it");
    }
    world.edit(POLICY, &manifest::peer_authentication(NAMESPACE, "PERMISSIVE"))?;
    let calls = client.call(1).await?;
    ensure!(calls.errors.is_empty(), "in plaintext, where it is taken: {calls:?}");
    refused_nothing(&world).await
}

async fn refused_nothing(world: &World) -> Result<()> {
    let metrics = world.control_metrics().await?;
    let nacks = metrics.sum("mesh_control_nacks_total", &[]);
    ensure!(nacks == 0.0, "gRPC refused something:\n{}", world.control_log().await);
    Ok(())
}
