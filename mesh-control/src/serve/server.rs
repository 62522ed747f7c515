//! The server on the mesh's port: TLS, discovery and certificates in one place, because proxies reach both by
//! one name. It decides nothing; it only puts bounds around what is served.

use std::sync::Arc;
use std::time::Duration;

use mesh_common::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use mesh_common::process::DrainGuard;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;

use super::discovery::Discovery;
use super::metrics::Metrics;
use super::stream::Handler;
use super::tls::{Acceptor, OwnNames, ServingCertificate, TlsSetupError, server_config};
use super::wire::DiscoveryService;
use crate::ca::caller::Authenticator;
use crate::ca::root::Authority;
use crate::ca::serve::CertificateService;
use crate::model::store::SharedModel;

/// A signing request with everything around it is far below this.
const MAX_SIGNING_MESSAGE: usize = 64 << 10;
/// A proxy needs one stream and now and then a signing request.
const MAX_STREAMS_PER_CONNECTION: u32 = 16;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections after their handshake, until the server takes them.
const READY_CONNECTIONS: usize = 16;

/// What the server is made from.
pub struct Server {
    /// The model, synced.
    pub model: SharedModel,
    /// Serves streams.
    pub discovery: Arc<Discovery>,
    /// Signs.
    pub authority: Arc<Authority>,
    /// Proves callers.
    pub authenticator: Authenticator,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Our own namespace.
    pub namespace: String,
    /// The longest life of a leaf, our own too.
    pub leaf_lifetime: Duration,
    /// Everything runs as tasks of this tracker.
    pub tasks: TaskTracker,
    /// Until this drains.
    pub guard: DrainGuard,
}

impl Server {
    /// Serves on a bound listener, in tasks of its own.
    ///
    /// # Errors
    /// When there can be no certificate of our own.
    pub fn serve(self, listener: TcpListener) -> Result<(), TlsSetupError> {
        let Self {
            model,
            discovery,
            authority,
            authenticator,
            metrics,
            namespace,
            leaf_lifetime,
            tasks,
            guard,
        } = self;
        let changes = model.subscribe();
        let names = OwnNames { model: model.clone(), namespace: namespace.clone() };
        let own = Arc::new(ServingCertificate::issue(Arc::clone(&authority), names, leaf_lifetime)?);
        let acceptor = Acceptor::new(server_config(Arc::clone(&own))?, model.clone(), Arc::clone(&metrics));
        let renewal = guard.clone();
        tasks.spawn(async move { own.renew(changes, renewal).await });
        let (ready, connections) = mpsc::channel(READY_CONNECTIONS);
        tasks.spawn(acceptor.run(listener, ready, tasks.clone(), guard.clone()));

        let certificates =
            CertificateService::new(authority, authenticator, model, namespace, leaf_lifetime, metrics);
        let certificates = IstioCertificateServiceServer::new(certificates);
        let handler = Arc::new(Handler::new(discovery, tasks.clone(), guard.clone()));
        let server = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
            .add_service(DiscoveryService::new(handler))
            .add_service(certificates.max_decoding_message_size(MAX_SIGNING_MESSAGE));
        let mut guard = guard;
        tasks.spawn(async move {
            let stop = async move { guard.draining().await };
            let incoming = ReceiverStream::new(connections);
            if let Err(error) = server.serve_with_incoming_shutdown(incoming, stop).await {
                tracing::error!(%error, "the server is gone");
            }
        });
        Ok(())
    }
}
