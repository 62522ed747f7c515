//! The root in a Secret: made once, read by all; what cannot be used is an error with its remedy, and stays.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_test::kube_api::KubeApi;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};

use super::super::kubernetes::secret::{SecretError, authority};
use super::super::root::Authority;

const PATIENCE: Duration = Duration::from_secs(60);

fn secret(name: &str, data: &[(&str, &str)]) -> Value {
    let data: serde_json::Map<String, Value> =
        data.iter().map(|(key, text)| ((*key).to_owned(), json!(STANDARD.encode(text)))).collect();
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "namespace": "mesh-system", "name": name }, "data": data,
    })
}

fn text(api: &KubeApi, name: &str, key: &str) -> String {
    let secret = api.get("secrets", "mesh-system", name).unwrap();
    String::from_utf8(STANDARD.decode(secret["data"][key].as_str().unwrap()).unwrap()).unwrap()
}

async fn get(api: &KubeApi) -> Result<Authority, SecretError> {
    authority(&api.client(), "mesh-system", PATIENCE).await
}

fn issuer(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

#[tokio::test(start_paused = true)]
async fn replicas_that_start_at_once_agree_on_one_root() {
    for _ in 0..20 {
        let api = KubeApi::default();
        let (a, b, c) = tokio::join!(get(&api), get(&api), get(&api));
        let (a, b, c) = (a.unwrap(), b.unwrap(), c.unwrap());
        assert!(a.bundle() == b.bundle() && b.bundle() == c.bundle());
        assert_eq!(text(&api, "mesh-ca-root", "root-cert.pem"), a.bundle().to_pem());
        let made = api.writes().len();
        assert!(made > 1, "they did race");
        let later = get(&api).await.unwrap();
        assert_eq!(later.bundle(), a.bundle());
        assert_eq!(api.writes().len(), made, "what is there is not written again");
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_used_is_told_with_its_remedy_and_stays() {
    let api = KubeApi::default();
    get(&api).await.unwrap();
    let (certificate, key) =
        (text(&api, "mesh-ca-root", "root-cert.pem"), text(&api, "mesh-ca-root", "root-key.pem"));
    let other_key = KeyPair::generate().unwrap().serialize_pem();
    for (what, data, reason) in [
        ("nothing", &[][..], "has no key \"root-cert.pem\""),
        ("no key", &[("root-cert.pem", certificate.as_str())], "has no key \"root-key.pem\""),
        ("no certificate", &[("root-key.pem", &key)], "has no key \"root-cert.pem\""),
        (
            "an empty key",
            &[("root-cert.pem", &certificate), ("root-key.pem", "")],
            "has no key \"root-key.pem\"",
        ),
        (
            "another key",
            &[("root-cert.pem", &certificate), ("root-key.pem", &other_key)],
            "do not belong together",
        ),
        ("no PEM", &[("root-cert.pem", "x"), ("root-key.pem", &key)], "key root-cert.pem: no usable PEM"),
        (
            "a broken key",
            &[("root-cert.pem", &certificate), ("root-key.pem", "x")],
            "key root-key.pem: it is not a private key",
        ),
    ] {
        let api = KubeApi::default();
        let put = api.put(secret("mesh-ca-root", data));
        let error = get(&api).await.unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains("mesh-system/mesh-ca-root"), "{what}: {error}");
        assert!(
            error.contains("restore the Secret from a backup") && !error.contains(&key),
            "{what}: {error}"
        );
        assert_eq!(api.get("secrets", "mesh-system", "mesh-ca-root").unwrap(), put, "{what}");
        assert!(api.writes().is_empty(), "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_away_is_waited_for_but_not_for_ever() {
    for (verb, code) in [("get", 500), ("get", 503), ("create", 500), ("create", 429), ("get", 401)] {
        let api = KubeApi::default();
        api.fail(verb, "secrets", code, 3);
        get(&api).await.unwrap_or_else(|error| panic!("{verb} {code}: {error}"));
    }
    let api = KubeApi::default();
    api.set_unreachable(true);
    let begin = tokio::time::Instant::now();
    let error = get(&api).await.unwrap_err().to_string();
    assert!(error.contains("cannot be asked now"), "{error}");
    let waited = begin.elapsed();
    assert!(waited > PATIENCE - Duration::from_secs(10) && waited <= PATIENCE, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_missing_rule_is_named_soon() {
    for verb in ["get", "create"] {
        let api = KubeApi::default();
        api.forbid(verb, "secrets");
        let begin = tokio::time::Instant::now();
        let error = get(&api).await.unwrap_err().to_string();
        assert!(
            error.contains("resources [\"secrets\"]") && error.contains(&format!("verbs [{verb:?}]")),
            "{error}"
        );
        assert!(begin.elapsed() <= Duration::from_secs(5));
        assert!(api.get("secrets", "mesh-system", "mesh-ca-root").is_none());
    }
}

#[tokio::test(start_paused = true)]
#[allow(clippy::too_many_lines)] // one story: each step stands on the one before
async fn an_issuer_that_was_plugged_in_comes_first() {
    let root = CertifiedIssuer::self_signed(issuer("root"), KeyPair::generate().unwrap()).unwrap();
    let other = CertifiedIssuer::self_signed(issuer("other"), KeyPair::generate().unwrap()).unwrap();
    let (upper_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let upper = CertifiedIssuer::signed_by(issuer("upper"), upper_key, &root).unwrap();
    let lower = issuer("lower").signed_by(&key, &upper).unwrap();
    let (other, lower, upper_pem, root_pem) = (other.pem(), lower.pem(), upper.pem(), root.pem());
    let both = format!("{other}{root_pem}");
    // As Istio's Makefile, as cert-manager, and as a careful person write them.
    for (what, chain, roots, length) in [
        ("with the root", format!("{lower}{upper_pem}{root_pem}"), &root_pem, 3),
        ("without the root", format!("{lower}{upper_pem}"), &root_pem, 3),
        ("without the issuer", upper_pem.clone(), &root_pem, 3),
        ("a bundle of two roots", format!("{lower}{upper_pem}"), &both, 3),
    ] {
        let api = KubeApi::default();
        api.put(secret(
            "cacerts",
            &[
                ("ca-cert.pem", &lower),
                ("ca-key.pem", &key.serialize_pem()),
                ("cert-chain.pem", &chain),
                ("root-cert.pem", roots),
            ],
        ));
        let authority = get(&api).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(authority.chain.len(), length, "{what}");
        assert_eq!(authority.bundle(), &mesh_common::trust::TrustBundle::from_pem(roots).unwrap(), "{what}");
        assert!(api.get("secrets", "mesh-system", "mesh-ca-root").is_none(), "{what}");
    }
    // The user's own root signs by itself.
    let own_key = KeyPair::generate().unwrap();
    let own = issuer("own").self_signed(&own_key).unwrap().pem();
    let api = KubeApi::default();
    let fields = [
        ("ca-cert.pem", own.as_str()),
        ("ca-key.pem", &own_key.serialize_pem()),
        ("cert-chain.pem", &own),
        ("root-cert.pem", &own),
    ];
    api.put(secret("cacerts", &fields));
    assert_eq!(get(&api).await.unwrap().chain.len(), 1);

    let pem = key.serialize_pem();
    let (mut leaf, mut over) = (issuer("leaf"), issuer("over"));
    leaf.is_ca = IsCa::ExplicitNoCa;
    (over.not_before, over.not_after) = (rcgen::date_time_ymd(2001, 1, 1), rcgen::date_time_ymd(2002, 1, 1));
    let [leaf, over] = [leaf, over].map(|params| params.signed_by(&key, &upper).unwrap().pem());
    let (root, upper) = (root.pem(), upper.pem());
    for (what, fields, reason) in [
        (
            "an issuer that may not issue",
            &[
                ("ca-cert.pem", leaf.as_str()),
                ("ca-key.pem", &pem),
                ("cert-chain.pem", &upper),
                ("root-cert.pem", &root),
            ][..],
            "is not one of a certificate authority",
        ),
        (
            "an issuer whose time is over",
            &[
                ("ca-cert.pem", &over),
                ("ca-key.pem", &pem),
                ("cert-chain.pem", &upper),
                ("root-cert.pem", &root),
            ],
            "has expired",
        ),
        (
            "no key",
            &[("ca-cert.pem", &lower), ("cert-chain.pem", &upper), ("root-cert.pem", &root)],
            "has no key \"ca-key.pem\"",
        ),
        (
            "another root",
            &[
                ("ca-cert.pem", &lower),
                ("ca-key.pem", &pem),
                ("cert-chain.pem", &upper),
                ("root-cert.pem", &other),
            ],
            "root-cert.pem has signed",
        ),
        (
            "a hole in the chain",
            &[
                ("ca-cert.pem", &lower),
                ("ca-key.pem", &pem),
                ("cert-chain.pem", &lower),
                ("root-cert.pem", &root),
            ],
            "root-cert.pem has signed",
        ),
        (
            "another key",
            &[
                ("ca-cert.pem", &lower),
                ("ca-key.pem", &own_key.serialize_pem()),
                ("cert-chain.pem", &upper),
                ("root-cert.pem", &root),
            ],
            "do not belong together",
        ),
    ] {
        let api = KubeApi::default();
        api.put(secret("cacerts", fields));
        let error = get(&api).await.unwrap_err().to_string();
        assert!(
            error.contains(reason)
                && error.contains("mesh-system/cacerts")
                && error.contains("delete the Secret to use the mesh's own root"),
            "{what}: {error}"
        );
        assert!(api.writes().is_empty(), "{what}: no other root is used instead");
    }
}
