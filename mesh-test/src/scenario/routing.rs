//! HTTPRoutes: split by weight, canary by header, edits under load, and the counters.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http::Request;
use http_body_util::Full;
use tokio::time::Instant;

use super::figure;
use crate::client::HttpClient;
use crate::load::{Load, send};
use crate::manifest;
use crate::topology::{NAMESPACE, Topology};
use crate::wait::{self, PATIENCE};
use crate::world::World;

pub(super) const REVIEWS: &str = "http://reviews/";
const SPLIT: &str = "route.yaml";
const REQUESTS: u64 = 20_000;

pub(super) fn split(v1: u32, v2: u32) -> String {
    manifest::split(NAMESPACE, "reviews", &[("reviews-v1", v1), ("reviews-v2", v2)])
}

pub(super) fn split_world() -> Topology {
    Topology::reviews().file(SPLIT, split(90, 10))
}

pub(super) fn canary_world() -> Topology {
    // Begins with a line break: a continued line would lose the first line's indentation.
    let rules = "
  - matches:
    - headers:
      - name: x-canary
        value: \"yes\"
    backendRefs:
    - name: reviews-v2
      port: 80
  - backendRefs:
    - name: reviews-v1
      port: 80
";
    Topology::reviews().file(SPLIT, manifest::http_route(NAMESPACE, "canary", "reviews", rules))
}

pub(super) async fn split_by_weight(world: &World) -> Result<()> {
    let report = send(&world.client("web")?, REVIEWS, REQUESTS, 16).await;
    report.no_failure()?;
    let share = report.share("reviews-v2");
    figure("share of v2 at 90/10", format!("{:.2} %", share * 100.0));
    ensure!((share - 0.10).abs() < 0.01, "v2 got {share}");
    // Exactly as many as were sent, with mutual TLS, at both ends.
    let source = [("reporter", "source"), ("source_workload", "web"), ("response_code", "200")];
    world.counted("web", "istio_requests_total", &source, REQUESTS).await?;
    for pod in ["reviews-v1", "reviews-v2"] {
        let labels = [("reporter", "destination"), ("connection_security_policy", "mutual_tls")];
        world.counted(pod, "istio_requests_total", &labels, report.by_pod[pod]).await?;
        world.counted(pod, "istio_requests_total", &[], report.by_pod[pod]).await?;
    }
    Ok(())
}

pub(super) async fn split_edited_under_load(world: &World) -> Result<()> {
    let load = Load::start(&world.client("web")?, REVIEWS, 300);
    wait::until("the load runs", PATIENCE, async || (load.report().sent > 600).then_some(())).await?;
    world.edit(SPLIT, &split(50, 50))?;
    let edited = load.elapsed();
    // A second for the edit, which is more than it may take; then enough requests to tell.
    wait::until("the load goes on", PATIENCE * 2, async || {
        (load.report().answers.iter().filter(|(at, _)| *at > edited + SECOND).count() > 4000).then_some(())
    })
    .await?;
    let report = load.stop().await?;
    report.no_failure()?;
    let share = |from: Duration, to: Duration| {
        let answers: Vec<_> = report.answers.iter().filter(|(at, _)| *at >= from && *at < to).collect();
        answers.iter().filter(|(_, pod)| pod == "reviews-v2").count() as f64 / answers.len() as f64
    };
    let (before, after) = (share(Duration::ZERO, edited), share(edited + SECOND, Duration::MAX));
    ensure!((before - 0.1).abs() < 0.05, "before the edit v2 got {before}");
    ensure!((after - 0.5).abs() < 0.03, "after the edit v2 got {after}");
    Ok(())
}

const SECOND: Duration = Duration::from_secs(1);

pub(super) async fn canary_by_header(world: &World) -> Result<()> {
    let client = world.client("web")?;
    for (value, pod) in [(Some("yes"), "reviews-v2"), (Some("no"), "reviews-v1"), (None, "reviews-v1")] {
        for _ in 0..20 {
            let mut request = Request::get(REVIEWS);
            if let Some(value) = value {
                request = request.header("x-canary", value);
            }
            let echo = client.send(request.body(Full::default())?).await?.echo()?;
            ensure!(echo.pod == pod, "x-canary {value:?} went to {}", echo.pod);
        }
    }
    world.counted("reviews-v2", "istio_requests_total", &[("reporter", "destination")], 20).await?;
    world.counted("reviews-v1", "istio_requests_total", &[("reporter", "destination")], 40).await
}

pub(super) async fn metrics_are_exact(world: &World) -> Result<()> {
    let client = world.client("web")?;
    for (path, status, count) in [("", 200, 100), ("status/404", 404, 30), ("status/503", 503, 20)] {
        for _ in 0..count {
            let reply = client.get(&format!("{REVIEWS}{path}")).await?;
            ensure!(reply.status == status, "{path}: {reply}");
        }
    }
    let code = |code, count| ([("response_code", code)], count);
    for (labels, count) in [code("200", 100), code("404", 30), code("503", 20)] {
        world.counted("web", "istio_requests_total", &labels, count).await?;
        let at_servers = async || {
            let mut sum = 0.0;
            for pod in ["reviews-v1", "reviews-v2"] {
                let metrics = world.pod(pod)?.sidecar()?.metrics().await?;
                let mtls = [labels[0], ("connection_security_policy", "mutual_tls")];
                sum += metrics.sum("istio_requests_total", &mtls);
            }
            ensure!(sum == f64::from(count as u32), "the servers counted {sum} of {count} {labels:?}");
            Ok(())
        };
        wait::until_ok("the servers counted all", Duration::from_secs(10), at_servers).await?;
    }
    let labels = [
        ("reporter", "source"),
        ("source_workload_namespace", NAMESPACE),
        ("source_principal", "spiffe://cluster.local/ns/shop/sa/web"),
        ("destination_principal", "spiffe://cluster.local/ns/shop/sa/reviews"),
        ("destination_app", "reviews"),
        ("request_protocol", "http"),
        ("response_flags", "-"),
        // Only the server's side says what secured the connection, as Istio has it.
        ("connection_security_policy", "unknown"),
    ];
    world.counted("web", "istio_requests_total", &labels, 150).await?;
    world.counted("web", "istio_request_duration_milliseconds_count", &[], 150).await?;
    world.counted("web", "istio_request_bytes_count", &[], 150).await?;
    world.counted("web", "istio_response_bytes_count", &[], 150).await
}

/// Waits until `pod` gives every answer; one alone could come of any split.
pub(super) async fn only(client: &HttpClient, pod: &str) -> Result<()> {
    wait::until(&format!("only {pod} answers"), PATIENCE, async || {
        for _ in 0..100 {
            (client.get(REVIEWS).await.ok()?.echo().ok()?.pod == pod).then_some(())?;
        }
        Some(())
    })
    .await
}

pub(super) async fn a_broken_file_changes_nothing(world: &World) -> Result<()> {
    let client = world.client("web")?;
    world.edit(SPLIT, &split(0, 1))?;
    only(&client, "reviews-v2").await?;
    world.edit(SPLIT, &split(1, 0).replace("kind: HTTPRoute", "kind: HTTPRoute\n  : ["))?;
    let started = Instant::now();
    wait::until_ok("the error is named", PATIENCE, async || {
        let errors = world.control_page("/debug/config-errors").await?;
        let named = errors.as_array().is_some_and(|errors| {
            errors
                .iter()
                .any(|e| e["file"].as_str().is_some_and(|f| f.ends_with(SPLIT)) && e["line"].is_number())
        });
        ensure!(named, "errors: {errors}");
        Ok(())
    })
    .await?;
    while started.elapsed() < SECOND {
        let echo = client.get(REVIEWS).await?.echo()?;
        ensure!(echo.pod == "reviews-v2", "the broken file had an effect");
    }
    world.edit(SPLIT, &split(1, 0))?;
    only(&client, "reviews-v1").await.context("the repaired file")?;
    wait::until_ok("the error is gone", PATIENCE, async || {
        let errors = world.control_page("/debug/config-errors").await?;
        ensure!(errors.as_array().is_some_and(Vec::is_empty), "errors: {errors}");
        Ok(())
    })
    .await
}
