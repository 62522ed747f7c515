//! Figures: each is printed, and has a bound.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, PostParams};
use mesh_test::metrics::Metrics;
use serde_json::json;

use super::{MESH, Settings};
use crate::cluster::space::{PROXY, Space, account};
use crate::runner::figure;

/// The most that a sidecar may hold in memory when nothing happens, in MB.
const MEMORY_MB: f64 = 15.0;
/// The longest from a sidecar's start to its being ready.
const READY: Duration = Duration::from_millis(300);
/// The longest that the median injection may take.
const INJECTION: Duration = Duration::from_millis(20);
/// The most that a pod may start later than one with two init containers that do nothing: half a second, and half of one
/// for the noise of a mean.
const LATER: Duration = Duration::from_secs(1);
/// The largest that an image may be, in MB.
const IMAGE_MB: f64 = 40.0;

pub(super) async fn figures(space: &Space, _: &Settings) -> Result<()> {
    let client = space.pair("orders").await?;
    client.send("http://orders/", 20).await?.no_failure()?;
    let metrics = client.metrics().await?;
    let resident = metrics.sum("process_resident_memory_bytes", &[]) / 1e6;
    figure("resident memory of a sidecar", format!("{resident:.1} MB"));
    let ready = Duration::from_secs_f64(metrics.sum("mesh_start_to_ready_seconds", &[]));
    figure("start of a sidecar to ready", format!("{ready:?}"));
    let injection = injection(space).await?;
    let images = images(space).await?;
    let later = later(space).await?;
    ensure!(resident > 1.0 && resident <= MEMORY_MB, "{resident} MB");
    ensure!(ready > Duration::ZERO && ready <= READY, "ready after {ready:?}");
    ensure!(injection <= INJECTION, "an injection takes {injection:?}");
    ensure!(images <= IMAGE_MB, "an image has {images} MB");
    ensure!(later <= LATER, "a pod starts {later:?} later");
    Ok(())
}

/// The median, as the injectors measure it: the bound of the bucket that holds it.
async fn injection(space: &Space) -> Result<Duration> {
    let mut buckets = std::collections::BTreeMap::new();
    let pods = space.cluster.in_namespace::<Pod>(MESH);
    let injectors =
        pods.list(&ListParams::default().labels("app.kubernetes.io/name=mesh-injector")).await?.items;
    for pod in injectors {
        let name = pod.metadata.name.unwrap_or_default();
        let path = format!("/api/v1/namespaces/{MESH}/pods/{name}:15014/proxy/metrics");
        let page = space.cluster.api.request_text(http::Request::get(path).body(Vec::new())?).await?;
        for sample in Metrics::parse(&page)?.select("mesh_injector_request_duration_seconds_bucket", &[]) {
            let bound: f64 = sample
                .labels
                .get("le")
                .and_then(|le| le.replace("+Inf", "inf").parse().ok())
                .context("no le")?;
            *buckets.entry(bound.to_bits()).or_insert(0.0) += sample.value;
        }
    }
    let all = buckets.values().copied().fold(0.0, f64::max);
    ensure!(all > 0.0, "the injectors counted nothing");
    let (bound, _) = buckets.iter().find(|(_, count)| **count >= all / 2.0).context("no bucket")?;
    let median = f64::from_bits(*bound);
    figure("injection, median of all so far", format!("at most {} ms", median * 1e3));
    Ok(Duration::try_from_secs_f64(median).unwrap_or(Duration::MAX))
}

/// The size of the largest image, as the nodes have them.
async fn images(space: &Space) -> Result<f64> {
    let nodes =
        space.cluster.all::<k8s_openapi::api::core::v1::Node>().list(&ListParams::default()).await?.items;
    let mut largest = 0.0_f64;
    let images = nodes.iter().filter_map(|node| node.status.as_ref()?.images.as_ref()).flatten();
    for image in images {
        let name = image.names.iter().flatten().find(|name| {
            ["mesh-control", "mesh-injector", "mesh-proxy"]
                .iter()
                .any(|part| name.contains(&format!("/{part}:")))
        });
        let Some(name) = name else { continue };
        let size = image.size_bytes.unwrap_or(0) as f64 / 1e6;
        figure(&format!("image {name}"), format!("{size:.1} MB"));
        largest = largest.max(size);
    }
    ensure!(largest > 1.0, "no node names our images");
    Ok(largest)
}

/// How much later a pod with a sidecar is ready than one with two init containers that do nothing: the difference of
/// the means, one pod at a time, taking turns. The kubelet looks once a second at what became of a container, so pods are
/// created at moments spread over that second: else the difference would be a whole second or nothing. None is deleted
/// before the last one is ready: it would end while the next one starts.
async fn later(space: &Space) -> Result<Duration> {
    const ROUNDS: u32 = 12;
    space.apply(&[account("timed")]).await?;
    let (mut with, mut without) = (Duration::ZERO, Duration::ZERO);
    for round in 0..ROUNDS {
        for meshed in [true, false] {
            let name = format!("timed-{round}-{meshed}");
            let mut pod = space.client_pod(&name);
            pod["spec"]["serviceAccountName"] = json!("timed");
            if !meshed {
                pod["metadata"]["labels"]["mesh/inject"] = json!("disabled");
                let mut idle = pod["spec"]["containers"][0].clone();
                idle["args"] = json!(["--help"]);
                let named = |name: &str| {
                    let mut container = idle.clone();
                    container["name"] = json!(name);
                    container
                };
                pod["spec"]["initContainers"] = json!([named("one"), named("two")]);
            }
            let pods = space.cluster.in_namespace::<Pod>(&space.name);
            tokio::time::sleep(Duration::from_secs(1) * round / ROUNDS).await;
            let started = tokio::time::Instant::now();
            pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
            let ready = space.ready(&name).await?;
            let took = started.elapsed();
            let injected = ready
                .spec
                .as_ref()
                .and_then(|spec| spec.init_containers.as_ref())
                .is_some_and(|all| all.iter().any(|container| container.name == PROXY));
            ensure!(injected == (meshed && space.mesh), "{name} was not what was to be timed");
            *if meshed { &mut with } else { &mut without } += took;
        }
    }
    let (with, without) = (with / ROUNDS, without / ROUNDS);
    figure("pod created to ready", format!("{with:?} with the mesh, {without:?} without"));
    Ok(with.saturating_sub(without))
}
