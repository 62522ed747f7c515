//! What a client is told: on demand, once, and again only when it changed.

use mesh_common::xds::ResourceType::{Cluster, Endpoints, Listener, Route, Secret, Workload};

use crate::client::{Stream, summary, versions};
use crate::world::{
    Pod, RATINGS, REVIEWS, WEB, World, pod_manifest, service_manifest, slice_manifest, until,
};

const REVIEWS_CLUSTER: &str = "outbound|80||reviews.shop.svc.cluster.local";
const RATINGS_CLUSTER: &str = "outbound|80||ratings.shop.svc.cluster.local";

/// A change that is certainly told: what was told before it was all there was to tell.
pub(crate) async fn nothing_more_told(world: &World, stream: &mut Stream) {
    stream.subscribe(Endpoints, &["outbound|80||marker.shop.svc.cluster.local"]).await;
    assert_eq!(stream.told().await, "eds -outbound|80||marker.shop.svc.cluster.local");
    world.write("marker-service.yaml", &service_manifest("marker", "10.96.0.99"));
    world.write("marker-slice.yaml", &slice_manifest("marker", &[REVIEWS]));
    assert_eq!(stream.told().await, "eds outbound|80||marker.shop.svc.cluster.local");
}

#[tokio::test]
async fn each_type_is_served_on_demand_and_unknown_names_are_removed() {
    let world = World::start().await;
    let mut stream = Stream::open(&world, WEB).await;
    let workload = format!("/{}", RATINGS.ip);
    for (kind, good, bad) in [
        (Secret, "ROOTCA", "default"),
        (Listener, "virtualOutbound", "host/nobody:80"),
        (Listener, "inbound/shop/web-1", "inbound/shop/nobody"),
        (Listener, "10.96.0.2:80", "10.97.0.1:80"),
        (Listener, "host/reviews:80", "not a name"),
        (Route, "reviews.shop.svc.cluster.local:80", "nobody.shop.svc.cluster.local:80"),
        (Cluster, REVIEWS_CLUSTER, "outbound|81||reviews.shop.svc.cluster.local"),
        (Cluster, "inbound|8080||", "nothing"),
        (Endpoints, REVIEWS_CLUSTER, "outbound|80||nobody.shop.svc.cluster.local"),
        (Workload, workload.as_str(), "/127.0.99.99"),
    ] {
        let response = stream.look_up(kind, &[good, bad]).await;
        assert_eq!(summary(&response), format!("{} {good} -{bad}", kind.short()));
        let any = response.resources[0].resource.as_ref().unwrap();
        assert_eq!(any.type_url, kind.url());
    }
    world.stop().await;
}

#[tokio::test]
async fn a_changed_slice_is_one_resource_to_its_subscribers() {
    let world = World::start().await;
    let mut stream = Stream::open(&world, WEB).await;
    stream.look_up(Listener, &["10.96.0.2:80", "10.96.0.3:80", "virtualOutbound"]).await;
    stream.look_up(Cluster, &[REVIEWS_CLUSTER, RATINGS_CLUSTER]).await;
    stream.look_up(Endpoints, &[REVIEWS_CLUSTER, RATINGS_CLUSTER]).await;
    world.write("reviews-slice.yaml", &slice_manifest("reviews", &[REVIEWS, RATINGS]));
    assert_eq!(stream.told().await, format!("eds {REVIEWS_CLUSTER}"));
    nothing_more_told(&world, &mut stream).await;
    world.stop().await;
}

#[tokio::test]
async fn an_edit_that_nothing_reads_sends_nothing() {
    let world = World::start().await;
    let mut stream = Stream::open(&world, WEB).await;
    stream.look_up(Listener, &["10.96.0.2:80", "inbound/shop/web-1", "virtualOutbound"]).await;
    stream.look_up(Endpoints, &[REVIEWS_CLUSTER]).await;
    let workload = format!("/{}", REVIEWS.ip);
    stream.look_up(Workload, &[&workload]).await;
    let labelled =
        pod_manifest(REVIEWS, "another note").replace("  labels:\n", "  labels:\n    team: blue\n");
    assert!(labelled.contains("team: blue"));
    world.write("reviews-1.yaml", &labelled);
    world.write("web-1.yaml", &pod_manifest(WEB, "another note"));
    nothing_more_told(&world, &mut stream).await;
    world.stop().await;
}

#[tokio::test]
async fn a_name_appears_when_it_comes_to_exist_and_goes_when_it_does() {
    let world = World::start().await;
    let mut stream = Stream::open(&world, WEB).await;
    let response = stream.look_up(Listener, &["host/later:80"]).await;
    assert_eq!(summary(&response), "lds -host/later:80");
    world.write("later.yaml", &service_manifest("later", "10.96.0.50"));
    assert_eq!(stream.told().await, "lds host/later:80");
    world.remove("later.yaml");
    assert_eq!(stream.told().await, "lds -host/later:80");
    world.stop().await;
}

#[tokio::test]
async fn a_reconnect_with_versions_is_told_nothing_again() {
    let world = World::start().await;
    let names = [REVIEWS_CLUSTER, RATINGS_CLUSTER];
    let mut first = Stream::open(&world, WEB).await;
    let held = versions(&first.look_up(Endpoints, &names).await);
    assert_eq!(held.len(), 2);
    drop(first);
    let mut second = Stream::open(&world, WEB).await;
    second.resume(Endpoints, &names, held).await;
    nothing_more_told(&world, &mut second).await;
    world.stop().await;
}

#[tokio::test]
async fn two_servers_on_one_folder_agree() {
    let world = World::start().await;
    let other = world.second_server().await;
    let mut seen = Vec::new();
    for address in [world.xds(), other.xds] {
        let mut stream = Stream::open_at(&world, address, WEB).await;
        let mut all = std::collections::BTreeMap::new();
        for (kind, names) in [
            (Secret, &["ROOTCA"][..]),
            (Listener, &["virtualOutbound", "inbound/shop/web-1", "10.96.0.2:80", "host/reviews:80"]),
            (Cluster, &[REVIEWS_CLUSTER, "inbound|8080||", "PassthroughCluster"]),
            (Endpoints, &[REVIEWS_CLUSTER, RATINGS_CLUSTER]),
            (Route, &["reviews.shop.svc.cluster.local:80"]),
        ] {
            let response = stream.look_up(kind, names).await;
            assert_eq!(response.resources.len(), names.len(), "{}", summary(&response));
            all.extend(versions(&response).into_iter().map(|(name, version)| ((kind, name), version)));
        }
        seen.push(all);
    }
    assert_eq!(seen[0], seen[1]);
    // Whoever moves from one to the other is told nothing again.
    let mut stream = Stream::open_at(&world, other.xds, WEB).await;
    let held = seen[0]
        .iter()
        .filter(|((kind, _), _)| *kind == Endpoints)
        .map(|((_, name), version)| (name.clone(), version.clone()));
    stream.resume(Endpoints, &[REVIEWS_CLUSTER, RATINGS_CLUSTER], held.collect()).await;
    nothing_more_told(&world, &mut stream).await;
    world.stop().await;
}

#[tokio::test]
async fn the_pages_say_who_holds_what() {
    let world = World::start().await;
    let mut stream = Stream::open(&world, WEB).await;
    stream.look_up(Endpoints, &[REVIEWS_CLUSTER]).await;
    // The acknowledgement is on its way: what is asked after it was answered is asked after it was read.
    stream.look_up(Listener, &["virtualOutbound"]).await;
    let page = world.page("/debug/streams").await;
    for part in
        ["sidecar~127.0.21.1~web-1.shop~shop.svc.cluster.local", REVIEWS_CLUSTER, "\"acks\":1", "\"nacks\":0"]
    {
        assert!(page.contains(part), "{part} in {page}");
    }
    let page =
        world.page("/debug/resource?type=eds&name=outbound%7C80%7C%7Creviews.shop.svc.cluster.local").await;
    assert!(page.contains("127.0.21.2") && page.contains("\"version\""), "{page}");
    assert!(world.page("/readyz").await.contains("ready"));
    let metrics = world.page("/metrics").await;
    for part in [
        "mesh_control_streams 1",
        "mesh_control_pushes_total{type=\"eds\"} 1",
        "mesh_control_config_errors 0",
        "mesh_control_cache_names 2",
    ] {
        assert!(metrics.contains(part), "{part} in {metrics}");
    }
    world.write("broken.yaml", "kind: Service\n  metadata: [");
    until("the broken file is named", async || {
        world.page("/debug/config-errors").await.contains("broken.yaml").then_some(())
    })
    .await;
    world.stop().await;
}

#[tokio::test]
async fn a_new_pod_may_connect_and_a_removed_one_may_not() {
    let world = World::start().await;
    let late = Pod { name: "late-1", account: "late", ip: "127.0.21.9" };
    let mut stream = Stream::open(&world, WEB).await;
    let workload = format!("/{}", late.ip);
    stream.look_up(Workload, &[&workload]).await;
    world.write("late.yaml", &pod_manifest(late, ""));
    assert_eq!(stream.told().await, format!("wds {workload}"));
    let mut own = Stream::open(&world, late).await;
    assert_eq!(summary(&own.look_up(Listener, &["inbound/shop/late-1"]).await), "lds inbound/shop/late-1");
    world.remove("late.yaml");
    assert_eq!(stream.told().await, format!("wds -{workload}"));
    let refused = Stream::try_open(&world, late).await.map(drop).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated, "{refused}");
    world.stop().await;
}

#[tokio::test]
async fn an_address_that_two_pods_claim_is_dialled_by_nobody() {
    let world = World::start().await;
    let mut stream = Stream::open(&world, WEB).await;
    let name = format!("{}:9000", RATINGS.ip);
    let chain_of = |response: &mesh_common::xds::proto::service::discovery::v3::DeltaDiscoveryResponse| {
        let any = response.resources[0].resource.as_ref().unwrap();
        let listener = <mesh_common::xds::proto::config::listener::v3::Listener as prost::Message>::decode(
            any.value.as_slice(),
        );
        listener.unwrap().default_filter_chain.unwrap().name
    };
    let own = chain_of(&stream.look_up(Listener, &[&name]).await);
    assert_eq!(own, "outbound|9000||ratings-1.shop.pod.cluster.local");
    // Never removed, which would make a plain connection of it.
    world.write("thief.yaml", &pod_manifest(Pod { name: "thief-1", account: "thief", ip: RATINGS.ip }, ""));
    assert_eq!(chain_of(&stream.next().await), "contested-address");
    world.remove("thief.yaml");
    assert_eq!(chain_of(&stream.next().await), own);
    world.stop().await;
}

#[tokio::test]
async fn the_servers_own_certificate_follows_the_trust_domain() {
    let world = World::start().await;
    let served = async || {
        let seen = crate::client::server_identity(world.xds(), &world.bundle()).await;
        seen.trust_domain().to_owned()
    };
    assert_eq!(served().await, "cluster.local");
    world.write("mesh-config.yaml", "trustDomain: other.example\n");
    until("the new name", async || (served().await == "other.example").then_some(())).await;
    world.stop().await;
}
