//! Signing requests: what comes out of a good one, and a table of bad ones.

use std::time::{Duration, SystemTime};

use mesh_common::spiffe::SpiffeId;
use mesh_common::trust::{PrivateKey, certificate_facts, identity_of, pem_of};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequest, CustomExtension, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType, SignatureAlgorithm,
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

/// What is sent, the request, and a part of the reason why it is refused.
type Row = (&'static str, String, &'static str);

fn good_der() -> Vec<u8> {
    signing_request(&KeyPair::generate().unwrap(), |_| {}).der().to_vec()
}

fn requests_that_are_none() -> Vec<Row> {
    let (good, der) = (request(|_| {}), good_der());
    let (_folder, authority) = authority();
    let certificate = pem_of("CERTIFICATE", &sign(&authority, &good, 60)[0]);
    vec![
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
        ("a public key", pem_of("PUBLIC KEY", &der), "is a \"PUBLIC KEY\""),
        ("no label", pem_of("", &der), "is a \"\""),
        ("a lower-case label", pem_of("certificate request", &der), "is a \"certificate request\""),
        (
            "a request and a key",
            format!("{good}{}", KeyPair::generate().unwrap().serialize_pem()),
            "more than one",
        ),
        (
            "not base64",
            "-----BEGIN CERTIFICATE REQUEST-----\n!!!!\n-----END CERTIFICATE REQUEST-----\n".into(),
            "",
        ),
        ("DER without PEM", String::from_utf8_lossy(&der).into_owned(), ""),
        ("zero bytes", "\0".repeat(100), "no PEM block"),
        ("a million letters", "A".repeat(1_000_000), "larger than"),
        (
            "a request in a request",
            pem_of("CERTIFICATE REQUEST", &pem_of("CERTIFICATE REQUEST", &der).into_bytes()),
            "PKCS#10",
        ),
    ]
}

fn requests_of_keys_and_authorities() -> Vec<Row> {
    let der = good_der();
    let changed = |at: usize| {
        let mut der = der.clone();
        der[at] ^= 1;
        pem_of("CERTIFICATE REQUEST", &der)
    };
    vec![
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
        ("RSA 1024", include_str!("csr/rsa1024.pem").to_owned(), "RSA key of 1024 bits"),
        ("secp256k1", include_str!("csr/secp256k1.pem").to_owned(), ""),
        ("P-224", include_str!("csr/p224.pem").to_owned(), "EC key of"),
        ("Ed448", include_str!("csr/ed448.pem").to_owned(), "keys of this algorithm"),
        ("DSA", include_str!("csr/dsa.pem").to_owned(), "keys of this algorithm"),
        ("RSA-PSS", include_str!("csr/pss.pem").to_owned(), ""),
        ("signed over SHA-1", include_str!("csr/sha1.pem").to_owned(), "not over SHA-256"),
        (
            "an issuer of lists",
            request(|params| {
                params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign]
            }),
            "authority",
        ),
        ("changed key", changed(60), ""),
    ]
}

fn requests_for_names() -> Vec<Row> {
    let san = |name: &str| with_names(vec![SanType::URI(ia5(name))]);
    vec![
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
        ("the control plane", san("spiffe://cluster.local/ns/mesh-system/sa/mesh-control"), "the caller is"),
        ("a web page", san("https://cluster.local/ns/shop/sa/web"), "the caller is"),
        ("no name", san(""), "the caller is"),
        ("a query", san("spiffe://cluster.local/ns/shop/sa/web?x"), "the caller is"),
        ("a fragment", san("spiffe://cluster.local/ns/shop/sa/web#x"), "the caller is"),
        ("a port", san("spiffe://cluster.local:443/ns/shop/sa/web"), "the caller is"),
        ("a user", san("spiffe://web@cluster.local/ns/shop/sa/web"), "the caller is"),
        ("an escape", san("spiffe://cluster.local/ns/shop/sa/%77eb"), "the caller is"),
        ("a longer name", san("spiffe://cluster.local/ns/shop/sa/web2"), "the caller is"),
        ("a shorter name", san("spiffe://cluster.local/ns/shop/sa/we"), "the caller is"),
        ("a way around", san("spiffe://cluster.local/ns/shop/sa/../sa/web"), "the caller is"),
        ("two slashes", san("spiffe://cluster.local//ns/shop/sa/web"), "the caller is"),
        ("a name with a zero byte", san("spiffe://cluster.local/ns/shop/sa/web\0"), "the caller is"),
        (
            "mine and a DNS name",
            with_names(vec![
                SanType::URI(ia5(me().as_str())),
                SanType::DnsName(ia5("mesh-control.mesh-system.svc.cluster.local")),
            ]),
            "the caller is",
        ),
        ("any DNS name", with_names(vec![SanType::DnsName(ia5("*"))]), "the caller is"),
        ("an IPv6 address", with_names(vec![SanType::IpAddress("::1".parse().unwrap())]), "the caller is"),
        (
            "a name of another kind",
            with_names(vec![SanType::OtherName((vec![1, 3, 6, 1], "web".into()))]),
            "the caller is",
        ),
    ]
}

/// Every request of these tables is refused, each for its reason.
#[test]
fn what_is_never_signed() {
    let rows = [requests_that_are_none(), requests_of_keys_and_authorities(), requests_for_names()].concat();
    assert!(rows.len() >= 60, "{}", rows.len());
    for (what, csr, reason) in rows {
        let error = check(&csr, &me()).expect_err(what).to_string();
        assert!(error.contains(reason), "{what}: {error}");
    }
}

/// What a request may ask for without getting it: the certificate is the same as without.
#[test]
fn what_is_passed_over() {
    let (_folder, authority) = authority();
    let extensions = |csr: &str| -> Vec<(String, bool, Vec<u8>)> {
        let chain = sign(&authority, csr, 60);
        let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
        assert_eq!(leaf.subject().iter().count(), 0);
        assert_eq!(identity_of(&chain[0]).unwrap(), me());
        let of_key = ["2.5.29.14", "2.5.29.35"];
        let own = leaf.extensions().iter().map(|e| (e.oid.to_id_string(), e.critical, e.value.to_vec()));
        own.filter(|(oid, ..)| !of_key.contains(&oid.as_str())).collect()
    };
    let plain = extensions(&request(|_| {}));
    assert_eq!(plain.iter().filter(|(oid, ..)| oid == "2.5.29.17").count(), 1, "one list of names");
    for (what, csr) in [
        ("a subject", request(|params| params.distinguished_name.push(DnType::CommonName, "admin"))),
        (
            "another organization",
            request(|params| params.distinguished_name.push(DnType::OrganizationName, "system:masters")),
        ),
        ("encipherment", request(|params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment])),
        (
            "signing code",
            request(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]),
        ),
        ("any purpose", request(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any])),
        ("not an authority", request(|params| params.is_ca = IsCa::ExplicitNoCa)),
        (
            "an unknown extension",
            request(|params| {
                let mut unknown =
                    CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
                unknown.set_criticality(true);
                params.custom_extensions = vec![unknown];
            }),
        ),
        ("my own name", with_names(vec![SanType::URI(ia5(me().as_str()))])),
        (
            "my own name twice",
            with_names(vec![SanType::URI(ia5(me().as_str())), SanType::URI(ia5(me().as_str()))]),
        ),
        ("words around it", format!("hello\n{}bye\n", request(|_| {}))),
    ] {
        assert_eq!(extensions(&csr), plain, "{what}");
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
