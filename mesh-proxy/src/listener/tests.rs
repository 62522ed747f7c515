//! Whole connections over loopback: through real sockets, a worker and its filters, to a server.

use std::future::Future;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use mesh_common::process::{DrainGuard, drain};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

use super::*;
use crate::config::cluster::{
    Bind, Cluster, Discovery, ServiceLabels, UpstreamHttp, UpstreamTls, WorkloadLabels,
};
use crate::config::listener::{
    ChainMatch, DownstreamTls, FilterChain, Inspect, Listener, NetworkFilter, TcpProxy, Transport,
};
use crate::config::store::{LiveCluster, Snapshot, Store};
use crate::connect::own::OwnAddresses;
use crate::telemetry::Telemetry;
use crate::tls::TlsContext;
use crate::worker::{Worker, WorkerParts};

/// A proxy with one worker, all of it on this thread.
struct Proxy {
    addresses: Addresses,
    telemetry: Telemetry,
    guard: DrainGuard,
    store: Arc<Store>,
}

fn cluster(name: &str, discovery: Discovery) -> (String, Arc<LiveCluster>) {
    let config = Cluster {
        name: name.to_owned(),
        service: ServiceLabels::default(),
        discovery,
        connect_timeout: Duration::from_secs(5),
        tls: UpstreamTls::None,
        http: UpstreamHttp::AsDownstream,
        bind: Bind::default(),
    };
    (name.to_owned(), Arc::new(LiveCluster { config, endpoints: Default::default() }))
}

fn to(name: &str, cluster: &str, matches: ChainMatch) -> Arc<FilterChain> {
    let tls = (matches.transport == Some(Transport::Tls)).then(|| DownstreamTls { alpn: Vec::new() });
    let clusters = vec![(cluster.to_owned(), 1)];
    let tcp = TcpProxy { stat_prefix: String::new(), clusters, idle_timeout: None, access_log: None };
    Arc::new(FilterChain { name: name.to_owned(), matches, tls, filter: NetworkFilter::Tcp(tcp) })
}

fn listener(
    inspects: bool,
    chains: Vec<Arc<FilterChain>>,
    default: Option<Arc<FilterChain>>,
) -> Arc<Listener> {
    let inspect = Inspect { tls: inspects, http: inspects, timeout: Duration::from_millis(100) };
    Arc::new(Listener { name: "test".to_owned(), inspect, chains, default_chain: default })
}

/// Everything passes: outbound to where the client wants, inbound to the application.
fn open() -> Snapshot {
    let all = |name, cluster| Some(to(name, cluster, ChainMatch::default()));
    Snapshot {
        outbound: Some(listener(false, Vec::new(), all("passthrough", "PassthroughCluster"))),
        inbound: Some(listener(true, Vec::new(), all("tcp", "inbound|1||"))),
        clusters: [
            cluster("PassthroughCluster", Discovery::OriginalDestination),
            cluster("inbound|1||", Discovery::OriginalDestination),
            cluster("BlackHoleCluster", Discovery::None),
        ]
        .into_iter()
        .collect(),
        ..Snapshot::default()
    }
}

impl Proxy {
    /// Runs `story` beside a proxy with this configuration, for an application at `app`.
    async fn run<F: Future<Output = ()>>(snapshot: Snapshot, app: SocketAddr, story: impl FnOnce(Self) -> F) {
        let listen = "127.0.0.1:0".parse().unwrap();
        let options = Options {
            inbound: vec![InboundPort { listen, app }],
            outbound: Some(listen),
            ..Options::default()
        };
        let (store, _demands) = Store::new(Duration::from_secs(5));
        store.publish(snapshot);
        let listeners = Listeners::bind(&options).unwrap();
        let (_trigger, guard) = drain();
        let telemetry = Telemetry::detached();
        let proxy = Self {
            addresses: listeners.addresses().clone(),
            telemetry: telemetry.clone(),
            guard: guard.clone(),
            store: Arc::clone(&store),
        };
        let parts = WorkerParts {
            store,
            tls: TlsContext::new(),
            telemetry,
            drain: guard.watch(),
            me: Arc::new(ArcSwap::from_pointee(WorkloadLabels {
                workload: "me".to_owned(),
                ..Default::default()
            })),
            source_ip: None,
            own: OwnAddresses::new(proxy.addresses.outbound, None),
        };
        let (acceptor, mut queues) = listeners.split(1);
        let serving = async {
            let worker = Worker::new(parts);
            tokio::join!(serve(worker, queues.remove(0)), acceptor.run(guard));
        };
        LocalSet::new()
            .run_until(async {
                tokio::select! {
                    () = serving => unreachable!("it serves for ever"),
                    () = story(proxy) => {}
                }
            })
            .await;
    }

    fn outbound(&self) -> SocketAddr {
        self.addresses.outbound.unwrap()
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        let registry = self.telemetry.registry();
        let registry: &Mutex<_> = &registry;
        prometheus_client::encoding::text::encode(&mut text, &registry.lock().unwrap()).unwrap();
        text
    }

    /// Waits until a line of the metrics with all of these words ends in `value`.
    async fn counted(&self, words: &[&str], value: u64) {
        let end = format!(" {value}");
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            let metrics = self.metrics();
            let found = |line: &str| words.iter().all(|word| line.contains(word)) && line.ends_with(&end);
            if metrics.lines().any(found) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "no {words:?} {value} in\n{metrics}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A server that answers each connection with `greeting` and then all that it gets, in upper case.
async fn server(greeting: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(greeting.as_bytes()).await.unwrap();
                let mut all = String::new();
                stream.read_to_string(&mut all).await.unwrap();
                stream.write_all(all.to_uppercase().as_bytes()).await.unwrap();
            });
        }
    });
    address
}

/// Sends `head` and, after an answer of `answer` bytes, `bytes`; all that came back.
async fn ask(proxy: SocketAddr, head: &[u8], answer: usize, bytes: &[u8]) -> (Vec<u8>, String) {
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    stream.write_all(head).await.unwrap();
    let mut first = vec![0; answer];
    stream.read_exact(&mut first).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    (first, rest)
}

fn socks5_to(address: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(v4) = address else { panic!("IPv4 only") };
    [&[5, 1, 0, 5, 1, 0, 1][..], &v4.ip().octets(), &v4.port().to_be_bytes()].concat()
}

#[tokio::test]
async fn socks5_and_connect_reach_an_external_address() {
    let server = server("").await;
    Proxy::run(open(), server, async |proxy| {
        let (answer, text) = ask(proxy.outbound(), &socks5_to(server), 12, b"by socks").await;
        assert_eq!((&answer[..4], text.as_str()), (&[5, 0, 5, 0][..], "BY SOCKS"));
        let connect = format!("CONNECT {server} HTTP/1.1\r\nHost: {server}\r\n\r\nby ");
        let established = http_connect::ESTABLISHED;
        let (answer, text) = ask(proxy.outbound(), connect.as_bytes(), established.len(), b"connect").await;
        assert_eq!((&answer[..], text.as_str()), (established, "BY CONNECT"));
        let source = ["reporter=\"source\"", "source_workload=\"me\""];
        for (metric, value) in [
            ("istio_tcp_connections_opened_total", 2),
            ("istio_tcp_connections_closed_total", 2),
            ("istio_tcp_received_bytes_total", 18),
            ("istio_tcp_sent_bytes_total", 18),
        ] {
            proxy.counted(&[metric, source[0], source[1]], value).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_refused_target_is_answered_with_its_reason() {
    let blocked = Snapshot {
        outbound: Some(listener(
            false,
            Vec::new(),
            Some(to("blackhole", "BlackHoleCluster", ChainMatch::default())),
        )),
        ..open()
    };
    let server = server("").await;
    Proxy::run(blocked, server, async |proxy| {
        let connect = format!("CONNECT {server} HTTP/1.1\r\n\r\n");
        let (_, text) = ask(proxy.outbound(), connect.as_bytes(), 0, b"").await;
        assert!(text.starts_with("HTTP/1.1 503 ") && text.contains("x-mesh-reason: UH; "), "{text}");
        assert!(text.contains("outbound traffic policy"), "{text}");
        let (answer, _) = ask(proxy.outbound(), &socks5_to(server), 12, b"").await;
        assert_eq!(answer[2..4], [5, Code::NotAllowed as u8]);
        // Itself.
        let connect = format!("CONNECT {} HTTP/1.1\r\n\r\n", proxy.outbound());
        let (_, text) = ask(proxy.outbound(), connect.as_bytes(), 0, b"").await;
        assert!(text.starts_with("HTTP/1.1 502 ") && text.contains("this proxy itself"), "{text}");
    })
    .await;
}

use socks5::Code;

#[tokio::test]
async fn inbound_plaintext_reaches_the_application_whoever_speaks_first() {
    let app = server("hello ").await;
    Proxy::run(open(), app, async |proxy| {
        let started = tokio::time::Instant::now();
        let (greeting, rest) = ask(proxy.addresses.inbound[0], b"", 6, b"it is me").await;
        assert_eq!((&greeting[..], rest.as_str()), (&b"hello "[..], "IT IS ME"));
        let took = started.elapsed();
        assert!(took < Duration::from_millis(1000), "{took:?}"); // 100 ms, and a busy machine
        let (greeting, rest) = ask(proxy.addresses.inbound[0], b"i was first", 6, b"!").await;
        assert_eq!((&greeting[..], rest.as_str()), (&b"hello "[..], "I WAS FIRST!"));
        let words = [
            "istio_tcp_connections_opened_total",
            "reporter=\"destination\"",
            "connection_security_policy=\"none\"",
        ];
        proxy.counted(&words, 2).await;
    })
    .await;
}

#[tokio::test]
async fn plaintext_to_a_strict_port_is_closed_and_counted() {
    let tls = ChainMatch { transport: Some(Transport::Tls), ..ChainMatch::default() };
    let strict =
        Snapshot { inbound: Some(listener(true, vec![to("mtls", "inbound|1||", tls)], None)), ..open() };
    let app = server("never").await;
    Proxy::run(strict, app, async |proxy| {
        let mut stream = TcpStream::connect(proxy.addresses.inbound[0]).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok(); // closed or reset
        assert!(answer.is_empty());
        proxy.counted(&["mesh_inbound_refused_total", "plaintext_to_mutual_tls"], 1).await;
    })
    .await;
}

#[tokio::test]
async fn plaintext_that_is_open_ends_when_its_port_turns_strict() {
    let app = server("hello ").await;
    Proxy::run(open(), app, async |proxy| {
        let mut stream = TcpStream::connect(proxy.addresses.inbound[0]).await.unwrap();
        let mut greeting = [0; 6];
        stream.read_exact(&mut greeting).await.unwrap();
        // A listener that still takes it, then one that does not.
        let tls = ChainMatch { transport: Some(Transport::Tls), ..ChainMatch::default() };
        let mtls = || vec![to("mtls", "inbound|1||", tls.clone())];
        let same = to("renamed", "inbound|1||", ChainMatch::default());
        proxy.store.publish(Snapshot { inbound: Some(listener(true, mtls(), Some(same))), ..open() });
        let quiet = tokio::time::timeout(Duration::from_secs(2), stream.read_u8()).await;
        assert!(quiet.is_err(), "it goes on while the port takes plaintext");
        proxy.store.publish(Snapshot { inbound: Some(listener(true, mtls(), None)), ..open() });
        let ended = tokio::time::timeout(Duration::from_secs(10), stream.read_u8()).await;
        assert!(ended.expect("it ends").is_err());
        proxy.counted(&["istio_tcp_connections_closed_total", "response_flags=\"LR\""], 1).await;
    })
    .await;
}

#[tokio::test]
async fn an_application_that_is_away_is_said_so_in_the_metrics() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    Proxy::run(open(), gone, async |proxy| {
        let (_, rest) = ask(proxy.addresses.inbound[0], b"anyone?\n", 0, b"").await;
        assert_eq!(rest, "");
        proxy.counted(&["istio_tcp_connections_closed_total", "response_flags=\"UF\""], 1).await;
        assert_eq!(proxy.guard.phase(), mesh_common::process::Phase::Serving);
    })
    .await;
}

#[test]
fn idle_connections_are_small() {
    fn size<A, F: Future>(_: impl FnOnce(A) -> F) -> usize {
        std::mem::size_of::<F>()
    }
    let inbound = size(|(worker, stream, peer, port)| inbound::serve(worker, stream, peer, port));
    let outbound = size(|(worker, stream, peer)| outbound::serve(worker, stream, peer));
    let tcp =
        size(|(worker, connection, chain, dialled)| crate::tcp::proxy(worker, connection, chain, dialled));
    assert!(inbound <= 2048 && outbound <= 3072 && tcp <= 4096, "{inbound} {outbound} {tcp}");
}
