//! Clients that want everything: a stock Envoy in both forms of the protocol, as far as messages tell.

use mesh_common::xds::ResourceType::{self, Cluster, Endpoints, Listener, Route};
use mesh_common::xds::proto::config::core::v3::Node;
use mesh_common::xds::proto::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_common::xds::proto::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use mesh_common::xds::protobuf::value::Kind;
use mesh_common::xds::protobuf::{Struct, Value};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};

use crate::client::{SERVER_NAME, Stream, connect, summary};
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

async fn incremental(world: &World, node: Node) -> Stream {
    let channel = connect(world.xds(), &world.bundle(), SERVER_NAME, None).await.unwrap();
    Stream::over(channel, Some(&world.token(WEB)), node).await.unwrap()
}

/// A state-of-the-world stream.
struct WorldStream {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
    node: Option<Node>,
}

impl WorldStream {
    async fn open(world: &World, node: Node) -> Self {
        let channel = connect(world.xds(), &world.bundle(), SERVER_NAME, None).await.unwrap();
        let (requests, receiver) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(receiver));
        let token = format!("Bearer {}", world.token(WEB)).parse().unwrap();
        request.metadata_mut().insert("authorization", token);
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client.stream_aggregated_resources(request).await.unwrap().into_inner();
        Self { requests, responses, node: Some(node) }
    }

    async fn ask(&mut self, kind: ResourceType, names: &[&str], nonce: &str) {
        let request = DiscoveryRequest {
            node: self.node.take(),
            type_url: kind.url().to_owned(),
            resource_names: names.iter().map(ToString::to_string).collect(),
            response_nonce: nonce.to_owned(),
            ..DiscoveryRequest::default()
        };
        // A stream that was refused takes no requests; the refusal is what the caller reads next.
        self.requests.send(request).await.ok();
    }

    async fn try_next(&mut self) -> Result<DiscoveryResponse, Status> {
        let next = tokio::time::timeout(std::time::Duration::from_secs(10), self.responses.message()).await;
        next.expect("nothing came in time").map(|response| response.expect("the stream ended"))
    }

    /// The next response: its type and the number of its resources.
    async fn told(&mut self) -> (DiscoveryResponse, String) {
        let response = self.try_next().await.unwrap();
        let kind = ResourceType::from_url(&response.type_url).unwrap().short();
        let text = format!("{kind} {}", response.resources.len());
        (response, text)
    }
}

#[tokio::test]
async fn an_envoy_has_everything_and_is_told_of_changes_in_order() {
    let world = World::start().await;
    let mut stream = incremental(&world, envoy()).await;
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
    let mut stream = incremental(&world, stock(WEB, "envoy", &[])).await;
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
    let mut stream = WorldStream::open(&world, envoy()).await;
    stream.ask(Cluster, &[], "").await;
    let (clusters, text) = stream.told().await;
    assert_eq!((text.as_str(), clusters.version_info.len()), ("cds 4", 32));
    stream.ask(Cluster, &[], &clusters.nonce).await;
    stream.ask(Endpoints, &[REVIEWS_CLUSTER, "nobody"], "").await;
    let (endpoints, text) = stream.told().await;
    assert_eq!(text, "eds 1");
    stream.ask(Endpoints, &[REVIEWS_CLUSTER, "nobody"], &endpoints.nonce).await;
    world.write("new.yaml", &service_manifest("new", "10.96.0.50"));
    let (more, text) = stream.told().await;
    assert_eq!(text, "cds 5");
    assert_ne!(more.version_info, clusters.version_info);
    world.stop().await;
}

#[tokio::test]
async fn grpc_asks_by_name_and_never_for_everything() {
    let world = World::start().await;
    let grpc = || stock(WEB, "gRPC C-core", &[]);
    let mut stream = WorldStream::open(&world, grpc()).await;
    stream.ask(Listener, &["reviews.shop.svc.cluster.local:80"], "").await;
    assert_eq!(stream.told().await.1, "lds 1");
    stream.ask(Route, &["reviews.shop.svc.cluster.local:80"], "").await;
    assert_eq!(stream.told().await.1, "rds 1");
    stream.ask(Cluster, &[REVIEWS_CLUSTER], "").await;
    assert_eq!(stream.told().await.1, "cds 1");
    let mut nobody = WorldStream::open(&world, grpc()).await;
    nobody.ask(Listener, &["nobody.shop.svc.cluster.local:80"], "").await;
    assert_eq!(nobody.told().await.1, "lds 0");
    let mut greedy = WorldStream::open(&world, grpc()).await;
    greedy.ask(Listener, &[], "").await;
    assert_eq!(greedy.try_next().await.unwrap_err().code(), Code::InvalidArgument);
    world.stop().await;
}
