//! HTTPRoute: shares, headers, metrics, what is wrong with a route; names of services.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_test::app::{Tally, millis};
use mesh_test::wait;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Settings;
use crate::cluster::space::{Client, Space, route, split};
use crate::runner::figure;

const URL: &str = "http://reviews/";

pub(super) async fn split_and_change(space: &Space, _: &Settings) -> Result<()> {
    let client = space.reviews().await?;
    let applied = Instant::now();
    space.apply(&[route("split", "reviews", split(&[("reviews-v1", 90), ("reviews-v2", 10)]))]).await?;
    // 50/50 becomes 90/10: forty in a row have a share that only the route explains.
    wait::until_ok("the route is in force", space.patience(), async || {
        let tally = client.send(URL, 200).await?;
        ensure!(tally.share("v2") < 0.25, "{:?}", tally.by_version);
        Ok(())
    })
    .await?;
    figure("route first seen in force after", format!("{:?}", applied.elapsed()));
    let tally = client.send(URL, 2_000).await?;
    tally.no_failure()?;
    let share = tally.share("v2");
    figure("share of v2 at 90/10 over 2,000", format!("{:.2} %", share * 100.0));
    ensure!((share - 0.10).abs() <= 0.04, "v2 got {share}");

    let load = client.load(URL, 100).await?;
    effects(space, &client).await?;
    space.apply(&[route("split", "reviews", split(&[("reviews-v1", 50), ("reviews-v2", 50)]))]).await?;
    wait::until_ok("half goes to each", space.patience(), async || {
        let tally = client.send(URL, 400).await?;
        ensure!((tally.share("v2") - 0.5).abs() <= 0.1, "{:?}", tally.by_version);
        Ok(())
    })
    .await?;
    let under_load: Tally = load.end_with().await?;
    under_load.no_failure()?;
    ensure!(under_load.sent > 100, "only {} were sent meanwhile", under_load.sent);
    space.only_mutual_tls(&client, "app=reviews", 2_000).await
}

/// From the apply of a route to its effect: all to one version, then all to the other.
async fn effects(space: &Space, client: &Client) -> Result<()> {
    let mut took = Vec::new();
    for round in 0..9 {
        let version = if round % 2 == 0 { "v1" } else { "v2" };
        let rules = split(&[(&format!("reviews-{version}"), 1)]);
        let applied = Instant::now();
        space.apply(&[route("split", "reviews", rules)]).await?;
        wait::until_ok(&format!("{version} alone answers"), space.patience(), async || {
            let tally = client.send(URL, 8).await?;
            ensure!(tally.share(version) == 1.0, "{:?}", tally.by_version);
            Ok(())
        })
        .await?;
        took.push(millis(applied.elapsed()));
    }
    took.sort_unstable();
    let median = took[took.len() / 2];
    figure("route applied to effect, median of 9 (with the time to look)", format!("{median} ms"));
    ensure!(median <= 1_000, "from apply to effect: {took:?} ms");
    Ok(())
}

pub(super) async fn canary_by_header(space: &Space, _: &Settings) -> Result<()> {
    let client = space.reviews().await?;
    let rules = json!([
        { "matches": [{ "headers": [{ "name": "canary", "value": "yes" }] }],
          "backendRefs": [{ "name": "reviews-v2", "port": 80 }] },
        { "backendRefs": [{ "name": "reviews-v1", "port": 80 }] },
    ]);
    space.apply(&[route("canary", "reviews", rules)]).await?;
    wait::until_ok("the route is in force", space.patience(), async || {
        let tally = client.send(URL, 60).await?;
        ensure!(tally.share("v1") == 1.0, "{:?}", tally.by_version);
        Ok(())
    })
    .await?;
    for (header, version) in [("canary=yes", "v2"), ("canary=no", "v1"), ("other=yes", "v1")] {
        for _ in 0..5 {
            let echo = client.get_with(URL, header).await?.echo()?;
            ensure!(echo.version == version, "{header} went to {}", echo.version);
        }
    }
    space.only_mutual_tls(&client, "app=reviews", 15).await
}

pub(super) async fn metrics_are_exact(space: &Space, _: &Settings) -> Result<()> {
    const COUNT: u64 = 500;
    let client = space.pair("orders").await?;
    client.send("http://orders/", COUNT).await?.no_failure()?;
    ensure!(client.get("http://orders/status/503").await?.status == 503);
    let namespace = space.name.as_str();
    let service = format!("orders.{namespace}.svc.cluster.local");
    let principal = |account: &str| format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
    let (source, destination) = (principal("client"), principal("orders"));
    let labels = [
        ("source_workload", "client"),
        ("source_workload_namespace", namespace),
        ("source_principal", &source),
        ("source_app", "client"),
        ("destination_workload", "orders-v1"),
        ("destination_workload_namespace", namespace),
        ("destination_principal", &destination),
        ("destination_app", "orders"),
        ("destination_version", "v1"),
        ("destination_service", &service),
        ("destination_service_name", "orders"),
        ("destination_service_namespace", namespace),
        ("request_protocol", "http"),
    ];
    for (reporter, policy) in [("source", "unknown"), ("destination", "mutual_tls")] {
        for (code, expected) in [("200", COUNT), ("503", 1)] {
            let mut wanted = labels.to_vec();
            wanted.extend([
                ("reporter", reporter),
                ("connection_security_policy", policy),
                ("response_code", code),
            ]);
            wait::until_ok(
                &format!("{reporter} counts {expected} of {code}"),
                space.patience(),
                async || {
                    let metrics = match reporter {
                        "source" => vec![client.metrics().await?],
                        _ => space.metrics("app=orders").await?,
                    };
                    let counted: f64 = metrics.iter().map(|m| m.sum("istio_requests_total", &wanted)).sum();
                    let seen: Vec<_> =
                        metrics.iter().flat_map(|m| m.select("istio_requests_total", &[])).collect();
                    ensure!(counted == expected as f64, "{counted}; there is {seen:#?}");
                    Ok(())
                },
            )
            .await?;
        }
    }
    // Nothing is counted twice: the readiness probe of the kubelet is no request of the mesh.
    let all: f64 =
        space.metrics("app=orders").await?.iter().map(|m| m.sum("istio_requests_total", &[])).sum();
    ensure!(all == (COUNT + 1) as f64, "{all} in all at the server");
    Ok(())
}

pub(super) async fn invalid_route_says_why(space: &Space, _: &Settings) -> Result<()> {
    let client = space.pair("reviews").await?;
    let missing = route("missing", "reviews", split(&[("nowhere", 1)]));
    space.apply(std::slice::from_ref(&missing)).await?;
    let condition = conditions(space, &missing, "ResolvedRefs", "False").await?;
    ensure!(condition["reason"] == "BackendNotFound", "{condition}");
    let message = condition["message"].as_str().unwrap_or_default();
    ensure!(message.contains("nowhere"), "{condition}");
    let accepted = conditions(space, &missing, "Accepted", "True").await?;
    ensure!(accepted["observedGeneration"] == 1, "{accepted}");
    let answer = wait::until_ok("requests of the route fail", space.patience(), async || {
        let answer = client.get(URL).await?;
        ensure!(answer.status == 500, "{answer}");
        Ok(answer)
    })
    .await?;
    ensure!(!answer.reason().is_empty(), "the answer does not say why: {answer}");

    // Mended: the status follows.
    let mut mended = missing.clone();
    mended["spec"]["rules"] = split(&[("reviews", 1)]);
    space.apply(std::slice::from_ref(&mended)).await?;
    let condition = conditions(space, &mended, "ResolvedRefs", "True").await?;
    ensure!(condition["observedGeneration"] == 2, "{condition}");
    wait::until_ok("requests pass", space.patience(), async || client.get(URL).await?.echo()).await?;

    // A parent that is no service.
    let orphan = route("orphan", "nobody", split(&[("reviews", 1)]));
    space.apply(std::slice::from_ref(&orphan)).await?;
    let condition = conditions(space, &orphan, "Accepted", "False").await?;
    ensure!(condition["message"].as_str().is_some_and(|text| text.contains("nobody")), "{condition}");
    Ok(())
}

/// Our condition of this type on a route, once it has this status.
async fn conditions(space: &Space, object: &Value, kind: &str, status: &str) -> Result<Value> {
    let what = format!("{} has the condition {kind}={status}", object["metadata"]["name"]);
    wait::until_ok(&what, Duration::from_secs(30), async || {
        let now = space.cluster.read(&space.name, object).await?;
        let parents = now.data["status"]["parents"].as_array().cloned().unwrap_or_default();
        let ours = parents.iter().find(|parent| parent["controllerName"] == "mesh/control");
        let conditions = ours.and_then(|ours| ours["conditions"].as_array()).cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|one| one["type"] == kind && one["status"] == status);
        found.with_context(|| format!("its status is {}", now.data["status"]))
    })
    .await
}

pub(super) async fn names_short_and_full(space: &Space, _: &Settings) -> Result<()> {
    let client = space.pair("orders").await?;
    let namespace = &space.name;
    let names = [
        "orders".to_owned(),
        format!("orders.{namespace}"),
        format!("orders.{namespace}.svc"),
        format!("orders.{namespace}.svc.cluster.local"),
        format!("orders.{namespace}.svc.cluster.local."),
    ];
    for name in &names {
        client.get(&format!("http://{name}/")).await?.echo().with_context(|| name.clone())?;
    }
    space.only_mutual_tls(&client, "app=orders", names.len() as u64).await
}

pub(super) async fn calls_itself(space: &Space, _: &Settings) -> Result<()> {
    space.apply(&space.server("mirror", "v1", 1)).await?;
    space.apply(&[space.service("mirror", json!({ "app": "mirror" }))]).await?;
    space.deployed("mirror-v1").await?;
    let (name, pod) = space.pod("app=mirror").await?;
    let itself = space.at(&name);
    let address = pod.status.and_then(|status| status.pod_ip).context("the pod has no address")?;
    for url in [
        "http://mirror/",
        &format!("http://{address}:8080/"),
        "http://127.0.0.1:8080/",
        "http://localhost:8080/",
    ] {
        let tally = itself.send(url, 20).await?;
        tally.no_failure().with_context(|| url.to_owned())?;
    }
    // Through its service it is a pair like any other.
    let counted = space.received("app=mirror", "mutual_tls").await?;
    ensure!(counted == 20.0, "{counted} requests to itself came with mutual TLS");
    Ok(())
}
