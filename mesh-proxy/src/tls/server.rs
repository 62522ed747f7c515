//! The server side: a client certificate is always required. It must never hand out a connection whose peer is
//! not known.

use std::sync::Arc;
use std::time::SystemTime;

use mesh_common::spiffe::SpiffeId;
use mesh_common::trust::WorkloadCertificate;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::ServerSessionMemoryCache;
use rustls::version::TLS13;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::client::certified_key;
use super::error::TlsError;
use super::verify::{Expected, PeerVerifier};

/// Sessions that can be resumed. Kept here, not in tickets, so that they end with the generation.
const SESSIONS: usize = 512;

pub(super) fn config(
    provider: &Arc<CryptoProvider>,
    certificate: &WorkloadCertificate,
    verifier: Arc<PeerVerifier>,
    alpn: &[String],
) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::OwnCertificate)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(certified_key(certificate, provider)?));
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.clone().into_bytes()).collect();
    config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
    // A connection uses up one ticket at most: one in its place is enough.
    config.send_tls13_tickets = 1;
    Ok(config)
}

pub(super) async fn accept<IO: AsyncRead + AsyncWrite + Unpin>(
    io: IO,
    config: Arc<ServerConfig>,
    expected: Expected,
) -> Result<(TlsStream<IO>, SpiffeId), TlsError> {
    let stream = TlsAcceptor::from(config).accept(io).await.map_err(TlsError::from_io)?;
    let chain = stream.get_ref().1.peer_certificates();
    let peer = expected.check_finished(chain, SystemTime::now()).map_err(TlsError::Peer)?;
    Ok((stream, peer))
}
