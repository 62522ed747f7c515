//! Connections that have nothing to do for a while give back what HTTP takes of memory, and nobody notices.

use mesh_common::process::Phase;
use tokio::io::DuplexStream;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::*;

impl Mesh {
    /// Looks at all connections, so many seconds from now.
    fn look(&self, seconds: u64) {
        let now = Instant::now() + Duration::from_secs(seconds);
        self.worker.connections.watch(Phase::Serving, None, now);
        crate::cluster::sweep(&self.worker, now);
    }

    /// Connections at rest: downstream, upstream.
    fn resting(&self) -> (usize, usize) {
        (self.worker.connections.resting(), crate::cluster::resting(&self.worker))
    }
}

async fn reviews() -> (Server, Mesh) {
    let server = Server::start().await;
    let mesh = Mesh::new(vec![cluster("reviews", UpstreamHttp::AsDownstream, &[server.address])]);
    (server, mesh)
}

/// The same with an endpoint that the test plays itself.
async fn played() -> (TcpListener, Mesh) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, Mesh::new(vec![cluster("reviews", UpstreamHttp::AsDownstream, &[address])]))
}

/// Sends a request over a new upstream connection and answers it.
async fn first(listener: &TcpListener, client: &mut DuplexStream) -> TcpStream {
    client.write_all(b"GET /a HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
    assert!(answer(client).await.ends_with("ok"));
    stream
}

/// Lets everything happen that can.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// One answer of the server, to its end.
async fn answer(client: &mut DuplexStream) -> String {
    let mut all = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&all).to_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.split("content-length: ").nth(1).and_then(|it| it.lines().next());
            if length.is_some_and(|length| body.len() == length.parse::<usize>().unwrap()) {
                return text;
            }
        }
        let read = tokio::time::timeout(Duration::from_secs(10), client.read_buf(&mut all)).await;
        assert!(read.expect("an answer").unwrap() > 0, "{text}");
    }
}

#[test]
fn what_has_nothing_to_do_rests_and_works_again() {
    run(async {
        let (server, mesh) = reviews().await;
        let mut client = mesh.connect(Direction::Outbound, all_to("reviews"));
        for round in 0..3 {
            client.write_all(b"GET /a HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            let seen = answer(&mut client).await;
            assert!(seen.starts_with("http/1.1 200") && seen.contains("get /a"), "{round}: {seen}");
            eventually("counted", || mesh.requests(&[]) == round + 1).await;
            mesh.look(1);
            tokio::task::yield_now().await;
            assert_eq!(mesh.resting(), (0, 0), "{round}: not yet");
            mesh.look(3);
            eventually("both rest", || mesh.resting() == (1, 1)).await;
        }
        assert_eq!(server.connections.get(), 1);
    });
}

#[test]
fn half_a_head_is_no_rest() {
    run(async {
        let (_server, mesh) = reviews().await;
        let mut client = mesh.connect(Direction::Outbound, all_to("reviews"));
        // Not even one byte: it is not known yet whether this is HTTP/1.
        tokio::task::yield_now().await;
        mesh.look(3);
        client.write_all(b"GET /a HTTP/1.1\r\n").await.unwrap();
        tokio::task::yield_now().await;
        mesh.look(3);
        tokio::task::yield_now().await;
        assert_eq!(mesh.resting(), (0, 0), "half a head is no rest");
        client.write_all(b"host: a\r\n\r\n").await.unwrap();
        assert!(answer(&mut client).await.starts_with("http/1.1 200"));
    });
}

#[test]
fn a_request_of_which_a_part_came_early_is_whole_after_a_rest() {
    run(async {
        let (_server, mesh) = reviews().await;
        let mut client = mesh.connect(Direction::Outbound, all_to("reviews"));
        client.write_all(b"GET /a HTTP/1.1\r\nhost: a\r\n\r\nGET /b HT").await.unwrap();
        assert!(answer(&mut client).await.contains("get /a"));
        eventually("counted", || mesh.requests(&[]) == 1).await;
        mesh.look(3);
        settle().await;
        client.write_all(b"TP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        assert!(answer(&mut client).await.contains("get /b"));
    });
}

#[test]
fn a_body_that_nobody_read_is_no_request_after_a_rest() {
    run(async {
        let (_server, mesh) = reviews().await;
        // Answered by the proxy itself, while the body is on its way.
        let mut client = mesh.connect(Direction::Outbound, routes(vec![]));
        client.write_all(b"POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nx").await.unwrap();
        let mut seen = vec![0; 12];
        client.read_exact(&mut seen).await.unwrap();
        assert_eq!(seen, b"HTTP/1.1 404");
        for _ in 0..3 {
            mesh.look(3);
            settle().await;
        }
        client.write_all(b"GET /b HTTP/1.1\r\nhost: a\r\n\r\n").await.ok();
        let mut rest = Vec::new();
        let read = tokio::time::timeout(Duration::from_millis(200), client.read_to_end(&mut rest)).await;
        let rest = String::from_utf8_lossy(&rest);
        assert!(!rest.contains("HTTP/1.1"), "{read:?} {rest}");
        assert_eq!(mesh.requests(&[]), 1);
    });
}

#[test]
fn a_request_under_way_is_no_rest() {
    run(async {
        let (listener, mesh) = played().await;
        let mut client = mesh.connect(Direction::Outbound, all_to("reviews"));
        client.write_all(b"GET /a HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        for _ in 0..2 {
            assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
            mesh.look(3);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            assert!(answer(&mut client).await.ends_with("ok"));
            client.write_all(b"GET /b HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        }
    });
}

#[test]
fn an_answer_that_its_client_does_not_read_is_no_rest() {
    run(async {
        let (_server, mesh) = reviews().await;
        let mut client = mesh.connect(Direction::Outbound, all_to("reviews"));
        // More than the pipe holds, less than hyper takes in advance: for the proxy the answer is over.
        let body = "x".repeat(100_000);
        let head = format!("POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len());
        client.write_all(head.as_bytes()).await.unwrap();
        client.write_all(body.as_bytes()).await.unwrap();
        eventually("counted", || mesh.requests(&[]) == 1).await;
        for _ in 0..5 {
            mesh.look(3);
            settle().await;
        }
        assert_eq!(mesh.resting().0, 0);
        assert!(answer(&mut client).await.ends_with(&body));
        // It was not told to end either.
        client.write_all(b"GET /b HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        assert!(answer(&mut client).await.contains("get /b"));
    });
}

#[test]
fn a_connection_at_rest_ends_with_its_client_or_when_it_is_told_to() {
    run(async {
        let (_server, mesh) = reviews().await;
        for told in [false, true] {
            let mut client = mesh.connect(Direction::Inbound, all_to("reviews"));
            client.write_all(b"GET /a HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            answer(&mut client).await;
            eventually("counted", || mesh.requests(&[]) == u64::from(told) + 1).await;
            mesh.look(3);
            eventually("it rests", || mesh.resting().0 == 1).await;
            if told {
                mesh.worker.connections.watch(Phase::Draining, None, Instant::now());
                let later = Instant::now() + Duration::from_secs(6);
                mesh.worker.connections.watch(Phase::Draining, None, later);
                assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
            } else {
                drop(client);
            }
            eventually("it has ended", || mesh.resting().0 == 0).await;
        }
    });
}

#[test]
fn an_endpoint_may_end_a_connection_at_rest() {
    run(async {
        let (listener, mesh) = played().await;
        let mut client = mesh.connect(Direction::Outbound, all_to("reviews"));
        for round in 0..2_u64 {
            let mut stream = first(&listener, &mut client).await;
            eventually("counted", || mesh.requests(&[]) == round + 1).await;
            mesh.look(3);
            eventually("it rests", || mesh.resting().1 == 1).await;
            if round == 0 {
                drop(stream);
            } else {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            }
            eventually("it is gone", || mesh.resting().1 == 0).await;
        }
    });
}

#[test]
fn a_connection_at_rest_ends_with_its_endpoint() {
    run(async {
        let (listener, mesh) = played().await;
        let mut client = mesh.connect(Direction::Outbound, all_to("reviews"));
        let mut stream = first(&listener, &mut client).await;
        eventually("counted", || mesh.requests(&[]) == 1).await;
        mesh.look(3);
        eventually("it rests", || mesh.resting().1 == 1).await;
        mesh.worker.store.publish(Snapshot::default());
        mesh.look(3);
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "it was closed");
    });
}
