//! Why a TLS handshake failed: whose fault, and a sentence that a person can act on. An error about identity
//! names both the identity that was expected and the one that was presented.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_common::spiffe::SpiffeId;
use mesh_common::trust::TrustError;
use rustls::{CertificateError, OtherError, PeerIncompatible, PeerMisbehaved};

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No certificate was issued to this workload yet.
    #[error("this workload has no certificate yet: the certificate authority has not answered")]
    NoCertificate,
    /// No trust bundle is known yet.
    #[error("this workload has no trust bundle yet")]
    NoBundle,
    /// Our own certificate ran out and could not be renewed.
    #[error("the certificate of this workload expired at {0} and could not be renewed")]
    OwnCertificateExpired(jiff::Timestamp),
    /// Our own certificate and key cannot be used.
    #[error("the certificate of this workload cannot be used: {0}")]
    OwnCertificate(rustls::Error),
    /// The name to send to the server is not a DNS name.
    #[error("{0:?} cannot be sent as TLS server name")]
    ServerName(String),
    /// The handshake took too long.
    #[error("the TLS handshake did not finish within {0:?}")]
    Timeout(Duration),
    /// The peer's certificate was refused.
    #[error(transparent)]
    Peer(PeerError),
    /// The peer refused us: our certificate, or what we offered.
    #[error("the peer refused the TLS handshake with alert {0:?}")]
    RefusedByPeer(rustls::AlertDescription),
    /// The first bytes are not TLS.
    #[error("the peer does not speak TLS")]
    NotTls,
    /// The peer speaks TLS 1.2 or older.
    #[error("the peer does not offer TLS 1.3")]
    OldVersion,
    /// Both sides have no application protocol in common.
    #[error("the peer does not speak the application protocol {asked}: it chose {chosen}")]
    Alpn {
        /// What we asked for.
        asked: String,
        /// What the peer chose.
        chosen: String,
    },
    /// The peer broke the protocol.
    #[error("TLS failed: {0}")]
    Protocol(rustls::Error),
    /// The connection broke.
    #[error("the connection broke during the TLS handshake: {0}")]
    Io(io::Error),
}

/// Why the peer's certificate was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// It presented none.
    #[error("the peer presented no certificate")]
    NoCertificate,
    /// It ran out.
    #[error("the certificate of the peer {peer} expired at {at}")]
    Expired {
        /// Who it claims to be.
        peer: String,
        /// When it ran out.
        at: jiff::Timestamp,
    },
    /// Its time has not come; one of the clocks may be wrong.
    #[error("the certificate of the peer {peer} is not valid before {at}; is the clock right?")]
    NotYetValid {
        /// Who it claims to be.
        peer: String,
        /// When it becomes valid.
        at: jiff::Timestamp,
    },
    /// It was not signed by a root that the mesh trusts.
    #[error("the certificate of the peer {peer} is not signed by a root of the mesh's trust bundle")]
    UnknownIssuer {
        /// Who it claims to be.
        peer: String,
    },
    /// It does not name exactly one workload.
    #[error("the peer has no workload identity: {0}")]
    NoIdentity(String),
    /// It is of another mesh.
    #[error("the peer {peer} is not of the trust domain {expected}")]
    TrustDomain {
        /// Who it is.
        peer: SpiffeId,
        /// Our own trust domain.
        expected: String,
    },
    /// It is somebody else.
    #[error("the peer is {presented}, expected {expected}")]
    WrongIdentity {
        /// Who must be there.
        expected: SpiffeId,
        /// Who is there.
        presented: SpiffeId,
    },
    /// Anything else that makes a chain bad.
    #[error("the certificate of the peer {peer} is refused: {reason}")]
    Invalid {
        /// Who it claims to be.
        peer: String,
        /// What is wrong.
        reason: String,
    },
}

/// Whose fault a failed handshake is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Ours: certificate, bundle.
    Us,
    /// The other side's.
    Peer,
    /// The network's.
    Network,
}

impl TlsError {
    /// Whose fault it is.
    pub const fn fault(&self) -> Fault {
        match self {
            Self::NoCertificate
            | Self::NoBundle
            | Self::OwnCertificateExpired(_)
            | Self::OwnCertificate(_)
            | Self::ServerName(_) => Fault::Us,
            Self::Timeout(_) | Self::Io(_) => Fault::Network,
            Self::Peer(_)
            | Self::RefusedByPeer(_)
            | Self::NotTls
            | Self::OldVersion
            | Self::Alpn { .. }
            | Self::Protocol(_) => Fault::Peer,
        }
    }

    /// A constant word for metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_own_certificate",
            Self::NoBundle => "no_trust_bundle",
            Self::OwnCertificateExpired(_) => "own_certificate_expired",
            Self::OwnCertificate(_) => "own_certificate",
            Self::ServerName(_) => "server_name",
            Self::Timeout(_) => "tls_timeout",
            Self::Peer(peer) => peer.label(),
            Self::RefusedByPeer(_) => "refused_by_peer",
            Self::NotTls => "not_tls",
            Self::OldVersion => "tls_version",
            Self::Alpn { .. } => "alpn",
            Self::Protocol(_) => "tls_protocol",
            Self::Io(_) => "connection_broken",
        }
    }

    /// What tokio-rustls wraps into an I/O error, taken out again.
    pub(super) fn from_io(error: io::Error) -> Self {
        let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
            return Self::Io(error);
        };
        match tls {
            rustls::Error::AlertReceived(alert) => Self::RefusedByPeer(*alert),
            rustls::Error::InvalidMessage(_) => Self::NotTls,
            rustls::Error::NoCertificatesPresented => Self::Peer(PeerError::NoCertificate),
            rustls::Error::PeerIncompatible(
                PeerIncompatible::Tls13RequiredForQuic
                | PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
            )
            | rustls::Error::PeerMisbehaved(PeerMisbehaved::SelectedTls12UsingTls13VersionExtension) => {
                Self::OldVersion
            }
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
                match inner.downcast_ref::<PeerError>() {
                    Some(peer) => Self::Peer(peer.clone()),
                    None => Self::Protocol(tls.clone()),
                }
            }
            other => Self::Protocol(other.clone()),
        }
    }
}

impl PeerError {
    /// A constant word for metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_peer_certificate",
            Self::Expired { .. } => "peer_certificate_expired",
            Self::NotYetValid { .. } => "peer_certificate_not_yet_valid",
            Self::UnknownIssuer { .. } => "peer_issuer_unknown",
            Self::NoIdentity(_) => "peer_without_identity",
            Self::TrustDomain { .. } => "peer_trust_domain",
            Self::WrongIdentity { .. } => "peer_identity",
            Self::Invalid { .. } => "peer_certificate_invalid",
        }
    }
}

impl From<TrustError> for PeerError {
    fn from(error: TrustError) -> Self {
        Self::NoIdentity(error.to_string())
    }
}

impl From<PeerError> for rustls::Error {
    fn from(error: PeerError) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    }
}

/// A time as people read it; the epoch for what cannot be one.
pub(super) fn timestamp(time: SystemTime) -> jiff::Timestamp {
    jiff::Timestamp::try_from(time).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}
