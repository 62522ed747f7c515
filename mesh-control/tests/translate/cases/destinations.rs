//! Outbound: listeners, clusters, endpoints, and who is behind an address.

use mesh_common::xds::ResourceType::{Cluster, Endpoints, Listener, Secret, Workload};
use mesh_control::model::service::{Endpoint, EndpointHealth, EndpointTls, Protocol, ServiceKind};
use mesh_control::model::workload::WorkloadKind;
use mesh_control::model::{AccessLogEncoding, Address, OutboundTrafficPolicy};

use super::super::world::{Client, World, ip, pod, pod_key};
use super::{Case, case};

/// `reviews` with a port of each kind, headless `mysql`, `payments` outside.
pub fn shop() -> World {
    let mysql = |name: &str, address: &str, zone: &str| {
        let mut pod = pod(name, address, zone);
        pod.workload_name = "mysql".to_owned();
        pod.canonical_service = "mysql".to_owned();
        pod
    };
    let mut world = World::new()
        .service(
            "reviews",
            ServiceKind::Cluster,
            Some("10.0.3.4"),
            &[(80, Protocol::Http), (90, Protocol::Http2), (5432, Protocol::Tcp), (7000, Protocol::Detect)],
        )
        .no_such_port("reviews", "10.0.3.4", 81)
        .service("mysql", ServiceKind::Headless, None, &[(3306, Protocol::Tcp)])
        .service(
            "payments",
            ServiceKind::ExternalName("api.payments.example".to_owned()),
            None,
            &[(80, Protocol::Http)],
        )
        .pod(pod("reviews-1", "10.0.1.1", "a"))
        .pod(pod("reviews-2", "10.0.1.2", "b"))
        .pod(mysql("mysql-0", "10.0.1.10", "a"))
        .pod(mysql("mysql-1", "10.0.1.11", "b"))
        .dialled("reviews-1", 8080, Protocol::Http, Some("reviews"))
        .dialled("reviews-2", 6000, Protocol::Detect, None)
        .dialled("mysql-0", 3306, Protocol::Tcp, Some("mysql"));
    let both = vec![world.endpoint_of("mysql-0", 3306), world.endpoint_of("mysql-1", 3306)];
    world = world.endpoints("mysql", 3306, both);
    world
}

/// Endpoints of every kind behind `reviews:80`.
pub fn with_endpoints() -> World {
    let mut refused = pod("reviews-4", "10.0.1.4", "b");
    refused.service_account = "No_Name".to_owned();
    refused.identity = None;
    let mut plain = pod("legacy-1", "10.0.1.5", "b");
    plain.meshed = false;
    plain.version = String::new();
    let world = shop().pod(pod("reviews-3", "10.0.1.3", "a")).pod(refused).pod(plain);
    let of = |pod: &str| world.endpoint_of(pod, 8080);
    let endpoints = vec![
        of("reviews-1"),
        of("reviews-2"),
        Endpoint { health: EndpointHealth::Draining, ..of("reviews-3") },
        of("reviews-4"),
        Endpoint { health: EndpointHealth::NotReady, ..of("legacy-1") },
        Endpoint {
            address: Address { network: String::new(), ip: ip("fd00::9") },
            tls: EndpointTls::Plaintext,
            zone: String::new(),
            region: String::new(),
            node: String::new(),
            workload: None,
            ..of("reviews-1")
        },
        Endpoint {
            address: Address { network: String::new(), ip: ip("192.168.0.1") },
            tls: EndpointTls::Refused,
            workload: None,
            ..of("reviews-1")
        },
    ];
    world.endpoints("reviews", 80, endpoints)
}

pub fn cases() -> Vec<Case> {
    [listeners(), clusters(), rest()].concat()
}

fn listeners() -> Vec<Case> {
    let shop = &shop();
    let mut logging = shop.clone();
    logging.settings.access_log = Some(AccessLogEncoding::Text);
    let mut json = shop.clone();
    json.settings.access_log = Some(AccessLogEncoding::Json);
    let mut registry_only = shop.clone();
    registry_only.settings.outbound = OutboundTrafficPolicy::RegistryOnly;
    registry_only.ranges.clear();
    vec![
        case("listener-http", Listener, "10.0.3.4:80", shop),
        case("listener-http2", Listener, "10.0.3.4:90", shop),
        case("listener-tcp", Listener, "10.0.3.4:5432", shop),
        case("listener-detect", Listener, "10.0.3.4:7000", shop),
        case("listener-no-such-port", Listener, "10.0.3.4:81", shop),
        case("listener-unknown-address", Listener, "10.0.3.5:80", shop),
        case("listener-pod-http", Listener, "10.0.1.1:8080", shop),
        case("listener-pod-tcp", Listener, "10.0.1.10:3306", shop),
        case("listener-pod-detect", Listener, "10.0.1.2:6000", shop),
        case("listener-host-short", Listener, "host/reviews:80", shop),
        case("listener-host-full", Listener, "host/reviews.shop.svc.cluster.local:80", shop),
        case("listener-host-no-such-port", Listener, "host/reviews.shop:81", shop),
        case("listener-host-unknown", Listener, "host/example.com:443", shop),
        case("listener-host-headless", Listener, "host/mysql.shop:3306", shop),
        case("listener-host-headless-pod", Listener, "host/mysql-0.mysql.shop.svc.cluster.local:3306", shop),
        case("listener-host-external-name", Listener, "host/payments.shop:80", shop),
        case("listener-access-log-text", Listener, "10.0.3.4:5432", &logging),
        case("listener-access-log-json", Listener, "10.0.3.4:80", &json),
        case("virtual-outbound-allow-any", Listener, "virtualOutbound", shop),
        case("virtual-outbound-registry-only", Listener, "virtualOutbound", &registry_only),
    ]
}

fn clusters() -> Vec<Case> {
    let shop = &shop();
    vec![
        case("cluster-http", Cluster, "outbound|80||reviews.shop.svc.cluster.local", shop),
        case("cluster-http2", Cluster, "outbound|90||reviews.shop.svc.cluster.local", shop),
        case("cluster-tcp", Cluster, "outbound|5432||reviews.shop.svc.cluster.local", shop),
        case("cluster-detect", Cluster, "outbound|7000||reviews.shop.svc.cluster.local", shop),
        case("cluster-no-such-port", Cluster, "outbound|81||reviews.shop.svc.cluster.local", shop),
        case("cluster-unknown-subset", Cluster, "outbound|80|v1|reviews.shop.svc.cluster.local", shop),
        case("cluster-headless", Cluster, "outbound|3306||mysql.shop.svc.cluster.local", shop),
        case("cluster-external-name", Cluster, "outbound|80||payments.shop.svc.cluster.local", shop),
        case("cluster-pod", Cluster, "outbound|8080||reviews-1.shop.pod.cluster.local", shop),
        case("cluster-pod-tcp", Cluster, "outbound|3306||mysql-0.shop.pod.cluster.local", shop),
        case("cluster-pod-unknown", Cluster, "outbound|8080||gone.shop.pod.cluster.local", shop),
        case("cluster-invalid-backend", Cluster, "outbound|1||invalid.shop.cluster.local", shop),
        // Its service does exist, and another port of it.
        case("cluster-missing-backend", Cluster, "outbound|80|!|reviews.shop.svc.cluster.local", shop),
        case("cluster-passthrough", Cluster, "PassthroughCluster", shop),
        case("cluster-black-hole", Cluster, "BlackHoleCluster", shop),
    ]
}

fn rest() -> Vec<Case> {
    let world = &with_endpoints();
    let reviews = "outbound|80||reviews.shop.svc.cluster.local";
    let local = world.clone().node_local("reviews");
    let elsewhere = Client { node: "node-b", pod: pod_key("reviews-2"), ..Client::new() };
    let mut unnamed = World::new();
    let mut job = pod("batch-1", "10.0.1.7", "");
    job.identity = None;
    job.workload_kind = WorkloadKind::Job;
    job.region = String::new();
    unnamed = unnamed.pod(job);
    let mut no_bundle = World::new();
    no_bundle.bundle = "\n".to_owned();
    vec![
        case("endpoints", Endpoints, reviews, world),
        case("endpoints-none", Endpoints, "outbound|90||reviews.shop.svc.cluster.local", world),
        case("endpoints-headless", Endpoints, "outbound|3306||mysql.shop.svc.cluster.local", world),
        case("endpoints-no-such-port", Endpoints, "outbound|81||reviews.shop.svc.cluster.local", world),
        case("endpoints-external-name", Endpoints, "outbound|80||payments.shop.svc.cluster.local", world),
        case("endpoints-node-local", Endpoints, reviews, &local),
        Case { client: elsewhere, ..case("endpoints-node-local-elsewhere", Endpoints, reviews, &local) },
        case("workload", Workload, "/10.0.1.1", world),
        case("workload-without-identity", Workload, "/10.0.1.7", &unnamed),
        case("workload-unknown", Workload, "/10.0.1.99", world),
        case("workload-other-network", Workload, "west/10.0.1.1", world),
        case("secret", Secret, "ROOTCA", world),
        case("secret-unknown", Secret, "default", world),
        case("secret-without-bundle", Secret, "ROOTCA", &no_bundle),
    ]
}
