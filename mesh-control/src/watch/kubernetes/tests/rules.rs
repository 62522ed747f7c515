//! What users write: rules that cannot be understood, and the mesh's settings.

use std::time::Duration;

use mesh_test::kube_api::KubeApi;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::cluster::{Cluster, pod, policy, route, service, settings_map};
use crate::model::OutboundTrafficPolicy;
use crate::model::facts::Facts as _;
use crate::model::policy::MtlsMode;
use crate::model::route::RouteAction;
use crate::model::{ServiceKey, WorkloadKey};

fn mode(cluster: &Cluster) -> MtlsMode {
    let key = WorkloadKey {
        cluster: "Kubernetes".to_owned(),
        namespace: "shop".to_owned(),
        name: "web-1".to_owned(),
    };
    cluster.model.read().inbound(&key).unwrap().default_mode
}

/// What the rules of `web:80` do: `broken`, or `forward`.
fn actions(cluster: &Cluster) -> Vec<String> {
    let key = ServiceKey { namespace: "shop".to_owned(), hostname: "web.shop.svc.cluster.local".to_owned() };
    let Some(routes) = cluster.model.read().routes(&key, 80) else { return Vec::new() };
    let action = |action: &RouteAction| match action {
        RouteAction::Broken(reason) => format!("broken: {reason}"),
        _ => "forward".to_owned(),
    };
    routes.producer.iter().flat_map(|table| &table.rules).map(|rule| action(&rule.action)).collect()
}

/// `Accepted` of an object: whether, of which generation, why not.
fn accepted(cluster: &Cluster, kind: &str) -> (bool, i64, String) {
    let statuses = cluster.model.statuses();
    let status = statuses.iter().find(|status| status.kind == kind).expect("it has a status");
    let condition = status.parents[0].conditions.iter().find(|it| it.kind == "Accepted").unwrap();
    (condition.status, condition.observed_generation, condition.message.clone())
}

fn good_rule() -> Value {
    json!({ "backendRefs": [{ "name": "web", "port": 80 }] })
}

#[tokio::test(start_paused = true)]
async fn a_route_that_is_not_understood_fails_closed_and_says_so() {
    let cases = [
        // An unknown field breaks its rule, and only that one.
        (
            json!({ "rules": [{ "backendRefs": [{ "name": "web", "port": 80 }], "mirrorAll": true }, good_rule()] }),
            vec![
                "broken: spec.rules[0].mirrorAll: this field is not known; check its spelling and place",
                "forward",
            ],
            "spec.rules[0].mirrorAll: this field is not known",
        ),
        // Outside of the rules, all of them.
        (
            json!({ "rules": [good_rule()], "shadow": {"a": 1} }),
            vec!["broken: spec.shadow: this field is not known; check its spelling and place"],
            "spec.shadow: this field is not known",
        ),
        // A value of a newer API: nothing can be read but whom it concerns.
        (
            json!({ "rules": [{ "filters": [{ "type": "Teleport" }] }, good_rule()] }),
            vec!["broken: spec.rules[0].filters[0].type: unknown variant `Teleport`"],
            "unknown variant `Teleport`",
        ),
    ];
    for (spec, expected, message) in cases {
        let api = KubeApi::default();
        api.put(service("web", "10.96.0.1"));
        let cluster = Cluster::start(&api).await;
        api.put(route("r", good_rule()));
        cluster.until("the route", |cluster| actions(cluster) == ["forward"]).await;
        let mut bad = route("r", json!({}));
        bad["spec"]["rules"] = spec["rules"].clone();
        if let Some(shadow) = spec.get("shadow") {
            bad["spec"]["shadow"] = shadow.clone();
        }
        api.put(bad);
        cluster.until("the refusal", |cluster| !cluster.errors().is_empty()).await;
        let found = actions(&cluster);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found}");
        }
        let (is_accepted, generation, why) = accepted(&cluster, "HTTPRoute");
        assert!(!is_accepted && generation == 2 && why.contains(message), "{generation} {why}");
        let error = cluster.errors().remove(0);
        assert!(error.starts_with("HTTPRoute shop/r: spec.") && error.contains("500"), "{error}");
        api.put(route("r", good_rule()));
        cluster.until("the mended route", |cluster| cluster.errors().is_empty()).await;
        assert_eq!(actions(&cluster), ["forward"]);
        assert!(accepted(&cluster, "HTTPRoute").0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_is_not_understood_closes_or_keeps_its_last_good_form() {
    let bad = |mode: &str| {
        let mut policy = policy("p", mode);
        policy["spec"]["mtls"]["grade"] = json!("high");
        policy
    };
    let api = KubeApi::default();
    api.put(pod("web-1", "10.244.0.5"));
    api.put(bad("PERMISSIVE"));
    let cluster = Cluster::start(&api).await;
    assert_eq!(mode(&cluster), MtlsMode::Strict, "it was never good");
    let (is_accepted, generation, why) = accepted(&cluster, "PeerAuthentication");
    assert!(!is_accepted && generation == 1 && why.contains("spec.mtls.grade"), "{why}");
    assert!(cluster.errors()[0].starts_with("PeerAuthentication shop/p: spec.mtls.grade"));
    api.put(policy("p", "DISABLE"));
    cluster.until("the good one", |cluster| mode(cluster) == MtlsMode::Disable).await;
    assert_eq!(cluster.errors(), [""; 0]);
    assert!(accepted(&cluster, "PeerAuthentication").0);
    api.put(bad("STRICT"));
    cluster.until("the refusal", |cluster| !accepted(cluster, "PeerAuthentication").0).await;
    assert_eq!(mode(&cluster), MtlsMode::Disable, "its last good form");
    assert_eq!(accepted(&cluster, "PeerAuthentication").1, 3);
    api.remove("peerauthentications", "shop", "p");
    cluster.until("its end", |cluster| mode(cluster) == MtlsMode::Permissive).await;
    assert_eq!(cluster.errors(), [""; 0]);
}

/// What is wrong with an object is told for as long as the object is there.
#[tokio::test(start_paused = true)]
async fn whoever_vanished_while_nobody_looked_is_not_blamed_any_more() {
    let mut bad = policy("p", "STRICT");
    bad["spec"]["mtls"]["grade"] = json!("high");
    let api = KubeApi::default();
    api.put(bad);
    let cluster = Cluster::start(&api).await;
    assert_eq!(cluster.errors().len(), 1);
    api.set_unreachable(true);
    api.hang_up();
    sleep(Duration::from_secs(1)).await;
    api.remove("peerauthentications", "shop", "p");
    api.forget_history();
    api.set_unreachable(false);
    cluster.until("the next list", |cluster| cluster.policies().is_empty()).await;
    assert_eq!(cluster.errors(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn settings_come_from_their_config_map_only() {
    let outbound = |cluster: &Cluster| cluster.model.read().settings().outbound;
    let closed = "outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n";
    let api = KubeApi::default();
    let mut other = settings_map(closed);
    other["metadata"]["name"] = json!("another");
    api.put(other);
    let cluster = Cluster::start(&api).await;
    assert_eq!(outbound(&cluster), OutboundTrafficPolicy::AllowAny, "absent: the defaults");
    api.put(settings_map(closed));
    cluster.until("it", |cluster| outbound(cluster) == OutboundTrafficPolicy::RegistryOnly).await;
    for (broken, words) in [
        ("outboundTrafficPolicy: {mode: SOME}\n", "unknown variant `SOME`"),
        ("a: [\n", "data.mesh: line "),
        ("accessLogFile: /tmp/x\n", "accessLogFile: \"/tmp/x\""),
        ("\nbogus: 1\n", "bogus: this field is not known; check its spelling and place (line 2)"),
        ("a: 1\n---\nb: 1\n", "more than one YAML document"),
        ("kind: Service\napiVersion: v1\nmetadata: {name: x}\n", "this is a Service"),
    ] {
        api.put(settings_map(broken));
        cluster.until(words, |cluster| cluster.errors().join("\n").contains(words)).await;
        assert_eq!(outbound(&cluster), OutboundTrafficPolicy::RegistryOnly, "{broken}");
        let error = cluster.errors().remove(0);
        assert!(error.starts_with("ConfigMap mesh-system/mesh-config: "), "{error}");
        assert!(error.ends_with("its last good form stays in force"), "{error}");
    }
    let mut empty = settings_map("");
    empty["data"] = json!({});
    api.put(empty);
    cluster.until("the error", |cluster| cluster.errors().join("\n").contains("have this key")).await;
    api.put(settings_map(""));
    cluster.until("the defaults", |cluster| outbound(cluster) == OutboundTrafficPolicy::AllowAny).await;
    assert_eq!(cluster.errors(), [""; 0]);
    api.put(settings_map(closed));
    cluster.until("it", |cluster| outbound(cluster) == OutboundTrafficPolicy::RegistryOnly).await;
    api.remove("configmaps", "mesh-system", "mesh-config");
    cluster.until("the defaults", |cluster| outbound(cluster) == OutboundTrafficPolicy::AllowAny).await;
}

/// Without knowing what is wanted, nobody is served by defaults that might be the opposite.
#[tokio::test(start_paused = true)]
async fn settings_that_never_were_good_hold_back_serving() {
    let api = KubeApi::default();
    api.put(settings_map("trustDomain: UP\n"));
    let cluster = Cluster::begin(&api);
    cluster.until("the others", |cluster| cluster.readiness.missing() == ["the watch of MeshConfig"]).await;
    sleep(Duration::from_secs(60)).await;
    assert!(!cluster.model.is_synced());
    let reason = cluster.readiness.explained().remove(0);
    assert!(reason.contains("ConfigMap mesh-system/mesh-config was never good: trustDomain"), "{reason}");
    api.put(settings_map("trustDomain: example.com\n"));
    cluster.until("readiness", |cluster| cluster.model.is_synced()).await;
    assert_eq!(cluster.model.read().settings().trust_domain, "example.com");
}
