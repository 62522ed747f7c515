//! Tokens and callers: a table of tokens that prove nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::KeyPair;
use serde_json::{Value, json};

use super::super::caller::{Authenticator, Caller, CallerError, PeerCertificate};
use super::super::token::{Pods, TokenVerifier};
use crate::model::WorkloadKey;
use crate::model::workload::Workload;
use crate::serve::tests::node::pod;

struct FakePods(BTreeMap<String, (Workload, Option<String>)>);

impl Pods for FakePods {
    fn live_pod(&self, namespace: &str, name: &str) -> Option<Arc<Workload>> {
        let (workload, _) = self.0.get(name)?;
        // The dead too: whoever asks has to look.
        (workload.key.namespace == namespace).then(|| Arc::new(workload.clone()))
    }

    fn pod_uid(&self, key: &WorkloadKey) -> Option<String> {
        self.0.get(&key.name)?.1.clone()
    }
}

fn pods() -> FakePods {
    let dead = Workload { live: false, ..pod("dead-1", "web", "10.0.0.3") };
    FakePods(BTreeMap::from([
        ("web-1".to_owned(), (pod("web-1", "web", "10.0.0.1"), Some("uid-1".to_owned()))),
        ("db-1".to_owned(), (pod("db-1", "db", "10.0.0.2"), None)),
        ("dead-1".to_owned(), (dead, None)),
    ]))
}

fn claims() -> Value {
    let now = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
    json!({
        "iss": "mesh", "aud": ["mesh-ca"], "iat": now, "nbf": now, "exp": now + 600,
        "sub": "system:serviceaccount:shop:web",
        "kubernetes.io": {
            "namespace": "shop",
            "pod": { "name": "web-1", "uid": "uid-1" },
            "serviceaccount": { "name": "web", "uid": "sa-uid" },
        },
    })
}

fn mint(signer: &KeyPair, header: &Header, claims: &Value) -> String {
    jsonwebtoken::encode(
        header,
        claims,
        &EncodingKey::from_ec_pem(signer.serialize_pem().as_bytes()).unwrap(),
    )
    .unwrap()
}

/// The claims with one of them replaced, or removed by null.
fn with(path: &str, value: Value) -> Value {
    let mut claims = claims();
    let (parent, field) = path.rsplit_once('/').unwrap();
    let parent = claims.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    match value {
        Value::Null => _ = parent.remove(field),
        value => _ = parent.insert(field.to_owned(), value),
    }
    claims
}

#[test]
fn a_good_token_proves_its_pod() {
    let signer = KeyPair::generate().unwrap();
    let verifier = TokenVerifier::new(&signer);
    let proven = verifier.verify(&mint(&signer, &Header::new(Algorithm::ES256), &claims()), &pods()).unwrap();
    assert_eq!(proven.pod.key.name, "web-1");
    // A manifest without a uid takes any; more audiences than ours do no harm.
    let mut db = with("/kubernetes.io/pod", json!({ "name": "db-1" }));
    db["sub"] = json!("system:serviceaccount:shop:db");
    db["kubernetes.io"]["serviceaccount"]["name"] = json!("db");
    db["aud"] = json!(["other", "mesh-ca"]);
    verifier.verify(&mint(&signer, &Header::new(Algorithm::ES256), &db), &pods()).unwrap();
}

#[test]
fn tokens_that_prove_nothing() {
    let (signer, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let verifier = TokenVerifier::new(&signer);
    let es256 = Header::new(Algorithm::ES256);
    let now = claims()["iat"].as_i64().unwrap();
    let pod_of = |name: &str, uid: &str| with("/kubernetes.io/pod", json!({ "name": name, "uid": uid }));
    let mut bad: Vec<(&str, Value, &str)> = vec![
        ("expired", with("/exp", json!(now - 60)), "expired"),
        ("no end", with("/exp", Value::Null), "no exp"),
        ("not yet", with("/nbf", json!(now + 600)), "not valid yet"),
        ("no begin", with("/nbf", Value::Null), "no nbf"),
        ("another audience", with("/aud", json!(["kubernetes"])), "audience"),
        ("no audience", with("/aud", Value::Null), "no aud"),
        ("empty audience", with("/aud", json!([])), "audience"),
        ("another issuer", with("/iss", json!("kubernetes/serviceaccount")), "issuer"),
        ("no issuer", with("/iss", Value::Null), "no iss"),
        ("no subject", with("/sub", Value::Null), "no"),
        ("another subject", with("/sub", json!("system:serviceaccount:shop:db")), "subject"),
        ("a user", with("/sub", json!("alice")), "subject"),
        ("no pod", with("/kubernetes.io/pod", Value::Null), "cannot be read"),
        ("no claims", with("/kubernetes.io", Value::Null), "cannot be read"),
        ("unknown pod", pod_of("web-9", "uid-1"), "does not run"),
        ("dead pod", pod_of("dead-1", ""), "does not run"),
        ("earlier pod", pod_of("web-1", "uid-0"), "earlier pod"),
        ("no uid", pod_of("web-1", ""), "earlier pod"),
        ("another pod's", pod_of("db-1", ""), "the pod runs as \"db\""),
        ("another node", with("/kubernetes.io/node", json!({ "name": "n2" })), "on the node \"n2\""),
        ("no node's name", with("/kubernetes.io/node", json!({ "uid": "x" })), "cannot be read"),
        ("an end that is no time", with("/exp", json!(u64::MAX)), "not a time"),
        ("an end before 1970", with("/exp", json!(-1)), "cannot be read"),
        ("an end in words", with("/exp", json!("tomorrow")), "cannot be read"),
        ("begins after all time", with("/nbf", json!(u64::MAX)), "not valid yet"),
        ("a pod in words", with("/kubernetes.io/pod", json!("web-1")), "cannot be read"),
        ("several pods", with("/kubernetes.io/pod", json!([{ "name": "web-1" }])), "cannot be read"),
        ("no service account", with("/kubernetes.io/serviceaccount", Value::Null), "cannot be read"),
        ("no namespace", with("/kubernetes.io/namespace", Value::Null), "cannot be read"),
        ("empty namespace", with("/kubernetes.io/namespace", json!("")), "subject"),
        ("an audience like ours", with("/aud", json!("mesh-ca.evil")), "audience"),
        ("an issuer like ours", with("/iss", json!("mesh/")), "issuer"),
    ];
    let mut elsewhere = with("/sub", json!("system:serviceaccount:prod:web"));
    elsewhere["kubernetes.io"]["namespace"] = json!("prod");
    bad.push(("another namespace", elsewhere, "does not run"));
    assert!(bad.len() >= 33);
    for (what, claims, reason) in bad {
        let error = verifier.verify(&mint(&signer, &es256, &claims), &pods()).expect_err(what).to_string();
        assert!(error.contains(reason), "{what}: {error}");
    }

    let good = mint(&signer, &es256, &claims());
    let mut parts: Vec<&str> = good.split('.').collect();
    let no_signature = format!("{}.{}.", parts[0], parts[1]);
    let hs256 = jsonwebtoken::encode(
        &Header::new(Algorithm::HS256),
        &claims(),
        &EncodingKey::from_secret(signer.public_key_pem().as_bytes()),
    );
    let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0";
    parts[0] = none;
    for (what, token) in [
        ("nothing", String::new()),
        ("garbage", "a.b.c".to_owned()),
        ("no signature", no_signature),
        ("algorithm none", format!("{none}.{}.", parts[1])),
        ("algorithm none, signed", parts.join(".")),
        ("public key as secret", hs256.unwrap()),
        ("another signer", mint(&other, &es256, &claims())),
        ("too large", format!("{good}{}", "a".repeat(10_000))),
    ] {
        assert!(verifier.verify(&token, &pods()).is_err(), "{what}");
    }
}

#[test]
fn a_token_is_worth_nothing_once_its_pod_is_gone() {
    let signer = KeyPair::generate().unwrap();
    let verifier = TokenVerifier::new(&signer);
    let token = mint(&signer, &Header::new(Algorithm::ES256), &claims());
    let mut pods = pods();
    verifier.verify(&token, &pods).unwrap();
    let (workload, _) = pods.0.remove("web-1").unwrap();
    assert!(verifier.verify(&token, &pods).unwrap_err().to_string().contains("does not run"));
    // A new pod of the same name, account and address is another pod.
    pods.0.insert("web-1".to_owned(), (workload, Some("uid-2".to_owned())));
    assert!(verifier.verify(&token, &pods).unwrap_err().to_string().contains("earlier pod"));
}

#[tokio::test]
async fn who_is_asking() {
    let from = IpAddr::from([127, 0, 0, 1]);
    let signer = KeyPair::generate().unwrap();
    let authenticator = Authenticator::new(TokenVerifier::new(&signer), Arc::new(pods()));
    let good = format!("Bearer {}", mint(&signer, &Header::new(Algorithm::ES256), &claims()));
    let headers = |values: &[&str]| {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, value.parse().unwrap());
        }
        headers
    };
    let certificate = Some(PeerCertificate {
        identity: "spiffe://cluster.local/ns/shop/sa/db".parse().unwrap(),
        not_after: SystemTime::now(),
    });

    let by_token = authenticator.stream(&headers(&[&good]), from, None).await.unwrap();
    assert!(by_token.is(&pod("web-1", "web", "10.0.0.1")) && !by_token.is(&pod("web-2", "web", "10.0.0.9")));
    let by_certificate = authenticator.stream(&headers(&[]), from, certificate.clone()).await.unwrap();
    assert!(
        by_certificate.is(&pod("db-7", "db", "10.0.0.1"))
            && !by_certificate.is(&pod("web-1", "web", "10.0.0.1"))
    );
    // The certificate is what counts once there is one.
    assert!(matches!(
        authenticator.stream(&headers(&["Bearer old"]), from, certificate).await,
        Ok(Caller::Certificate(_))
    ));

    assert_eq!(authenticator.stream(&headers(&[]), from, None).await.unwrap_err(), CallerError::Nothing);
    assert_eq!(authenticator.token(&headers(&[]), from).await.unwrap_err(), CallerError::NoToken);
    for values in [&["Basic x"][..], &["token"], &[&good, &good]] {
        assert_eq!(authenticator.token(&headers(values), from).await.unwrap_err(), CallerError::Header);
    }
}
