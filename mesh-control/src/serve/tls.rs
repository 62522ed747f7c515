//! The TLS side of the server: TLS 1.3, our own certificate renewed live, client certificates optional and
//! checked. A connection whose client shows a certificate that names no workload of this mesh is closed, and
//! one that does not finish its handshake in time too. Whoever connects and says nothing must never keep others out.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use mesh_common::process::DrainGuard;
use mesh_common::spiffe::{InvalidSpiffeId, SpiffeId};
use mesh_common::trust;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;
use tonic::transport::server::Connected;

use super::limit::{Exceeded, Limiter, Permit};
use super::metrics::Metrics;
use crate::ca::caller::PeerCertificate;
use crate::ca::names::service_names;
use crate::ca::root::Authority;
use crate::ca::sign::{SignError, Subject};
use crate::model::facts::FactKey;
use crate::model::facts::Facts as _;
use crate::model::store::{Changes, SharedModel};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes under way. One that is slow costs memory and no more, so there may be many; one address never has
/// so many that others find none left.
const MAX_HANDSHAKES: usize = 4_096;
const MAX_HANDSHAKES_PER_ADDRESS: usize = 256;
const MAX_CONNECTIONS: usize = 20_000;
/// Many pods may be behind one address, but not the whole mesh.
const MAX_CONNECTIONS_PER_ADDRESS: usize = 4_096;
/// The wall clock is read again at least this often: a machine that slept must not serve an old certificate.
const CLOCK_INTERVAL: Duration = Duration::from_secs(60);

/// Why the server has no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    /// Our own certificate cannot be made.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// rustls refuses it.
    #[error("TLS cannot be set up: {0}")]
    Rustls(#[from] rustls::Error),
    /// We have no identity of our own.
    #[error("mesh-control has no identity of its own: {0}; check trustDomain and --namespace")]
    Identity(#[from] InvalidSpiffeId),
    /// The client verifier cannot be made.
    #[error("client certificates cannot be verified: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// Our own names, which follow the mesh's settings.
#[derive(Clone)]
pub struct OwnNames {
    /// Has the settings.
    pub model: SharedModel,
    /// Our own namespace.
    pub namespace: String,
}

impl OwnNames {
    /// The identity, and the DNS names that proxies know us by.
    fn subject(&self) -> Result<Subject, InvalidSpiffeId> {
        let settings = self.model.read().settings();
        let identity = SpiffeId::new(&settings.trust_domain, &self.namespace, "mesh-control")?;
        let dns = service_names(&identity, &settings, &self.namespace);
        Ok(Subject { identity, dns })
    }
}

/// The serving certificate, issued by our own authority and replaced before it ends, and when our names change.
pub struct ServingCertificate {
    authority: Arc<Authority>,
    names: OwnNames,
    lifetime: Duration,
    current: ArcSwap<CertifiedKey>,
}

impl std::fmt::Debug for ServingCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServingCertificate").field("lifetime", &self.lifetime).finish_non_exhaustive()
    }
}

impl ServingCertificate {
    /// Issues the first one.
    ///
    /// # Errors
    /// When we have no name, or it cannot be signed.
    pub fn issue(
        authority: Arc<Authority>,
        names: OwnNames,
        lifetime: Duration,
    ) -> Result<Self, TlsSetupError> {
        let current = ArcSwap::from_pointee(certified_key(&authority, &names.subject()?, lifetime)?);
        Ok(Self { authority, names, lifetime, current })
    }

    /// Replaces it at half of its life, and at once when the settings give us another name, until the process drains.
    /// `changes` must have been subscribed before the first one was issued.
    pub async fn renew(&self, mut changes: Changes, mut guard: DrainGuard) {
        let mut subject = self.names.subject().ok();
        let mut due = SystemTime::now() + self.lifetime / 2;
        loop {
            let wait = due.duration_since(SystemTime::now()).unwrap_or_default().min(CLOCK_INTERVAL);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                changed = changes.next() => {
                    if !changed.touches(&FactKey::Settings) {
                        continue;
                    }
                }
                () = guard.draining() => return,
            }
            let now = self.names.subject().ok();
            if SystemTime::now() < due && now == subject {
                continue;
            }
            due = SystemTime::now() + self.lifetime / 2;
            let renewed = self.names.subject().map_err(TlsSetupError::from);
            match renewed.and_then(|subject| certified_key(&self.authority, &subject, self.lifetime)) {
                Ok(next) => {
                    self.current.store(Arc::new(next));
                    subject = now;
                }
                Err(error) => {
                    tracing::error!(%error, "the serving certificate cannot be renewed; trying again");
                    due = SystemTime::now() + CLOCK_INTERVAL.min(self.lifetime / 10);
                }
            }
        }
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

fn certified_key(
    authority: &Authority,
    subject: &Subject,
    lifetime: Duration,
) -> Result<CertifiedKey, TlsSetupError> {
    let (chain, key) = authority.own_certificate(subject, lifetime, SystemTime::now())?;
    Ok(CertifiedKey::from_der(chain, key.to_der(), &trust::provider())?)
}

/// The server's TLS settings.
///
/// # Errors
/// When the roots cannot be used.
pub fn server_config(certificate: Arc<ServingCertificate>) -> Result<rustls::ServerConfig, TlsSetupError> {
    let roots = Arc::new(certificate.authority.bundle().root_store());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, trust::provider())
        .allow_unauthenticated()
        .build()?;
    let mut config = rustls::ServerConfig::builder_with_provider(trust::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would carry a client certificate that nobody checks again.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// Its address.
    pub address: SocketAddr,
    /// Its client certificate, verified.
    pub certificate: Option<PeerCertificate>,
}

/// A connection after its handshake. Counts as one of the connections of the server until it is dropped.
pub struct Connection {
    io: TlsStream<TcpStream>,
    peer: PeerInfo,
    _slot: Permit<IpAddr>,
}

impl Connected for Connection {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Accepts connections and shakes hands with many at once.
pub struct Acceptor {
    acceptor: TlsAcceptor,
    model: SharedModel,
    metrics: Arc<Metrics>,
    handshakes: Arc<Limiter<IpAddr>>,
    connections: Arc<Limiter<IpAddr>>,
}

/// The places that a connection takes: among all connections, and among those whose handshake is not done.
type Places = (Permit<IpAddr>, Permit<IpAddr>);

impl Acceptor {
    /// With these settings, for clients of the model's trust domain.
    pub fn new(config: rustls::ServerConfig, model: SharedModel, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            model,
            metrics,
            handshakes: Limiter::new(MAX_HANDSHAKES_PER_ADDRESS, MAX_HANDSHAKES),
            connections: Limiter::new(MAX_CONNECTIONS_PER_ADDRESS, MAX_CONNECTIONS),
        })
    }

    /// Accepts until the process drains; finished connections go to `ready`.
    pub async fn run(
        self: Arc<Self>,
        listener: TcpListener,
        ready: mpsc::Sender<std::io::Result<Connection>>,
        tasks: TaskTracker,
        mut guard: DrainGuard,
    ) {
        loop {
            let accepted = tokio::select! {
                accepted = self.accept(&listener) => accepted,
                () = guard.draining() => return,
            };
            let Some((socket, address)) = accepted else { continue };
            // Nothing waits here for a place: whoever finds none is turned away, and the next one is looked at.
            let Some((slot, shaking)) = self.places(address) else { continue };
            let (this, ready, mut guard) = (Arc::clone(&self), ready.clone(), guard.clone());
            tasks.spawn(async move {
                let connection = tokio::select! {
                    connection = this.handshake(socket, address, slot) => connection,
                    () = guard.draining() => return,
                };
                drop(shaking);
                match connection {
                    Ok(connection) => {
                        if ready.send(Ok(connection)).await.is_err() {
                            tracing::debug!("the server has stopped");
                        }
                    }
                    Err(reason) => {
                        this.metrics.failed_handshakes.inc();
                        tracing::info!(peer = %address, reason, "a TLS handshake failed");
                    }
                }
            });
        }
    }

    async fn accept(&self, listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
        match listener.accept().await {
            Ok(accepted) => Some(accepted),
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                // Out of descriptors, most likely: without a pause this loop would take a whole core.
                tokio::time::sleep(Duration::from_millis(50)).await;
                None
            }
        }
    }

    fn places(&self, peer: SocketAddr) -> Option<Places> {
        let slot = self.connections.take(peer.ip()).map_err(|exceeded| match exceeded {
            Exceeded::Each(_) => "connections_of_address",
            Exceeded::Total(_) => "connections",
        });
        let places = slot.and_then(|slot| {
            let shaking = self.handshakes.take(peer.ip()).map_err(|exceeded| match exceeded {
                Exceeded::Each(_) => "handshakes_of_address",
                Exceeded::Total(_) => "handshakes",
            })?;
            Ok((slot, shaking))
        });
        places
            .map_err(|reason| {
                self.metrics.refused_connection(reason);
                tracing::debug!(%peer, reason, "too many connections; this one is closed");
            })
            .ok()
    }

    async fn handshake(
        &self,
        socket: TcpStream,
        address: SocketAddr,
        slot: Permit<IpAddr>,
    ) -> Result<Connection, String> {
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY cannot be set");
        }
        let io = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(socket))
            .await
            .map_err(|_| format!("it took longer than {} s", HANDSHAKE_TIMEOUT.as_secs()))?
            .map_err(|error| error.to_string())?;
        let certificate = self.certificate(io.get_ref().1)?;
        Ok(Connection { io, peer: PeerInfo { address, certificate }, _slot: slot })
    }

    /// webpki has checked the chain; it does not look at URI names, so this does.
    fn certificate(&self, session: &rustls::ServerConnection) -> Result<Option<PeerCertificate>, String> {
        let Some(leaf) = session.peer_certificates().and_then(<[_]>::first) else { return Ok(None) };
        let identity = trust::identity_of(leaf).map_err(|error| error.to_string())?;
        let settings = self.model.read().settings();
        if identity.trust_domain() != settings.trust_domain {
            return Err(format!("{identity} is of another trust domain than {}", settings.trust_domain));
        }
        let not_after = trust::certificate_facts(leaf).map_err(|error| error.to_string())?.not_after;
        Ok(Some(PeerCertificate { identity, not_after }))
    }
}
