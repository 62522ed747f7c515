//! What is encrypted, refused, and left alone.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use mesh_test::app::{PATH, Seen};
use mesh_test::wait;
use serde_json::json;

use super::Settings;
use crate::cluster::space::{APP, Client, Space, account, peer_authentication};

/// What is looked for on the wire.
const MARKER: &str = "a-marker-that-nobody-else-sends";

pub(super) async fn bytes_are_tls(space: &Space, _: &Settings) -> Result<()> {
    let (secured, seen) = sniffed(space).await?;
    ensure!(seen.bytes > 1_000, "the capture saw {} bytes", seen.bytes);
    ensure!(secured == 0, "the marker passed {secured} times in clear");
    // The same capture sees it where there is no mesh.
    let other = Space::make(space.cluster.clone(), "clear", false, &space.image).await?;
    let outcome = sniffed(&other).await;
    other.delete().await?;
    let (clear, _) = outcome?;
    ensure!(clear >= 20, "without the mesh the capture saw the marker {clear} times");
    Ok(())
}

/// How often the marker passed on the wire of a server's pod, seen from its node.
async fn sniffed(space: &Space) -> Result<(usize, Seen)> {
    let client = space.pair("orders").await?;
    let (_, server) = space.pod("app=orders").await?;
    let address = server.status.context("no status")?.pod_ip.context("no address")?;
    let node = server.spec.context("no spec")?.node_name.context("no node")?;
    let mut sniffer = space.client_pod("sniffer");
    sniffer["metadata"]["labels"]["mesh/inject"] = json!("disabled");
    sniffer["spec"]["nodeName"] = json!(node);
    sniffer["spec"]["hostNetwork"] = json!(true);
    sniffer["spec"]["containers"][0]["securityContext"] =
        json!({ "runAsUser": 0, "capabilities": { "add": ["NET_RAW"] } });
    space.apply(&[account("sniffer"), sniffer]).await?;
    space.ready("sniffer").await?;
    let capture = space.at("sniffer").start(&["sniff", &address, MARKER]).await?;
    let url = format!("http://orders/{MARKER}");
    client.send(&url, 200).await?.no_failure()?;
    let seen: Seen = capture.end_with().await?;
    Ok((seen.markers.get(MARKER).copied().unwrap_or_default(), seen))
}

pub(super) async fn neighbours_outside(space: &Space, _: &Settings) -> Result<()> {
    let inside = space.pair("orders").await?;
    let outside = outsider(space, "outside").await?;
    // From outside of the mesh into it, and out of it.
    outside.send("http://orders/", 20).await?.no_failure()?;
    let mut legacy = space.server("legacy", "v1", 1);
    legacy[1]["spec"]["template"]["metadata"]["labels"]["mesh/inject"] = json!("disabled");
    space.apply(&legacy).await?;
    space.apply(&[space.service("legacy", json!({ "app": "legacy" }))]).await?;
    space.deployed("legacy-v1").await?;
    inside.send("http://legacy/", 20).await?.no_failure()?;
    ensure!(inside.tcp("legacy:90", false).await?.echo == "ping");
    wait::until_ok("both ends say what was plaintext", space.patience(), async || {
        let plain = space.received("app=orders", "none").await?;
        let labels = [("reporter", "source"), ("destination_workload", "legacy-v1")];
        let sent = inside.metrics().await?.sum("istio_requests_total", &labels);
        ensure!(plain == 20.0 && sent == 20.0, "{plain} came in plaintext, {sent} went out");
        Ok(())
    })
    .await
}

async fn outsider(space: &Space, name: &str) -> Result<Client> {
    space.client_with(name, |pod| pod["metadata"]["labels"]["mesh/inject"] = json!("disabled")).await
}

pub(super) async fn strict_and_probes(space: &Space, _: &Settings) -> Result<()> {
    space.apply(&[peer_authentication("STRICT")]).await?;
    // Every kind of probe, by number and by name, and handlers.
    let mut server = space.server("orders", "v1", 1);
    let containers = &mut server[1]["spec"]["template"]["spec"]["containers"];
    let container = &mut containers[0];
    container["ports"] =
        json!([{ "name": "web", "containerPort": 8080 }, { "name": "raw", "containerPort": 9090 }]);
    container["readinessProbe"] =
        json!({ "httpGet": { "path": "/ready", "port": "web" }, "periodSeconds": 1 });
    container["livenessProbe"] =
        json!({ "tcpSocket": { "port": "raw" }, "periodSeconds": 1, "failureThreshold": 2 });
    container["startupProbe"] = json!({ "httpGet": { "path": "/start", "port": 8080 }, "periodSeconds": 1 });
    // The kubelet calls a handler once, so it has to find the application listening: it belongs to a second container,
    // which is not started before the first one's handler has waited for that.
    container["lifecycle"] =
        json!({ "postStart": { "exec": { "command": [PATH, "reach", "127.0.0.1:8080"] } } });
    let mut second = space.pod_spec("orders", "v1", &["serve"])["containers"][0].take();
    second["name"] = json!("second");
    second["lifecycle"] = json!({ "postStart": { "httpGet": { "path": "/began", "port": 8080 } } });
    containers.as_array_mut().context("no containers")?.push(second);
    space.apply(&server).await?;
    space.apply(&[space.service("orders", json!({ "app": "orders" }))]).await?;
    let client = space.client("client").await?;
    let outside = outsider(space, "outside").await?;
    space.deployed("orders-v1").await?;

    client.send("http://orders/", 20).await?.no_failure()?;
    let (name, pod) = space.pod("app=orders").await?;
    let address = pod.status.context("no status")?.pod_ip.context("no address")?;
    for target in ["orders:80".to_owned(), format!("{address}:8080"), format!("{address}:15006")] {
        let got = outside.get(&format!("http://{target}/")).await;
        ensure!(got.is_err(), "plaintext to {target} was answered: {}", got?);
    }
    for target in ["orders:90".to_owned(), format!("{address}:9090")] {
        let got = outside.tcp(&target, false).await;
        ensure!(got.is_err(), "plaintext to {target} came back: {:?}", got?);
    }
    ensure!(client.tcp("orders:90", false).await?.echo == "ping");
    // A probe that fails, fails: an application that is not there is not called ready.
    let mut broken = space.client_pod("broken");
    let probe = json!({ "httpGet": { "path": "/", "port": 7777 }, "periodSeconds": 1 });
    broken["spec"]["containers"][0]["readinessProbe"] = probe;
    space.apply(&[account("broken"), broken]).await?;
    let pods = space.cluster.in_namespace::<Pod>(&space.name);
    wait::until("the application of the broken pod runs and is not ready", space.patience(), async || {
        let statuses = pods.get("broken").await.ok()?.status?.container_statuses?;
        let app = statuses.into_iter().find(|status| status.name == APP)?;
        (app.started == Some(true) && !app.ready).then_some(())
    })
    .await?;
    let again = pods.get(&name).await?.status.context("no status")?.container_statuses.unwrap_or_default();
    ensure!(again.iter().all(|status| status.restart_count == 0), "the liveness probe killed it: {again:?}");
    space.only_mutual_tls(&client, "app=orders", 20).await
}

pub(super) async fn excluded_ports_bypass(space: &Space, _: &Settings) -> Result<()> {
    let mut server = space.server("orders", "v1", 1);
    server[1]["spec"]["template"]["metadata"]["annotations"] =
        json!({ "mesh/exclude-inbound-ports": "9090" });
    space.apply(&server).await?;
    space
        .apply(&[space.service("orders", json!({ "app": "orders" })), peer_authentication("STRICT")])
        .await?;
    let client = space
        .client_with("client", |pod| {
            pod["metadata"]["annotations"] = json!({ "mesh/exclude-outbound-ports": "90,9090" });
        })
        .await?;
    let outside = outsider(space, "outside").await?;
    space.deployed("orders-v1").await?;
    // The excluded port answers anybody, in plaintext, at STRICT too; the others do not.
    ensure!(outside.tcp("orders:90", false).await?.echo == "ping");
    ensure!(client.tcp("orders:90", false).await?.echo == "ping");
    ensure!(outside.get("http://orders/").await.is_err(), "a port that is not excluded was answered");
    client.send("http://orders/", 10).await?.no_failure()?;
    // A proxy that is in the way knows that there is none at the other end, whatever the policy.
    let inside = space.client("inside").await?;
    ensure!(inside.tcp("orders:90", false).await?.echo == "ping");
    for metrics in space.metrics("app=orders").await?.into_iter().chain([client.metrics().await?]) {
        let tcp = metrics.sum("istio_tcp_connections_opened_total", &[]);
        ensure!(tcp == 0.0, "{tcp} connections to the excluded port passed a proxy");
    }
    space.only_mutual_tls(&client, "app=orders", 10).await
}
