//! What scrapers and readers of the log see, to the letter.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::config::cluster::{ServiceLabels, WorkloadLabels};

fn workload(name: &str) -> Arc<WorkloadLabels> {
    Arc::new(WorkloadLabels {
        workload: name.to_owned(),
        namespace: "shop".to_owned(),
        canonical_service: name.to_owned(),
        canonical_revision: "v1".to_owned(),
        app: name.to_owned(),
        version: "v1".to_owned(),
        cluster: "Kubernetes".to_owned(),
        principal: format!("spiffe://cluster.local/ns/shop/sa/{name}"),
    })
}

fn traffic(source: &str, protocol: RequestProtocol) -> Traffic {
    Traffic {
        reporter: Reporter::Source,
        source: workload(source),
        destination: workload("reviews"),
        service: ServiceLabels {
            host: "reviews.shop.svc.cluster.local".to_owned(),
            name: "reviews".to_owned(),
            namespace: "shop".to_owned(),
        },
        security: Security::MutualTls,
        protocol,
    }
}

fn printed(telemetry: &Telemetry) -> String {
    let mut text = String::new();
    let registry = telemetry.registry();
    prometheus_client::encoding::text::encode(&mut text, &registry.lock().unwrap()).unwrap();
    text
}

fn ok(millis: u64) -> Outcome {
    Outcome { code: 200, duration: Duration::from_millis(millis), response_bytes: 9, ..Outcome::default() }
}

#[test]
fn http_metrics_are_istios() {
    let telemetry = Telemetry::detached();
    let series = telemetry.http(&traffic("web", RequestProtocol::Http));
    series.record(&ok(3));
    series.record(&ok(3_600_001));
    let text = printed(&telemetry);
    let labels = "reporter=\"source\",source_workload=\"web\",source_canonical_service=\"web\",\
        source_canonical_revision=\"v1\",source_workload_namespace=\"shop\",\
        source_principal=\"spiffe://cluster.local/ns/shop/sa/web\",source_app=\"web\",source_version=\"v1\",\
        source_cluster=\"Kubernetes\",destination_service=\"reviews.shop.svc.cluster.local\",\
        destination_service_namespace=\"shop\",destination_service_name=\"reviews\",\
        destination_workload=\"reviews\",destination_canonical_service=\"reviews\",\
        destination_canonical_revision=\"v1\",destination_workload_namespace=\"shop\",\
        destination_principal=\"spiffe://cluster.local/ns/shop/sa/reviews\",destination_app=\"reviews\",\
        destination_version=\"v1\",destination_cluster=\"Kubernetes\",request_protocol=\"http\",\
        response_flags=\"-\",connection_security_policy=\"mutual_tls\",response_code=\"200\",\
        grpc_response_status=\"\"";
    for line in [
        format!("istio_requests_total{{{labels}}} 2\n"),
        format!("istio_request_duration_milliseconds_count{{{labels}}} 2\n"),
        format!("istio_request_duration_milliseconds_sum{{{labels}}} 3600004.0\n"),
        format!("istio_response_bytes_sum{{{labels}}} 18.0\n"),
        format!("istio_request_bytes_count{{{labels}}} 2\n"),
    ] {
        assert!(text.contains(&line), "{line} is missing in\n{text}");
    }
    let bucket = |bound: &str, count: u64| {
        text.lines().any(|line| {
            line.starts_with("istio_request_duration_milliseconds_bucket{")
                && line.contains(&format!("le=\"{bound}\""))
                && line.ends_with(&format!("}} {count}"))
        })
    };
    assert!(bucket("1.0", 0) && bucket("5.0", 1) && bucket("3600000.0", 1) && bucket("+Inf", 2), "{text}");
}

#[test]
fn grpc_status_and_flags_are_labels_and_missing_values_are_unknown() {
    let telemetry = Telemetry::detached();
    let nobody = Traffic { source: Arc::default(), ..traffic("", RequestProtocol::Grpc) };
    let flags = ResponseFlags::UPSTREAM_CONNECTION_FAILURE;
    telemetry.http(&nobody).record(&Outcome { grpc_status: Some(14), flags, ..ok(1) });
    let text = printed(&telemetry);
    for part in [
        "source_workload=\"unknown\"",
        "source_principal=\"unknown\"",
        "request_protocol=\"grpc\",response_flags=\"UF\"",
        "response_code=\"200\",grpc_response_status=\"14\"} 1",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
}

#[test]
fn tcp_metrics_are_istios() {
    let telemetry = Telemetry::detached();
    let series = telemetry.tcp(&traffic("web", RequestProtocol::Tcp));
    series.opened(ResponseFlags::NONE);
    series.sent(10);
    series.received(7);
    series.closed(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION);
    let text = printed(&telemetry);
    for (name, flags, count) in [
        ("istio_tcp_connections_opened_total", "-", 1),
        ("istio_tcp_connections_closed_total", "DC", 1),
        ("istio_tcp_sent_bytes_total", "-", 10),
        ("istio_tcp_received_bytes_total", "-", 7),
    ] {
        let flags = format!("response_flags=\"{flags}\"");
        let end = format!("connection_security_policy=\"mutual_tls\"}} {count}");
        let found = text.lines().any(|line| {
            line.starts_with(&format!("{name}{{")) && line.contains(&flags) && line.ends_with(&end)
        });
        assert!(found, "{name} is missing in\n{text}");
    }
}

#[test]
fn names_are_prometheus_names() {
    let telemetry = Telemetry::detached();
    telemetry.proxy().inbound_refused("plaintext");
    let text = printed(&telemetry);
    assert!(text.contains("mesh_inbound_refused_total{reason=\"plaintext\"} 1\n"), "{text}");
    assert!(text.contains("mesh_proxy_build_info{version="), "{text}");
    assert!(text.contains("mesh_proxy_access_log_dropped_total 0\n"), "{text}");
    let mut types: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
    let all = types.len();
    types.sort_unstable();
    types.dedup();
    assert_eq!(types.len(), all, "a metric is declared twice");
}

#[test]
fn beyond_the_limit_one_series_takes_the_rest() {
    let limits = Limits { series: 2, ..Limits::default() };
    let telemetry = Telemetry::new(limits, AccessLogger::detached());
    for source in ["a", "b", "c", "d", "c"] {
        telemetry.http(&traffic(source, RequestProtocol::Http)).record(&ok(1));
    }
    let text = printed(&telemetry);
    let counts: Vec<&str> = text.lines().filter(|line| line.starts_with("istio_requests_total{")).collect();
    assert_eq!(counts.len(), 3, "{counts:#?}");
    let rest = counts.iter().find(|line| line.contains("source_workload=\"unknown\"")).unwrap();
    assert!(rest.ends_with(" 3"), "{rest}");
    assert!(text.contains("mesh_proxy_metric_series 2\n"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn idle_series_go_away_unless_they_are_held() {
    let telemetry = Telemetry::detached();
    let held = telemetry.http(&traffic("held", RequestProtocol::Http));
    held.record(&ok(1));
    telemetry.http(&traffic("idle", RequestProtocol::Http)).record(&ok(1));
    let busy = || telemetry.http(&traffic("busy", RequestProtocol::Http)).record(&ok(1));
    for _ in 0..62 {
        busy();
        telemetry.sweep();
        tokio::time::advance(Duration::from_secs(30)).await;
    }
    let text = printed(&telemetry);
    assert!(text.contains("source_workload=\"held\"") && text.contains("source_workload=\"busy\""));
    assert!(!text.contains("source_workload=\"idle\""), "{text}");
    assert!(text.contains("mesh_proxy_metric_series 2\n"), "{text}");
}

#[test]
fn the_same_traffic_is_the_same_series() {
    let telemetry = Telemetry::detached();
    let web = traffic("web", RequestProtocol::Http);
    assert!(Arc::ptr_eq(&telemetry.http(&web), &telemetry.http(&web.clone())));
}

/// The data path counts from several threads at once.
#[test]
fn nothing_is_lost_between_threads() {
    let telemetry = Telemetry::detached();
    std::thread::scope(|scope| {
        for thread in 0..4_u16 {
            let series = telemetry.http(&traffic("web", RequestProtocol::Http));
            scope.spawn(move || {
                for n in 0..1000 {
                    series.record(&Outcome { code: 200 + (n + thread) % 7, ..ok(1) });
                }
            });
        }
    });
    let text = printed(&telemetry);
    let total: u64 = text
        .lines()
        .filter(|line| line.starts_with("istio_requests_total{"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert_eq!(total, 4000);
}
