//! Requests that no application has seen: the server's sidecar says so to the client's, and to nobody else.

use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::super::serve;
use super::fixture::*;
use crate::config::cluster::UpstreamHttp;
use crate::config::listener::RouteSource;
use crate::connection::{Connection, Direction, Target};
use crate::telemetry::Security;

fn connect(mesh: &Mesh, direction: Direction, identity: Option<&str>) -> tokio::io::DuplexStream {
    let (client, io) = tokio::io::duplex(64 * 1024);
    let connection = Connection {
        io: io.into(),
        direction,
        peer: "10.0.0.9:4711".parse().unwrap(),
        target: Target::Address("10.96.0.1:80".parse().unwrap()),
        app: None,
        identity: identity.map(|identity| identity.parse().unwrap()),
        security: Security::None,
    };
    let scope = scope(RouteSource::Inline(all_to("app").into()));
    tokio::task::spawn_local(serve(Rc::clone(&mesh.worker), connection, scope));
    client
}

/// One POST over a connection of its own; the answer in lower case.
async fn post(mesh: &Mesh, direction: Direction, identity: Option<&str>) -> String {
    let mut client = connect(mesh, direction, identity);
    let request = b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx";
    client.write_all(request).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    answer.to_lowercase()
}

/// An application that closes each connection after this answer. Counts connections.
async fn says(answer: &'static str) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server { address: listener.local_addr().unwrap(), connections: Rc::default() };
    let counter = Rc::clone(&server.connections);
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counter.set(counter.get() + 1);
            let mut seen = vec![0; 4096];
            let mut length = 0;
            while !seen[..length].ends_with(b"\r\n\r\nx") {
                length += stream.read(&mut seen[length..]).await.unwrap();
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    server
}

const CLIENT: Option<&str> = Some("spiffe://cluster.local/ns/shop/sa/web");

#[test]
fn an_absent_application_is_told_to_sidecars_only() {
    run(async {
        let mesh = Mesh::new(vec![cluster("app", UpstreamHttp::AsDownstream, &[nobody().await])]);
        for (direction, identity, told) in [
            (Direction::Inbound, CLIENT, true),
            (Direction::Inbound, None, false),
            (Direction::Outbound, None, false),
        ] {
            let answer = post(&mesh, direction, identity).await;
            assert!(answer.starts_with("http/1.1 503") && answer.contains("x-mesh-reason: uf;"), "{answer}");
            assert_eq!(answer.contains("x-mesh-unprocessed: 1"), told, "{answer}");
        }
    });
}

#[test]
fn what_an_application_may_have_seen_is_not_unprocessed() {
    run(async {
        let server = says("").await;
        let mesh = Mesh::new(vec![cluster("app", UpstreamHttp::AsDownstream, &[server.address])]);
        let answer = post(&mesh, Direction::Inbound, CLIENT).await;
        assert!(answer.starts_with("http/1.1 503") && answer.contains("x-mesh-reason: uc;"), "{answer}");
        assert!(!answer.contains("x-mesh-unprocessed"), "{answer}");
    });
}

#[test]
fn an_application_cannot_say_it_itself() {
    run(async {
        let forged = "HTTP/1.1 503 No\r\nx-mesh-unprocessed: 1\r\ncontent-length: 0\r\n\r\n";
        let (one, other) = (says(forged).await, says(forged).await);
        let mesh = Mesh::new(vec![cluster("app", UpstreamHttp::AsDownstream, &[one.address, other.address])]);
        for (direction, identity) in [(Direction::Inbound, CLIENT), (Direction::Outbound, None)] {
            let answer = post(&mesh, direction, identity).await;
            assert!(answer.starts_with("http/1.1 503"), "{answer}");
            assert!(!answer.contains("x-mesh-unprocessed"), "{answer}");
        }
        assert_eq!(one.connections.get() + other.connections.get(), 2, "no request was sent twice");
    });
}

/// Answers the first request of each connection, once there are `count`, and closes it at the next.
async fn answers_once(count: u32) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server { address: listener.local_addr().unwrap(), connections: Rc::default() };
    let counter = Rc::clone(&server.connections);
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counter.set(counter.get() + 1);
            let counter = Rc::clone(&counter);
            tokio::task::spawn_local(async move {
                let mut seen = [0; 4096];
                assert!(stream.read(&mut seen).await.unwrap() > 0);
                eventually("all connections are there", || counter.get() >= count).await;
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                _ = stream.read(&mut seen).await.unwrap_or_default();
            });
        }
    });
    server
}

#[test]
fn connections_that_end_when_they_are_used_again_are_replaced_by_a_new_one() {
    run(async {
        // More than there are attempts.
        let server = answers_once(4).await;
        let mesh = Mesh::new(vec![cluster("app", UpstreamHttp::AsDownstream, &[server.address])]);
        let get = async || {
            let mut client = connect(&mesh, Direction::Outbound, None);
            client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let (a, b, c, d) = tokio::join!(get(), get(), get(), get());
        for answer in [a, b, c, d] {
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        let answer = get().await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(server.connections.get(), 5);
    });
}

/// A listener whose applications never take a connection, and that goes away with all that came.
#[test]
fn a_get_that_nobody_read_may_be_sent_again() {
    run(async {
        for (method, told) in [("GET", true), ("POST", false)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let mesh = Mesh::new(vec![cluster("app", UpstreamHttp::AsDownstream, &[address])]);
            let mut client = connect(&mesh, Direction::Inbound, CLIENT);
            let request = format!("{method} / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
            // Its bytes wait in the kernel when the application exits.
            eventually("the request is there", || waiting(address) > 0).await;
            drop(listener);
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            let answer = answer.to_lowercase();
            assert!(answer.starts_with("http/1.1 503"), "{answer}");
            assert_eq!(answer.contains("x-mesh-unprocessed: 1"), told, "{method}: {answer}");
        }
    });
}

/// Bytes that wait unread in the connections to a port of this machine.
fn waiting(to: std::net::SocketAddr) -> u64 {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!("0100007F:{:04X}", to.port());
    let queues = table.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (own, _, state, queue) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let unread = u64::from_str_radix(queue.split_once(':')?.1, 16).ok()?;
        (own == local && state == "01").then_some(unread)
    });
    queues.sum()
}
