//! For tests: a root, and leaves of every kind, good and bad. Never part of the binary.

use std::sync::Arc;
use std::time::SystemTime;

use mesh_common::trust::{PrivateKey, TrustBundle, WorkloadCertificate, certificate_facts};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};

use super::TlsContext;

/// A mesh's root, able to sign.
pub(crate) struct Mesh {
    issuer: CertifiedIssuer<'static, KeyPair>,
    trust_domain: String,
}

/// What is to be in a leaf.
pub(crate) struct Leaf {
    pub(crate) uris: Vec<String>,
    pub(crate) dns: Vec<String>,
    /// Seconds from now.
    pub(crate) from: i64,
    /// Seconds from now.
    pub(crate) until: i64,
}

impl Mesh {
    pub(crate) fn new(trust_domain: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::OrganizationName, trust_domain);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer, trust_domain: trust_domain.to_owned() }
    }

    pub(crate) fn bundle(&self) -> TrustBundle {
        TrustBundle::from_pem(&self.issuer.pem()).unwrap()
    }

    pub(crate) fn uri(&self, namespace: &str, account: &str) -> String {
        format!("spiffe://{}/ns/{namespace}/sa/{account}", self.trust_domain)
    }

    pub(crate) fn workload(&self, namespace: &str, account: &str) -> WorkloadCertificate {
        self.sign(&Leaf::of(&self.uri(namespace, account)))
    }

    /// A context that shows a good certificate and trusts this mesh.
    pub(crate) fn context(&self, namespace: &str, account: &str) -> TlsContext {
        self.context_with(self.workload(namespace, account))
    }

    pub(crate) fn context_with(&self, certificate: WorkloadCertificate) -> TlsContext {
        let context = TlsContext::new();
        context.set_certificate(certificate).unwrap();
        context.set_bundle(self.bundle());
        context
    }

    /// Signs anything. The identity that our own side goes by is made up where the leaf has none.
    pub(crate) fn sign(&self, leaf: &Leaf) -> WorkloadCertificate {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let uris = leaf.uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().unwrap()));
        let dns = leaf.dns.iter().map(|name| SanType::DnsName(name.as_str().try_into().unwrap()));
        params.subject_alt_names = uris.chain(dns).collect();
        let now = time::OffsetDateTime::from(SystemTime::now());
        params.not_before = now + time::Duration::seconds(leaf.from);
        params.not_after = now + time::Duration::seconds(leaf.until);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let identity = leaf.uris.first().and_then(|uri| uri.parse().ok());
        WorkloadCertificate {
            chain: vec![certificate.der().clone()],
            key: Arc::new(PrivateKey::from_pem(&key.serialize_pem()).unwrap()),
            identity: identity.unwrap_or_else(|| self.uri("nobody", "nobody").parse().unwrap()),
            facts: certificate_facts(certificate.der()).unwrap(),
        }
    }
}

impl Mesh {
    /// What a certificate authority answers: a leaf for the request's key with the names of `leaf`, then the root.
    pub(crate) fn sign_request(&self, request: &str, leaf: &Leaf) -> Vec<String> {
        let mut request = rcgen::CertificateSigningRequestParams::from_pem(request).unwrap();
        request.params.subject_alt_names =
            leaf.uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().unwrap())).collect();
        let now = time::OffsetDateTime::from(SystemTime::now());
        request.params.not_before = now + time::Duration::seconds(leaf.from);
        request.params.not_after = now + time::Duration::seconds(leaf.until);
        vec![request.signed_by(&self.issuer).unwrap().pem(), self.issuer.pem()]
    }
}

impl Leaf {
    pub(crate) fn of(uri: &str) -> Self {
        Self { uris: vec![uri.to_owned()], dns: Vec::new(), from: -120, until: 86_400 }
    }
}
