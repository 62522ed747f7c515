//! Pods come and go under load.

use tokio::time::Instant;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use mesh_test::app::Tally;
use mesh_test::wait;
use serde_json::{Value, json};

use super::Settings;
use crate::cluster::space::Space;
use crate::runner::figure;

/// How often the Deployment is restarted.
const RESTARTS: usize = 10;

/// Where the client hears that applications end.
const ENDS: u16 = 7000;

pub(super) async fn restarted_under_load(space: &Space, _: &Settings) -> Result<()> {
    let client = space.client("client").await?;
    let ip = space.ready("client").await?.status.and_then(|status| status.pod_ip).context("no address")?;
    // The application ends at once when it is told to, whatever is open; nothing in its manifest helps.
    let [account, mut deployment] = space.server("orders", "v1", 2);
    let arguments =
        deployment.pointer_mut("/spec/template/spec/containers/0/args").and_then(Value::as_array_mut);
    arguments.context("no arguments")?.extend([json!("--tell-end"), json!(format!("{ip}:{ENDS}"))]);
    space.apply(&[account, deployment, space.service("orders", json!({ "app": "orders" }))]).await?;
    space.deployed("orders-v1").await?;
    // POST requests: nobody may repeat one that reached an application.
    let load =
        client.start(&["load", "http://orders/", "--rate=100", &format!("--hear-ends={ENDS}")]).await?;
    let (started, deployments) = (Instant::now(), space.cluster.in_namespace::<Deployment>(&space.name));
    for round in 0..RESTARTS {
        let restart = json!({ "spec": { "template": { "metadata": { "annotations": { "round": round.to_string() } } } } });
        deployments.patch("orders-v1", &PatchParams::default(), &Patch::Merge(restart)).await?;
        space.deployed("orders-v1").await?;
    }
    let took = started.elapsed();
    let pods = space.cluster.in_namespace::<Pod>(&space.name);
    wait::until_ok("the last old pods are gone", space.patience(), async || {
        let left = pods.list(&ListParams::default().labels("app=orders")).await?.items.len();
        ensure!(left == 2, "{left} pods are left");
        Ok(())
    })
    .await?;
    let tally: Tally = load.end_with().await?;
    figure(
        "restarts under load",
        format!(
            "{RESTARTS} in {took:?}: {} requests, {} inside applications that ended, {} lost",
            tally.sent, tally.inside, tally.failed
        ),
    );
    tally.no_failure()?;
    ensure!(tally.ends == 2 * RESTARTS, "{} applications told that they end", tally.ends);
    ensure!(tally.by_pod.len() >= 2 * RESTARTS, "only {} pods answered", tally.by_pod.len());
    space.only_mutual_tls(&client, "app=orders", 1).await
}
