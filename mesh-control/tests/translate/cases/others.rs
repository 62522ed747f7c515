//! What a stock Envoy and gRPC's own clients get where it differs.

use mesh_common::xds::ResourceType::{Cluster, Endpoints, Listener, Route};
use mesh_control::model::policy::MtlsMode::{Permissive, Strict};
use mesh_control::model::service::Protocol::Http;
use mesh_control::translate::client::{Bind, ClientKind, EnvoyClient, GrpcClient};

use super::super::world::{Client, World};
use super::{Case, case, destinations, routes};

const REVIEWS: &str = "outbound|80||reviews.shop.svc.cluster.local";

pub fn cases() -> Vec<Case> {
    [envoy(), grpc()].concat()
}

fn of(kind: &ClientKind, cases: Vec<Case>) -> Vec<Case> {
    let client = Client { kind: kind.clone(), ..Client::new() };
    cases.into_iter().map(|case| Case { client: client.clone(), ..case }).collect()
}

/// Without capture: a forward-proxy port, and a port of its own.
fn explicit() -> ClientKind {
    let bind = |port| Bind {
        listen: format!("10.0.1.1:{port}").parse().unwrap(),
        app: "127.0.0.1:9080".parse().unwrap(),
    };
    ClientKind::Envoy(EnvoyClient {
        proxy_port: Some(15_002),
        inbound: vec![bind(8080), bind(8081)],
        ..EnvoyClient::default()
    })
}

fn served() -> World {
    destinations::with_endpoints().inbound("reviews-1", Strict, &[(8080, Http, Permissive)])
}

fn envoy() -> Vec<Case> {
    let shop = &destinations::shop();
    let world = &served();
    let mut standalone = world.clone();
    standalone.settings.standalone = true;
    let captured = vec![
        case("envoy-cluster-http", Cluster, REVIEWS, world),
        case("envoy-cluster-nobody", Cluster, REVIEWS, shop),
        case("envoy-cluster-http2", Cluster, "outbound|90||reviews.shop.svc.cluster.local", world),
        case("envoy-cluster-tcp", Cluster, "outbound|5432||reviews.shop.svc.cluster.local", world),
        case("envoy-cluster-pod", Cluster, "outbound|3306||mysql-0.shop.pod.cluster.local", world),
        case("envoy-endpoints", Endpoints, REVIEWS, world),
        case("envoy-route", Route, "reviews.shop.svc.cluster.local:80", shop),
        case("envoy-virtual-outbound", Listener, "virtualOutbound", world),
        case("envoy-virtual-inbound", Listener, "virtualInbound", world),
        case("envoy-captured-http", Listener, "10.0.3.4_80", world),
        case("envoy-captured-tcp", Listener, "10.0.3.4_5432", world),
        case("envoy-captured-detect", Listener, "10.0.3.4_7000", world),
        case("envoy-captured-unknown", Listener, "10.0.3.5_80", world),
        case("envoy-inbound-cluster-captured", Cluster, "inbound|8080||", world),
        case("envoy-all-listeners-captured", Listener, "*", world),
        case("envoy-all-clusters-captured", Cluster, "*", world),
    ];
    let explicit_cases = vec![
        case("envoy-inbound", Listener, "inbound_10.0.1.1_8080", world),
        case("envoy-inbound-by-default", Listener, "inbound_10.0.1.1_8081", world),
        case("envoy-inbound-not-asked-for", Listener, "inbound_10.0.1.1_9090", world),
        case("envoy-inbound-cluster", Cluster, "inbound|8080||", world),
        case("envoy-proxy", Listener, "http_proxy", world),
        case("envoy-proxy-standalone", Listener, "http_proxy", &standalone),
        case("envoy-proxy-routes", Route, "http_proxy", world),
        case("envoy-all-listeners", Listener, "*", world),
        case("envoy-all-clusters", Cluster, "*", world),
    ];
    [of(&ClientKind::Envoy(EnvoyClient::default()), captured), of(&explicit(), explicit_cases)].concat()
}

fn grpc() -> Vec<Case> {
    let world = &served();
    let name = "reviews.shop.svc.cluster.local:90";
    let plain = vec![
        case("grpc-listener", Listener, name, world),
        case("grpc-listener-short", Listener, "reviews:90", world),
        case("grpc-listener-no-such-port", Listener, "reviews:91", world),
        case("grpc-cluster", Cluster, REVIEWS, world),
        case("grpc-endpoints", Endpoints, REVIEWS, world),
        case("grpc-everything", Listener, "*", world),
        case("grpc-route", Route, "reviews.shop.svc.cluster.local:80", &routes::matching_world()),
    ];
    let secured = vec![
        case("grpc-cluster-secured", Cluster, REVIEWS, world),
        case("grpc-cluster-nobody-secured", Cluster, "outbound|7000||reviews.shop.svc.cluster.local", world),
        case("grpc-endpoints-secured", Endpoints, REVIEWS, world),
    ];
    let provider = GrpcClient { provider: Some("mesh".to_owned()) };
    [of(&ClientKind::Grpc(GrpcClient::default()), plain), of(&ClientKind::Grpc(provider), secured)].concat()
}
