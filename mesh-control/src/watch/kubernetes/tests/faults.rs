//! What goes wrong between the mesh and its API server, and what must hold meanwhile.

use std::time::Duration;

use mesh_test::kube_api::KubeApi;
use serde_json::json;
use tokio::time::sleep;

use super::cluster::{Cluster, DEFINED, pod, policy, route, service};
use crate::api::Kind;
use crate::watch::health::WatchState;

/// The server may stream lists, or only have pages: the same comes of it.
#[tokio::test(start_paused = true)]
async fn everything_is_read_and_then_followed() {
    for only_lists in [false, true] {
        let api = KubeApi::default();
        api.set_only_lists(only_lists);
        // More than a page.
        for i in 0..300 {
            api.put(service(&format!("s{i:03}"), &format!("10.96.1.{}", i % 250)));
        }
        api.put(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": { "name": "kubernetes" },
            "spec": { "cidrs": ["10.96.0.0/12"] },
        }));
        let cluster = Cluster::start(&api).await;
        assert_eq!(cluster.services().len(), 300, "only lists: {only_lists}");
        assert_eq!(cluster.ranges(), ["10.96.0.0/12"]);
        api.put(service("late", "10.96.0.9"));
        api.put(pod("web-1", "10.244.0.5"));
        api.remove("services", "shop", "s000");
        let is_known = |cluster: &Cluster| {
            let services = cluster.services();
            services.len() == 300 && services.iter().any(|name| name == "late") && cluster.pods() == ["web-1"]
        };
        let took = cluster.until("changes", is_known).await;
        assert!(took < Duration::from_millis(100), "{took:?}");
        let lists = api.requests().iter().filter(|line| line.ends_with("/services")).count();
        sleep(Duration::from_secs(300)).await;
        // A watch a minute, and never a list again.
        let more = api.requests().iter().filter(|line| line.ends_with("/services")).count() - lists;
        assert!((4..=6).contains(&more), "{more}");
        assert_eq!(cluster.watch(Kind::Service).errors, 0);
        assert!(is_known(&cluster));
    }
}

#[tokio::test(start_paused = true)]
async fn not_ready_while_a_kind_cannot_be_read() {
    let api = KubeApi::default();
    api.put(service("web", "10.96.0.1"));
    api.forbid("*", "pods");
    let cluster = Cluster::begin(&api);
    let explained = |cluster: &Cluster| cluster.readiness.explained().join("\n").contains("pods");
    cluster.until("the reason", explained).await;
    cluster.until("the others", |cluster| cluster.readiness.missing() == ["the watch of Pod"]).await;
    let reason = cluster.readiness.explained().remove(0);
    for words in ["the watch of Pod (", "403", "allow mesh-control's service account to list and watch pods"]
    {
        assert!(reason.contains(words), "{reason}");
    }
    assert!(!cluster.model.is_synced());
    let status = cluster.watch(Kind::Pod);
    assert_eq!((status.state, status.synced), (WatchState::Broken, false));
    assert!(status.last_error.unwrap().contains("403"));
    let metrics = cluster.metrics();
    assert!(metrics.contains("mesh_control_watch_errors_total{kind=\"Pod\"}"), "{metrics}");
    assert_eq!(cluster.services(), ["web"]);
    // However long it lasts, it is asked now and then only.
    let before = api.requests().len();
    sleep(Duration::from_secs(600)).await;
    let asked = api.requests().iter().skip(before).filter(|line| line.ends_with("/pods")).count();
    assert!((60..=200).contains(&asked), "{asked}");
    api.heal();
    let took = cluster.until("readiness", |cluster| cluster.model.is_synced()).await;
    assert!(took < Duration::from_secs(16), "{took:?}");
    assert!(cluster.is(Kind::Pod, WatchState::Following));
}

#[tokio::test(start_paused = true)]
async fn an_outage_changes_nothing_and_ends() {
    let api = KubeApi::default();
    for name in ["a", "b"] {
        api.put(service(name, "10.96.0.1"));
        api.put(policy(name, "STRICT"));
    }
    let cluster = Cluster::start(&api).await;
    api.set_unreachable(true);
    api.hang_up();
    let before = api.requests().len();
    sleep(Duration::from_secs(300)).await;
    assert_eq!(
        (cluster.services(), cluster.policies()),
        (vec!["a".into(), "b".into()], vec!["a".into(), "b".into()])
    );
    for watch in cluster.health.statuses() {
        assert!(watch.state == WatchState::Broken && watch.synced, "{watch:?}");
        let reason = watch.last_error.unwrap();
        assert!(reason.contains("nobody is there") && reason.contains("whether the API server"), "{reason}");
    }
    let asked = api.requests().len() - before;
    assert!(asked < 600, "{asked} requests of ten watches in five minutes");
    assert_eq!(cluster.readiness.missing(), [""; 0], "readiness latches");
    api.remove("services", "shop", "a");
    api.put(service("c", "10.96.0.3"));
    api.set_unreachable(false);
    let took = cluster.until("the end", |cluster| cluster.services() == ["b", "c"]).await;
    assert!(took < Duration::from_secs(16), "{took:?}");
    assert_eq!(cluster.policies(), ["a", "b"]);
}

/// 410 Gone: everything is read again, and what vanished meanwhile is deleted. Nothing else is.
#[tokio::test(start_paused = true)]
async fn a_watch_that_is_too_old_reads_everything_again() {
    for only_lists in [false, true] {
        let api = KubeApi::default();
        api.set_only_lists(only_lists);
        for name in ["a", "b", "c"] {
            api.put(service(name, "10.96.0.1"));
        }
        let cluster = Cluster::start(&api).await;
        let mut changes = cluster.model.subscribe();
        api.set_unreachable(true);
        api.hang_up();
        sleep(Duration::from_secs(1)).await;
        api.remove("services", "shop", "b");
        api.put(service("d", "10.96.0.4"));
        api.forget_history();
        api.set_unreachable(false);
        cluster.until("the new list", |cluster| cluster.services() == ["a", "c", "d"]).await;
        assert!(cluster.watch(Kind::Service).last_error.unwrap().contains("410"));
        let changed = changes.next().await;
        let key = |name: &str| crate::model::ServiceKey {
            namespace: "shop".to_owned(),
            hostname: format!("{name}.shop.svc.cluster.local"),
        };
        for (name, expected) in [("a", false), ("b", true), ("c", false), ("d", true)] {
            let touched = changed.touches(&crate::model::facts::FactKey::Service(key(name)));
            assert_eq!(touched, expected, "{name}");
        }
    }
}

/// A stream of everything that breaks in the middle names objects that may be gone by the next one.
#[tokio::test(start_paused = true)]
async fn half_a_list_is_no_list() {
    let api = KubeApi::default();
    api.put(service("a", "10.96.0.1"));
    api.put(service("b", "10.96.0.2"));
    api.cut_initial_events(usize::MAX);
    api.forbid("list", "services");
    let cluster = Cluster::begin(&api);
    cluster.until("the first half", |cluster| cluster.services() == ["a", "b"]).await;
    assert!(cluster.readiness.missing().contains(&"the watch of Service"));
    api.remove("services", "shop", "b");
    sleep(Duration::from_secs(60)).await;
    assert_eq!(cluster.services(), ["a", "b"], "not known to be gone");
    api.heal();
    cluster.until("the list", |cluster| cluster.services() == ["a"]).await;
    cluster.until("readiness", |cluster| cluster.model.is_synced()).await;
}

#[tokio::test(start_paused = true)]
async fn kinds_that_are_not_installed_are_empty_until_they_are() {
    let api = KubeApi::default();
    DEFINED.iter().for_each(|plural| api.set_defined(plural, false));
    let cluster = Cluster::start(&api).await;
    for kind in [Kind::ServiceCidr, Kind::ReferenceGrant, Kind::HttpRoute, Kind::PeerAuthentication] {
        let status = cluster.watch(kind);
        assert_eq!((status.state, status.synced, status.errors), (WatchState::Absent, true, 0), "{kind:?}");
    }
    let before = api.requests().len();
    sleep(Duration::from_secs(600)).await;
    let asked: Vec<String> = api.requests().split_off(before);
    let asked = asked.iter().filter(|line| DEFINED.iter().any(|plural| line.ends_with(plural))).count();
    // Four kinds, two of whose versions are tried, each by stream and by list, every 5 to 10 s.
    assert!(asked < 2_000, "{asked}");
    DEFINED.iter().for_each(|plural| api.set_defined(plural, true));
    api.put(policy("strict", "STRICT"));
    api.put(route("r", json!({})));
    let there = |cluster: &Cluster| cluster.policies() == ["strict"] && cluster.routes() == ["r"];
    let took = cluster.until("the kinds", there).await;
    assert!(took < Duration::from_secs(11), "{took:?}");
    assert!(cluster.is(Kind::PeerAuthentication, WatchState::Following));
    // Deleted with all its objects, and back with another.
    api.remove("peerauthentications", "shop", "strict");
    api.set_defined("peerauthentications", false);
    api.hang_up();
    cluster.until("no policy", |cluster| cluster.policies().is_empty()).await;
    cluster.until("absence", |cluster| cluster.is(Kind::PeerAuthentication, WatchState::Absent)).await;
    api.set_defined("peerauthentications", true);
    api.put(policy("again", "STRICT"));
    cluster.until("it is back", |cluster| cluster.policies() == ["again"]).await;
}

/// A server that has just started may not know its kinds yet: a policy must not be lost for that.
#[tokio::test(start_paused = true)]
async fn a_kind_is_not_gone_for_a_moment_of_absence() {
    let api = KubeApi::default();
    api.put(policy("strict", "STRICT"));
    let cluster = Cluster::start(&api).await;
    api.set_defined("peerauthentications", false);
    api.hang_up();
    sleep(Duration::from_secs(25)).await;
    assert_eq!(cluster.policies(), ["strict"]);
    assert!(cluster.is(Kind::PeerAuthentication, WatchState::Broken));
    api.set_defined("peerauthentications", true);
    cluster.until("it follows", |c| c.is(Kind::PeerAuthentication, WatchState::Following)).await;
    assert_eq!(cluster.policies(), ["strict"]);
    // The next absence counts from its own begin.
    sleep(Duration::from_secs(60)).await;
    api.set_defined("peerauthentications", false);
    api.hang_up();
    sleep(Duration::from_secs(20)).await;
    assert_eq!(cluster.policies(), ["strict"]);
    cluster.until("it is gone", |cluster| cluster.policies().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn whichever_version_the_server_has() {
    let api = KubeApi::default();
    api.set_defined("referencegrants gateway.networking.k8s.io/v1", false);
    api.set_defined("httproutes gateway.networking.k8s.io/v1", false);
    api.set_defined("peerauthentications security.istio.io/v1", false);
    let mut old = route("r", json!({}));
    old["apiVersion"] = json!("gateway.networking.k8s.io/v1beta1");
    api.put(old);
    let mut old = policy("p", "STRICT");
    old["apiVersion"] = json!("security.istio.io/v1beta1");
    api.put(old);
    let cluster = Cluster::start(&api).await;
    for kind in [Kind::ReferenceGrant, Kind::HttpRoute, Kind::PeerAuthentication] {
        assert!(cluster.is(kind, WatchState::Following), "{kind:?}");
    }
    assert_eq!((cluster.routes(), cluster.policies()), (vec!["r".to_owned()], vec!["p".to_owned()]));
    assert_eq!(cluster.errors(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_every_watch_is_not_stormed() {
    let api = KubeApi::default();
    let cluster = Cluster::start(&api).await;
    api.set_impatient(true);
    api.hang_up();
    let before = api.requests().len();
    sleep(Duration::from_secs(60)).await;
    let asked = api.requests().len() - before;
    assert!(asked < 150, "{asked} requests of ten watches in a minute");
    api.set_impatient(false);
    api.put(service("a", "10.96.0.1"));
    cluster.until("the service", |cluster| cluster.services() == ["a"]).await;
}

/// A thousand changes at once are a few commits.
#[tokio::test(start_paused = true)]
async fn bursts_are_taken_together() {
    let api = KubeApi::default();
    let cluster = Cluster::start(&api).await;
    let mut revisions = cluster.model.revisions();
    let before = *revisions.borrow_and_update();
    for i in 0..1000 {
        api.put(service(&format!("s{i}"), &format!("10.96.{}.{}", i / 250, i % 250)));
    }
    cluster.until("all of them", |cluster| cluster.services().len() == 1000).await;
    let commits = *revisions.borrow_and_update() - before;
    assert!(commits < 20, "{commits}");
}
