//! Who the peer is. webpki checks the chain; names of type URI are ours to check, and this is the only place
//! that does. It must never accept a peer whose leaf does not name exactly one workload of our trust domain.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_common::spiffe::SpiffeId;
use mesh_common::trust::{certificate_facts, identity_of};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use super::error::{PeerError, timestamp};

/// Checks a peer: chain, time, identity.
#[derive(Debug)]
pub(super) struct PeerVerifier {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
    pub(super) expected: Expected,
}

/// Who may be there.
#[derive(Debug, Clone)]
pub(super) enum Expected {
    /// Anybody of this trust domain: a client.
    TrustDomain(String),
    /// Exactly this one: a server that we dialled.
    Identity(SpiffeId),
}

impl Expected {
    /// The identity in a leaf, if it is one that may be there.
    pub(super) fn check(&self, leaf: &[u8]) -> Result<SpiffeId, PeerError> {
        let presented = identity_of(leaf)?;
        match self {
            Self::TrustDomain(domain) if presented.trust_domain() != domain => {
                Err(PeerError::TrustDomain { peer: presented, expected: domain.clone() })
            }
            Self::Identity(expected) if presented != *expected => {
                Err(PeerError::WrongIdentity { expected: expected.clone(), presented })
            }
            Self::TrustDomain(_) | Self::Identity(_) => Ok(presented),
        }
    }

    /// Checks the leaf of a finished handshake once more, with its time. rustls does not verify certificates
    /// when a session is resumed: it hands out those of the first handshake, which may have run out since.
    pub(super) fn check_finished(
        &self,
        chain: Option<&[CertificateDer<'_>]>,
        now: SystemTime,
    ) -> Result<SpiffeId, PeerError> {
        let leaf = chain.and_then(<[_]>::first).ok_or(PeerError::NoCertificate)?;
        let identity = self.check(leaf)?;
        let facts = certificate_facts(leaf)?;
        if facts.not_after < now {
            return Err(PeerError::Expired { peer: identity.to_string(), at: timestamp(facts.not_after) });
        }
        Ok(identity)
    }
}

impl PeerVerifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), rustls::Error> {
        let refused = |error| chain_error(error, leaf);
        let certificate = EndEntityCert::try_from(leaf).map_err(refused)?;
        certificate
            .verify_for_usage(self.algorithms.all, &self.roots.roots, intermediates, now, usage, None, None)
            .map_err(refused)?;
        self.expected.check(leaf)?;
        Ok(())
    }

    fn verify_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }
}

fn chain_error(error: webpki::Error, leaf: &CertificateDer<'_>) -> PeerError {
    let peer = match identity_of(leaf) {
        Ok(identity) => identity.to_string(),
        Err(_) => "without workload identity".to_owned(),
    };
    let at = |time: UnixTime| timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs()));
    match error {
        webpki::Error::CertExpired { not_after, .. } => PeerError::Expired { peer, at: at(not_after) },
        webpki::Error::CertNotValidYet { not_before, .. } => {
            PeerError::NotYetValid { peer, at: at(not_before) }
        }
        // A foreign root may carry the name of ours: then it is the signature that does not fit.
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            PeerError::UnknownIssuer { peer }
        }
        other => PeerError::Invalid { peer, reason: format!("{other:?}") },
    }
}

/// There is no TLS 1.2 in the mesh: nothing of it may ever verify.
fn no_tls12() -> rustls::Error {
    rustls::Error::PeerIncompatible(rustls::PeerIncompatible::ServerDoesNotSupportTls12Or13)
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>, // it says which service is meant; who is there is said by the identity
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(leaf, intermediates, now, KeyUsage::server_auth())?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A workload has one certificate; there is nothing to choose from.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(leaf, intermediates, now, KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
