//! What is not HTTP/1.1 to a service with an address.

use anyhow::{Context as _, Result, ensure};
use mesh_test::wait;
use serde_json::json;

use super::Settings;
use crate::cluster::space::{Space, account, peer_authentication};
use crate::runner::figure;

pub(super) async fn server_speaks_first(space: &Space, _: &Settings) -> Result<()> {
    space.apply(&[peer_authentication("STRICT")]).await?;
    let client = space.pair("mail").await?;
    let heard = client.tcp("mail:91", true).await?;
    ensure!(heard.greeting == "220 ready\r\n" && heard.echo == "ping", "{heard:?}");
    figure("first byte of a server that speaks first after", format!("{} ms", heard.first_byte_ms));
    ensure!(heard.first_byte_ms < 1_000, "the greeting came after {} ms", heard.first_byte_ms);
    secured_connections(space, "app=mail", 1.0).await
}

async fn secured_connections(space: &Space, label: &str, expected: f64) -> Result<()> {
    let labels = [("reporter", "destination"), ("connection_security_policy", "mutual_tls")];
    wait::until_ok("the connections are counted as mutual TLS", space.patience(), async || {
        let all = space.metrics(label).await?;
        let secured: f64 = all.iter().map(|m| m.sum("istio_tcp_connections_opened_total", &labels)).sum();
        ensure!(secured == expected, "{secured} connections came with mutual TLS, not {expected}");
        Ok(())
    })
    .await
}

pub(super) async fn headless_and_stateful_set(space: &Space, _: &Settings) -> Result<()> {
    space.apply(&[peer_authentication("STRICT")]).await?;
    let labels = json!({ "app": "db" });
    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "db" },
        "spec": {
            "serviceName": "db", "replicas": 2, "podManagementPolicy": "Parallel",
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": space.pod_spec("db", "v1", &["serve", "--http", "8080", "--echo", "9090", "--banner", "9091"]),
            },
        },
    });
    let mut headless = space.service("db", labels);
    headless["spec"]["clusterIP"] = json!("None");
    // A headless service has no address, so its ports are the pods'.
    headless["spec"]["ports"] = json!([
        { "name": "http", "port": 8080, "targetPort": 8080 },
        { "name": "tcp-echo", "port": 9090, "targetPort": 9090 },
    ]);
    space.apply(&[account("db"), headless, set]).await?;
    let client = space.client("client").await?;
    space.stateful_set("db").await?;
    for pod in ["db-0", "db-1"] {
        for name in [format!("{pod}.db"), format!("{pod}.db.{}.svc.cluster.local", space.name)] {
            let echo =
                client.get(&format!("http://{name}:8080/")).await?.echo().with_context(|| name.clone())?;
            ensure!(echo.pod == format!("v1/{pod}"), "{name} was answered by {}", echo.pod);
        }
        ensure!(client.tcp(&format!("{pod}.db:9090"), false).await?.echo == "ping");
    }
    client.send("http://db:8080/", 20).await?.no_failure()?;
    secured_connections(space, "app=db", 2.0).await?;
    space.only_mutual_tls(&client, "app=db", 24).await
}

pub(super) async fn grpc_per_call(space: &Space, _: &Settings) -> Result<()> {
    space.apply(&space.server("pool", "v1", 3)).await?;
    space.apply(&[space.service("pool", json!({ "app": "pool" }))]).await?;
    let client = space.client("client").await?;
    space.deployed("pool-v1").await?;
    let tally = client.calls("pool:81", 300).await?;
    tally.no_failure()?;
    ensure!(tally.by_pod.len() == 3, "one connection's calls reached {:?}", tally.by_pod);
    ensure!(tally.by_pod.values().all(|calls| *calls > 40), "uneven: {:?}", tally.by_pod);
    let grpc: f64 = {
        let labels =
            [("request_protocol", "grpc"), ("grpc_response_status", "0"), ("reporter", "destination")];
        let all = space.metrics("app=pool").await?;
        all.iter().map(|metrics| metrics.sum("istio_requests_total", &labels)).sum()
    };
    ensure!(grpc == 300.0, "{grpc} calls were counted as gRPC");
    space.only_mutual_tls(&client, "app=pool", 300).await
}

pub(super) async fn web_socket(space: &Space, _: &Settings) -> Result<()> {
    let client = space.pair("chat").await?;
    let heard = client.upgrade("http://chat/socket").await?;
    ensure!(heard.echo == "ping", "{heard:?}");
    let labels = [("response_code", "101")];
    wait::until_ok("the upgrade is counted", space.patience(), async || {
        let all = space.metrics("app=chat").await?;
        let upgrades: f64 = all.iter().map(|metrics| metrics.sum("istio_requests_total", &labels)).sum();
        ensure!(upgrades == 1.0, "{upgrades}");
        Ok(())
    })
    .await?;
    space.only_mutual_tls(&client, "app=chat", 1).await
}
