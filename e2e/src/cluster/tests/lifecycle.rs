//! Pods come and go under load.

use tokio::time::Instant;

use anyhow::{Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Patch, PatchParams};
use mesh_test::app::Tally;
use serde_json::json;

use super::Settings;
use crate::cluster::space::Space;
use crate::runner::figure;

/// How often the Deployment is restarted.
const RESTARTS: usize = 10;

pub(super) async fn restarted_under_load(space: &Space, _: &Settings) -> Result<()> {
    // The application ends at once when it is told to, whatever is open; nothing in its manifest helps.
    space.apply(&space.server("orders", "v1", 2)).await?;
    space.apply(&[space.service("orders", json!({ "app": "orders" }))]).await?;
    let client = space.client("client").await?;
    space.deployed("orders-v1").await?;
    // POST requests: nobody may repeat one that reached an application.
    let load = client.load("http://orders/", 100).await?;
    let (started, deployments) = (Instant::now(), space.cluster.in_namespace::<Deployment>(&space.name));
    for round in 0..RESTARTS {
        let restart = json!({ "spec": { "template": { "metadata": { "annotations": { "round": round.to_string() } } } } });
        deployments.patch("orders-v1", &PatchParams::default(), &Patch::Merge(restart)).await?;
        space.deployed("orders-v1").await?;
    }
    let took = started.elapsed();
    let tally: Tally = load.end_with().await?;
    figure(
        "restarts under load",
        format!("{RESTARTS} in {took:?}: {} requests, {} failed", tally.sent, tally.failed),
    );
    tally.no_failure()?;
    ensure!(tally.by_pod.len() >= 2 * RESTARTS, "only {} pods answered", tally.by_pod.len());
    space.only_mutual_tls(&client, "app=orders", 1).await
}
