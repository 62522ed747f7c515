//! The pages over loopback: an application that is written out byte by byte, and whoever asks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_common::process::{Condition, DrainTrigger, Readiness, drain};
use mesh_test::certs::{Authority, Leaf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::*;
use crate::telemetry::Telemetry;

mod commands;
mod grpc;
mod metrics;

struct Pod {
    addresses: Vec<(Port, SocketAddr)>,
    telemetry: Telemetry,
    ready: Option<Condition>,
    trigger: DrainTrigger,
    _tasks: JoinSet<()>,
}

impl Pod {
    fn start(probes: &str, metrics: Option<&str>) -> Self {
        let ip = "127.0.0.1".parse().unwrap();
        let ports = [(Port::Status, 0), (Port::Ready, 0), (Port::Stats, 0)];
        let ports = Ports::bind(ports, Some(ip)).unwrap();
        let addresses = ports.addresses();
        let (telemetry, readiness) = (Telemetry::detached(), Readiness::default());
        let ready = Some(readiness.condition("certificate"));
        let (trigger, _) = drain();
        let pages = Pages {
            readiness,
            drain: trigger.starter(),
            registry: telemetry.registry(),
            metrics: telemetry.proxy().clone(),
            reach: Reach { pod_ip: ip, captured: false, own_port: addresses[0].1.port() },
            probes: AppProbes::from_json(probes).unwrap(),
            app_metrics: metrics.map(|text| AppMetrics::from_json(text).unwrap()),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(ports.serve(pages));
        Self { addresses, telemetry, ready, trigger, _tasks: tasks }
    }

    /// Status and body of a page; no status when there is no answer.
    async fn get(&self, port: Port, path: &str, headers: &str) -> (Option<u16>, String) {
        let to = self.addresses.iter().find(|(kind, _)| *kind == port).unwrap().1;
        let answer = raw(to, &format!("GET {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n")).await;
        let Some((head, body)) = answer.split_once("\r\n\r\n") else { return (None, answer) };
        let body = if head.contains("chunked") { unchunked(body) } else { body.to_owned() };
        (head.split(' ').nth(1).map(|status| status.parse().unwrap()), format!("{head}\n\n{body}"))
    }

    fn scrape_failures(&self) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.telemetry.registry().lock().unwrap())
            .unwrap();
        let line =
            text.lines().find(|line| line.starts_with("mesh_proxy_app_scrape_failures_total ")).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

async fn raw(to: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok();
    String::from_utf8_lossy(&answer).into_owned()
}

fn unchunked(mut body: &str) -> String {
    let mut all = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return all;
        }
        all.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
    panic!("the body broke off after {all:?}");
}

/// An application that answers by path, and says nothing else; what it was asked is in the answer's `seen` header.
async fn app(answers: Vec<(&'static str, String)>) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut task = JoinSet::new();
    let answers = Arc::new(answers);
    task.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.spawn(answer(stream, Arc::clone(&answers)));
        }
    });
    (address, task)
}

async fn answer<S: AsyncReadExt + AsyncWriteExt + Unpin>(
    mut stream: S,
    answers: Arc<Vec<(&'static str, String)>>,
) {
    let mut seen = String::new();
    while !seen.ends_with("\r\n\r\n") {
        let mut byte = [0];
        if stream.read_exact(&mut byte).await.is_err() {
            return;
        }
        seen.push(byte[0].into());
    }
    let path = seen.split(' ').nth(1).unwrap().to_owned();
    match answers.iter().find(|(known, _)| *known == path) {
        Some((_, text)) if text.is_empty() => std::future::pending().await,
        Some((_, text)) => {
            let flat = seen.replace("\r\n", "|").to_ascii_lowercase();
            stream.write_all(text.replace("SEEN", &flat).as_bytes()).await.ok();
        }
        None => {
            stream.write_all(b"HTTP/1.1 404 No\r\ncontent-length: 4\r\n\r\nnone").await.ok();
        }
    };
    stream.shutdown().await.ok();
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn probes_are_carried_out_as_kubelet_does() {
    let moved = |to: &str| format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n");
    const HOPS: [&str; 12] = ["/0", "/1", "/2", "/3", "/4", "/5", "/6", "/7", "/8", "/9", "/10", "/good?x=1"];
    let mut answers: Vec<_> = HOPS.windows(2).map(|hop| (hop[0], moved(hop[1]))).collect();
    answers.extend([
        ("/good?x=1", ok("")),
        ("/bad", "HTTP/1.1 500 Oh\r\ncontent-length: 5\r\n\r\nwrong".into()),
        ("/304", "HTTP/1.1 304 No\r\n\r\n".into()),
        ("/moved", moved("/good?x=1")),
        ("/moved-bad", moved("/bad")),
        ("/away", moved("http://192.0.2.1/")),
        ("/round", moved("/round")),
        ("/silent", String::new()),
        ("/headers", "HTTP/1.1 500 SEEN\r\ncontent-length: 0\r\n\r\n".into()),
        ("/echo", "HTTP/1.1 500 Oh\r\nconnection: close\r\n\r\nSEEN".into()),
    ]);
    let (to, _task) = app(answers).await;
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let port = to.port();
    let http = |name: &str, path: &str| {
        format!(r#""/app-health/a/{name}":{{"httpGet":{{"path":"{path}","port":{port}}}}},"#)
    };
    let probes = format!(
        r#"{{{}{}{}{}{}{}{}{}{}{}
        "/app-health/a/echo":{{"httpGet":{{"path":"/echo","port":{port},"httpHeaders":
            [{{"name":"Host","value":"shop.example"}},{{"name":"X-A","value":"b"}}]}}}},
        "/app-health/a/refused":{{"httpGet":{{"port":{gone}}}}},
        "/app-health/a/tcp":{{"tcpSocket":{{"port":{port}}}}},
        "/app-health/a/tcp-refused":{{"tcpSocket":{{"port":{gone}}}}},
        "/app-lifecycle/a/prestop":{{"httpGet":{{"path":"/bad","port":{port}}}}},
        "/app-lifecycle/a/poststart":{{"httpGet":{{"port":{gone}}}}}}}"#,
        http("good", "/good?x=1"),
        http("bad", "/bad"),
        http("304", "/304"),
        http("moved", "/moved"),
        http("moved-bad", "/moved-bad"),
        http("away", "/away"),
        http("round", "/round"),
        http("ten", "/1"),
        http("eleven", "/0"),
        http("silent", "/silent"),
    );
    let pod = Pod::start(&probes, None);
    for (name, status, words) in [
        ("health/a/good", Some(200), "passed"),
        ("health/a/good?any=query", Some(200), "passed"),
        ("health/a/bad", Some(503), "status 500: wrong"),
        ("health/a/304", Some(200), "passed"),
        ("health/a/moved", Some(200), "passed"),
        ("health/a/moved-bad", Some(503), "status 500"),
        ("health/a/away", Some(200), "passed"),
        ("health/a/round", Some(503), "more than 10 redirects"),
        ("health/a/ten", Some(200), "passed"),
        ("health/a/eleven", Some(503), "more than 10 redirects"),
        ("health/a/silent", Some(503), "no answer within 1s"),
        ("health/a/echo", Some(503), "|host: shop.example|"),
        ("health/a/echo", Some(503), "|x-a: b|"),
        ("health/a/echo", Some(503), "|user-agent: kube-probe/1.35|"),
        ("health/a/refused", Some(503), "cannot connect"),
        ("health/a/tcp", Some(200), "passed"),
        ("health/a/tcp-refused", Some(503), "cannot connect"),
        ("health/b/good", Some(404), "no page"),
        ("health/a/", Some(404), "no page"),
        ("health/a/good/../bad", Some(404), "no page"),
        ("lifecycle/a/prestop", Some(503), "status 500"),
        ("lifecycle/a/poststart", None, ""),
    ] {
        let page = pod.get(Port::Status, &format!("/app-{name}"), "user-agent: kube-probe/1.35\r\n").await;
        assert!(page.0 == status && page.1.contains(words), "{name}: {page:?}");
    }
    let to = pod.addresses[0].1;
    assert!(raw(to, "POST /app-health/a/good HTTP/1.1\r\nhost: x\r\n\r\n").await.contains(" 405 "));
    let connect = format!("CONNECT 127.0.0.1:{port} HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(raw(to, &connect).await.contains(" 405 "), "it is no proxy");
    let absolute = format!("GET http://127.0.0.1:{port}/good?x=1 HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(raw(to, &absolute).await.contains(" 404 "), "it is no proxy");
}

#[tokio::test]
async fn a_probe_that_leads_back_is_refused() {
    let pod = Pod::start("", None);
    let own = pod.addresses[0].1.port();
    let reach = Reach { pod_ip: "127.0.0.1".parse().unwrap(), captured: false, own_port: own };
    assert!(reach.dial(None, own).await.unwrap_err().to_string().contains("own port"));
    assert!(reach.dial(Some("127.0.0.2"), own).await.unwrap_err().to_string().contains("own port"));
    assert!(reach.dial(Some("localhost"), pod.addresses[1].1.port()).await.is_ok());
}

/// The rules of capture know what the proxy asks of its own pod by where it comes from.
#[tokio::test]
async fn a_captured_application_is_asked_from_the_proxys_own_address() {
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for (captured, host, source) in [
        (true, None, "127.0.0.6"),
        (false, None, "127.0.0.1"),
        // Another pod's address, as far as this one knows.
        (true, Some("127.0.0.2"), "127.0.0.1"),
    ] {
        let reach = Reach { pod_ip: "127.0.0.1".parse().unwrap(), captured, own_port: 1 };
        let _stream = reach.dial(host, port).await.unwrap();
        let (_, peer) = listener.accept().await.unwrap();
        assert_eq!(peer.ip().to_string(), source, "captured: {captured}, {host:?}");
    }
}

#[tokio::test]
async fn https_probes_ask_for_no_certificate_that_anybody_knows() {
    let authority = Authority::new("nobody").unwrap();
    let leaf = authority.leaf(&Leaf { dns: &["other.example"], ..Leaf::default() }).unwrap();
    let tls = tokio_rustls::TlsAcceptor::from(leaf.server_config(&[]).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let stream = tls.accept(listener.accept().await.unwrap().0).await.unwrap();
            answer(stream, Arc::new(vec![("/", ok("")), ("/moved", ok(""))])).await;
        }
    });
    let (plain, _app) = app(vec![(
        "/to-https",
        format!(
            "HTTP/1.1 301 Moved\r\nlocation: https://127.0.0.1:{port}/moved\r\ncontent-length: 0\r\n\r\n"
        ),
    )])
    .await;
    let pod = Pod::start(
        &format!(
            r#"{{"/app-health/a/livez":{{"httpGet":{{"port":{port},"scheme":"HTTPS"}},"timeoutSeconds":5}},
                 "/app-health/a/readyz":{{"httpGet":{{"port":{},"path":"/to-https"}},"timeoutSeconds":5}},
                 "/app-health/a/plain":{{"httpGet":{{"port":{},"scheme":"HTTPS"}}}}}}"#,
            plain.port(),
            plain.port()
        ),
        None,
    );
    for (path, status) in [("livez", 200), ("readyz", 200), ("plain", 503)] {
        let page = pod.get(Port::Status, &format!("/app-health/a/{path}"), "").await;
        assert_eq!(page.0, Some(status), "{path}: {page:?}");
    }
}

#[tokio::test]
async fn readiness_is_kept_until_the_drain() {
    let mut pod = Pod::start("", None);
    let ready = async |pod: &Pod, expected: u16, words: &str| {
        for port in [Port::Status, Port::Ready] {
            let page = pod.get(port, "/healthz/ready", "").await;
            assert!(page.0 == Some(expected) && page.1.contains(words), "{port:?}: {page:?}");
            assert!(page.1.contains("connection: close"), "{page:?}");
        }
    };
    ready(&pod, 503, "waiting for: certificate").await;
    pod.ready.take().unwrap().met();
    ready(&pod, 200, "ready").await;
    pod.trigger.start();
    ready(&pod, 503, "draining").await;
    assert_eq!(pod.get(Port::Stats, "/healthz/ready", "").await.0, Some(404));
}

#[tokio::test]
async fn whoever_says_nothing_is_closed_and_leaves_others_their_place() {
    let mut pod = Pod::start("", None);
    pod.ready.take().unwrap().met();
    let to = pod.addresses[1].1;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(to).await.unwrap());
    }
    // Beyond the share of one address: closed at once.
    let closed = tokio::time::timeout(Duration::from_secs(10), silent[39].read(&mut [0])).await;
    assert_eq!(closed.unwrap().unwrap_or_default(), 0);
    let started = tokio::time::Instant::now();
    let held = tokio::time::timeout(Duration::from_secs(20), silent[0].read_to_end(&mut Vec::new())).await;
    held.unwrap().ok();
    assert!(started.elapsed() > Duration::from_secs(3), "it has some time");
    assert_eq!(pod.get(Port::Ready, "/healthz/ready", "").await.0, Some(200));
    let endless = format!("GET /healthz/ready HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "x".repeat(1 << 20));
    assert!(!raw(to, &endless).await.contains(" 200 "));
}

#[tokio::test(start_paused = true)]
async fn what_the_control_plane_said_of_roots_counts_alone() {
    let readiness = Readiness::default();
    let _missing = readiness.condition("certificate");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("root.pem");
    std::fs::write(&path, Authority::new("old").unwrap().root_pem()).unwrap();
    let (tls, status) = (crate::tls::TlsContext::new(), crate::xds::XdsStatus::default());
    let late = LateBundle { path, tls: tls.clone() };
    status.received(mesh_common::xds::ResourceType::Secret, 1, None);
    let waiting = tokio::spawn(until_ready(readiness, "control:15012".into(), status, Some(late)));
    tokio::time::sleep(Duration::from_secs(65)).await;
    assert!(!waiting.is_finished() && tls.bundle().is_none());
    waiting.abort();
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_when_it_is_ready() {
    let readiness = Readiness::default();
    let condition = readiness.condition("certificate");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("root.pem");
    let tls = crate::tls::TlsContext::new();
    let late = LateBundle { path: path.clone(), tls: tls.clone() };
    let waiting =
        until_ready(readiness, "control:15012".into(), crate::xds::XdsStatus::default(), Some(late));
    let waiting = tokio::spawn(waiting);
    tokio::time::sleep(Duration::from_secs(65)).await;
    assert!(!waiting.is_finished() && tls.bundle().is_none());
    std::fs::write(&path, Authority::new("late").unwrap().root_pem()).unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(tls.bundle().is_some(), "the file has come");
    condition.met();
    tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap().unwrap();
}
