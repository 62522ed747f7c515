//! The task against a small ADS server, over pipes in memory.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_common::process::Readiness;
use mesh_common::xds::ResourceType;
use mesh_common::xds::proto::service::discovery::v3 as pb;
use mesh_common::xds::proto::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use mesh_common::xds::protobuf::Any;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::connect::{ConnectError, Dialled};
use super::keep::Keeper;
use super::testing::{eds_cluster, endpoints, http_listener, pack, passthrough, routes, tcp_listener};
use super::{Dial, Limits, NodeIdentity, XdsClient, XdsStatus, run};
use crate::config::store::Store;

type Responses = mpsc::Sender<Result<pb::DeltaDiscoveryResponse, Status>>;

/// Version and body, by type and name.
type Resources = BTreeMap<(ResourceType, String), (String, Any)>;

/// What the server has, and what it was asked.
#[derive(Clone, Default)]
struct Fake {
    resources: Arc<Mutex<Resources>>,
    requests: Arc<Mutex<Vec<pb::DeltaDiscoveryRequest>>>,
    sent: Arc<Mutex<Vec<String>>>,
    tokens: Arc<Mutex<Vec<Option<String>>>>,
    stream: Arc<Mutex<Option<Responses>>>,
    away: Arc<AtomicBool>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Fake {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<pb::DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<pb::DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<pb::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("only incremental"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<pb::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let token = request.metadata().get("authorization").and_then(|v| v.to_str().ok()).map(str::to_owned);
        self.tokens.lock().unwrap().push(token);
        let (sender, receiver) = mpsc::channel(64);
        *self.stream.lock().unwrap() = Some(sender);
        let fake = self.clone();
        let mut requests = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                fake.answer(request).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

impl Fake {
    /// A server with one service.
    fn shop() -> Self {
        let fake = Self::default();
        fake.put("virtualOutbound", "1", pack(&tcp_listener("virtualOutbound", "PassthroughCluster")));
        fake.put("inbound/shop/web", "1", pack(&tcp_listener("inbound/shop/web", "PassthroughCluster")));
        fake.put("PassthroughCluster", "1", pack(&passthrough()));
        fake.put(VIP, "1", pack(&http_listener(VIP, "r:80")));
        fake.put("r:80", "1", pack(&routes("r:80", &["a"])));
        fake.put("a", "1", pack(&eds_cluster("a")));
        fake.put("a", "1", pack(&endpoints("a", &["10.0.0.1"])));
        fake
    }

    fn put(&self, name: &str, version: &str, any: Any) {
        let kind = ResourceType::from_url(&any.type_url).unwrap();
        self.resources.lock().unwrap().insert((kind, name.to_owned()), (version.to_owned(), any));
    }

    async fn answer(&self, request: pb::DeltaDiscoveryRequest) {
        let kind = ResourceType::from_url(&request.type_url).unwrap();
        let names = request.resource_names_subscribe.clone();
        let held = request.initial_resource_versions.clone();
        self.requests.lock().unwrap().push(request);
        self.send(kind, &names, &held).await;
    }

    async fn send(
        &self,
        kind: ResourceType,
        names: &[String],
        held: &std::collections::HashMap<String, String>,
    ) {
        let mut response = pb::DeltaDiscoveryResponse {
            type_url: kind.url().into(),
            nonce: "n".into(),
            ..Default::default()
        };
        for name in names {
            match self.resources.lock().unwrap().get(&(kind, name.clone())) {
                Some((version, _)) if held.get(name) == Some(version) => continue,
                Some((version, any)) => response.resources.push(pb::Resource {
                    name: name.clone(),
                    version: version.clone(),
                    resource: Some(any.clone()),
                    ..Default::default()
                }),
                None => response.removed_resources.push(name.clone()),
            }
        }
        if response.resources.is_empty() && response.removed_resources.is_empty() {
            return;
        }
        let names = response.resources.iter().map(|resource| resource.name.clone());
        self.sent.lock().unwrap().extend(names.chain(response.removed_resources.clone()));
        let sender = self.stream.lock().unwrap().clone();
        if let Some(sender) = sender {
            sender.send(Ok(response)).await.ok();
        }
    }

    /// Changes a resource and tells the client.
    async fn push(&self, name: &str, version: &str, any: Any) {
        let kind = ResourceType::from_url(&any.type_url).unwrap();
        self.put(name, version, any);
        self.send(kind, &[name.to_owned()], &Default::default()).await;
    }

    fn dial(&self) -> Dial {
        let fake = self.clone();
        Arc::new(move || {
            let fake = fake.clone();
            Box::pin(async move {
                if fake.away.load(Ordering::Relaxed) {
                    return Err(ConnectError::Transport("it is away".to_owned()));
                }
                let (client, server) = tokio::io::duplex(1 << 16);
                let incoming = tokio_stream::once(Ok::<_, std::io::Error>(server));
                let service = AggregatedDiscoveryServiceServer::new(fake);
                let server = tonic::transport::Server::builder().add_service(service);
                tokio::spawn(server.serve_with_incoming(incoming));
                Ok(Dialled { io: Box::new(client), token: Some("secret".into()) })
            }) as Pin<Box<_>>
        })
    }
}

struct World {
    fake: Fake,
    store: Arc<Store>,
    status: XdsStatus,
    readiness: Readiness,
    certificate: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl World {
    fn start() -> Self {
        Self::with(Fake::shop(), None)
    }

    fn with(fake: Fake, state_dir: Option<PathBuf>) -> Self {
        let (store, demands) = Store::new(Duration::from_secs(5));
        let (certificate, receiver) = watch::channel(false);
        let (status, readiness) = (XdsStatus::default(), Readiness::default());
        let client = XdsClient {
            node: node(),
            dial: fake.dial(),
            certificate: receiver,
            on_bundle: Box::new(|_| {}),
            on_kept_bundle: Box::new(|_| {}),
            state_dir,
            inbound_ready: readiness.condition("inbound listener"),
            outbound_ready: readiness.condition("outbound listener"),
            limits: Limits::default(),
            status: status.clone(),
        };
        let task = tokio::spawn(run(client, Arc::clone(&store), demands));
        Self { fake, store, status, readiness, certificate, task }
    }

    /// Polls a condition, bounded.
    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        for _ in 0..2000 {
            if holds(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{what} did not come");
    }

    fn routes(&self) -> usize {
        self.store.snapshot().routes.get("r:80").map_or(0, |config| config.virtual_hosts[0].routes.len())
    }
}

const VIP: &str = "10.96.0.1:80";

fn node() -> NodeIdentity {
    NodeIdentity {
        namespace: "shop".into(),
        pod: "web".into(),
        service_account: "web".into(),
        pod_ip: [127, 0, 0, 2].into(),
        trust_domain: "cluster.local".into(),
        cluster: "Kubernetes".into(),
        network: String::new(),
        node: String::new(),
        labels: Vec::new(),
    }
}

#[tokio::test]
async fn a_life_with_the_control_plane() {
    let world = World::start();
    world.until("readiness", |world| world.readiness.missing().is_empty()).await;

    // On demand: the listener comes with routes, cluster and endpoints.
    let found = world.store.listener(&VIP.parse().unwrap()).await.unwrap();
    assert!(found.listener.is_some());
    let cluster = Arc::clone(&world.store.snapshot().clusters["a"]);
    assert_eq!(cluster.endpoints.load().localities[0].endpoints.len(), 1);
    let nobody = world.store.listener(&"10.96.0.9:80".parse().unwrap()).await.unwrap();
    assert!(nobody.listener.is_none());
    assert!(world.store.workload([10, 0, 0, 9].into()).await.unwrap().workload.is_none());

    // A bad version is refused by name; the last good one stays.
    let mut bad = routes("r:80", &["a"]);
    bad.vhost_header = "x-host".into();
    world.fake.push("r:80", "2", pack(&bad)).await;
    world.until("a refusal", |world| world.status.totals().nacks == 1).await;
    let types = world.status.types();
    let nack = types[&ResourceType::Route].last_nack.clone().unwrap();
    assert_eq!(nack, "rds r:80: vhost_header: this field is not supported");
    assert_eq!(types[&ResourceType::Route].names["r:80"].version.as_deref(), Some("1"));
    assert_eq!(world.routes(), 1);
    let told = |world: &World| {
        let requests = world.fake.requests.lock().unwrap();
        requests.iter().any(|r| r.error_detail.as_ref().is_some_and(|e| e.message == nack))
    };
    world.until("the refusal at the server", told).await;
    world.fake.push("r:80", "3", pack(&routes("r:80", &["a", "a"]))).await;
    world.until("the good version", |world| world.routes() == 2).await;

    // A certificate opens the stream again: nothing is lost, nothing is sent twice.
    let sent_before = world.fake.sent.lock().unwrap().len();
    world.certificate.send_replace(true);
    let asks_again = |world: &World| {
        let requests = world.fake.requests.lock().unwrap();
        let resumed = |r: &&pb::DeltaDiscoveryRequest| r.initial_resource_versions.contains_key("a");
        let asked = requests.iter().filter(resumed).filter(|r| r.type_url == ResourceType::Endpoints.url());
        asked.count() == 1 && world.fake.tokens.lock().unwrap().len() == 2
    };
    world.until("a second stream that resumes", asks_again).await;
    world.fake.push("a", "2", pack(&endpoints("a", &["10.0.0.1", "10.0.0.2"]))).await;
    world
        .until("endpoints on the new stream", |_| cluster.endpoints.load().localities[0].endpoints.len() == 2)
        .await;
    let sent = world.fake.sent.lock().unwrap()[sent_before..].to_vec();
    let resent: Vec<&String> = sent
        .iter()
        .filter(|name| !["a", "ROOTCA", "10.96.0.9:80", "/10.0.0.9"].contains(&name.as_str()))
        .collect();
    assert!(resent.is_empty(), "{resent:?}");
    assert!(Arc::ptr_eq(&cluster, &world.store.snapshot().clusters["a"]));
    assert_eq!(world.fake.tokens.lock().unwrap()[0].as_deref(), Some("Bearer secret"));
    never_a_wildcard(&world.fake.requests.lock().unwrap());
}

#[tokio::test]
async fn a_restart_with_the_control_plane_away() {
    let (vip, nobody) = (VIP.parse().unwrap(), "10.96.0.9:80".parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let world = World::with(Fake::shop(), Some(dir.path().to_owned()));
    assert!(world.store.listener(&vip).await.unwrap().listener.is_some());
    assert!(world.store.listener(&nobody).await.unwrap().listener.is_none());
    let keeper = Keeper::new(dir.path(), node().node());
    // In all: three listeners and one that is none, two clusters, one each of routes and endpoints.
    let kept = |_: &World| {
        let kept = keeper.load();
        kept.iter().map(|kept| kept.resources.len() + kept.removed_resources.len()).sum::<usize>() >= 8
    };
    world.until("the file", kept).await;
    world.task.abort();

    let fake = Fake::shop();
    fake.away.store(true, Ordering::Relaxed);
    let world = World::with(fake, Some(dir.path().to_owned()));
    world.until("readiness", |world| world.readiness.missing().is_empty()).await;
    assert!(world.store.listener(&vip).await.unwrap().listener.is_some());
    assert!(world.store.listener(&nobody).await.unwrap().listener.is_none());
    let cluster = Arc::clone(&world.store.snapshot().clusters["a"]);
    assert_eq!(cluster.endpoints.load().localities[0].endpoints.len(), 1);
    assert_eq!((world.routes(), world.status.totals().responses), (1, 0));

    // It is back, and meanwhile the routes have changed and the other address has come to exist.
    world.fake.put("r:80", "2", pack(&routes("r:80", &["a", "a"])));
    world.fake.put("10.96.0.9:80", "1", pack(&tcp_listener("10.96.0.9:80", "a")));
    world.fake.resources.lock().unwrap().remove(&(ResourceType::Endpoints, "a".to_owned()));
    world.fake.away.store(false, Ordering::Relaxed);
    world.until("new routes", |world| world.routes() == 2).await;
    world.until("a removal", |_| cluster.endpoints.load().localities.is_empty()).await;
    world.until("a new address", |world| world.store.snapshot().listeners[&nobody].listener.is_some()).await;
    let mut sent = world.fake.sent.lock().unwrap().clone();
    sent.sort();
    assert_eq!(sent, ["10.96.0.9:80", "ROOTCA", "a", "r:80"], "nothing is sent that was held");

    // What cannot be read is as good as nothing.
    std::fs::write(dir.path().join("configuration.kept"), "half a fi").unwrap();
    world.task.abort();
    let world = World::with(Fake::shop(), Some(dir.path().to_owned()));
    world.until("readiness", |world| world.readiness.missing().is_empty()).await;
}

/// The first request of each type on a stream has names, and none is `*`.
fn never_a_wildcard(requests: &[pb::DeltaDiscoveryRequest]) {
    let mut opened = std::collections::BTreeSet::new();
    for request in requests {
        if request.node.is_some() {
            opened.clear();
        }
        assert!(!request.resource_names_subscribe.iter().any(|name| name == "*"));
        if opened.insert(request.type_url.clone()) {
            assert!(!request.resource_names_subscribe.is_empty(), "{request:?}");
        }
    }
}
