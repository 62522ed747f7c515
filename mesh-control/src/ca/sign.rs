//! From a signing request to a certificate. Only the public key of a request is used; its names are checked
//! so that a caller who asks for somebody else's learns it, but the names in the certificate come from who
//! was proven to ask.

use std::time::{Duration, SystemTime};

use mesh_common::spiffe::SpiffeId;
use mesh_common::trust;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType,
    SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo as RequestKey;

use super::root::Authority;

/// Requests above this size are refused.
const MAX_CSR_BYTES: usize = 16 << 10;
/// What a request may be signed with: ECDSA and RSA (PKCS#1) over SHA-256, 384 and 512; Ed25519.
const SIGNATURES: [&str; 7] = [
    "1.2.840.10045.4.3.2",
    "1.2.840.10045.4.3.3",
    "1.2.840.10045.4.3.4",
    "1.2.840.113549.1.1.11",
    "1.2.840.113549.1.1.12",
    "1.2.840.113549.1.1.13",
    "1.3.101.112",
];
/// Clocks of workloads may be this much behind.
const BACKDATED: Duration = Duration::from_secs(120);
/// The longest certificate, whatever the options say, is bounded by the issuer's end; the shortest is this.
const MIN_LIFETIME: Duration = Duration::from_secs(1);

/// Why a request is not signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// It is larger than any real one.
    #[error("the signing request is larger than {MAX_CSR_BYTES} bytes")]
    TooLarge,
    /// It cannot be read.
    #[error("the signing request is not one PEM block with a PKCS#10 request: {0}")]
    Malformed(String),
    /// Whoever sent it does not have the key.
    #[error("the signing request is not signed with its own key")]
    Signature,
    /// Another kind of key.
    #[error("{0}; use ECDSA P-256 or P-384, Ed25519, or RSA with 2048 bits or more")]
    Key(String),
    /// It asks to become an authority.
    #[error("the signing request asks for a certificate authority")]
    Authority,
    /// It asks for a name that is not the caller's.
    #[error("the signing request names {asked}, but the caller is {caller}")]
    ForeignName {
        /// As the request has it.
        asked: String,
        /// Who was proven to ask.
        caller: String,
    },
    /// A lifetime below zero.
    #[error("validity_duration must not be negative")]
    Lifetime,
    /// We cannot sign now.
    #[error("the certificate cannot be signed: {0}")]
    Issuer(String),
}

impl SignError {
    /// For the metric of signing requests.
    pub fn label(&self) -> &'static str {
        match self {
            Self::TooLarge | Self::Malformed(_) | Self::Lifetime => "malformed",
            Self::Signature => "signature",
            Self::Key(_) => "key",
            Self::Authority | Self::ForeignName { .. } => "names",
            Self::Issuer(_) => "issuer",
        }
    }
}

/// A request that may be signed for `caller`: its key.
#[derive(Debug)]
pub struct CheckedRequest {
    key: SubjectPublicKeyInfo,
}

/// Checks a request (PEM, PKCS#10).
///
/// # Errors
/// When it cannot be read, is not signed by its own key, or asks for what the caller is not.
pub fn check(pem: &str, caller: &SpiffeId) -> Result<CheckedRequest, SignError> {
    if pem.len() > MAX_CSR_BYTES {
        return Err(SignError::TooLarge);
    }
    let der = der_of(pem)?;
    let malformed = |reason: &str| SignError::Malformed(reason.to_owned());
    let (rest, request) =
        X509CertificationRequest::from_der(&der).map_err(|e| SignError::Malformed(e.to_string()))?;
    if !rest.is_empty() {
        return Err(malformed("bytes follow the request"));
    }
    let info = &request.certification_request_info;
    if request.signature_value.unused_bits != 0 {
        return Err(malformed("the signature is not a whole number of bytes"));
    }
    check_key(&info.subject_pki)?;
    if !SIGNATURES.contains(&request.signature_algorithm.algorithm.to_id_string().as_str()) {
        return Err(malformed("its signature is not over SHA-256, SHA-384 or SHA-512, nor Ed25519"));
    }
    request.verify_signature().map_err(|_| SignError::Signature)?;
    for attribute in info.iter_attributes() {
        match attribute.parsed_attribute() {
            ParsedCriAttribute::ExtensionRequest(requested) => {
                for extension in &requested.extensions {
                    check_extension(extension.parsed_extension(), caller)?;
                }
            }
            ParsedCriAttribute::ChallengePassword(_) => {}
            _ => return Err(malformed("an attribute cannot be read")),
        }
    }
    let key = SubjectPublicKeyInfo::from_der(info.subject_pki.raw)
        .map_err(|_| SignError::Key("keys of this algorithm are not signed".to_owned()))?;
    Ok(CheckedRequest { key })
}

fn der_of(pem: &str) -> Result<Vec<u8>, SignError> {
    let mut blocks = x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes());
    let malformed = |reason: String| SignError::Malformed(reason);
    let first = blocks.next().ok_or_else(|| malformed("there is no PEM block".to_owned()))?;
    let first = first.map_err(|e| malformed(e.to_string()))?;
    if blocks.next().is_some() {
        return Err(malformed("there is more than one PEM block".to_owned()));
    }
    match first.label.as_str() {
        "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST" => Ok(first.contents),
        other => Err(malformed(format!("the PEM block is a {other:?}"))),
    }
}

fn check_key(key: &RequestKey<'_>) -> Result<(), SignError> {
    let refused = |what: String| Err(SignError::Key(what));
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) => match rsa.key_size() {
            2048..=8192 => Ok(()),
            bits => refused(format!("an RSA key of {bits} bits is not signed")),
        },
        Ok(PublicKey::EC(point)) => match point.key_size() {
            256 | 384 => Ok(()),
            bits => refused(format!("an EC key of {bits} bits is not signed")),
        },
        // x509-parser knows no name for Ed25519's keys; rcgen then takes exactly the algorithms it can name.
        Ok(PublicKey::Unknown(_)) if key.algorithm.algorithm.to_id_string() == "1.3.101.112" => Ok(()),
        _ => refused("keys of this algorithm are not signed".to_owned()),
    }
}

fn check_extension(extension: &ParsedExtension<'_>, caller: &SpiffeId) -> Result<(), SignError> {
    match extension {
        ParsedExtension::BasicConstraints(constraints) if constraints.ca => Err(SignError::Authority),
        ParsedExtension::KeyUsage(usage) if usage.key_cert_sign() => Err(SignError::Authority),
        ParsedExtension::SubjectAlternativeName(names) => {
            names.general_names.iter().try_for_each(|name| match name {
                GeneralName::URI(uri) if *uri == caller.as_str() => Ok(()),
                other => Err(SignError::ForeignName { asked: other.to_string(), caller: caller.to_string() }),
            })
        }
        ParsedExtension::ParseError { error } => Err(SignError::Malformed(error.to_string())),
        _ => Ok(()),
    }
}

/// What a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Its one URI name.
    pub identity: SpiffeId,
    /// DNS names beside it: only the mesh's own services have any.
    pub dns: Vec<String>,
}

impl Authority {
    /// Signs for a workload. Returns the chain, leaf first, root last.
    ///
    /// # Errors
    /// When the issuer has expired or cannot sign.
    pub fn sign(
        &self,
        request: &CheckedRequest,
        subject: &Subject,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, SignError> {
        let unsigned = |reason: String| SignError::Issuer(reason);
        let end = self.not_after.min(now + lifetime.max(MIN_LIFETIME));
        if end <= now {
            return Err(unsigned("the issuer's certificate has expired".to_owned()));
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names.push(SanType::URI(name(subject.identity.as_str())?));
        for dns in &subject.dns {
            params.subject_alt_names.push(SanType::DnsName(name(dns)?));
        }
        // A very short leaf is not older than half its life, or "half of the lifetime" would be over at once.
        params.not_before = (now - BACKDATED.min(lifetime / 2)).into();
        params.not_after = end.into();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(random_serial());
        let leaf = params.signed_by(&request.key, &self.issuer).map_err(|e| unsigned(e.to_string()))?;
        Ok(std::iter::once(leaf.der().clone()).chain(self.chain.iter().cloned()).collect())
    }

    /// A certificate of our own, with a new key: the chain without the root, and the key.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn own_certificate(
        &self,
        subject: &Subject,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<(Vec<CertificateDer<'static>>, trust::PrivateKey), SignError> {
        let unsigned = |reason: String| SignError::Issuer(reason);
        let key = trust::PrivateKey::generate().map_err(|e| unsigned(e.to_string()))?;
        let request = key.signing_request(&subject.identity).map_err(|e| unsigned(e.to_string()))?;
        let mut chain = self.sign(&check(&request, &subject.identity)?, subject, lifetime, now)?;
        chain.pop();
        Ok((chain, key))
    }
}

fn name(text: &str) -> Result<rcgen::string::Ia5String, SignError> {
    text.try_into().map_err(|e: rcgen::Error| SignError::Issuer(e.to_string()))
}

/// 127 random bits: positive, and never the same twice.
pub(super) fn random_serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&bytes)
}
