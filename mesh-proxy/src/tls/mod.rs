//! The mesh's mutual TLS, both ends: TLS 1.3 only, own workload certificate, peer's SPIFFE identity checked.
//! Certificate and trust bundle are live: a new handshake uses the newest, connections that are up stay.
//! A session is never resumed across another certificate, another bundle or another expected identity.

mod client;
mod error;
mod generation;
mod read_ahead;
mod server;
#[cfg(test)]
pub(crate) mod test_mesh;
#[cfg(test)]
mod tests;
mod verify;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use mesh_common::spiffe::SpiffeId;
use mesh_common::trust::{TrustBundle, WorkloadCertificate, provider};
use rustls::crypto::CryptoProvider;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::config::cluster::MeshTls;
use crate::config::listener::DownstreamTls;

pub use error::{Fault, PeerError, TlsError};
pub use read_ahead::ReadAhead;

use generation::Generation;

/// Limit of a handshake, either side.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The shared handle: what this workload shows to peers, and whom it trusts, at this moment.
#[derive(Debug, Clone)]
pub struct TlsContext(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    provider: Arc<CryptoProvider>,
    state: ArcSwap<State>,
    ready: watch::Sender<bool>,
}

/// What is known now.
#[derive(Debug, Clone, Default)]
struct State {
    certificate: Option<Arc<WorkloadCertificate>>,
    bundle: Option<Arc<TrustBundle>>,
    /// There once both are; made anew, with no session to resume, when either changes.
    generation: Option<Arc<Generation>>,
}

impl Default for TlsContext {
    fn default() -> Self {
        Self::new()
    }
}

impl TlsContext {
    /// Without certificate and without trust: every handshake fails until both are set.
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            provider: provider(),
            state: ArcSwap::default(),
            ready: watch::Sender::new(false),
        }))
    }

    /// New handshakes show this certificate from now on.
    ///
    /// # Errors
    /// When the key does not fit the certificate; the old one stays in use.
    pub fn set_certificate(&self, certificate: WorkloadCertificate) -> Result<(), TlsError> {
        let certificate = Arc::new(certificate);
        client::certified_key(&certificate, &self.0.provider)?;
        self.change(|state| state.certificate = Some(Arc::clone(&certificate)));
        Ok(())
    }

    /// New handshakes trust these roots and no others from now on. The same bundle again changes nothing.
    pub fn set_bundle(&self, bundle: TrustBundle) {
        let bundle = Arc::new(bundle);
        if self.0.state.load().bundle.as_ref() != Some(&bundle) {
            self.change(|state| state.bundle = Some(Arc::clone(&bundle)));
        }
    }

    /// New handshakes trust these roots, too, until [`Self::set_bundle`] says which ones count.
    pub fn add_roots(&self, bundle: &TrustBundle) {
        let all = match self.bundle() {
            Some(present) => present.to_pem() + &bundle.to_pem(),
            None => bundle.to_pem(),
        };
        match TrustBundle::from_pem(&all) {
            Ok(all) => self.set_bundle(all),
            Err(error) => tracing::error!(%error, "two trust bundles do not make one"),
        }
    }

    /// The certificate shown to peers.
    pub fn certificate(&self) -> Option<Arc<WorkloadCertificate>> {
        self.0.state.load().certificate.clone()
    }

    /// The roots trusted.
    pub fn bundle(&self) -> Option<Arc<TrustBundle>> {
        self.0.state.load().bundle.clone()
    }

    /// Whether handshakes can be made: there are a certificate and a bundle.
    pub fn is_ready(&self) -> bool {
        *self.0.ready.borrow()
    }

    /// Tells when handshakes can be made.
    pub fn watch_ready(&self) -> watch::Receiver<bool> {
        self.0.ready.subscribe()
    }

    /// Whether there is a certificate that has not run out.
    pub fn has_valid_certificate(&self) -> bool {
        self.certificate().is_some_and(|own| own.facts.not_after > SystemTime::now())
    }

    /// Resolves when handshakes can be made.
    pub async fn ready(&self) {
        let mut ready = self.0.ready.subscribe();
        // The sender lives in this very handle: it cannot be gone.
        ready.wait_for(|ready| *ready).await.ok();
    }

    /// Server side of a handshake. The client must show a certificate of our trust domain; who it is, is
    /// returned.
    ///
    /// # Errors
    /// With whose fault it is and why.
    pub async fn accept<IO>(
        &self,
        io: IO,
        tls: &DownstreamTls,
    ) -> Result<(tokio_rustls::server::TlsStream<ReadAhead<IO>>, SpiffeId), TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let generation = self.generation()?;
        let config = generation.server_config(&tls.alpn)?;
        within(server::accept(ReadAhead::new(io), config, generation.client_expected())).await
    }

    /// Client side of a handshake. The server must prove that it is exactly `expected`, and choose `alpn`.
    ///
    /// # Errors
    /// With whose fault it is and why.
    pub async fn connect<IO>(
        &self,
        io: IO,
        mesh: &MeshTls,
        expected: &SpiffeId,
        alpn: &'static str,
    ) -> Result<tokio_rustls::client::TlsStream<ReadAhead<IO>>, TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.generation()?.client_config(&mesh.sni, expected, alpn)?;
        within(client::connect(ReadAhead::new(io), config, &mesh.sni, expected, alpn)).await
    }

    /// For connections to the control plane (gRPC): the server must have a chain to the bundle and the DNS name
    /// that is dialled; our certificate is shown when there is a valid one. Without bundle nothing verifies.
    ///
    /// # Errors
    /// When our own certificate cannot be used.
    pub fn control_client_config(&self) -> Result<rustls::ClientConfig, TlsError> {
        let state = self.0.state.load();
        client::control_config(&self.0.provider, state.bundle.as_deref(), state.certificate.as_deref())
    }

    fn generation(&self) -> Result<Arc<Generation>, TlsError> {
        let state = self.0.state.load();
        let Some(certificate) = &state.certificate else { return Err(TlsError::NoCertificate) };
        let not_after = certificate.facts.not_after;
        if not_after <= SystemTime::now() {
            return Err(TlsError::OwnCertificateExpired(error::timestamp(not_after)));
        }
        state.generation.clone().ok_or(TlsError::NoBundle)
    }

    fn change(&self, change: impl Fn(&mut State)) {
        self.0.state.rcu(|old| {
            let mut state = State::clone(old);
            change(&mut state);
            state.generation = match (&state.certificate, &state.bundle) {
                (Some(certificate), Some(bundle)) => {
                    let provider = Arc::clone(&self.0.provider);
                    Some(Arc::new(Generation::new(provider, Arc::clone(certificate), bundle)))
                }
                _ => None,
            };
            state
        });
        let ready = self.0.state.load().generation.is_some();
        self.0.ready.send_if_modified(|was| std::mem::replace(was, ready) != ready);
    }
}

async fn within<T>(handshake: impl Future<Output = Result<T, TlsError>>) -> Result<T, TlsError> {
    let limited = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await;
    limited.unwrap_or(Err(TlsError::Timeout(HANDSHAKE_TIMEOUT)))
}
