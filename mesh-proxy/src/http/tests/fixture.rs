//! A worker with configuration built by hand, endpoints on loopback, and clients over in-memory pipes.

use std::cell::Cell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mesh_common::process::{self, DrainGuard, DrainTrigger};
use tokio::io::DuplexStream;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::super::{LocalExec, Scope, serve};
use crate::config::cluster::*;
use crate::config::listener::*;
use crate::config::route::*;
use crate::config::store::{Demand, LiveCluster, Snapshot, Store};
use crate::connect::own::OwnAddresses;
use crate::connection::{Connection, Direction, Io, Target};
use crate::telemetry::{Security, Telemetry};
use crate::tls::TlsContext;
use crate::worker::{Worker, WorkerParts};

/// Runs a test on a worker's kind of runtime.
pub(super) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

/// Waits for a condition, bounded.
pub(super) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..500 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

pub(super) struct Mesh {
    pub(super) worker: Rc<Worker>,
    pub(super) telemetry: Telemetry,
    pub(super) trigger: DrainTrigger,
    pub(super) demands: mpsc::Receiver<Demand>,
    _guard: DrainGuard,
}

impl Mesh {
    pub(super) fn new(clusters: Vec<LiveCluster>) -> Self {
        Self::listening(clusters, None)
    }

    /// For a proxy that itself listens there.
    pub(super) fn listening(clusters: Vec<LiveCluster>, own: Option<SocketAddr>) -> Self {
        let (store, demands) = Store::new(Duration::from_secs(1));
        let clusters = clusters.into_iter().map(|c| (c.config.name.clone(), Arc::new(c))).collect();
        store.publish(Snapshot { clusters, ..Snapshot::default() });
        let telemetry = Telemetry::detached();
        let (trigger, guard) = process::drain();
        let worker = Worker::new(WorkerParts {
            store,
            tls: TlsContext::new(),
            telemetry: telemetry.clone(),
            drain: guard.watch(),
            me: Arc::new(ArcSwap::from_pointee(WorkloadLabels {
                workload: "web-v1".into(),
                ..WorkloadLabels::default()
            })),
            source_ip: None,
            own: OwnAddresses::new(own, None),
        });
        Self { worker, telemetry, trigger, demands, _guard: guard }
    }

    /// A client's connection through the proxy.
    pub(super) fn connect(&self, direction: Direction, routes: RouteConfig) -> DuplexStream {
        self.connect_by(direction, scope(RouteSource::Inline(Arc::new(routes))))
    }

    /// The same by any filter chain.
    pub(super) fn connect_by(&self, direction: Direction, scope: Scope) -> DuplexStream {
        let (client, io) = tokio::io::duplex(64 * 1024);
        let connection = Connection {
            io: Io::from(io),
            direction,
            peer: "10.0.0.9:4711".parse().unwrap(),
            target: Target::Address("10.96.0.1:80".parse().unwrap()),
            app: None,
            identity: None,
            security: Security::None,
        };
        tokio::task::spawn_local(serve(Rc::clone(&self.worker), connection, scope));
        client
    }

    pub(super) async fn http1(&self, routes: RouteConfig) -> http1::SendRequest<Full<Bytes>> {
        self.http1_by(scope(RouteSource::Inline(Arc::new(routes)))).await
    }

    pub(super) async fn http1_by(&self, scope: Scope) -> http1::SendRequest<Full<Bytes>> {
        let io = TokioIo::new(self.connect_by(Direction::Outbound, scope));
        let (sender, driver) = http1::handshake(io).await.unwrap();
        tokio::task::spawn_local(driver.with_upgrades());
        sender
    }

    pub(super) async fn http2(&self, routes: RouteConfig) -> http2::SendRequest<Full<Bytes>> {
        let io = TokioIo::new(self.connect(Direction::Outbound, routes));
        let (sender, driver) = http2::handshake(LocalExec, io).await.unwrap();
        tokio::task::spawn_local(driver);
        sender
    }

    /// All counts of requests whose labels hold every one of `labels`.
    pub(super) fn requests(&self, labels: &[&str]) -> u64 {
        let registry = self.telemetry.registry();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry.lock().unwrap()).unwrap();
        text.lines()
            .filter(|line| line.starts_with("istio_requests_total{"))
            .filter(|line| labels.iter().all(|label| line.contains(label)))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    }
}

/// The listener of every connection.
pub(super) const LISTENER: &str = "10.96.0.1:80";

pub(super) fn scope(routes: RouteSource) -> Scope {
    scope_with(routes, |_| {})
}

/// By a connection manager with other limits.
pub(super) fn scope_with(routes: RouteSource, change: impl FnOnce(&mut HttpManager)) -> Scope {
    let mut manager = HttpManager {
        stat_prefix: "outbound".into(),
        routes,
        request_headers_timeout: Duration::from_secs(60),
        idle_timeout: None,
        max_connection_duration: None,
        request_timeout: None,
        stream_idle_timeout: None,
        access_log: None,
    };
    change(&mut manager);
    let chain = Arc::new(FilterChain {
        name: "test".into(),
        matches: ChainMatch::default(),
        tls: None,
        filter: NetworkFilter::Http(manager),
    });
    let inspect = Inspect { tls: false, http: false, timeout: Duration::ZERO };
    let listener =
        Listener { name: LISTENER.into(), inspect, chains: vec![Arc::clone(&chain)], default_chain: None };
    Scope::Chain { listener: Arc::new(listener), chain }
}

/// A cluster `reviews` with these endpoints.
pub(super) fn cluster(name: &str, http: UpstreamHttp, addresses: &[SocketAddr]) -> LiveCluster {
    let endpoints = Endpoints {
        localities: vec![Locality {
            endpoints: addresses.iter().map(|address| Arc::new(endpoint(*address))).collect(),
            ..Locality::default()
        }],
    };
    LiveCluster {
        config: Cluster {
            name: name.into(),
            service: ServiceLabels {
                host: format!("{name}.shop"),
                name: name.into(),
                namespace: "shop".into(),
            },
            discovery: Discovery::Eds(name.into()),
            connect_timeout: Duration::from_secs(2),
            tls: UpstreamTls::None,
            http,
            bind: Bind::default(),
        },
        endpoints: ArcSwap::from_pointee(endpoints),
    }
}

pub(super) fn endpoint(address: SocketAddr) -> Endpoint {
    let labels = WorkloadLabels { workload: format!("w{}", address.port()), ..WorkloadLabels::default() };
    Endpoint {
        address,
        tls: EndpointTls::Plaintext,
        health: Health::Healthy,
        weight: 1,
        workload: Arc::new(labels),
    }
}

pub(super) fn forward(clusters: &[(&str, u32)]) -> Forward {
    Forward {
        clusters: clusters
            .iter()
            .map(|(name, weight)| WeightedCluster {
                name: (*name).into(),
                weight: *weight,
                request_headers: HeaderMutation::default(),
                response_headers: HeaderMutation::default(),
            })
            .collect(),
        cluster_not_found: StatusCode::INTERNAL_SERVER_ERROR,
        timeout: None,
        per_try_timeout: None,
        idle_timeout: None,
        path_rewrite: None,
        host_rewrite: None,
        upgrades: true,
    }
}

pub(super) fn route(path: PathMatch, action: RouteAction) -> Route {
    Route {
        name: "shop/reviews/0".into(),
        matches: RouteMatch { path, headers: vec![], query: vec![], method: None },
        action,
        request_headers: HeaderMutation::default(),
        response_headers: HeaderMutation::default(),
    }
}

pub(super) fn routes(routes: Vec<Route>) -> RouteConfig {
    RouteConfig {
        name: "reviews.shop.svc.cluster.local:80".into(),
        virtual_hosts: vec![VirtualHost { name: "all".into(), domains: vec!["*".into()], routes }],
    }
}

/// Everything to `cluster`.
pub(super) fn all_to(cluster: &str) -> RouteConfig {
    routes(vec![route(PathMatch::Prefix("/".into()), RouteAction::Forward(forward(&[(cluster, 1)])))])
}

/// A server of HTTP/1 and HTTP/2 that says what it got. Counts connections.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) connections: Rc<Cell<u32>>,
}

impl Server {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Rc::new(Cell::new(0));
        let counter = Rc::clone(&connections);
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counter.set(counter.get() + 1);
                let mut first = [0; 3];
                tokio::task::spawn_local(async move {
                    let seen = stream.peek(&mut first).await.unwrap_or(0);
                    let io = TokioIo::new(stream);
                    if &first[..seen] == b"PRI" {
                        let builder = hyper::server::conn::http2::Builder::new(LocalExec);
                        builder.serve_connection(io, service_fn(echo)).await.ok();
                    } else {
                        let builder = hyper::server::conn::http1::Builder::new();
                        builder.serve_connection(io, service_fn(echo)).with_upgrades().await.ok();
                    }
                });
            }
        });
        Self { address, connections }
    }
}

/// An address that refuses connections.
pub(super) async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

async fn echo(mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.headers().contains_key("upgrade") {
        let on = hyper::upgrade::on(&mut request);
        tokio::task::spawn_local(async move {
            let io = TokioIo::new(on.await.unwrap());
            let (mut read, mut write) = tokio::io::split(io);
            tokio::io::copy(&mut read, &mut write).await.ok();
        });
        let builder =
            Response::builder().status(101).header("upgrade", "websocket").header("connection", "upgrade");
        return Ok(builder.body(Full::default()).unwrap());
    }
    if request.uri().path() == "/slow" {
        std::future::pending::<()>().await;
    }
    let mut head = format!("{} {}\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        head.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
    }
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    head.push_str(&String::from_utf8_lossy(&body));
    Ok(Response::builder()
        .header("keep-alive", "timeout=5")
        .header("server", "app")
        .body(Full::from(head))
        .unwrap())
}

pub(super) fn get(path: &str) -> Request<Full<Bytes>> {
    Request::builder().uri(path).header("host", "reviews").body(Full::default()).unwrap()
}

pub(super) async fn text(response: Response<Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}
