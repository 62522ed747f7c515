//! Who is refused, and with which reason.

use std::collections::HashMap;

use mesh_common::xds::ResourceType::{Cluster, Endpoints, Listener};
use mesh_common::xds::proto::config::core::v3::Node;
use mesh_common::xds::proto::service::discovery::v3::{DeltaDiscoveryRequest, ResourceLocator};
use tonic::{Code, Status};

use crate::client::{SERVER_NAME, Stream, connect, node};
use crate::world::{Pod, REVIEWS, WEB, World};

/// The end of a stream that asks for something.
async fn refusal(world: &World, token: Option<String>, node: Node) -> Status {
    let channel = connect(world.xds(), &world.bundle(), SERVER_NAME, None).await.unwrap();
    let mut stream = match Stream::over(channel, token.as_deref(), node).await {
        Ok(stream) => stream,
        Err(status) => return status,
    };
    stream.subscribe(Listener, &["virtualOutbound"]).await;
    stream.try_next().await.unwrap_err()
}

#[tokio::test]
async fn a_stream_for_somebody_else() {
    let world = World::start().await;
    let mut unknown = node(WEB);
    unknown.metadata.as_mut().unwrap().fields.remove("GENERATOR");
    let nobody = Pod { name: "nobody-1", account: "web", ip: "127.0.21.1" };
    let elsewhere = Pod { ip: "127.0.21.77", ..WEB };
    let another_account = Pod { account: "reviews", ..WEB };
    for (token, node, code, reason) in [
        (None, node(WEB), Code::Unauthenticated, "no service-account token"),
        (Some("a.b.c".to_owned()), node(WEB), Code::Unauthenticated, "the token is not good"),
        (
            Some(world.token_for(WEB, "kubernetes", 600)),
            node(WEB),
            Code::Unauthenticated,
            "its audience is not mesh-ca",
        ),
        (Some(world.token_for(WEB, "mesh-ca", -60)), node(WEB), Code::Unauthenticated, "it has expired"),
        (Some(world.token(nobody)), node(WEB), Code::Unauthenticated, "does not run in this mesh"),
        (Some(world.token(another_account)), node(WEB), Code::Unauthenticated, "the pod runs as \"web\""),
        (Some(world.token(REVIEWS)), node(WEB), Code::PermissionDenied, "may not ask for shop/web-1"),
        (Some(world.token(WEB)), node(REVIEWS), Code::PermissionDenied, "may not ask for shop/reviews-1"),
        (Some(world.token(WEB)), node(elsewhere), Code::PermissionDenied, "INSTANCE_IPS"),
        (Some(world.token(WEB)), Node::default(), Code::Unimplemented, "clients of kind \"\""),
        (Some(world.token(WEB)), unknown, Code::Unimplemented, "clients of kind \"\""),
    ] {
        let refused = refusal(&world, token, node).await;
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(reason), "{refused}");
    }
    let metrics = world.page("/metrics").await;
    assert!(metrics.contains("mesh_control_refused_streams_total{reason=\"not_the_caller\"} 2"), "{metrics}");
    world.stop().await;
}

#[tokio::test]
async fn requests_that_are_not_served() {
    let world = World::start().await;
    let url = |kind: mesh_common::xds::ResourceType| kind.url().to_owned();
    let names = |number: usize| (0..number).map(|n| format!("n{n}")).collect::<Vec<_>>();
    let locator = ResourceLocator { name: "x".to_owned(), dynamic_parameters: HashMap::new() };
    for (request, code, reason) in [
        (
            DeltaDiscoveryRequest { type_url: url(Listener), ..Default::default() },
            Code::InvalidArgument,
            "asks for everything",
        ),
        (
            DeltaDiscoveryRequest {
                type_url: url(Cluster),
                resource_names_subscribe: vec!["*".into()],
                ..Default::default()
            },
            Code::InvalidArgument,
            "asks for everything",
        ),
        (
            DeltaDiscoveryRequest { type_url: "type.googleapis.com/x.Y".into(), ..Default::default() },
            Code::InvalidArgument,
            "type_url",
        ),
        (
            DeltaDiscoveryRequest {
                type_url: url(Endpoints),
                resource_locators_subscribe: vec![locator],
                ..Default::default()
            },
            Code::InvalidArgument,
            "resource_locators_subscribe",
        ),
        (
            DeltaDiscoveryRequest {
                type_url: url(Endpoints),
                resource_names_subscribe: names(10_001),
                ..Default::default()
            },
            Code::ResourceExhausted,
            "more than 10000 names",
        ),
        (
            DeltaDiscoveryRequest {
                type_url: url(Endpoints),
                resource_names_subscribe: (0..1_100).map(|n| format!("{n:0>1000}")).collect(),
                ..Default::default()
            },
            Code::ResourceExhausted,
            "more than 1048576 bytes",
        ),
        (
            DeltaDiscoveryRequest {
                type_url: url(Endpoints),
                resource_names_subscribe: vec!["x".repeat(5 << 20)],
                ..Default::default()
            },
            Code::OutOfRange,
            "message length too large",
        ),
    ] {
        let mut stream = Stream::open(&world, WEB).await;
        stream.send(request).await;
        let refused = stream.try_next().await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(reason), "{refused}");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_server_by_another_name_is_not_believed() {
    let world = World::start().await;
    for name in ["mesh-control.other.svc", "localhost", "web.shop.svc"] {
        assert!(connect(world.xds(), &world.bundle(), name, None).await.is_err(), "{name}");
    }
    connect(world.xds(), &world.bundle(), "mesh-control.mesh-system.svc.cluster.local", None).await.unwrap();
    world.stop().await;
}
