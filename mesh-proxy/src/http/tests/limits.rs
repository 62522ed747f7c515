//! Limits in time: streams at rest, requests that never come whole, connections that grow old.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpListener;

use super::*;

const SHORT: Option<Duration> = Some(Duration::from_millis(50));
const LONG: Option<Duration> = Some(Duration::from_secs(60));

fn all_with(forward: Forward) -> RouteSource {
    RouteSource::Inline(Arc::new(routes(vec![route(
        PathMatch::Prefix("/".into()),
        RouteAction::Forward(forward),
    )])))
}

fn reviews() -> Forward {
    forward(&[("reviews", 1)])
}

/// All that comes back, in lower case, until the connection ends.
async fn rest(client: &mut DuplexStream) -> String {
    let mut all = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), client.read_to_end(&mut all)).await;
    read.expect("it ends").ok();
    String::from_utf8(all).unwrap().to_lowercase()
}

#[test]
fn a_stream_at_rest_is_answered() {
    run(async {
        let server = Server::start().await;
        let mesh = Mesh::new(vec![cluster("reviews", UpstreamHttp::AsDownstream, &[server.address])]);
        let none = Some(Duration::ZERO);
        for (what, manager, idle_timeout, timeout, flags) in [
            ("the manager's", SHORT, None, LONG, "SI"),
            ("the route's", None, SHORT, LONG, "SI"),
            ("the route's wins", LONG, SHORT, LONG, "SI"),
            ("none by the route", SHORT, none, Some(Duration::from_millis(200)), "UT"),
        ] {
            let routes = all_with(Forward { idle_timeout, timeout, ..reviews() });
            let scope = scope_with(routes, |it| it.stream_idle_timeout = manager);
            let mut client = mesh.http1_by(scope).await;
            let response = client.send_request(get("/slow")).await.unwrap();
            assert_eq!(response.status(), 504, "{what}");
            let reason = response.headers()["x-mesh-reason"].to_str().unwrap();
            assert!(reason.starts_with(&format!("{flags}; ")), "{what}: {reason}");
        }
        eventually("counted", || mesh.requests(&["response_code=\"504\"", "\"SI\""]) == 3).await;
    });
}

#[test]
fn a_request_that_does_not_come_whole_is_the_clients_fault() {
    run(async {
        let server = Server::start().await;
        let mesh = Mesh::new(vec![cluster("reviews", UpstreamHttp::AsDownstream, &[server.address])]);
        for (idle, whole, flags) in [(SHORT, None, "si"), (None, SHORT, "-")] {
            let scope = scope_with(all_with(reviews()), |it| {
                (it.stream_idle_timeout, it.request_timeout) = (idle, whole);
            });
            let mut client = mesh.connect_by(Direction::Outbound, scope);
            let head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf";
            client.write_all(head).await.unwrap();
            let answer = rest(&mut client).await;
            assert!(answer.starts_with("http/1.1 408 "), "{answer}");
            assert!(answer.contains(&format!("x-mesh-reason: {flags}; ")), "{answer}");
        }
    });
}

#[test]
fn a_response_that_rests_is_reset() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mesh = Mesh::new(vec![cluster("reviews", UpstreamHttp::AsDownstream, &[address])]);
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
            let mut request = Vec::new();
            stream.read_to_end(&mut request).await.ok(); // until the proxy gives it up
        };
        let scope = scope_with(all_with(reviews()), |it| it.stream_idle_timeout = SHORT);
        let mut client = mesh.connect_by(Direction::Outbound, scope);
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let (answer, ()) = tokio::join!(rest(&mut client), server);
        assert!(answer.starts_with("http/1.1 200 ") && answer.ends_with("half"), "{answer}");
        eventually("counted", || mesh.requests(&["response_code=\"200\"", "\"SI\""]) == 1).await;
    });
}

#[test]
fn an_upgrade_that_rests_is_ended() {
    run(async {
        let server = Server::start().await;
        let mesh = Mesh::new(vec![cluster("reviews", UpstreamHttp::AsDownstream, &[server.address])]);
        let scope = scope_with(all_with(reviews()), |it| it.stream_idle_timeout = SHORT);
        let mut client = mesh.connect_by(Direction::Outbound, scope);
        let head = b"GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        client.write_all(head).await.unwrap();
        let answer = rest(&mut client).await;
        assert!(answer.starts_with("http/1.1 101 "), "{answer}");
        eventually("counted", || mesh.requests(&["response_code=\"101\"", "\"SI\""]) == 1).await;
    });
}

#[test]
fn an_old_connection_is_closed_between_two_requests() {
    run(async {
        let server = Server::start().await;
        let mesh = Mesh::new(vec![cluster("reviews", UpstreamHttp::AsDownstream, &[server.address])]);
        let scope = scope_with(all_with(reviews()), |it| it.max_connection_duration = SHORT);
        let mut client = mesh.connect_by(Direction::Outbound, scope);
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let answer = rest(&mut client).await;
        assert!(answer.starts_with("http/1.1 200 "), "{answer}");
    });
}
