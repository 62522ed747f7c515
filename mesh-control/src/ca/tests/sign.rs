//! Signing requests: what comes out of a good one, and a table of bad ones.

use std::time::{Duration, SystemTime};

use mesh_common::spiffe::SpiffeId;
use mesh_common::trust::{PrivateKey, certificate_facts, identity_of, pem_of};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequest, DistinguishedName, DnType, IsCa, KeyPair,
    KeyUsagePurpose, SanType, SignatureAlgorithm,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::super::root::Authority;
use super::super::sign::{SignError, Subject, check};

fn me() -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", "web").unwrap()
}

fn ia5(text: &str) -> Ia5String {
    text.try_into().unwrap()
}

fn authority() -> (tempfile::TempDir, Authority) {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::from_state(folder.path()).unwrap();
    (folder, authority)
}

fn request_of(algorithm: &'static SignatureAlgorithm, change: impl FnOnce(&mut CertificateParams)) -> String {
    signing_request(&KeyPair::generate_for(algorithm).unwrap(), change).pem().unwrap()
}

fn signing_request(key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> CertificateSigningRequest {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    change(&mut params);
    params.serialize_request(key).unwrap()
}

fn request(change: impl FnOnce(&mut CertificateParams)) -> String {
    request_of(&rcgen::PKCS_ECDSA_P256_SHA256, change)
}

fn with_names(names: Vec<SanType>) -> String {
    request(|params| params.subject_alt_names = names)
}

fn sign(authority: &Authority, csr: &str, lifetime: u64) -> Vec<rustls_pki_types::CertificateDer<'static>> {
    let subject = Subject { identity: me(), dns: Vec::new() };
    let lifetime = Duration::from_secs(lifetime);
    authority.sign(&check(csr, &me()).unwrap(), &subject, lifetime, SystemTime::now()).unwrap()
}

#[test]
fn a_leaf_says_who_asked_and_nothing_more() {
    let (_folder, authority) = authority();
    // Whatever subject the request has, the certificate has none.
    let csr = request(|params| {
        params.distinguished_name.push(DnType::CommonName, "admin");
        params.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
    });
    let chain = sign(&authority, &csr, 3600);
    assert_eq!(chain.len(), 2, "leaf and root");
    assert_eq!(identity_of(&chain[0]).unwrap(), me());
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    let (_, root) = X509Certificate::from_der(&chain[1]).unwrap();
    leaf.verify_signature(Some(root.public_key())).unwrap();
    assert_eq!(leaf.subject().iter().count(), 0);
    assert!(!leaf.is_ca() && root.is_ca());
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_encipherment() && !usage.key_cert_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.client_auth && extended.server_auth && !extended.any);
    assert!(certificate_facts(&chain[0]).unwrap().dns.is_empty());
}

#[test]
fn a_leaf_begins_two_minutes_back_and_ends_when_granted() {
    let (_folder, authority) = authority();
    for (lifetime, back) in [(3600, 120), (60, 30)] {
        let now = SystemTime::now();
        let facts = certificate_facts(&sign(&authority, &request(|_| {}), lifetime)[0]).unwrap();
        let near = |time: SystemTime, expected: SystemTime| {
            let off = time.duration_since(expected).unwrap_or_else(|error| error.duration());
            assert!(off < Duration::from_secs(5), "{off:?}");
        };
        near(facts.not_before, now - Duration::from_secs(back));
        near(facts.not_after, now + Duration::from_secs(lifetime));
    }
}

#[test]
fn serials_differ_and_are_positive() {
    let (_folder, authority) = authority();
    let serials: std::collections::BTreeSet<String> = (0..20)
        .map(|_| certificate_facts(&sign(&authority, &request(|_| {}), 60)[0]).unwrap().serial)
        .collect();
    assert_eq!(serials.len(), 20);
    assert!(
        serials.iter().all(|serial| serial.len() == 32 && !serial.starts_with(['8', '9', 'a', 'f'])),
        "{serials:?}"
    );
}

#[test]
fn a_leaf_never_outlives_its_issuer() {
    let (_folder, authority) = authority();
    let twenty_years = 20 * 365 * 24 * 3600;
    let chain = sign(&authority, &request(|_| {}), twenty_years);
    let end = |index: usize| certificate_facts(&chain[index]).unwrap().not_after;
    assert_eq!(end(0), end(1));
    let subject = Subject { identity: me(), dns: Vec::new() };
    let after = SystemTime::now() + Duration::from_secs(twenty_years);
    let late =
        authority.sign(&check(&request(|_| {}), &me()).unwrap(), &subject, Duration::from_secs(60), after);
    assert!(matches!(late, Err(SignError::Issuer(_))));
}

#[test]
fn keys_of_these_kinds_are_signed() {
    let (_folder, authority) = authority();
    let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let mut good = vec![signing_request(&rsa, |_| {}).pem().unwrap()];
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        good.push(request_of(algorithm, |_| {}));
    }
    good.push(with_names(vec![SanType::URI(ia5(me().as_str()))]));
    good.push(PrivateKey::generate().unwrap().signing_request(&me()).unwrap());
    for csr in good {
        assert_eq!(sign(&authority, &csr, 60).len(), 2);
    }
}

/// Every request of this table is refused, each for its reason.
#[test]
fn what_is_never_signed() {
    let good = request(|_| {});
    let der = signing_request(&KeyPair::generate().unwrap(), |_| {}).der().to_vec();
    let changed = |at: usize| {
        let mut der = der.clone();
        der[at] ^= 1;
        pem_of("CERTIFICATE REQUEST", &der)
    };
    let (_folder, authority) = authority();
    let certificate = pem_of("CERTIFICATE", &sign(&authority, &good, 60)[0]);
    let san = |name: &str| with_names(vec![SanType::URI(ia5(name))]);
    let rows: Vec<(&str, String, &str)> = vec![
        ("nothing", String::new(), "no PEM block"),
        ("no PEM", "hello".into(), "no PEM block"),
        ("empty block", pem_of("CERTIFICATE REQUEST", &[]), "PKCS#10"),
        ("garbage", pem_of("CERTIFICATE REQUEST", &[0x30, 0x80, 1, 2, 3]), "PKCS#10"),
        ("a certificate", certificate, "is a \"CERTIFICATE\""),
        ("a key", KeyPair::generate().unwrap().serialize_pem(), "is a \"PRIVATE KEY\""),
        ("another label", pem_of("CERTIFICATE", &der), "is a \"CERTIFICATE\""),
        ("two requests", format!("{good}{good}"), "more than one"),
        ("a tail", pem_of("CERTIFICATE REQUEST", &[der.clone(), vec![5, 0]].concat()), "bytes follow"),
        ("cut short", pem_of("CERTIFICATE REQUEST", &der[..der.len() - 4]), "PKCS#10"),
        ("not closed", good.replace("-----END", "-----BEGIN"), "PKCS#10"),
        ("too large", format!("{good}{}", " ".repeat(20_000)), "larger than"),
        ("changed signature", changed(der.len() - 1), "own key"),
        ("P-521", request_of(&rcgen::PKCS_ECDSA_P521_SHA512, |_| {}), "EC key of"),
        (
            "an authority",
            request(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            "authority",
        ),
        (
            "a small authority",
            request(|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))),
            "authority",
        ),
        ("may sign", request(|params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign]), "authority"),
        (
            "another account",
            san("spiffe://cluster.local/ns/shop/sa/db"),
            "the caller is spiffe://cluster.local/ns/shop/sa/web",
        ),
        ("another namespace", san("spiffe://cluster.local/ns/prod/sa/web"), "the caller is"),
        ("another domain", san("spiffe://evil/ns/shop/sa/web"), "the caller is"),
        ("another spelling", san("spiffe://cluster.local/ns/shop/sa/web/"), "the caller is"),
        ("upper case", san("SPIFFE://cluster.local/ns/shop/sa/web"), "the caller is"),
        (
            "mine and another",
            with_names(vec![
                SanType::URI(ia5(me().as_str())),
                SanType::URI(ia5("spiffe://cluster.local/ns/shop/sa/db")),
            ]),
            "the caller is",
        ),
        (
            "a DNS name",
            with_names(vec![SanType::DnsName(ia5("mesh-control.mesh-system.svc"))]),
            "the caller is",
        ),
        ("an address", with_names(vec![SanType::IpAddress("10.0.0.1".parse().unwrap())]), "the caller is"),
        ("a mail address", with_names(vec![SanType::Rfc822Name(ia5("a@b.c"))]), "the caller is"),
    ];
    assert!(rows.len() >= 25);
    for (what, csr, reason) in rows {
        let error = check(&csr, &me()).expect_err(what).to_string();
        assert!(error.contains(reason), "{what}: {error}");
    }
}

/// No byte that is signed, and none of the signature, can be changed without the request being refused.
#[test]
fn every_changed_byte_is_noticed() {
    let der = signing_request(&KeyPair::generate().unwrap(), |params| {
        params.subject_alt_names = vec![SanType::URI(ia5(me().as_str()))];
    })
    .der()
    .to_vec();
    // The name of the signature's algorithm stands outside of what is signed: its 12 bytes are the parser's.
    let algorithm = der.windows(4).rposition(|four| four == [0x30, 0x0a, 0x06, 0x08]).unwrap();
    for at in (0..der.len()).filter(|at| !(algorithm..algorithm + 12).contains(at)) {
        let mut changed = der.clone();
        changed[at] ^= 0x01;
        assert!(check(&pem_of("CERTIFICATE REQUEST", &changed), &me()).is_err(), "byte {at}");
    }
}
