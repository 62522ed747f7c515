//! Clients that mean harm: each is bounded, told why and counted, and while it acts a good client gets its changes.

use std::pin::Pin;
use std::time::Duration;

use mesh_common::trust::PrivateKey;
use mesh_common::xds::ResourceType::{Endpoints, Listener};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::{Code, Request};

use crate::certificates::{ask, certificate, identity};
use crate::client::{SERVER_NAME, Stream, connect, node};
use crate::form::{Delta, Form, StateOfTheWorld, over_both_forms};
use crate::world::{RATINGS, REVIEWS, WEB, World, until};

const RATINGS_CLUSTER: &str = "outbound|80||ratings.shop.svc.cluster.local";
/// Far more than a change takes, far less than any time-out of the server.
const BOUND: Duration = Duration::from_secs(3);

over_both_forms!(
    one_that_does_not_read,
    one_that_wants_a_million_names,
    one_whose_messages_are_huge,
    one_whose_messages_are_no_requests,
    one_that_answers_what_nobody_asked,
    one_that_claims_another_node,
    one_that_opens_many_streams,
);

/// Lets somebody act; until he is done, and three times at least, good clients of both forms get a change within the
/// bound.
fn while_others_are_served<'a, T: 'a>(
    world: &'a World,
    hostile: impl Future<Output = T> + 'a,
) -> Pin<Box<dyn Future<Output = T> + 'a>> {
    Box::pin(serve_others(world, hostile))
}

async fn serve_others<T>(world: &World, hostile: impl Future<Output = T>) -> T {
    let mut good = Stream::<Delta>::of(world, REVIEWS).await;
    good.look_up(Endpoints, &[RATINGS_CLUSTER]).await;
    let mut other = Stream::<StateOfTheWorld>::of(world, REVIEWS).await;
    other.look_up(Endpoints, &[RATINGS_CLUSTER]).await;
    let mut changes = 0;
    let mut hostile = std::pin::pin!(hostile);
    let mut outcome = None;
    while outcome.is_none() || changes < 3 {
        changes += 1;
        let begin = Instant::now();
        world.change_ratings();
        let told = async { (good.told().await, other.told().await) };
        let mut told = std::pin::pin!(told);
        let texts = loop {
            tokio::select! {
                texts = &mut told => break texts,
                done = &mut hostile, if outcome.is_none() => outcome = Some(done),
            }
        };
        let expected = || format!("eds {RATINGS_CLUSTER}");
        assert_eq!(texts, (expected(), expected()));
        assert!(begin.elapsed() < BOUND, "change {changes} took {:?}", begin.elapsed());
    }
    outcome.unwrap()
}

async fn counted(world: &World, line: &str) {
    until(line, async || world.page("/metrics").await.contains(line).then_some(())).await;
}

async fn one_that_does_not_read<F: Form>() {
    let world = World::start_with(&["--ack-timeout", "1s"]).await;
    let status = while_others_are_served(&world, async {
        let mut stream = Stream::<F>::of(&world, WEB).await;
        // One that exists: only of such is there something to say in each form.
        let names = (0..9_000).map(|n| format!("nothing-{n}")).chain([RATINGS_CLUSTER.to_owned()]);
        stream.ask(Endpoints.url(), names.collect(), "").await;
        counted(&world, "mesh_control_closed_streams_total{reason=\"slow\"} 1").await;
        stream.end().await
    })
    .await;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert!(status.message().contains("did not answer"), "{status}");
    world.stop().await;
}

/// The name of this number.
type Name = fn(usize) -> String;

async fn one_that_wants_a_million_names<F: Form>() {
    let world = World::start().await;
    let cases: [(usize, Name, &str); 3] = [
        (1_000, |n| format!("outbound|{n}||nothing"), "more than 10000 names"),
        (100, |n| format!("{n:0>1000}"), "more than 1048576 bytes"),
        (10, |_| "x".repeat(1025), "a name of 1025 bytes"),
    ];
    for (number, (batch, name, reason)) in cases.into_iter().enumerate() {
        let status = while_others_are_served(&world, async {
            let mut stream = Stream::<F>::of(&world, WEB).await;
            let batches = (0..1_000_000 / batch).map(|n| n * batch);
            let batches = batches.map(|first| (first..first + batch).map(name).collect());
            stream.flood(Endpoints, "", batches).await
        })
        .await;
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert!(status.message().contains(reason), "{status}");
        let line = format!("mesh_control_closed_streams_total{{reason=\"limits\"}} {}", number + 1);
        counted(&world, &line).await;
    }
    // What it watched is dropped with its stream.
    counted(&world, "mesh_control_cache_names 0").await;
    world.stop().await;
}

async fn one_whose_messages_are_huge<F: Form>() {
    let world = World::start().await;
    while_others_are_served(&world, async {
        for _ in 0..10 {
            let mut stream = Stream::<F>::of(&world, WEB).await;
            stream.ask(Endpoints.url(), vec!["x".repeat(5 << 20)], "").await;
            let status = stream.end().await;
            assert_eq!(status.code(), Code::OutOfRange, "{status}");
        }
    })
    .await;
    counted(&world, "mesh_control_refused_streams_total{reason=\"bad_request\"} 10").await;
    world.stop().await;
}

/// A request in either form whose second field, the type or the node, is a number.
#[derive(Clone, PartialEq, prost::Message)]
struct Malformed {
    #[prost(int64, tag = "2")]
    second: i64,
}

async fn one_whose_messages_are_no_requests<F: Form>() {
    let world = World::start().await;
    let malformed = async {
        let channel = connect(world.xds(), &world.bundle(), SERVER_NAME, None).await.unwrap();
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.unwrap();
        let mut call = Request::new(tokio_stream::iter([Malformed { second: 7 }]));
        call.metadata_mut().insert("authorization", format!("Bearer {}", world.token(WEB)).parse().unwrap());
        let path = format!("/envoy.service.discovery.v3.AggregatedDiscoveryService/{}", F::METHOD);
        let codec = tonic_prost::ProstCodec::<Malformed, Malformed>::default();
        let answer = client.streaming(call, path.parse().unwrap(), codec).await;
        match answer {
            Ok(answer) => answer.into_inner().message().await.unwrap_err(),
            Err(status) => status,
        }
    };
    let status = while_others_are_served(&world, malformed).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().starts_with("the request cannot be read: "), "{status}");

    let unknown = async {
        let mut stream = Stream::<F>::of(&world, WEB).await;
        let type_url = "type.googleapis.com/".to_owned() + &"x".repeat(1 << 20);
        stream.ask(&type_url, Vec::new(), "").await;
        stream.end().await
    };
    let status = while_others_are_served(&world, unknown).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains("are not served") || status.message().ends_with("..."), "{status}");
    assert!(status.message().len() < 2_000, "what a client sends does not come back in full");
    counted(&world, "mesh_control_closed_streams_total{reason=\"bad_request\"} 1").await;
    world.stop().await;
}

async fn one_that_answers_what_nobody_asked<F: Form>() {
    let world = World::start().await;
    let status = while_others_are_served(&world, async {
        let mut stream = Stream::<F>::of(&world, WEB).await;
        stream.flood(Endpoints, "never given", std::iter::repeat_with(Vec::new)).await
    })
    .await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains("1000 requests in a row"), "{status}");
    counted(&world, "mesh_control_closed_streams_total{reason=\"stale_answers\"} 1").await;

    // Requests that say nothing at all are read no faster than a busy proxy's.
    while_others_are_served(&world, async {
        let mut stream = Stream::<F>::of(&world, WEB).await;
        let begin = Instant::now();
        for _ in 0..5_000 {
            stream.ask(Endpoints.url(), Vec::new(), "").await;
        }
        stream.look_up(Listener, &["virtualOutbound"]).await;
        let took = begin.elapsed();
        assert!(took > Duration::from_millis(1_500), "1000 more than the burst took {took:?}");
    })
    .await;
    assert!(!world.page("/metrics").await.contains("mesh_control_paced_requests_total 0"));
    world.stop().await;
}

async fn one_that_claims_another_node<F: Form>() {
    let world = World::start().await;
    while_others_are_served(&world, async {
        for _ in 0..20 {
            let mut stream = Stream::<F>::with_node(&world, WEB, node(RATINGS)).await.unwrap();
            stream.subscribe(Listener, &["inbound/shop/ratings-1"]).await;
            let status = stream.end().await;
            assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        }
    })
    .await;
    counted(&world, "mesh_control_refused_streams_total{reason=\"not_the_caller\"} 20").await;
    world.stop().await;
}

async fn one_that_opens_many_streams<F: Form>() {
    let world = World::start_with(&["--max-streams-per-pod", "4", "--max-streams", "7"]).await;
    let open = async |pod| {
        let mut stream = Stream::<F>::of(&world, pod).await;
        stream.subscribe(Listener, &["virtualOutbound"]).await;
        (stream.try_next().await.map(|response| F::summary(&response)), stream)
    };
    while_others_are_served(&world, async {
        let mut streams = Vec::new();
        for _ in 0..4 {
            let (answer, stream) = open(WEB).await;
            assert_eq!(answer.unwrap(), "lds virtualOutbound");
            streams.push(stream);
        }
        let (answer, _) = open(WEB).await;
        let status = answer.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        let expected = "the pod shop/web-1 has 4 streams, as many as --max-streams-per-pod allows";
        assert!(status.message().contains(expected), "{status}");
        counted(&world, "mesh_control_refused_streams_total{reason=\"too_many_of_pod\"} 1").await;
        // With the good clients' these are seven.
        let (answer, stream) = open(REVIEWS).await;
        answer.unwrap();
        let (answer, _) = open(RATINGS).await;
        let status = answer.unwrap_err();
        assert!(status.message().contains("7 streams, as many as --max-streams allows"), "{status}");
        drop((stream, streams));
        // The places are free again.
        until("a place", async || open(RATINGS).await.0.ok()).await;
    })
    .await;
    world.stop().await;
}

async fn silent(world: &World, from: &str) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(format!("{from}:0").parse().unwrap())?;
    socket.connect(world.xds()).await
}

#[tokio::test]
async fn one_that_connects_and_says_nothing() {
    let world = World::start().await;
    while_others_are_served(&world, async {
        let mut sockets = Vec::new();
        for _ in 0..300 {
            sockets.push(silent(&world, "127.0.0.2").await.unwrap());
        }
        counted(&world, "mesh_control_refused_connections_total{reason=\"handshakes_of_address\"} 44").await;
        // Others still get in.
        let begin = Instant::now();
        let mut stream = Stream::open(&world, WEB).await;
        stream.look_up(Listener, &["virtualOutbound"]).await;
        assert!(begin.elapsed() < BOUND, "{:?}", begin.elapsed());
        drop(sockets);
        counted(&world, "mesh_control_failed_handshakes_total 256").await;
    })
    .await;
    world.stop().await;
}

#[tokio::test]
async fn one_that_asks_for_a_thousand_certificates() {
    let world = World::start().await;
    let csr = PrivateKey::generate().unwrap().signing_request(&identity(WEB)).unwrap();
    while_others_are_served(&world, async {
        let mut asking = JoinSet::new();
        for _ in 0..10 {
            let channel = connect(world.xds(), &world.bundle(), SERVER_NAME, None).await.unwrap();
            let (token, csr) = (world.token(WEB), csr.clone());
            asking.spawn(async move {
                let mut refused = 0;
                for _ in 0..100 {
                    if let Err(status) = ask(channel.clone(), Some(&token), csr.clone(), 0).await {
                        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                        assert!(status.message().contains("too often"), "{status}");
                        refused += 1;
                    }
                }
                refused
            });
        }
        // Another pod's are signed meanwhile.
        for _ in 0..5 {
            let begin = Instant::now();
            certificate(&world, RATINGS, 0).await;
            assert!(begin.elapsed() < BOUND, "{:?}", begin.elapsed());
        }
        let mut refused = 0;
        while let Some(of_one) = asking.join_next().await {
            refused += of_one.unwrap();
        }
        assert!(refused > 900, "{refused}");
        counted(&world, &format!("mesh_control_signing_requests_total{{result=\"rate\"}} {refused}")).await;
    })
    .await;
    world.stop().await;
}
