//! The HTTP filter from the client's bytes to the endpoint's and back: what both sides see, and what is counted.

mod fixture;
mod limits;
mod rest;
mod tables;
mod unprocessed;

use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use self::fixture::*;
use super::Scope;
use crate::config::cluster::*;
use crate::config::listener::*;
use crate::config::route::*;
use crate::config::store::{Demand, LookedUp, Snapshot};
use crate::connection::Direction;

#[test]
fn a_request_goes_out_and_is_counted_once() {
    run(async {
        let server = Server::start().await;
        let mesh = Mesh::new(vec![cluster("reviews", UpstreamHttp::AsDownstream, &[server.address])]);
        let mut client = mesh.http1(all_to("reviews")).await;
        for _ in 0..3 {
            client.ready().await.unwrap();
            let response = client.send_request(get("/a/../b?x=1")).await.unwrap();
            assert_eq!(response.status(), 200);
            assert!(!response.headers().contains_key("keep-alive"), "hop-by-hop");
            let seen = text(response).await;
            assert!(seen.starts_with("GET /b?x=1\n"), "{seen}");
            assert!(seen.contains("x-request-id: ") && seen.contains("x-forwarded-proto: http\n"), "{seen}");
        }
        assert_eq!(server.connections.get(), 1, "the connection is used again");
        let labels = [
            "reporter=\"source\"",
            "destination_service_name=\"reviews\"",
            "source_workload=\"web-v1\"",
            "response_code=\"200\"",
            "response_flags=\"-\"",
        ];
        eventually("three requests counted", || mesh.requests(&labels) == 3).await;
        assert_eq!(mesh.requests(&[]), 3);
    });
}

#[test]
fn http2_goes_out_as_http2_over_one_connection() {
    run(async {
        let server = Server::start().await;
        let mesh = Mesh::new(vec![cluster("reviews", UpstreamHttp::AsDownstream, &[server.address])]);
        let client = mesh.http2(all_to("reviews")).await;
        let requests = (0..20).map(|_| {
            let mut client = client.clone();
            async move {
                let request = Request::post("http://reviews/p").header("te", "trailers").body("hello".into());
                let response = client.send_request(request.unwrap()).await.unwrap();
                let seen = text(response).await;
                assert!(seen.starts_with("POST http://reviews/p\n"), "{seen}");
                assert!(seen.contains("te: trailers\n") && seen.ends_with("hello"), "{seen}");
            }
        });
        futures_util::future::join_all(requests).await;
        assert_eq!(server.connections.get(), 1);
        eventually("twenty requests counted", || mesh.requests(&["response_code=\"200\""]) == 20).await;
    });
}

#[test]
fn the_cluster_decides_the_version_if_it_says_so() {
    run(async {
        let server = Server::start().await;
        let clusters = [("one", UpstreamHttp::Http1), ("two", UpstreamHttp::Http2)];
        let mesh = Mesh::new(clusters.map(|(name, http)| cluster(name, http, &[server.address])).into());
        let mut client = mesh.http1(all_to("two")).await;
        let seen = text(client.send_request(get("/x")).await.unwrap()).await;
        assert!(seen.starts_with("GET http://reviews/x\n") && !seen.contains("host:"), "{seen}");
        let mut client = mesh.http2(all_to("one")).await;
        let request = Request::get("http://reviews/x").body(Default::default()).unwrap();
        let seen = text(client.send_request(request).await.unwrap()).await;
        assert!(seen.starts_with("GET /x\n") && seen.contains("host: reviews\n"), "{seen}");
    });
}

#[test]
fn an_endpoint_that_refuses_is_followed_by_another() {
    run(async {
        let server = Server::start().await;
        let both = [nobody().await, server.address];
        let mesh = Mesh::new(vec![cluster("reviews", UpstreamHttp::AsDownstream, &both)]);
        for _ in 0..20 {
            let mut client = mesh.http1(all_to("reviews")).await;
            let request = Request::post("/x").header("host", "a").body("body".into()).unwrap();
            let response = client.send_request(request).await.unwrap();
            assert_eq!(response.status(), 200);
            assert!(text(response).await.ends_with("body"));
        }
        eventually("each counted once", || mesh.requests(&[]) == 20).await;
    });
}

#[test]
fn what_cannot_be_served_says_why_and_is_counted() {
    run(async {
        let dead = nobody().await;
        let refused = Endpoint { tls: EndpointTls::Refused("no identity".into()), ..endpoint(dead) };
        let unknown = cluster("unknown", UpstreamHttp::AsDownstream, &[]);
        let locality = Locality { endpoints: vec![Arc::new(refused)], ..Locality::default() };
        unknown.endpoints.store(Arc::new(Endpoints { localities: vec![locality] }));
        let mesh = Mesh::new(vec![
            cluster("down", UpstreamHttp::AsDownstream, &[dead]),
            cluster("empty", UpstreamHttp::AsDownstream, &[]),
            unknown,
        ]);
        let only_b =
            routes(vec![route(PathMatch::Exact("/b".into()), RouteAction::Forward(forward(&[("down", 1)])))]);
        for (config, status, flags, reason) in [
            (only_b, 404, "NR", "no route"),
            (all_to("missing"), 500, "NC", "missing"),
            (all_to("empty"), 503, "UH", "no healthy endpoint"),
            (all_to("unknown"), 503, "UH", "no identity"),
            (all_to("down"), 503, "UF", "refused"),
        ] {
            let mut client = mesh.http1(config.clone()).await;
            let response = client.send_request(get("/a")).await.unwrap();
            assert_eq!(response.status(), status);
            let header = response.headers()["x-mesh-reason"].to_str().unwrap().to_owned();
            assert!(header.starts_with(&format!("{flags}; ")) && header.contains(reason), "{header}");
            let body = text(response).await;
            assert!(body.starts_with(&format!("mesh: {flags}: ")), "{body}");

            let mut client = mesh.http2(config).await;
            let request = Request::post("http://reviews/a").header("content-type", "application/grpc");
            let response = client.send_request(request.body(Default::default()).unwrap()).await.unwrap();
            assert_eq!(response.status(), 200);
            let expected = match status {
                404 => "12",
                500 => "2",
                _ => "14",
            };
            assert_eq!(response.headers()["grpc-status"], expected);
            assert!(response.headers()["grpc-message"].to_str().unwrap().contains(reason));
            drop(response);
            let flag = format!("response_flags=\"{flags}\"");
            let code = format!("response_code=\"{status}\"");
            eventually("counted", || mesh.requests(&[&flag, &code, "request_protocol=\"http\""]) >= 1).await;
            eventually("counted", || mesh.requests(&[&flag, "request_protocol=\"grpc\""]) >= 1).await;
        }
        assert_eq!(mesh.requests(&[]), 10);
        assert_eq!(
            mesh.requests(&["response_code=\"404\"", "destination_service_name=\"reviews\""]),
            1,
            "the route tells the service even if it leads nowhere"
        );
    });
}

#[test]
fn a_route_that_answers_with_an_error_gives_its_text_as_the_reason() {
    run(async {
        let mesh = Mesh::new(Vec::new());
        let answering = |status, body: &str| {
            let action = RouteAction::Respond { status, body: body.to_owned() };
            routes(vec![route(PathMatch::Prefix("/".into()), action)])
        };
        let broken = answering(StatusCode::INTERNAL_SERVER_ERROR, "no such backend");
        let response = mesh.http1(broken.clone()).await.send_request(get("/")).await.unwrap();
        assert_eq!(response.status(), 500);
        assert_eq!(response.headers()["x-mesh-reason"], "-; no such backend");
        assert_eq!(text(response).await, "no such backend");

        let request = Request::post("http://reviews/a").header("content-type", "application/grpc");
        let request = request.body(Default::default()).unwrap();
        let response = mesh.http2(broken).await.send_request(request).await.unwrap();
        assert_eq!(response.headers()["grpc-status"], "2");
        assert_eq!(response.headers()["grpc-message"], "no such backend");

        let fine = answering(StatusCode::OK, "fine");
        let response = mesh.http1(fine).await.send_request(get("/")).await.unwrap();
        assert!(response.status() == 200 && !response.headers().contains_key("x-mesh-reason"));
        assert_eq!(text(response).await, "fine");
    });
}

#[test]
fn a_route_has_a_time_limit() {
    run(async {
        let server = Server::start().await;
        let mesh = Mesh::new(vec![cluster("reviews", UpstreamHttp::AsDownstream, &[server.address])]);
        let limit = Some(std::time::Duration::from_millis(50));
        for limited in [
            Forward { timeout: limit, ..forward(&[("reviews", 1)]) },
            Forward { per_try_timeout: limit, ..forward(&[("reviews", 1)]) },
        ] {
            let config = routes(vec![route(PathMatch::Prefix("/".into()), RouteAction::Forward(limited))]);
            let mut client = mesh.http1(config).await;
            let response = client.send_request(get("/slow")).await.unwrap();
            assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
            assert!(response.headers()["x-mesh-reason"].to_str().unwrap().starts_with("UT; "));
        }
        eventually("counted", || mesh.requests(&["response_code=\"504\"", "\"UT\""]) == 2).await;
    });
}

#[test]
fn a_client_that_goes_away_is_counted() {
    run(async {
        let server = Server::start().await;
        let mesh = Mesh::new(vec![cluster("reviews", UpstreamHttp::AsDownstream, &[server.address])]);
        let mut client = mesh.http1(all_to("reviews")).await;
        let request = client.send_request(get("/slow"));
        tokio::select! {
            _ = request => panic!("it never answers"),
            () = eventually("it is there", || server.connections.get() == 1) => {}
        }
        drop(client);
        eventually("counted", || mesh.requests(&["response_code=\"0\"", "\"DC\""]) == 1).await;
    });
}

#[test]
fn a_websocket_passes_and_is_counted_when_closed() {
    run(async {
        let server = Server::start().await;
        let mesh = Mesh::new(vec![cluster("reviews", UpstreamHttp::AsDownstream, &[server.address])]);
        let mut client = mesh.connect(Direction::Outbound, all_to("reviews"));
        let head = b"GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        client.write_all(head).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(client.read_u8().await.unwrap());
        }
        let answer = String::from_utf8(answer).unwrap().to_lowercase();
        assert!(answer.starts_with("http/1.1 101") && answer.contains("upgrade: websocket"), "{answer}");
        client.write_all(b"ping").await.unwrap();
        let mut echo = [0; 4];
        client.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo, b"ping");
        assert_eq!(mesh.requests(&[]), 0, "still open");
        drop(client);
        eventually("counted", || mesh.requests(&["response_code=\"101\""]) == 1).await;
    });
}

#[test]
fn an_endpoint_that_was_removed_gets_no_more_requests() {
    run(async {
        let (old, new) = (Server::start().await, Server::start().await);
        let mesh = Mesh::new(vec![cluster("reviews", UpstreamHttp::AsDownstream, &[old.address])]);
        let mut client = mesh.http1(all_to("reviews")).await;
        text(client.send_request(get("/")).await.unwrap()).await;
        let live = Arc::clone(&mesh.worker.store.snapshot().clusters["reviews"]);
        let locality = Locality { endpoints: vec![Arc::new(endpoint(new.address))], ..Locality::default() };
        live.endpoints.store(Arc::new(Endpoints { localities: vec![locality] }));
        client.ready().await.unwrap();
        text(client.send_request(get("/")).await.unwrap()).await;
        assert_eq!((old.connections.get(), new.connections.get()), (1, 1));
    });
}

#[test]
fn draining_ends_inbound_connections_and_leaves_outbound_ones() {
    run(async {
        let server = Server::start().await;
        let mesh = Mesh::new(vec![cluster("reviews", UpstreamHttp::AsDownstream, &[server.address])]);
        let mut inbound = mesh.connect(Direction::Inbound, all_to("reviews"));
        let mut outbound = mesh.connect(Direction::Outbound, all_to("reviews"));
        mesh.trigger.start();
        tokio::time::sleep(std::time::Duration::from_millis(600)).await;
        let head = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        for (client, closes) in [(&mut inbound, true), (&mut outbound, false)] {
            client.write_all(head).await.unwrap();
            let mut answer = vec![0; 4096];
            let length = client.read(&mut answer).await.unwrap();
            let answer = String::from_utf8_lossy(&answer[..length]).to_lowercase();
            assert!(answer.starts_with("http/1.1 200"), "{answer}");
            assert_eq!(answer.contains("connection: close"), closes, "{answer}");
        }
    });
}

#[test]
fn a_connection_at_rest_is_closed_some_time_after_the_drain_has_begun() {
    run(async {
        let mesh = Mesh::new(vec![]);
        let mut inbound = mesh.connect(Direction::Inbound, all_to("reviews"));
        let mut outbound = mesh.connect(Direction::Outbound, all_to("reviews"));
        tokio::task::yield_now().await;
        let begun = tokio::time::Instant::now();
        let watch = |seconds| {
            let now = begun + std::time::Duration::from_secs(seconds);
            mesh.worker.connections.watch(mesh_common::process::Phase::Draining, None, now);
        };
        let open = async |client: &mut tokio::io::DuplexStream| {
            let wait = std::time::Duration::from_millis(50);
            tokio::time::timeout(wait, client.read(&mut [0])).await.is_err()
        };
        watch(0);
        watch(4);
        assert!(open(&mut inbound).await, "a request may be on its way");
        watch(5);
        assert!(!open(&mut inbound).await);
        assert!(open(&mut outbound).await, "the application may still need it");
    });
}

#[test]
fn requests_that_two_readers_read_differently_are_refused() {
    run(async {
        let server = Server::start().await;
        let mesh = Mesh::new(vec![cluster("reviews", UpstreamHttp::AsDownstream, &[server.address])]);
        for head in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
            "GET /a%00b HTTP/1.1\r\nhost: a\r\n\r\n",
            "GET /a%zz HTTP/1.1\r\nhost: a\r\n\r\n",
        ] {
            let mut client = mesh.connect(Direction::Inbound, all_to("reviews"));
            client.write_all(head.as_bytes()).await.unwrap();
            let mut answer = [0; 12];
            client.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 400", "{head}");
        }
        let mut client = mesh.connect(Direction::Inbound, all_to("reviews"));
        let many = "x: y\r\n".repeat(101);
        client.write_all(format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n").as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 431");
        assert_eq!(server.connections.get(), 0);
    });
}

#[test]
fn the_future_of_a_connection_is_small() {
    run(async {
        let mesh = Mesh::new(vec![]);
        let (_client, io) = tokio::io::duplex(64);
        let connection = crate::connection::Connection {
            io: io.into(),
            direction: Direction::Inbound,
            peer: "10.0.0.9:1".parse().unwrap(),
            target: crate::connection::Target::Address("10.0.0.1:80".parse().unwrap()),
            app: None,
            identity: None,
            security: crate::telemetry::Security::None,
        };
        let serving = super::serve(std::rc::Rc::clone(&mesh.worker), connection, super::Scope::Forward);
        assert!(size_of_val(&serving) < 2048, "{}", size_of_val(&serving));
    });
}

#[test]
fn options_for_the_whole_server_pass() {
    run(async {
        let server = Server::start().await;
        let mesh = Mesh::new(vec![cluster("reviews", UpstreamHttp::AsDownstream, &[server.address])]);
        let asterisk = || Request::options("*").header("host", "reviews").body(Default::default()).unwrap();
        let mut client = mesh.http1(all_to("reviews")).await;
        let seen = text(client.send_request(asterisk()).await.unwrap()).await;
        assert!(seen.starts_with("OPTIONS *\n"), "{seen}");
        let get = Request::get("*").header("host", "reviews").body(Default::default()).unwrap();
        assert_eq!(client.send_request(get).await.unwrap().status(), 400, "of OPTIONS only");
    });
}

#[test]
fn routes_that_were_let_go_are_looked_up_again() {
    run(async {
        let server = Server::start().await;
        let mut mesh = Mesh::new(vec![cluster("reviews", UpstreamHttp::AsDownstream, &[server.address])]);
        let mut client = mesh.http1_by(scope(RouteSource::Named("r:80".into()))).await;
        let store = Arc::clone(&mesh.worker.store);
        let control = async {
            let Some(Demand::Listener(name, reply)) = mesh.demands.recv().await else { unreachable!() };
            assert_eq!(name.to_string(), LISTENER);
            let clusters = store.snapshot().clusters.clone();
            let routes = [("r:80".to_owned(), Arc::new(all_to("reviews")))].into_iter().collect();
            store.publish(Snapshot { clusters, routes, ..Snapshot::default() });
            let found = LookedUp { listener: None, used: Default::default() };
            reply.send(Arc::new(found)).unwrap();
        };
        let (response, ()) = tokio::join!(client.send_request(get("/a")), control);
        assert_eq!(response.unwrap().status(), 200);
    });
}

#[test]
fn a_forwarded_request_by_a_tcp_chain_goes_by_weight() {
    run(async {
        let server = Server::start().await;
        let mesh = Mesh::new(vec![cluster("there", UpstreamHttp::AsDownstream, &[server.address])]);
        let clusters = vec![("missing".to_owned(), 0), ("there".to_owned(), 1)];
        let tcp = TcpProxy { stat_prefix: String::new(), clusters, idle_timeout: None, access_log: None };
        let chain = FilterChain {
            name: "passthrough".into(),
            matches: ChainMatch::default(),
            tls: None,
            filter: NetworkFilter::Tcp(tcp),
        };
        let outbound = Listener {
            name: "virtualOutbound".into(),
            inspect: Inspect { tls: false, http: false, timeout: Duration::ZERO },
            chains: Vec::new(),
            default_chain: Some(Arc::new(chain)),
        };
        let store = &mesh.worker.store;
        let clusters = store.snapshot().clusters.clone();
        store.publish(Snapshot { clusters, outbound: Some(Arc::new(outbound)), ..Snapshot::default() });
        let mut client = mesh.http1_by(Scope::Forward).await;
        let request = Request::get("http://192.0.2.1/a").header("host", "a").body(Default::default());
        assert_eq!(client.send_request(request.unwrap()).await.unwrap().status(), 200);
    });
}

#[test]
fn nobody_is_sent_back_to_the_proxy_itself() {
    run(async {
        let itself = Server::start().await;
        let clusters = vec![cluster("reviews", UpstreamHttp::AsDownstream, &[itself.address])];
        let mesh = Mesh::listening(clusters, Some(itself.address));
        let mut client = mesh.http1(all_to("reviews")).await;
        let response = client.send_request(get("/a")).await.unwrap();
        assert_eq!(response.status(), 503);
        let reason = response.headers()["x-mesh-reason"].to_str().unwrap();
        assert!(reason.starts_with("NR; ") && reason.contains("this proxy itself"), "{reason}");
        assert_eq!(itself.connections.get(), 0);
    });
}
