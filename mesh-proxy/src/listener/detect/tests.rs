//! Detection as stories of a client and a server, in paused time.

use std::cell::RefCell;

use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
use tokio::time::sleep;

use super::*;
use crate::config::listener::{AccessLog, ChainMatch, HttpManager, Inspect, RouteSource, Transport};
use crate::config::route::RouteConfig;
use crate::connect::{UpstreamError, UpstreamTcp};
use crate::telemetry::{ResponseFlags, Security};

const TIMEOUT: Duration = Duration::from_millis(100);
const GET: &[u8] = b"GET / HTTP/1.1\r\n";

fn tcp() -> NetworkFilter {
    let (stat_prefix, clusters) = (String::new(), vec![("c".to_owned(), 1)]);
    NetworkFilter::Tcp(TcpProxy { stat_prefix, clusters, idle_timeout: None, access_log: None })
}

fn http() -> NetworkFilter {
    let routes = RouteConfig { name: String::new(), virtual_hosts: Vec::new() };
    NetworkFilter::Http(HttpManager {
        stat_prefix: String::new(),
        routes: RouteSource::Inline(Arc::new(routes)),
        request_headers_timeout: Duration::ZERO,
        idle_timeout: None,
        max_connection_duration: None,
        request_timeout: None,
        stream_idle_timeout: None,
        access_log: Some(AccessLog::Text),
    })
}

fn chain(name: &str, transport: Transport, protocols: &[&str], filter: NetworkFilter) -> Arc<FilterChain> {
    let matches = ChainMatch {
        transport: Some(transport),
        application_protocols: protocols.iter().map(|&p| p.to_owned()).collect(),
        ..ChainMatch::default()
    };
    Arc::new(FilterChain { name: name.to_owned(), matches, tls: None, filter })
}

/// HTTP by detection, all else TCP, as an outbound listener has it.
fn detecting() -> Listener {
    Listener {
        name: "10.96.3.4:80".to_owned(),
        inspect: Inspect { tls: true, http: true, timeout: TIMEOUT },
        chains: vec![chain("http", Transport::RawBuffer, &["http/1.1", "h2c"], http())],
        default_chain: Some(Arc::new(FilterChain {
            name: "tcp".to_owned(),
            matches: ChainMatch::default(),
            tls: None,
            filter: tcp(),
        })),
    }
}

/// Mutual TLS only.
fn strict() -> Listener {
    let chains = vec![chain("mtls", Transport::Tls, &[], http())];
    Listener { chains, default_chain: None, ..detecting() }
}

fn dialled(result: Result<DuplexStream, &str>) -> Dialled {
    let result = match result {
        Ok(stream) => Ok(UpstreamTcp {
            io: stream.into(),
            endpoint: None,
            security: Security::None,
            service: Default::default(),
            destination: Default::default(),
        }),
        Err(reason) => Err(UpstreamError::new(ResponseFlags::UPSTREAM_CONNECTION_FAILURE, reason)),
    };
    Dialled { cluster: "c".to_owned(), result }
}

/// What came of a detection.
struct Told {
    /// The chain, or why there is none.
    outcome: Result<String, String>,
    /// What the upstream connection that came with it has said.
    server_said: Option<Result<String, String>>,
    /// What the client had said by then.
    client_said: String,
    took: Duration,
    dials: usize,
}

/// A client that tells a story, a server that does when it is dialled (`None`: dialling fails).
async fn tell(
    listener: Listener,
    client: impl AsyncFnOnce(&mut DuplexStream),
    server: Option<impl AsyncFn(&mut DuplexStream)>,
) -> Told {
    let (mut far, mut near) = duplex(4096);
    let (dials, server_end) = (RefCell::new(0), RefCell::new(None));
    let dials = std::rc::Rc::new(dials);
    let (sender, mut dialling) = tokio::sync::mpsc::channel(1);
    let counted = std::rc::Rc::clone(&dials);
    let reachable = server.is_some();
    let dial = move |_| async move {
        *counted.borrow_mut() += 1;
        sleep(Duration::from_millis(20)).await;
        if !reachable {
            return dialled(Err("refused"));
        }
        let (far, near) = duplex(4096);
        sender.send(far).await.unwrap();
        dialled(Ok(near))
    };
    let (target, mut bytes) = (Target::Address(([10, 96, 3, 4], 80).into()), BytesMut::new());
    let started = Instant::now();
    let detecting = detect(&mut near, &mut bytes, &listener, &target, dial);
    let stories = async {
        let server = async {
            if let (Some(mut end), Some(story)) = (dialling.recv().await, server) {
                story(&mut end).await;
                *server_end.borrow_mut() = Some(end);
            }
        };
        tokio::join!(client(&mut far), server);
        std::future::pending::<()>().await;
    };
    let detected = tokio::select! {
        detected = detecting => detected,
        () = stories => unreachable!("stories do not end"),
    };
    let took = started.elapsed();
    let (outcome, dialled) = match detected {
        Ok(detected) => (Ok(detected.chain.name.clone()), detected.dialled),
        Err(error) => (Err(error.to_string()), None),
    };
    let server_said = match dialled {
        None => None,
        Some(Dialled { result: Ok(mut upstream), .. }) => {
            drop(server_end.take());
            let mut said = String::new();
            upstream.io.read_to_string(&mut said).await.unwrap();
            Some(Ok(said))
        }
        Some(Dialled { result: Err(error), .. }) => Some(Err(error.reason)),
    };
    let client_said = String::from_utf8_lossy(&bytes).into_owned();
    let dials = *dials.borrow();
    Told { outcome, server_said, client_said, took, dials }
}

async fn silent(_: &mut DuplexStream) {}

const NO_SERVER: Option<fn(&mut DuplexStream) -> std::future::Ready<()>> = None;

#[tokio::test(start_paused = true)]
async fn who_speaks_at_once_is_decided_at_once() {
    for (bytes, wanted) in [(GET, "http"), (b"PING\r\n", "tcp"), (b"\x16\x03\x01\0\0", "tcp")] {
        let told = tell(detecting(), async |c| c.write_all(bytes).await.unwrap(), Some(silent)).await;
        assert_eq!((told.outcome.as_deref(), told.took), (Ok(wanted), Duration::ZERO));
        assert_eq!((told.dials, told.client_said.as_bytes()), (0, bytes));
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_speaks_first_loses_less_than_200_ms() {
    let greet = async |s: &mut DuplexStream| s.write_all(b"220 hello").await.unwrap();
    let told = tell(detecting(), silent, Some(greet)).await;
    assert_eq!(told.outcome.as_deref(), Ok("tcp"));
    assert_eq!(told.server_said, Some(Ok("220 hello".to_owned())));
    assert!(told.took < Duration::from_millis(200), "{:?}", told.took);
}

#[tokio::test(start_paused = true)]
async fn http_after_five_idle_seconds_still_gets_its_route() {
    let late = async |c: &mut DuplexStream| {
        sleep(Duration::from_secs(5)).await;
        c.write_all(GET).await.unwrap();
    };
    let told = tell(detecting(), late, Some(silent)).await;
    assert_eq!((told.outcome.as_deref(), told.server_said), (Ok("http"), None));
    assert_eq!(told.client_said.as_bytes(), GET);
    // Also when no server could be reached: the route may lead to another.
    let told = tell(detecting(), late, NO_SERVER).await;
    assert_eq!((told.outcome.as_deref(), told.server_said), (Ok("http"), None));
}

#[tokio::test(start_paused = true)]
async fn late_bytes_that_are_not_http_go_to_the_server_already_there() {
    let late = async |c: &mut DuplexStream| {
        sleep(Duration::from_secs(60)).await;
        c.write_all(b"PING\r\n").await.unwrap();
    };
    let told = tell(detecting(), late, Some(silent)).await;
    assert_eq!((told.outcome.as_deref(), told.server_said), (Ok("tcp"), Some(Ok(String::new()))));
    assert_eq!((told.dials, told.client_said.as_str()), (1, "PING\r\n"));
    // Where no server could be reached, a client that stays silent learns of it.
    let told = tell(detecting(), late, NO_SERVER).await;
    assert_eq!(told.server_said, Some(Err("refused".to_owned())));
    assert_eq!(told.took, TIMEOUT + Duration::from_millis(20) + FAILED_PATIENCE);
}

#[tokio::test(start_paused = true)]
async fn a_close_without_a_word_is_passed_on() {
    // By the client, who may still listen.
    let told = tell(detecting(), async |c| c.shutdown().await.unwrap(), Some(silent)).await;
    assert_eq!((told.outcome.as_deref(), told.took), (Ok("tcp"), Duration::ZERO));
    let later = async |c: &mut DuplexStream| {
        sleep(Duration::from_secs(1)).await;
        c.shutdown().await.unwrap();
    };
    let told = tell(detecting(), later, Some(silent)).await;
    assert_eq!((told.outcome.as_deref(), told.dials), (Ok("tcp"), 1));
    // By the server.
    let told =
        tell(detecting(), silent, Some(async |s: &mut DuplexStream| s.shutdown().await.unwrap())).await;
    assert_eq!((told.outcome.as_deref(), told.server_said), (Ok("tcp"), Some(Ok(String::new()))));
}

#[tokio::test(start_paused = true)]
async fn beginnings_are_waited_for_by_their_likelihood() {
    for (start, rest, wanted) in [("GET /", " HTTP/1.1\r\n", "http"), ("GET", " / HTTP/1.1\r\n", "tcp")] {
        let story = async |c: &mut DuplexStream| {
            c.write_all(start.as_bytes()).await.unwrap();
            sleep(Duration::from_secs(2)).await;
            c.write_all(rest.as_bytes()).await.unwrap();
        };
        let told = tell(detecting(), story, Some(silent)).await;
        assert_eq!(told.outcome.as_deref(), Ok(wanted), "{start}");
    }
}

#[tokio::test(start_paused = true)]
async fn where_only_tls_is_taken_nobody_is_dialled_for_the_silent() {
    let told = tell(strict(), silent, Some(silent)).await;
    assert_eq!((told.took, told.dials), (TIMEOUT + HELLO_PATIENCE, 0));
    assert!(told.outcome.is_err());
    let told = tell(strict(), async |c| c.write_all(GET).await.unwrap(), Some(silent)).await;
    assert!(told.outcome.unwrap_err().contains("no filter chain"));
    let told = tell(strict(), async |c| c.shutdown().await.unwrap(), Some(silent)).await;
    assert!(told.outcome.unwrap_err().contains("before it sent anything"));
}

#[tokio::test(start_paused = true)]
async fn without_inspectors_nothing_is_read() {
    let inspect = Inspect { tls: false, http: false, timeout: TIMEOUT };
    let told = tell(Listener { inspect, ..detecting() }, silent, Some(silent)).await;
    assert_eq!((told.outcome.as_deref(), told.took, told.dials), (Ok("tcp"), Duration::ZERO, 0));
}
