//! The service with tokens that the API server reviews: who gets which names.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use http::header::AUTHORIZATION;
use mesh_common::ca::IstioCertificateRequest;
use mesh_common::ca::istio_certificate_service_server::IstioCertificateService as _;
use mesh_common::trust::{self, PrivateKey};
use mesh_test::kube_api::KubeApi;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tonic::{Code, Request, Status};

use super::super::caller::Authenticator;
use super::super::kubernetes::review::TokenReviewer;
use super::super::root::Authority;
use super::super::serve::CertificateService;
use crate::api::Object;
use crate::ingest::{Event, ingest};
use crate::model::Settings;
use crate::model::store::{Mesh, SharedModel};
use crate::serve::metrics::Metrics;
use crate::serve::tls::PeerInfo;

fn settings() -> Settings {
    Settings {
        root_namespace: "infra".to_owned(),
        detection_timeout_ms: 100,
        standalone: false,
        ..crate::ingest::tests::settings()
    }
}

fn pod(namespace: &str, account: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": namespace, "name": "pod-1", "uid": format!("uid-{namespace}") },
        "spec": { "serviceAccountName": account, "nodeName": "node-1", "containers": [] },
    })
}

/// The token says whose it is, for an API server that believes it.
fn token(namespace: &str, account: &str) -> String {
    let part = |value: Value| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string());
    part(json!({})) + "." + &part(json!({ "exp": 4_000_000_000_u64, "ns": namespace, "sa": account })) + ".x"
}

fn believe(spec: &Value) -> Value {
    let claims = spec["token"].as_str().unwrap().split('.').nth(1).unwrap();
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    let (namespace, account) = (claims["ns"].as_str().unwrap(), claims["sa"].as_str().unwrap());
    json!({
        "authenticated": true, "audiences": ["mesh-ca"],
        "user": {
            "username": format!("system:serviceaccount:{namespace}:{account}"), "groups": ["system:serviceaccounts"],
            "extra": {
                "authentication.kubernetes.io/pod-name": ["pod-1"],
                "authentication.kubernetes.io/pod-uid": [format!("uid-{namespace}")],
            },
        },
    })
}

/// The URI and DNS names that a pod of this service account gets.
async fn names(api: &KubeApi, namespace: &str, account: &str) -> Result<(Vec<String>, Vec<String>), Status> {
    let model = SharedModel::new(Mesh::new(settings()));
    let (id, object) = Object::parse(&pod(namespace, account)).unwrap();
    model.update(|mesh| ingest(mesh, &Event::Apply(id, object)).unwrap());
    model.set_synced();
    let state = tempfile::tempdir().unwrap();
    let authority = Arc::new(Authority::from_state(state.path()).unwrap());
    let reviewer = TokenReviewer::new(api.client(), &mut Registry::default());
    let authenticator = Authenticator::new(reviewer, Arc::new(model.clone()));
    let (day, metrics) = (Duration::from_secs(24 * 3600), Arc::new(Metrics::default()));
    let service = CertificateService::new(authority, authenticator, model, "infra".to_owned(), day, metrics);

    let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}").parse().unwrap();
    let csr = PrivateKey::generate().unwrap().signing_request(&identity).unwrap();
    let message = IstioCertificateRequest { csr, validity_duration: 0, metadata: None };
    let mut request = Request::new(message);
    let bearer = format!("Bearer {}", token(namespace, account));
    request.metadata_mut().insert(AUTHORIZATION.as_str(), bearer.parse().unwrap());
    request.extensions_mut().insert(PeerInfo { address: "10.0.0.1:1".parse().unwrap(), certificate: None });
    let chain = service.create_certificate(request).await?.into_inner().cert_chain;
    let leaf = trust::parse_certificates(&chain[0]).unwrap();
    let facts = trust::certificate_facts(&leaf[0]).unwrap();
    Ok((facts.uris, facts.dns))
}

#[tokio::test]
async fn only_the_meshs_own_services_get_names_beside_their_identity() {
    let api = KubeApi::default();
    api.review_with(believe);
    for (namespace, account, service) in [
        ("infra", "mesh-injector", true),
        ("infra", "mesh-control", true),
        ("infra", "default", false),
        ("shop", "mesh-injector", false),
        ("mesh-system", "mesh-control", false),
    ] {
        let (uris, dns) = names(&api, namespace, account).await.unwrap();
        assert_eq!(uris, [format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")]);
        let name = format!("{account}.{namespace}.svc");
        let expected = if service { vec![format!("{name}.cluster.local"), name] } else { Vec::new() };
        assert_eq!(dns, expected, "{namespace}/{account}");
    }
}

#[tokio::test]
async fn a_caller_is_told_whose_fault_it_is() {
    let api = KubeApi::default();
    api.review_with(|_| json!({ "authenticated": false, "error": "token has expired" }));
    let status = names(&api, "shop", "web").await.unwrap_err();
    assert!(status.code() == Code::Unauthenticated && status.message().contains("has expired"), "{status}");
    api.set_unreachable(true);
    assert_eq!(names(&api, "shop", "web").await.unwrap_err().code(), Code::Unavailable);
}
