//! Certificates of every kind that a peer may show: good, expired, of a foreign root, of another identity,
//! of no identity. And TLS ends that show them.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use mesh_common::trust::{TrustBundle, provider};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

const HOUR: Duration = Duration::from_secs(3600);

/// A root that signs.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root_pem: String,
}

/// What a certificate says.
#[derive(Debug, Clone, Default)]
pub struct Leaf<'a> {
    /// Names of type URI.
    pub uris: &'a [&'a str],
    /// Names of type DNS.
    pub dns: &'a [&'a str],
    /// It ended an hour ago.
    pub expired: bool,
}

/// A certificate with its key.
#[derive(Debug)]
pub struct Certificate {
    /// The leaf, PEM.
    pub pem: String,
    /// The key, PKCS#8 PEM.
    pub key_pem: String,
}

impl Authority {
    /// A new root.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new(name: &str) -> Result<Self> {
        let (params, key) = (ca_params(name), KeyPair::generate()?);
        let root_pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), root_pem })
    }

    /// The root that mesh-control keeps in its state folder.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of_state(state: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = state.join(name);
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let root_pem = read("root-cert.pem")?;
        let issuer = Issuer::from_ca_cert_pem(&root_pem, KeyPair::from_pem(&read("root-key.pem")?)?)?;
        Ok(Self { issuer, root_pem })
    }

    /// The root, PEM.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// A CA below this one: its chain, the root last, and its key.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn intermediate(&self, name: &str) -> Result<Certificate> {
        let (params, key) = (ca_params(name), KeyPair::generate()?);
        let own = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Certificate { pem: own + &self.root_pem, key_pem: key.serialize_pem() })
    }

    /// Signs a certificate for a new key.
    ///
    /// # Errors
    /// When a name is none.
    pub fn leaf(&self, leaf: &Leaf<'_>) -> Result<Certificate> {
        let key = KeyPair::generate()?;
        let mut params = params(leaf)?;
        let end = SystemTime::now();
        let end = if leaf.expired { end - HOUR } else { end + HOUR };
        params.not_before = (end - 2 * HOUR).into();
        params.not_after = end.into();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let pem = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Certificate { pem, key_pem: key.serialize_pem() })
    }

    /// Signs what a request asks for, as a CA without judgement would; for a fake mesh-control.
    ///
    /// # Errors
    /// When the request cannot be read.
    pub fn sign(&self, csr_pem: &str) -> Result<String> {
        self.sign_with(csr_pem, &[])
    }

    /// The same, with these DNS names beside what is asked for.
    ///
    /// # Errors
    /// When the request cannot be read or a name is none.
    pub fn sign_with(&self, csr_pem: &str, dns: &[&str]) -> Result<String> {
        let mut request = rcgen::CertificateSigningRequestParams::from_pem(csr_pem)?;
        let now = SystemTime::now();
        request.params.not_before = (now - HOUR).into();
        request.params.not_after = (now + HOUR).into();
        for name in dns {
            request.params.subject_alt_names.push(SanType::DnsName((*name).try_into()?));
        }
        Ok(request.signed_by(&self.issuer)?.pem())
    }
}

/// A signing request for `uri`, with the key that was made for it.
///
/// # Errors
/// When the name is none.
pub fn signing_request(uri: &str) -> Result<(String, KeyPair)> {
    let key = KeyPair::generate()?;
    let request = params(&Leaf { uris: &[uri], ..Leaf::default() })?.serialize_request(&key)?.pem()?;
    Ok((request, key))
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn params(leaf: &Leaf<'_>) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    for uri in leaf.uris {
        params.subject_alt_names.push(SanType::URI((*uri).try_into()?));
    }
    for dns in leaf.dns {
        params.subject_alt_names.push(SanType::DnsName((*dns).try_into()?));
    }
    Ok(params)
}

impl Certificate {
    fn der(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let chain = CertificateDer::pem_slice_iter(self.pem.as_bytes()).collect::<Result<_, _>>()?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(self.key_pem.as_bytes())?;
        Ok((chain, PrivateKeyDer::Pkcs8(key)))
    }

    /// A server that shows this certificate, and asks the client for none.
    ///
    /// # Errors
    /// When rustls does not take it.
    pub fn server_config(&self, alpn: &[&str]) -> Result<Arc<rustls::ServerConfig>> {
        let (chain, key) = self.der()?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Ok(Arc::new(config))
    }
}

/// A client that shows `certificate`, or none, and takes whatever the server shows: it is the server's
/// judgement that is tested with it.
///
/// # Errors
/// When rustls does not take it.
pub fn client_config(certificate: Option<&Certificate>, alpn: &str) -> Result<Arc<rustls::ClientConfig>> {
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    let mut config = match certificate {
        Some(certificate) => {
            let (chain, key) = certificate.der()?;
            builder.with_client_auth_cert(chain, key)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    Ok(Arc::new(config))
}

/// A client that takes only servers of this root, as applications are that speak TLS themselves.
///
/// # Errors
/// When there is no root.
pub fn plain_client_config(root_pem: &str) -> Result<Arc<rustls::ClientConfig>> {
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(root_store(root_pem)?)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// The roots of a PEM text as rustls takes them.
///
/// # Errors
/// When there is none.
pub fn root_store(pem: &str) -> Result<rustls::RootCertStore> {
    Ok(TrustBundle::from_pem(pem)?.root_store())
}

#[derive(Debug)]
struct Anybody;

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &rustls_pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use mesh_common::trust::{certificate_facts, identity_of, parse_certificates};

    use super::*;

    #[test]
    fn leaves_say_what_was_asked() {
        let authority = Authority::new("test").unwrap();
        let web = "spiffe://cluster.local/ns/shop/sa/web";
        let leaf = authority.leaf(&Leaf { uris: &[web], expired: true, ..Leaf::default() }).unwrap();
        let der = &parse_certificates(&leaf.pem).unwrap()[0];
        assert_eq!(identity_of(der).unwrap().as_str(), web);
        assert!(certificate_facts(der).unwrap().not_after < SystemTime::now());
        let (csr, _) = signing_request(web).unwrap();
        let signed = parse_certificates(&authority.sign(&csr).unwrap()).unwrap();
        assert_eq!(identity_of(&signed[0]).unwrap().as_str(), web);
    }
}
