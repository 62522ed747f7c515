//! Tokens that the API server reviews: a table of answers that prove nothing, and what happens around the question.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use mesh_test::kube_api::KubeApi;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tonic::Code;

use super::super::caller::{Authenticator, CallerError};
use super::super::kubernetes::review::{TokenReviewer, proven};
use super::super::token::{Pods, TokenError};
use crate::model::WorkloadKey;
use crate::model::workload::Workload;
use crate::serve::tests::node::pod;

const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn token_until(exp: &Value) -> String {
    let part = |value: Value| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.c2ln", part(json!({ "alg": "RS256" })), part(json!({ "exp": exp })))
}

fn token() -> String {
    token_until(&json!(4_000_000_000_u64))
}

/// What the API server answers to a good token.
fn good() -> Value {
    json!({
        "authenticated": true,
        "audiences": ["mesh-ca"],
        "user": {
            "username": "system:serviceaccount:shop:web",
            "uid": "sa-uid",
            "groups": ["system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"],
            "extra": {
                "authentication.kubernetes.io/pod-name": ["web-1"],
                "authentication.kubernetes.io/pod-uid": ["uid-1"],
                "authentication.kubernetes.io/node-name": ["node-1"],
                "authentication.kubernetes.io/credential-id": ["JTI=1"],
            },
        },
    })
}

/// The good answer with one value replaced, or removed by null.
fn with(pointer: &str, value: Value) -> Value {
    let mut status = good();
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    let field = field.replace("~1", "/");
    let parent = status.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    match value {
        Value::Null => _ = parent.remove(&field),
        value => _ = parent.insert(field, value),
    }
    status
}

fn verdict(status: Value, token: &str) -> Result<super::super::token::Claimed, TokenError> {
    proven(serde_json::from_value::<TokenReviewStatus>(status).unwrap(), token)
}

#[test]
fn a_good_answer_proves_a_pod() {
    let claimed = verdict(good(), &token()).unwrap();
    let expected = ("shop", "web", "web-1", "uid-1", Some("node-1"));
    let found = (
        &*claimed.namespace,
        &*claimed.service_account,
        &*claimed.pod,
        &*claimed.uid,
        claimed.node.as_deref(),
    );
    assert_eq!(found, expected);
    assert_eq!(claimed.not_after, SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000));
    // Kubernetes tells the node since 1.30; more audiences than ours do no harm.
    for status in [
        with("/user/extra/authentication.kubernetes.io~1node-name", Value::Null),
        with("/audiences", json!(["other", "mesh-ca"])),
        with("/error", json!("")),
        with("/user/username", json!("system:serviceaccount:shop:web.v1")),
    ] {
        verdict(status.clone(), &token()).unwrap_or_else(|error| panic!("{status}: {error}"));
    }
}

#[test]
fn answers_that_prove_nothing() {
    let pod_name = "/user/extra/authentication.kubernetes.io~1pod-name";
    let pod_uid = "/user/extra/authentication.kubernetes.io~1pod-uid";
    let user = |name: &str| with("/user/username", json!(name));
    let mut bad: Vec<(&str, Value, &str)> = vec![
        ("not authenticated", with("/authenticated", json!(false)), "does not know it"),
        ("authenticated left out", with("/authenticated", Value::Null), "does not know it"),
        ("an error beside it", with("/error", json!("token has been invalidated")), "has been invalidated"),
        ("another audience", with("/audiences", json!(["https://kubernetes.default.svc"])), "audience"),
        ("no audiences", with("/audiences", Value::Null), "audience"),
        ("empty audiences", with("/audiences", json!([])), "audience"),
        ("an audience like ours", with("/audiences", json!(["mesh-ca2", "MESH-CA"])), "audience"),
        ("no groups", with("/user/groups", Value::Null), "not one of a service account"),
        ("other groups", with("/user/groups", json!(["system:masters"])), "not one of a service account"),
        (
            "group of one namespace only",
            with("/user/groups", json!(["system:serviceaccounts:shop"])),
            "not one of",
        ),
        ("no user", with("/user", Value::Null), "not one of a service account"),
        ("a person", user("alice"), "is not a service account"),
        ("no name", with("/user/username", Value::Null), "is not a service account"),
        ("a node", user("system:node:node-1"), "is not a service account"),
        ("three parts", user("system:serviceaccount:shop"), "is not a service account"),
        ("five parts", user("system:serviceaccount:shop:web:x"), "is not a service account"),
        ("no namespace", user("system:serviceaccount::web"), "is not a service account"),
        ("no account", user("system:serviceaccount:shop:"), "is not a service account"),
        ("a namespace with a dot", user("system:serviceaccount:shop.x:web"), "is not a service account"),
        ("a path", user("system:serviceaccount:shop:../web"), "is not a service account"),
        ("capitals", user("system:serviceaccount:Shop:web"), "is not a service account"),
        ("a prefix", user("x-system:serviceaccount:shop:web"), "is not a service account"),
        ("no pod", with(pod_name, Value::Null), "not bound to a pod"),
        ("an empty pod", with(pod_name, json!([""])), "not bound to a pod"),
        ("no value", with(pod_name, json!([])), "not bound to a pod"),
        ("two pods", with(pod_name, json!(["web-1", "db-1"])), "not bound to a pod"),
        ("no uid", with(pod_uid, Value::Null), "not bound to a pod"),
        ("two uids", with(pod_uid, json!(["uid-1", "uid-2"])), "not bound to a pod"),
        ("no extra", with("/user/extra", Value::Null), "not bound to a pod"),
        ("nothing", json!({}), "does not know it"),
    ];
    bad.push(("two ways to be refused", with("/error", json!("x")), "says: x"));
    assert!(bad.len() > 30);
    let wrong = bad.into_iter().filter_map(|(what, status, reason)| match verdict(status, &token()) {
        Ok(_) => Some(format!("{what}: it is believed")),
        Err(error) if error.to_string().contains(reason) && !error.passes() => None,
        Err(error) => Some(format!("{what}: {error}")),
    });
    assert_eq!(wrong.collect::<Vec<_>>(), [""; 0]);
    // The answer is good, but the token has no end.
    for token in
        ["opaque".to_owned(), "a.b.c".to_owned(), token_until(&json!("soon")), token_until(&Value::Null)]
    {
        let error = verdict(good(), &token).unwrap_err().to_string();
        assert!(error.contains("when it ends"), "{token}: {error}");
    }
}

/// Knows the pod from the n-th look on.
struct LatePods {
    looks: AtomicU32,
    from: u32,
    uid: &'static str,
    workload: Workload,
}

impl Pods for LatePods {
    fn live_pod(&self, namespace: &str, name: &str) -> Option<Arc<Workload>> {
        let known = self.looks.fetch_add(1, Ordering::Relaxed) >= self.from;
        let key = &self.workload.key;
        (known && key.namespace == namespace && key.name == name).then(|| Arc::new(self.workload.clone()))
    }

    fn pod_uid(&self, _: &WorkloadKey) -> Option<String> {
        Some(self.uid.to_owned())
    }
}

fn pods(from: u32, uid: &'static str, node: &str) -> LatePods {
    let workload = Workload { node: node.to_owned(), ..pod("web-1", "web", "10.0.0.1") };
    LatePods { looks: AtomicU32::new(0), from, uid, workload }
}

fn authenticator(api: &KubeApi, pods: LatePods) -> Authenticator {
    Authenticator::new(TokenReviewer::new(api.client(), &mut Registry::default()), Arc::new(pods))
}

fn bearer(token: &str) -> HeaderMap {
    HeaderMap::from_iter([(AUTHORIZATION, format!("Bearer {token}").parse().unwrap())])
}

fn code(error: &CallerError) -> Code {
    error.status(error.to_string()).code()
}

fn reviewing() -> KubeApi {
    let api = KubeApi::default();
    api.review_with(|spec| {
        assert_eq!(spec["audiences"], json!(["mesh-ca"]), "always for our audience");
        good()
    });
    api
}

#[tokio::test(start_paused = true)]
async fn a_token_is_reviewed_each_time_for_our_audience() {
    let api = reviewing();
    let authenticator = authenticator(&api, pods(0, "uid-1", "node-1"));
    for asked in 1..=2 {
        let proven = authenticator.token(&bearer(&token()), FROM).await.unwrap();
        assert_eq!(proven.pod.key.name, "web-1");
        assert_eq!(api.requests().len(), asked, "no answer is kept, no question repeated");
    }
    assert_eq!(api.requests()[0], "POST /apis/authentication.k8s.io/v1/tokenreviews");
    // What is refused is not asked again without an audience.
    api.review_with(|_| json!({ "authenticated": false }));
    let error = authenticator.token(&bearer(&token()), FROM).await.unwrap_err();
    assert_eq!((code(&error), api.requests().len()), (Code::Unauthenticated, 3));
    // No token is that large.
    let error = authenticator.token(&bearer(&"a".repeat(10_000)), FROM).await.unwrap_err();
    assert_eq!((code(&error), api.requests().len()), (Code::Unauthenticated, 3));
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_cannot_be_asked_is_not_the_callers_fault() {
    let api = reviewing();
    let authenticator = authenticator(&api, pods(0, "uid-1", "node-1"));
    for status in [500, 503, 429, 401, 403, 404, 422] {
        api.fail("create", "tokenreviews", status, 1);
        let error = authenticator.token(&bearer(&token()), FROM).await.unwrap_err();
        assert_eq!(code(&error), Code::Unavailable, "{status}: {error}");
    }
    api.set_unreachable(true);
    let error = authenticator.token(&bearer(&token()), FROM).await.unwrap_err();
    assert_eq!(code(&error), Code::Unavailable, "{error}");
    api.set_unreachable(false);
    authenticator.token(&bearer(&token()), FROM).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_the_model_does_not_know_yet_is_waited_for() {
    let api = reviewing();
    let begin = tokio::time::Instant::now();
    let waited =
        authenticator(&api, pods(5, "uid-1", "node-1")).token(&bearer(&token()), FROM).await.unwrap();
    assert_eq!(waited.pod.key.name, "web-1");
    assert!(begin.elapsed() < Duration::from_millis(200), "{:?}", begin.elapsed());
    assert_eq!(api.requests().len(), 1, "the token is not reviewed again for that");

    // Never there; an earlier pod of the name; not yet bound to its node.
    for (what, pods) in [
        ("unknown", pods(u32::MAX, "uid-1", "node-1")),
        ("earlier", pods(0, "uid-0", "node-1")),
        ("no node yet", pods(0, "uid-1", "")),
    ] {
        let begin = tokio::time::Instant::now();
        let error = authenticator(&api, pods).token(&bearer(&token()), FROM).await.unwrap_err();
        assert_eq!(code(&error), Code::Unavailable, "{what}: {error}");
        let waited = begin.elapsed();
        assert!(waited >= Duration::from_secs(2) && waited < Duration::from_secs(5), "{what}: {waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_another_is_refused_at_once() {
    let api = reviewing();
    let other_account = LatePods {
        workload: Workload { service_account: "db".to_owned(), ..pods(0, "uid-1", "node-1").workload },
        ..pods(0, "uid-1", "node-1")
    };
    for (what, pods) in [("another account", other_account), ("another node", pods(0, "uid-1", "node-2"))] {
        let begin = tokio::time::Instant::now();
        let error = authenticator(&api, pods).token(&bearer(&token()), FROM).await.unwrap_err();
        assert_eq!(code(&error), Code::Unauthenticated, "{what}: {error}");
        assert!(begin.elapsed() < Duration::from_millis(100), "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_address_does_not_keep_the_api_server_busy() {
    let api = KubeApi::default();
    api.review_with(|_| json!({ "authenticated": false }));
    let authenticator = authenticator(&api, pods(0, "uid-1", "node-1"));
    let mut codes = Vec::new();
    for _ in 0..200 {
        codes.push(code(&authenticator.token(&bearer("guess"), FROM).await.unwrap_err()));
    }
    assert!(codes.contains(&Code::ResourceExhausted));
    assert!(api.requests().len() < 100, "{}", api.requests().len());
    // Another address is not concerned.
    api.review_with(|_| good());
    let other: IpAddr = "10.0.0.9".parse().unwrap();
    authenticator.token(&bearer(&token()), other).await.unwrap();
}
