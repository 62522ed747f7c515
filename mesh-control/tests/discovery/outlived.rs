//! Streams end with what they were opened on: the credential, the pod.

use std::time::Duration;

use mesh_common::xds::ResourceType::Listener;
use tokio::time::Instant;
use tonic::Code;

use crate::certificates::certificate;
use crate::client::{SERVER_NAME, Stream, connect, node};
use crate::form::{Form, over_both_forms};
use crate::world::{Pod, WEB, World, pod_manifest};

over_both_forms!(
    a_stream_does_not_outlive_its_certificate,
    a_stream_does_not_outlive_its_pods_account_and_uid
);

async fn a_stream_does_not_outlive_its_certificate<F: Form>() {
    let world = World::start().await;
    let own = certificate(&world, WEB, 3).await;
    let channel = connect(world.xds(), &world.bundle(), SERVER_NAME, Some(own)).await.unwrap();
    let begin = Instant::now();
    let mut stream = Stream::<F>::through(channel, None, node(WEB)).await.unwrap();
    stream.look_up(Listener, &["virtualOutbound"]).await;
    let status = stream.end().await;
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    assert!(
        status.message().contains("the certificate that this stream was opened with has expired"),
        "{status}"
    );
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    let metrics = world.page("/metrics").await;
    assert!(metrics.contains("mesh_control_closed_streams_total{reason=\"expired\"} 1"), "{metrics}");
    // With a new one it goes on.
    let own = certificate(&world, WEB, 600).await;
    let channel = connect(world.xds(), &world.bundle(), SERVER_NAME, Some(own)).await.unwrap();
    let mut stream = Stream::<F>::through(channel, None, node(WEB)).await.unwrap();
    stream.look_up(Listener, &["virtualOutbound"]).await;
    world.stop().await;
}

async fn a_stream_does_not_outlive_its_pods_account_and_uid<F: Form>() {
    let world = World::start().await;
    let replaced = pod_manifest(WEB, "").replace("  namespace: shop\n", "  namespace: shop\n  uid: other\n");
    let other_account = pod_manifest(Pod { account: "reviews", ..WEB }, "");
    for (manifest, code, reason) in [
        (other_account, Code::PermissionDenied, "may not ask for shop/web-1"),
        (replaced, Code::Unauthenticated, "was replaced by another of this name"),
    ] {
        let mut stream = Stream::<F>::of(&world, WEB).await;
        stream.look_up(Listener, &["inbound/shop/web-1"]).await;
        world.write("web-1.yaml", &manifest);
        let status = stream.end().await;
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(reason), "{status}");
        world.write("web-1.yaml", &pod_manifest(WEB, ""));
        crate::world::until("the pod is itself again", async || {
            let mut stream = Stream::<F>::with_node(&world, WEB, node(WEB)).await.ok()?;
            stream.subscribe(Listener, &["virtualOutbound"]).await;
            stream.try_next().await.ok()
        })
        .await;
    }
    world.stop().await;
}
