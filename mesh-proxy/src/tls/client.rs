//! The client side: toward peers, by identity; toward the control plane, by DNS name. It must never hand out a
//! connection to anybody but the one that was expected.

use std::sync::Arc;
use std::time::SystemTime;

use mesh_common::spiffe::SpiffeId;
use mesh_common::trust::{TrustBundle, WorkloadCertificate};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::error::TlsError;
use super::verify::{Expected, PeerVerifier};

/// Tickets kept for one server name and identity; each serves one connection and brings another one, so this is how many
/// may be opened at once without a whole handshake.
const TICKETS: usize = 32;

/// Our certificate as rustls shows it; fails when the key does not fit.
pub(super) fn certified_key(
    certificate: &WorkloadCertificate,
    provider: &CryptoProvider,
) -> Result<SingleCertAndKey, TlsError> {
    CertifiedKey::from_der(certificate.chain.clone(), certificate.key.to_der(), provider)
        .map(SingleCertAndKey::from)
        .map_err(TlsError::OwnCertificate)
}

pub(super) fn config(
    provider: &Arc<CryptoProvider>,
    certificate: &WorkloadCertificate,
    verifier: Arc<PeerVerifier>,
    alpn: &'static str,
) -> Result<ClientConfig, TlsError> {
    let mut config = builder(provider)?
        .dangerous() // not so: it is the only way to bring a verifier, and ours is stricter
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(certified_key(certificate, provider)?));
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    config.resumption = Resumption::in_memory_sessions(TICKETS);
    Ok(config)
}

pub(super) async fn connect<IO: AsyncRead + AsyncWrite + Unpin>(
    io: IO,
    config: Arc<ClientConfig>,
    sni: &str,
    expected: &SpiffeId,
    alpn: &'static str,
) -> Result<TlsStream<IO>, TlsError> {
    let name = ServerName::try_from(sni.to_owned()).map_err(|_| TlsError::ServerName(sni.to_owned()))?;
    let stream = TlsConnector::from(config).connect(name, io).await.map_err(TlsError::from_io)?;
    let connection = stream.get_ref().1;
    Expected::Identity(expected.clone())
        .check_finished(connection.peer_certificates(), SystemTime::now())
        .map_err(TlsError::Peer)?;
    match connection.alpn_protocol() {
        Some(chosen) if chosen == alpn.as_bytes() => Ok(stream),
        chosen => Err(TlsError::Alpn {
            asked: alpn.to_owned(),
            chosen: chosen.map_or("none".into(), |it| String::from_utf8_lossy(it).into_owned()),
        }),
    }
}

pub(super) fn control_config(
    provider: &Arc<CryptoProvider>,
    bundle: Option<&TrustBundle>,
    certificate: Option<&WorkloadCertificate>,
) -> Result<ClientConfig, TlsError> {
    let roots = bundle.map_or_else(RootCertStore::empty, TrustBundle::root_store);
    let builder = builder(provider)?.with_root_certificates(roots);
    // One that ran out would be refused; the token still says who we are.
    let mut config = match certificate.filter(|it| it.facts.not_after > SystemTime::now()) {
        Some(certificate) => {
            builder.with_client_cert_resolver(Arc::new(certified_key(certificate, provider)?))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn builder(provider: &Arc<CryptoProvider>) -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, TlsError> {
    ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::OwnCertificate)
}
