//! The leader against an API server in memory, in paused time: what it writes, what it leaves alone, who leads.

use std::time::Duration;

use base64::Engine as _;
use mesh_common::process::{DrainTrigger, drain};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;
use crate::api::Object;
use crate::ingest::{Event, ingest};
use crate::model::Settings;
use crate::model::store::Mesh;
use mesh_test::kube_api::KubeApi;

mod meanwhile;

const BUNDLE: &str = "-----BEGIN CERTIFICATE-----\nroots\n-----END CERTIFICATE-----\n";

/// A replica that takes part.
struct Replica {
    model: SharedModel,
    metrics: LeadMetrics,
    view: View,
    trigger: Option<DrainTrigger>,
    task: JoinHandle<()>,
}

impl Replica {
    fn start(api: &KubeApi, pod: &str) -> Self {
        let model = SharedModel::new(Mesh::new(settings()));
        let (metrics, view) = (LeadMetrics::default(), View::default());
        let (trigger, guard) = drain();
        let lead = Lead {
            client: api.client(),
            namespace: "mesh-system".to_owned(),
            pod: pod.to_owned(),
            model: model.clone(),
            bundle: BUNDLE.into(),
            metrics: metrics.clone(),
            view: view.clone(),
        };
        let task = tokio::spawn(Box::pin(lead.run(guard)));
        Self { model, metrics, view, trigger: Some(trigger), task }
    }

    /// What the watch of the mesh would tell.
    fn knows(&self, object: &Value) {
        let (id, object) = Object::parse(object).unwrap();
        self.model.update(|mesh| ingest(mesh, &Event::Apply(id, object)).unwrap());
    }

    async fn stop(mut self) {
        assert!(self.trigger.take().unwrap().drain(Duration::from_secs(5)).await);
    }

    /// The machine is gone: nothing is given back.
    fn vanish(self) {
        self.task.abort();
    }

    fn leads(&self) -> bool {
        self.view.leads()
    }
}

fn settings() -> Settings {
    Settings { detection_timeout_ms: 100, standalone: false, ..crate::ingest::tests::settings() }
}

/// Looks again until something holds, for so many seconds of the paused clock.
async fn within<T>(seconds: u64, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let patience = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < patience, "not within {seconds} s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn calm() {
    tokio::time::sleep(Duration::from_secs(120)).await;
}

fn namespace(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } })
}

fn cluster(namespaces: &[&str]) -> KubeApi {
    let api = KubeApi::default();
    for name in namespaces {
        api.put(namespace(name));
    }
    api.put(webhook(""));
    api
}

fn webhook(bundle: &str) -> Value {
    let one = |name: &str| {
        json!({
            "name": name, "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": { "service": { "name": "mesh-injector", "namespace": "mesh-system" }, "caBundle": bundle },
        })
    };
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": { "name": "mesh-injector" }, "webhooks": [one("namespace.inject.mesh"), one("pod.inject.mesh")],
    })
}

fn bundle_of(api: &KubeApi, namespace: &str) -> Option<Value> {
    let map = api.get("configmaps", namespace, "mesh-root-cert")?;
    (map["data"]["root-cert.pem"] == BUNDLE).then_some(map)
}

fn holder(api: &KubeApi) -> Option<String> {
    let lease = api.get("leases", "mesh-system", LEASE)?;
    lease["spec"]["holderIdentity"].as_str().map(str::to_owned)
}

#[tokio::test(start_paused = true)]
async fn every_namespace_has_the_bundle() {
    let api = cluster(&["shop", "mesh-system", "kube-system", "kube-public", "kube-node-lease"]);
    let mut going = namespace("going");
    going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    api.put(going.clone());
    let replica = Replica::start(&api, "a");
    let map = within(1, "a ConfigMap", || bundle_of(&api, "shop")).await;
    assert_eq!(map["metadata"]["labels"]["app.kubernetes.io/managed-by"], "mesh-control");
    let owner = &map["metadata"]["ownerReferences"][0];
    let webhook = api.get("mutatingwebhookconfigurations", "", "mesh-injector").unwrap();
    assert_eq!((&owner["kind"], &owner["uid"]), (&webhook["kind"], &webhook["metadata"]["uid"]));
    within(1, "our own namespace", || bundle_of(&api, "mesh-system")).await;
    for excluded in ["kube-system", "kube-public", "kube-node-lease", "going"] {
        assert!(api.get("configmaps", excluded, "mesh-root-cert").is_none(), "{excluded}");
    }
    // A new namespace, at once.
    api.put(namespace("new"));
    within(1, "a new namespace", || bundle_of(&api, "new")).await;
    // Edited, and deleted.
    let mut edited = map.clone();
    edited["data"] = json!({ "root-cert.pem": "evil", "other": "stays" });
    api.put(edited);
    let mended = within(1, "mended", || bundle_of(&api, "shop")).await;
    assert_eq!(mended["data"]["other"], "stays");
    api.remove("configmaps", "shop", "mesh-root-cert");
    within(1, "made again", || bundle_of(&api, "shop")).await;
    // A namespace that goes away takes its ConfigMap along.
    let mut ends = namespace("new");
    ends["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    api.put(ends);
    api.remove("configmaps", "new", "mesh-root-cert");
    calm().await;
    assert!(api.get("configmaps", "new", "mesh-root-cert").is_none());
    let writes = api.writes().len();
    calm().await;
    assert_eq!(api.writes().len(), writes, "nothing is written that is as it should be");
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_config_map_of_another_is_left_alone_and_told() {
    let api = cluster(&["shop"]);
    let theirs = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "namespace": "shop", "name": "mesh-root-cert" },
        "data": { "root-cert.pem": "theirs" },
    });
    let put = api.put(theirs);
    let replica = Replica::start(&api, "a");
    within(5, "told", || replica.view.failing().first().cloned().filter(|told| told.contains("left alone")))
        .await;
    calm().await;
    assert_eq!(api.get("configmaps", "shop", "mesh-root-cert").unwrap(), put);
    // They take it away.
    api.remove("configmaps", "shop", "mesh-root-cert");
    within(1, "ours", || bundle_of(&api, "shop")).await;
    assert!(replica.view.failing().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_written_is_told_and_comes_good() {
    let api = cluster(&["shop"]);
    api.forbid("create", "configmaps");
    let replica = Replica::start(&api, "a");
    let told = within(5, "told", || replica.view.failing().first().cloned()).await;
    assert!(told.contains("shop/mesh-root-cert") && told.contains("verbs [\"create\"]"), "{told}");
    let tries = api.writes().len();
    calm().await;
    assert!(api.writes().len() < tries + 8, "it waits longer each time");
    assert!(replica.leads(), "that is no reason not to lead");
    api.heal();
    within(301, "made in the end", || bundle_of(&api, "shop")).await;
    // A failure that passes is tried again soon.
    api.fail("create", "configmaps", 500, 2);
    api.put(namespace("new"));
    within(5, "made", || bundle_of(&api, "new")).await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_rule_for_one_kind_does_not_stop_the_others() {
    let api = cluster(&["shop"]);
    api.forbid("list", "mutatingwebhookconfigurations");
    api.forbid("list", "httproutes");
    let _replica = Replica::start(&api, "a");
    within(8, "a ConfigMap without owner", || bundle_of(&api, "shop")).await;
    api.heal();
    let owned = |map: Value| map["metadata"]["ownerReferences"][0].is_object().then_some(());
    within(35, "its owner", || bundle_of(&api, "shop").and_then(owned)).await;
}

#[tokio::test(start_paused = true)]
async fn the_webhooks_trust_the_mesh() {
    let api = cluster(&[]);
    let replica = Replica::start(&api, "a");
    let expected = base64::engine::general_purpose::STANDARD.encode(BUNDLE);
    let trusted = |api: &KubeApi| {
        let webhook = api.get("mutatingwebhookconfigurations", "", "mesh-injector")?;
        let webhooks = webhook["webhooks"].as_array().unwrap().clone();
        webhooks
            .iter()
            .all(|webhook| webhook["clientConfig"]["caBundle"] == json!(expected))
            .then_some(webhook)
    };
    let first = within(1, "patched", || trusted(&api)).await;
    assert_eq!(first["webhooks"][1]["clientConfig"]["service"]["name"], "mesh-injector", "the rest stays");
    let mut upgraded = first.clone();
    upgraded["webhooks"][1]["clientConfig"]["caBundle"] = json!("");
    upgraded["webhooks"][1]["sideEffects"] = json!("NoneOnDryRun");
    api.put(upgraded);
    let second = within(1, "patched again", || trusted(&api)).await;
    assert_eq!(second["webhooks"][1]["sideEffects"], "NoneOnDryRun");
    calm().await;
    assert_eq!(api.writes().iter().filter(|write| write.contains("mutatingwebhook")).count(), 2);
    // It is deleted, and comes back.
    api.remove("mutatingwebhookconfigurations", "", "mesh-injector");
    calm().await;
    api.put(webhook(""));
    within(1, "the new one", || trusted(&api)).await;
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_uninstallation_leaves_nothing_behind() {
    let api = cluster(&["shop"]);
    let replica = Replica::start(&api, "a");
    within(1, "made", || bundle_of(&api, "shop")).await;
    within(5, "the lease is owned", || {
        let lease = api.get("leases", "mesh-system", LEASE)?;
        (lease["metadata"]["ownerReferences"][0]["name"] == "mesh-injector").then_some(())
    })
    .await;
    // Helm deletes; the garbage collector follows.
    api.remove("mutatingwebhookconfigurations", "", "mesh-injector");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let standby = Replica::start(&api, "b");
    tokio::time::sleep(Duration::from_secs(5)).await;
    api.remove("configmaps", "shop", "mesh-root-cert");
    api.remove("leases", "mesh-system", LEASE);
    tokio::time::sleep(Duration::from_secs(30)).await;
    replica.stop().await;
    standby.stop().await;
    assert!(api.get("configmaps", "shop", "mesh-root-cert").is_none());
    assert!(api.get("leases", "mesh-system", LEASE).is_none());
}

#[tokio::test(start_paused = true)]
async fn one_replica_leads_and_another_takes_over() {
    let api = cluster(&["shop"]);
    let (a, b) = (Replica::start(&api, "a"), Replica::start(&api, "b"));
    let first = within(5, "somebody leads", || holder(&api)).await;
    let (leader, other) = if first == "a" { (a, b) } else { (b, a) };
    within(1, "it writes", || bundle_of(&api, "shop")).await;
    for _ in 0..600 {
        assert!(leader.leads() && !other.leads());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Given back at the end: the other need not wait for the lease to end.
    let begin = Instant::now();
    leader.stop().await;
    within(4, "the other leads", || other.leads().then_some(())).await;
    assert!(begin.elapsed() < Duration::from_secs(4));
    assert_ne!(holder(&api), Some(first));
    let lease = api.get("leases", "mesh-system", LEASE).unwrap();
    assert!(lease["spec"]["leaseTransitions"].as_i64().unwrap() >= 1);
    // Gone without a word: it takes the duration of the lease.
    let third = Replica::start(&api, "c");
    tokio::time::sleep(Duration::from_secs(10)).await;
    let begin = Instant::now();
    other.vanish();
    within(20, "the third leads", || third.leads().then_some(())).await;
    assert!(begin.elapsed() > Duration::from_secs(12), "{:?}", begin.elapsed());
    api.remove("configmaps", "shop", "mesh-root-cert");
    within(1, "it writes", || bundle_of(&api, "shop")).await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_renew_stops_before_another_begins() {
    let api = cluster(&["shop"]);
    let a = Replica::start(&api, "a");
    within(1, "it writes", || bundle_of(&api, "shop")).await;
    // Only the lease fails: everything else could still be written.
    api.fail("update", "leases", 500, usize::MAX);
    api.fail("get", "leases", 500, usize::MAX);
    let begin = Instant::now();
    within(11, "it does not lead any more", || (!a.leads()).then_some(())).await;
    assert!(begin.elapsed() > Duration::from_secs(7), "one failure is no reason: {:?}", begin.elapsed());
    let writes = api.writes().len();
    api.remove("configmaps", "shop", "mesh-root-cert");
    calm().await;
    assert_eq!(api.writes().len(), writes);
    api.heal();
    within(5, "it leads again", || a.leads().then_some(())).await;
    within(1, "and writes", || bundle_of(&api, "shop")).await;
}

fn route(name: &str, generation: i64, parents: &Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": { "namespace": "shop", "name": name, "generation": generation },
        "spec": { "parentRefs": parents, "rules": [{ "backendRefs": [{ "name": "reviews", "port": 80 }] }] },
    })
}

fn reviews() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": "shop", "name": "reviews" },
        "spec": { "clusterIP": "10.96.0.2", "clusterIPs": ["10.96.0.2"], "ports": [{ "name": "http", "port": 80 }] },
    })
}

/// The conditions of our entry, as `Accepted=True@1`.
fn ours(api: &KubeApi, name: &str) -> Vec<String> {
    let Some(route) = api.get("httproutes", "shop", name) else { return Vec::new() };
    let parents = route["status"]["parents"].as_array().cloned().unwrap_or_default();
    let ours = parents.iter().filter(|parent| parent["controllerName"] == "mesh/control");
    let text = |condition: &Value| {
        let text = |field: &str| condition[field].as_str().unwrap().to_owned();
        format!("{}={}@{}", text("type"), text("status"), condition["observedGeneration"])
    };
    ours.flat_map(|parent| parent["conditions"].as_array().unwrap()).map(text).collect()
}

const GOOD: [&str; 2] = ["Accepted=True@1", "ResolvedRefs=True@1"];

#[tokio::test(start_paused = true)]
async fn routes_say_what_became_of_them() {
    let api = cluster(&[]);
    let parents = json!([{ "group": "", "kind": "Service", "name": "reviews", "port": 80 }]);
    api.put(route("r", 1, &parents));
    let replica = Replica::start(&api, "a");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(ours(&api, "r").is_empty(), "the mesh has not seen it");
    replica.knows(&route("r", 1, &parents));
    within(3, "no such service", || {
        (ours(&api, "r") == ["Accepted=False@1", "ResolvedRefs=False@1"]).then_some(())
    })
    .await;
    replica.knows(&reviews());
    within(1, "accepted", || (ours(&api, "r") == GOOD).then_some(())).await;
    let stored = api.get("httproutes", "shop", "r").unwrap();
    assert_eq!(stored["status"]["parents"][0]["parentRef"], parents[0]);
    let writes = api.writes().len();
    calm().await;
    assert_eq!(api.writes().len(), writes, "nothing is written that is as it should be");

    // Another controller writes at the same time: its entry stays, and ours comes.
    let mut changed = stored.clone();
    changed["spec"]["hostnames"] = json!(["a.example"]);
    changed["status"]["parents"].as_array_mut().unwrap().insert(
        0,
        json!({ "parentRef": { "name": "edge" }, "controllerName": "example.com/gateway", "conditions": [] }),
    );
    api.fail("patch", "httproutes/status", 409, 2);
    api.put(changed);
    let mut second = route("r", 2, &parents);
    second["spec"]["hostnames"] = json!(["a.example"]);
    replica.knows(&second);
    within(3, "generation 2", || {
        (ours(&api, "r") == ["Accepted=True@2", "ResolvedRefs=True@2"]).then_some(())
    })
    .await;
    let stored = api.get("httproutes", "shop", "r").unwrap();
    assert_eq!(stored["status"]["parents"][0]["controllerName"], "example.com/gateway");
    // Somebody wipes our entry.
    let mut wiped = stored.clone();
    wiped["status"]["parents"] = json!([stored["status"]["parents"][0]]);
    api.put(wiped);
    within(1, "it is back", || (ours(&api, "r").len() == 2).then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn a_route_that_is_gone_or_another_is_not_written() {
    let api = cluster(&[]);
    let parents = json!([{ "group": "", "kind": "Service", "name": "reviews" }]);
    api.put(route("r", 1, &parents));
    let replica = Replica::start(&api, "a");
    within(1, "it leads", || replica.leads().then_some(())).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    // The watch is behind: what is written must not land in the successor.
    api.fail("patch", "httproutes/status", 409, 1);
    api.remove("httproutes", "shop", "r");
    replica.knows(&reviews());
    replica.knows(&route("r", 1, &parents));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(api.get("httproutes", "shop", "r").is_none());
    assert!(replica.view.failing().is_empty(), "that is no failure");
}

#[tokio::test(start_paused = true)]
async fn policies_have_a_status_where_their_definition_has() {
    let policy = json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": { "namespace": "shop", "name": "strict", "generation": 1 }, "spec": { "mtls": { "mode": "STRICT" } },
    });
    let api = cluster(&[]);
    api.put(policy.clone());
    let replica = Replica::start(&api, "a");
    replica.knows(&policy);
    let accepted = |api: &KubeApi| {
        let policy = api.get("peerauthentications", "shop", "strict")?;
        (policy["status"]["conditions"][0]["status"] == "True").then_some(policy)
    };
    let found = within(3, "accepted", || accepted(&api)).await;
    assert_eq!(found["status"]["conditions"][0]["observedGeneration"], 1);
    replica.stop().await;

    let api = cluster(&[]);
    api.put(policy.clone());
    api.fail("patch", "peerauthentications/status", 404, usize::MAX);
    let replica = Replica::start(&api, "a");
    replica.knows(&policy);
    calm().await;
    let tries = api.writes().iter().filter(|write| write.contains("peerauthentications")).count();
    assert_eq!((tries, replica.view.failing().len()), (1, 0), "it is not tried again and again");
}

#[tokio::test(start_paused = true)]
async fn kinds_that_are_not_defined_yet_are_waited_for() {
    let api = cluster(&["shop"]);
    api.set_defined("httproutes", false);
    api.set_defined("peerauthentications", false);
    let replica = Replica::start(&api, "a");
    within(1, "the rest is written", || bundle_of(&api, "shop")).await;
    calm().await;
    let parents = json!([{ "group": "", "kind": "Service", "name": "reviews" }]);
    api.set_defined("httproutes", true);
    api.put(route("r", 1, &parents));
    replica.knows(&reviews());
    replica.knows(&route("r", 1, &parents));
    within(6, "a status", || (ours(&api, "r") == GOOD).then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_too_old_begins_anew() {
    let api = cluster(&["shop"]);
    let replica = Replica::start(&api, "a");
    within(1, "it writes", || bundle_of(&api, "shop")).await;
    api.forget_history();
    api.remove("configmaps", "shop", "mesh-root-cert");
    within(5, "made again", || bundle_of(&api, "shop")).await;
    assert!(replica.metrics.writes("ConfigMap", "created") >= 2);
}
