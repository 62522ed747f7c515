//! Keys, certificate chains and the trust bundle, as both ends hold them in memory. The crypto provider is
//! chosen here, once, and passed explicitly. A private key is never printed and never leaves through `Debug`.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::crypto::CryptoProvider;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use crate::spiffe::SpiffeId;

/// The provider of the whole mesh: aws-lc-rs, with the post-quantum hybrid `X25519MLKEM768` first.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Why key material cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The text is not PEM, or holds no certificate.
    #[error("no usable PEM certificate: {0}")]
    Pem(String),
    /// A certificate cannot be parsed.
    #[error("certificate {index} of the chain cannot be read: {reason}")]
    Certificate {
        /// Position in the chain, from 0.
        index: usize,
        /// What the parser said.
        reason: String,
    },
    /// The leaf does not carry exactly one URI name that is a workload's identity.
    #[error("the certificate names no workload: {0}")]
    Identity(String),
    /// A key could not be made or read.
    #[error("the private key cannot be used: {0}")]
    Key(String),
}

/// A private key of a workload: ECDSA P-256.
pub struct PrivateKey {
    pair: KeyPair,
}

impl PrivateKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn generate() -> Result<Self, TrustError> {
        let pair =
            KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| TrustError::Key(e.to_string()))?;
        Ok(Self { pair })
    }

    /// Reads a key from PKCS#8 PEM.
    ///
    /// # Errors
    /// When the text is not such a key.
    pub fn from_pem(pem: &str) -> Result<Self, TrustError> {
        let pair = KeyPair::from_pem(pem).map_err(|e| TrustError::Key(e.to_string()))?;
        Ok(Self { pair })
    }

    /// PKCS#8 PEM, to be written to a memory volume only.
    pub fn to_pem(&self) -> String {
        self.pair.serialize_pem()
    }

    /// The key as rustls takes it.
    pub fn to_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pair.serialize_der()))
    }

    /// A signing request (PEM, PKCS#10) that names `identity`. The server signs the caller's
    /// authenticated identity whatever the request says.
    ///
    /// # Errors
    /// When the request cannot be encoded.
    pub fn signing_request(&self, identity: &SpiffeId) -> Result<String, TrustError> {
        let uri = identity.as_str().try_into().map_err(|e: rcgen::Error| TrustError::Key(e.to_string()))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![rcgen::SanType::URI(uri)];
        let request = params.serialize_request(&self.pair).map_err(|e| TrustError::Key(e.to_string()))?;
        request.pem().map_err(|e| TrustError::Key(e.to_string()))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// What a certificate says of itself, read once when it is received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// Serial number in lower-case hex.
    pub serial: String,
    /// Names of type URI, as they stand.
    pub uris: Vec<String>,
    /// Names of type DNS, as they stand.
    pub dns: Vec<String>,
}

/// Reads the facts of one DER certificate.
///
/// # Errors
/// When it is not a certificate, or its names cannot be decoded.
pub fn certificate_facts(der: &[u8]) -> Result<CertificateFacts, TrustError> {
    let bad = |reason: String| TrustError::Certificate { index: 0, reason };
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|e| bad(e.to_string()))?;
    if !rest.is_empty() {
        return Err(bad("bytes follow the certificate".to_owned()));
    }
    let mut facts = CertificateFacts {
        not_before: to_system_time(certificate.validity().not_before.timestamp()),
        not_after: to_system_time(certificate.validity().not_after.timestamp()),
        serial: certificate.raw_serial_as_string().replace(':', ""),
        uris: Vec::new(),
        dns: Vec::new(),
    };
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    match name {
                        GeneralName::URI(uri) => facts.uris.push((*uri).to_owned()),
                        GeneralName::DNSName(dns) => facts.dns.push((*dns).to_owned()),
                        GeneralName::Invalid(..) => {
                            return Err(bad("a subject alternative name is broken".into()));
                        }
                        _ => {}
                    }
                }
            }
            ParsedExtension::ParseError { error } => return Err(bad(error.to_string())),
            _ => {}
        }
    }
    Ok(facts)
}

/// The one workload identity of a leaf certificate.
///
/// # Errors
/// When the certificate cannot be read, has no URI name or more than one, or the one it has is not a
/// workload's identity. (SPIFFE X.509-SVID, section 2: exactly one URI name.)
pub fn identity_of(der: &[u8]) -> Result<SpiffeId, TrustError> {
    match certificate_facts(der)?.uris.as_slice() {
        [one] => one.parse().map_err(|e| TrustError::Identity(format!("{one:?}: {e}"))),
        [] => Err(TrustError::Identity("it has no URI name".to_owned())),
        several => Err(TrustError::Identity(format!("it has {} URI names", several.len()))),
    }
}

/// A workload's certificate with its key: what it shows to every peer.
#[derive(Debug, Clone)]
pub struct WorkloadCertificate {
    /// Leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: Arc<PrivateKey>,
    /// The identity in the leaf.
    pub identity: SpiffeId,
    /// What the leaf says of itself.
    pub facts: CertificateFacts,
}

impl WorkloadCertificate {
    /// Puts together what the CA answered (leaf first, PEM each; the root, last, is left out of the chain).
    ///
    /// # Errors
    /// When a certificate cannot be read or the leaf names no workload.
    pub fn from_chain_pem(chain: &[String], key: Arc<PrivateKey>) -> Result<Self, TrustError> {
        let mut certificates = parse_certificates(&chain.concat())?;
        if certificates.len() > 1 {
            certificates.pop();
        }
        let facts = certificate_facts(&certificates[0])?;
        let identity = identity_of(&certificates[0])?;
        Ok(Self { chain: certificates, key, identity, facts })
    }
}

/// The roots that the mesh trusts at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustBundle {
    roots: Vec<CertificateDer<'static>>,
}

impl TrustBundle {
    /// Reads one or more roots from PEM. Order and repetition do not matter.
    ///
    /// # Errors
    /// When there is no certificate or one cannot be read.
    pub fn from_pem(pem: &str) -> Result<Self, TrustError> {
        let mut roots = parse_certificates(pem)?;
        roots.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
        roots.dedup();
        Ok(Self { roots })
    }

    /// The roots, sorted.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// PEM of all roots.
    pub fn to_pem(&self) -> String {
        self.roots.iter().map(|root| pem_of("CERTIFICATE", root)).collect()
    }

    /// The roots as rustls takes them.
    pub fn root_store(&self) -> rustls::RootCertStore {
        let mut store = rustls::RootCertStore::empty();
        store.add_parsable_certificates(self.roots.iter().cloned());
        store
    }
}

/// All certificates of a PEM text; at least one.
///
/// # Errors
/// When there is none, or the text is broken, or one of them is not a certificate.
pub fn parse_certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| TrustError::Pem(e.to_string()))?;
    if certificates.is_empty() {
        return Err(TrustError::Pem("no certificate in it".to_owned()));
    }
    for (index, certificate) in certificates.iter().enumerate() {
        X509Certificate::from_der(certificate)
            .map_err(|e| TrustError::Certificate { index, reason: e.to_string() })?;
    }
    Ok(certificates)
}

/// PEM text of one DER block.
pub fn pem_of(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = tail;
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

fn to_system_time(unix: i64) -> SystemTime {
    match u64::try_from(unix) {
        Ok(after) => SystemTime::UNIX_EPOCH + Duration::from_secs(after),
        Err(_) => SystemTime::UNIX_EPOCH,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn self_signed(uris: &[&str]) -> rcgen::Certificate {
        let mut params = CertificateParams::default();
        params.subject_alt_names =
            uris.iter().map(|uri| rcgen::SanType::URI((*uri).try_into().unwrap())).collect();
        params.self_signed(&KeyPair::generate().unwrap()).unwrap()
    }

    #[test]
    fn a_leaf_names_exactly_one_workload() {
        let one = self_signed(&["spiffe://cluster.local/ns/shop/sa/web"]);
        assert_eq!(identity_of(one.der()).unwrap().namespace(), "shop");
        for uris in [
            &[][..],
            &["https://example.org"],
            &["spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/shop/sa/db"],
        ] {
            assert!(identity_of(self_signed(uris).der()).is_err(), "{uris:?}");
        }
    }

    #[test]
    fn bundles_compare_by_content() {
        let (a, b) = (self_signed(&[]).pem(), self_signed(&[]).pem());
        let bundle = TrustBundle::from_pem(&format!("{a}{b}")).unwrap();
        assert_eq!(bundle, TrustBundle::from_pem(&format!("{b}{a}{b}")).unwrap());
        assert_eq!(bundle, TrustBundle::from_pem(&bundle.to_pem()).unwrap());
        assert!(TrustBundle::from_pem("").is_err());
        assert!(
            TrustBundle::from_pem("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err()
        );
    }

    #[test]
    fn a_key_is_not_printed() {
        let key = PrivateKey::generate().unwrap();
        assert_eq!(format!("{key:?}"), "PrivateKey(..)");
        assert!(PrivateKey::from_pem(&key.to_pem()).is_ok());
    }
}
