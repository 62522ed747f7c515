//! mesh-control away, in part or whole, replaced, removed.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use mesh_test::app::Tally;
use mesh_test::wait;
use serde_json::json;

use super::{MESH, Settings};
use crate::cluster::install;
use crate::cluster::machine::TAG;
use crate::cluster::space::{Client, Space, account, route, split};
use crate::runner::{figure, say};

/// How long mesh-control is away.
const AWAY: Duration = Duration::from_secs(60);

const CONTROL: &str = "mesh-control";

pub(super) async fn control_gone(space: &Space, _: &Settings) -> Result<()> {
    let client = space.reviews().await?;
    let deployments = space.cluster.in_namespace::<Deployment>(MESH);
    let replicas = deployments.get(CONTROL).await?.spec.and_then(|spec| spec.replicas).unwrap_or(2);
    ready(space, &client).await?;
    let load = client.load("http://reviews/", 50).await?;
    scale(space, 0).await?;
    let gone = gone(space).await;
    scale(space, replicas).await?;
    gone?;
    deployed(space, CONTROL).await?;
    // The pod that was started meanwhile comes good.
    space.ready("late").await?;
    space.at("late").send("http://reviews/", 20).await?.no_failure()?;
    let tally: Tally = load.end_with().await?;
    figure("requests while mesh-control was away", format!("{}, {} failed", tally.sent, tally.failed));
    tally.no_failure()?;
    space.only_mutual_tls(&client, "app=reviews", 1_000).await
}

/// Before anything is disturbed: the mesh carries the traffic.
async fn ready(space: &Space, client: &Client) -> Result<()> {
    client.send("http://reviews/", 20).await?.no_failure()?;
    space.only_mutual_tls(client, "app=reviews", 20).await
}

async fn gone(space: &Space) -> Result<()> {
    let pods = space.cluster.in_namespace::<Pod>(MESH);
    wait::until_ok("mesh-control is gone", space.patience(), async || {
        let left = pods.list(&control_pods()).await?.items.len();
        ensure!(left == 0, "{left} pods of mesh-control are left");
        Ok(())
    })
    .await?;
    space.apply(&[account("late"), space.client_pod("late")]).await?;
    tokio::time::sleep(AWAY).await;
    let late = space.cluster.in_namespace::<Pod>(&space.name).get("late").await?;
    let running = late.status.and_then(|status| status.container_statuses).unwrap_or_default();
    let started = running.iter().any(|status| status.started == Some(true));
    ensure!(!started, "the application of a new pod was started without its proxy being ready");
    Ok(())
}

async fn scale(space: &Space, replicas: i32) -> Result<()> {
    let deployments = space.cluster.in_namespace::<Deployment>(MESH);
    let patch = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
    deployments.patch(CONTROL, &PatchParams::default(), &patch).await?;
    Ok(())
}

/// Waits until a Deployment of the mesh is complete.
async fn deployed(space: &Space, name: &str) -> Result<()> {
    Space { name: MESH.to_owned(), ..space.clone() }.deployed(name).await
}

fn control_pods() -> ListParams {
    ListParams::default().labels("app.kubernetes.io/name=mesh-control")
}

pub(super) async fn one_replica_killed(space: &Space, _: &Settings) -> Result<()> {
    let client = space.reviews().await?;
    ready(space, &client).await?;
    let load = client.load("http://reviews/", 50).await?;
    // The leader, so that writing moves too.
    let leases = space.cluster.in_namespace::<Lease>(MESH);
    let lease = leases.get("mesh-control-leader").await?;
    let leader = lease.spec.and_then(|spec| spec.holder_identity).context("nobody leads")?;
    let pods = space.cluster.in_namespace::<Pod>(MESH);
    pods.delete(&leader, &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() }).await?;
    // The other one serves changes at once.
    space.apply(&[route("split", "reviews", split(&[("reviews-v2", 1)]))]).await?;
    wait::until_ok("the route is in force", space.patience(), async || {
        let tally = client.send("http://reviews/", 20).await?;
        ensure!(tally.share("v2") == 1.0, "{:?}", tally.by_version);
        Ok(())
    })
    .await?;
    wait::until_ok("another replica leads", space.patience(), async || {
        let lease = leases.get("mesh-control-leader").await?;
        let holder = lease.spec.and_then(|spec| spec.holder_identity);
        ensure!(holder.as_ref().is_some_and(|holder| *holder != leader && !holder.is_empty()), "{holder:?}");
        Ok(())
    })
    .await?;
    deployed(space, CONTROL).await?;
    let tally: Tally = load.end_with().await?;
    tally.no_failure()?;
    space.only_mutual_tls(&client, "app=reviews", 20).await
}

pub(super) async fn upgrade_and_rollback(space: &Space, settings: &Settings) -> Result<()> {
    let client = space.reviews().await?;
    ready(space, &client).await?;
    let load = client.load("http://reviews/", 50).await?;
    let bundle = ca_bundles(space).await?;
    let image = format!("image.registry={}", settings.machine.registry());
    let tag = format!("image.tag={TAG}");
    // Both Deployments change, and the injector's settings.
    let values =
        ["control.podAnnotations.round=two", "injector.podAnnotations.round=two", "proxy.logLevel=debug"];
    let creating = pods_meanwhile(space);
    let changing = async {
        let machine = settings.machine.clone();
        let all: Vec<String> = [image, tag].into_iter().chain(values.map(str::to_owned)).collect();
        tokio::task::spawn_blocking(move || {
            install::helm(&machine, &all.iter().map(String::as_str).collect::<Vec<_>>())?;
            say("        upgraded");
            install::rollback(&machine)?;
            say("        rolled back");
            Ok::<_, anyhow::Error>(())
        })
        .await?
    };
    tokio::pin!(creating);
    let created = tokio::select! {
        changed = changing => { changed?; None }
        created = &mut creating => Some(created),
    };
    if let Some(created) = created {
        return created.map(|never: std::convert::Infallible| match never {});
    }
    ensure!(ca_bundles(space).await? == bundle, "the caBundle is another one");
    space.client("after").await?;
    let tally: Tally = load.end_with().await?;
    figure("requests during upgrade and rollback", format!("{}, {} failed", tally.sent, tally.failed));
    tally.no_failure()?;
    space.only_mutual_tls(&client, "app=reviews", 20).await
}

/// Creates pods one after the other: none may be refused, none may be without its proxy.
async fn pods_meanwhile(space: &Space) -> Result<std::convert::Infallible> {
    space.apply(&[account("meanwhile")]).await?;
    for number in 0.. {
        let name = format!("meanwhile-{number}");
        let mut pod = space.client_pod(&name);
        pod["spec"]["serviceAccountName"] = json!("meanwhile");
        space.apply(&[pod]).await?;
        let made = space.cluster.in_namespace::<Pod>(&space.name).get(&name).await?;
        let init = made.spec.and_then(|spec| spec.init_containers).map_or(0, |init| init.len());
        ensure!(init == 2, "{name} was created with {init} init containers");
        let pods = space.cluster.in_namespace::<Pod>(&space.name);
        pods.delete(&name, &DeleteParams::default().grace_period(0)).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    anyhow::bail!("numbers ended")
}

async fn ca_bundles(space: &Space) -> Result<Vec<Vec<u8>>> {
    let hooks = space.cluster.all::<MutatingWebhookConfiguration>().get("mesh-injector").await?.webhooks;
    let bundles = hooks.into_iter().flatten().map(|hook| hook.client_config.ca_bundle.map(|bundle| bundle.0));
    bundles.collect::<Option<Vec<_>>>().context("a webhook has no caBundle")
}

pub(super) async fn uninstalled(space: &Space, settings: &Settings) -> Result<()> {
    let client = space.reviews().await?;
    ready(space, &client).await?;
    let secrets = space.cluster.in_namespace::<Secret>(MESH);
    let root = secrets.get("mesh-ca-root").await?.data;
    let machine = settings.machine.clone();
    tokio::task::spawn_blocking(move || install::uninstall(&machine)).await??;
    let left = leaves_nothing(space).await;
    let kept = secrets.get("mesh-ca-root").await.map(|secret| secret.data);
    let machine = settings.machine.clone();
    let again = tokio::task::spawn_blocking(move || install::install(&machine, machine.registry())).await?;
    left?;
    again?;
    ensure!(kept? == root, "the root is another one");
    ensure!(secrets.get("mesh-ca-root").await?.data == root, "the new installation has another root");
    // Those who stayed go on with those who come.
    client.send("http://reviews/", 20).await?.no_failure()?;
    // helm waits until the injector is ready, not until every node knows where it is.
    wait::until_ok("pods are taken again", space.patience(), async || {
        space.apply(&[account("after"), space.client_pod("after")]).await
    })
    .await?;
    space.ready("after").await?;
    let after = space.at("after");
    after.send("http://reviews/", 20).await?.no_failure()?;
    space.only_mutual_tls(&after, "app=reviews", 20).await
}

async fn leaves_nothing(space: &Space) -> Result<()> {
    let cluster = &space.cluster;
    let ours = ListParams::default().labels("app.kubernetes.io/part-of=mesh");
    wait::until_ok("nothing of the mesh is left", space.patience(), async || {
        let mut left = Vec::new();
        let everywhere: kube::Api<ConfigMap> = cluster.all();
        let named = ListParams::default().fields("metadata.name=mesh-root-cert");
        left.extend(everywhere.list(&named).await?.items.into_iter().map(|map| map.metadata));
        left.extend(
            cluster.all::<ClusterRole>().list(&ours).await?.items.into_iter().map(|role| role.metadata),
        );
        let bindings = cluster.all::<ClusterRoleBinding>().list(&ours).await?.items;
        left.extend(bindings.into_iter().map(|binding| binding.metadata));
        let hooks = cluster.all::<MutatingWebhookConfiguration>().list(&ours).await?.items;
        left.extend(hooks.into_iter().map(|hook| hook.metadata));
        left.extend(
            cluster
                .in_namespace::<Lease>(MESH)
                .list(&ListParams::default())
                .await?
                .items
                .into_iter()
                .map(|lease| lease.metadata),
        );
        left.extend(
            cluster
                .in_namespace::<Pod>(MESH)
                .list(&ListParams::default())
                .await?
                .items
                .into_iter()
                .map(|pod| pod.metadata),
        );
        let secrets = cluster.in_namespace::<Secret>(MESH).list(&ListParams::default()).await?.items;
        left.extend(
            secrets
                .into_iter()
                .map(|secret| secret.metadata)
                .filter(|meta| meta.name.as_deref() != Some("mesh-ca-root")),
        );
        let names: Vec<_> = left.into_iter().map(|meta| (meta.namespace, meta.name)).collect();
        ensure!(names.is_empty(), "{names:?}");
        Ok(())
    })
    .await
}
