//! What a restart of mesh-control may change for its clients: nothing. And when it may not serve at all.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_common::xds::ResourceType::Listener;
use mesh_control::app::App;
use mesh_test::subnet::Subnet;

use crate::client::{Stream, versions};
use crate::resources::nothing_more_told;
use crate::world::{WEB, World, options, page, pod_manifest, until, write};

const STRICT: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
";
const INBOUND: &str = "inbound/shop/web-1";

#[tokio::test]
async fn a_restart_with_broken_files_tells_proxies_nothing_new() {
    let world = World::start().await;
    let mut stream = Stream::open(&world, WEB).await;
    let open = versions(&stream.look_up(Listener, &[INBOUND]).await);
    world.write("policy.yaml", STRICT);
    let strict = versions(&stream.next().await);
    assert_ne!(open, strict);
    stream.look_up(Listener, &["10.96.0.2:80"]).await;
    drop(stream);

    let world = world
        .restart(|config| {
            write(config, "policy.yaml", &STRICT[..STRICT.len() - 5]);
            write(config, "reviews-service.yaml", "kind: [");
        })
        .await;
    let mut stream = Stream::open(&world, WEB).await;
    stream.resume(Listener, &[INBOUND], strict.clone()).await;
    stream.look_up(Listener, &["10.96.0.2:80"]).await.resources.pop().expect("the service is still there");
    nothing_more_told(&world, &mut stream).await;
    let errors = world.page("/debug/config-errors").await;
    for part in ["policy.yaml", "reviews-service.yaml", "from before this start, stays in force"] {
        assert!(errors.contains(part), "{errors}");
    }
    // Mended, it is the file again that counts.
    world.write("policy.yaml", "");
    assert_eq!(versions(&stream.next().await), open);
    world.stop().await;
}

#[tokio::test]
async fn with_a_file_that_never_was_good_nothing_is_served() {
    let (config, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(config.path(), "web-1.yaml", &pod_manifest(WEB, ""));
    write(config.path(), "policy.yaml", &STRICT.replace("mtls", "mltls"));
    let subnet = Subnet::claim(1).unwrap();
    let at = |port| SocketAddr::from((subnet.address(1), port));
    let (xds, admin) = (at(subnet.port()).to_string(), at(subnet.port() + 1));
    let flags = ["--xds-address", &xds, "--admin-address", &admin.to_string()];
    let options = options(config.path(), state.path(), &flags);
    let mut start = Box::pin(App::start(&options, None));
    let named = until("the file is named", async || {
        let errors = page(admin, "/debug/config-errors").await.ok()?;
        errors.contains("policy.yaml").then_some(errors)
    });
    let errors = tokio::select! {
        errors = named => errors,
        _ = &mut start => panic!("it serves"),
    };
    assert!(
        errors.contains("\"line\":4") && errors.contains("spec.mltls: this field is not known"),
        "{errors}"
    );
    assert!(errors.contains("it was never good"), "{errors}");
    let ready = page(admin, "/readyz").await.unwrap();
    assert!(ready.contains("503") && ready.contains("waiting for: configuration"), "{ready}");

    write(config.path(), "policy.yaml", STRICT);
    let app = start.await.unwrap();
    assert!(page(admin, "/readyz").await.unwrap().contains("200 OK"));
    assert!(page(admin, "/debug/config-errors").await.unwrap().ends_with("[]"));
    assert!(app.stop(Duration::from_secs(10)).await);
}
