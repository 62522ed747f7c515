//! Clients that want everything: a stock Envoy in both forms of the protocol, as far as messages tell.

use mesh_common::xds::ResourceType::{Cluster, Endpoints, Listener, Route};
use mesh_common::xds::proto::config::core::v3::Node;
use mesh_common::xds::protobuf::value::Kind;
use mesh_common::xds::protobuf::{Struct, Value};
use tonic::Code;

use crate::client::{Stream, summary};
use crate::form::{Delta, Form, StateOfTheWorld};
use crate::world::{Pod, WEB, World, service_manifest, slice_manifest};

const ALL_CLUSTERS: &str = "cds BlackHoleCluster outbound|80||ratings.shop.svc.cluster.local \
    outbound|80||reviews.shop.svc.cluster.local outbound|80||web.shop.svc.cluster.local";
const REVIEWS_CLUSTER: &str = "outbound|80||reviews.shop.svc.cluster.local";

/// A node as a stock client sends it: an id, what it is, and little more.
fn stock(pod: Pod, user_agent: &str, fields: &[(&str, &str)]) -> Node {
    let value = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    Node {
        id: format!("sidecar~{}~{}.shop~shop.svc.cluster.local", pod.ip, pod.name),
        user_agent_name: user_agent.to_owned(),
        metadata: Some(Struct {
            fields: fields.iter().map(|(field, text)| ((*field).to_owned(), value(text))).collect(),
        }),
        ..Node::default()
    }
}

fn envoy() -> Node {
    stock(WEB, "envoy", &[("HTTP_PROXY_PORT", "15002")])
}

/// A stream of the pod `web`, whatever it says it is.
async fn open<F: Form>(world: &World, node: Node) -> Stream<F> {
    Stream::with_node(world, WEB, node).await.unwrap()
}

#[tokio::test]
async fn an_envoy_has_everything_and_is_told_of_changes_in_order() {
    let world = World::start().await;
    let mut stream = open::<Delta>(&world, envoy()).await;
    stream.subscribe(Cluster, &[]).await;
    assert_eq!(stream.told().await, ALL_CLUSTERS);
    stream.subscribe(Listener, &[]).await;
    assert_eq!(stream.told().await, "lds http_proxy");
    assert_eq!(summary(&stream.look_up(Route, &["http_proxy"]).await), "rds http_proxy");
    assert_eq!(
        summary(&stream.look_up(Endpoints, &[REVIEWS_CLUSTER]).await),
        format!("eds {REVIEWS_CLUSTER}")
    );
    // A new service: its cluster comes before the routes that lead there.
    world.write("new.yaml", &service_manifest("new", "10.96.0.50"));
    assert_eq!(stream.told().await, "cds outbound|80||new.shop.svc.cluster.local");
    assert_eq!(stream.told().await, "rds http_proxy");
    // It goes: first the routes, then the cluster.
    world.remove("new.yaml");
    assert_eq!(stream.told().await, "rds http_proxy");
    assert_eq!(stream.told().await, "cds -outbound|80||new.shop.svc.cluster.local");
    // Another endpoint of the same identity changes nothing but endpoints.
    let more = Pod { name: "reviews-2", account: "reviews", ip: "127.0.21.8" };
    world.write("reviews-2.yaml", &crate::world::pod_manifest(more, ""));
    world.write("reviews-slice.yaml", &slice_manifest("reviews", &[crate::world::REVIEWS, more]));
    assert_eq!(stream.told().await, format!("eds {REVIEWS_CLUSTER}"));
    let page = world.page("/debug/streams").await;
    assert!(page.contains("\"client\":\"envoy\""), "{page}");
    world.stop().await;
}

#[tokio::test]
async fn with_capture_there_is_a_listener_for_each_address() {
    let world = World::start().await;
    let mut stream = open::<Delta>(&world, stock(WEB, "envoy", &[])).await;
    stream.subscribe(Listener, &["*"]).await;
    assert_eq!(
        stream.told().await,
        "lds 10.96.0.1_80 10.96.0.2_80 10.96.0.3_80 virtualInbound virtualOutbound"
    );
    stream.subscribe(Cluster, &["*"]).await;
    let clusters = stream.told().await;
    for name in ["InboundPassthroughCluster", "PassthroughCluster", "inbound|8080||"] {
        assert!(clusters.contains(name), "{name} in {clusters}");
    }
    world.stop().await;
}

#[tokio::test]
async fn the_state_of_the_world() {
    let world = World::start().await;
    let mut stream = open::<StateOfTheWorld>(&world, envoy()).await;
    let clusters = stream.look_up(Cluster, &[]).await;
    assert_eq!(StateOfTheWorld::summary(&clusters), ALL_CLUSTERS);
    assert_eq!(clusters.version_info.len(), 32);
    let endpoints = stream.look_up(Endpoints, &[REVIEWS_CLUSTER, "nobody"]).await;
    assert_eq!(StateOfTheWorld::summary(&endpoints), format!("eds {REVIEWS_CLUSTER}"));
    world.write("new.yaml", &service_manifest("new", "10.96.0.50"));
    let more = stream.next().await;
    let all = ALL_CLUSTERS
        .replace(" outbound|80||ratings", " outbound|80||new.shop.svc.cluster.local outbound|80||ratings");
    assert_eq!(StateOfTheWorld::summary(&more), all);
    assert_ne!(more.version_info, clusters.version_info);
    world.stop().await;
}

#[tokio::test]
async fn grpc_asks_by_name_and_never_for_everything() {
    let world = World::start().await;
    let grpc = || stock(WEB, "gRPC C-core", &[]);
    let mut stream = open::<StateOfTheWorld>(&world, grpc()).await;
    let dialled = "reviews.shop.svc.cluster.local:80";
    for (kind, name) in [(Listener, dialled), (Route, dialled), (Cluster, REVIEWS_CLUSTER)] {
        let response = stream.look_up(kind, &[name]).await;
        assert_eq!(StateOfTheWorld::summary(&response), format!("{} {name}", kind.short()));
    }
    let mut nobody = open::<StateOfTheWorld>(&world, grpc()).await;
    let response = nobody.look_up(Listener, &["nobody.shop.svc.cluster.local:80"]).await;
    assert_eq!(StateOfTheWorld::summary(&response), "lds");
    let mut greedy = open::<StateOfTheWorld>(&world, grpc()).await;
    greedy.subscribe(Listener, &[]).await;
    assert_eq!(greedy.try_next().await.unwrap_err().code(), Code::InvalidArgument);
    world.stop().await;
}
