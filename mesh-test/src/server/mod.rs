//! Applications for tests, in the test's own process. Each says what it saw; none knows of the mesh.

mod http;
mod tcp;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::certs::{Authority, Leaf};
use crate::place::Place;
use crate::topology::App;

pub use http::Echo;
pub use tcp::BANNER;

/// A running application; it ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    seen: Arc<Seen>,
    root_pem: String,
    _task: JoinSet<()>,
    exit: CancellationToken,
    gone: CancellationToken,
}

/// What arrived so far.
#[derive(Debug, Default)]
pub struct Seen {
    /// Connections.
    pub connections: AtomicU64,
    /// Requests (HTTP only).
    pub requests: AtomicU64,
    /// Bytes of large answers that were taken from us.
    pub large: AtomicU64,
}

/// Who the application says it is.
#[derive(Debug, Clone)]
pub(crate) struct Name {
    pub(crate) pod: String,
    pub(crate) version: String,
}

/// The DNS name in the certificate of an application that speaks TLS itself.
pub const TLS_NAME: &str = "vault.example";

impl Server {
    /// Starts an application on `address` (port 0: any).
    ///
    /// # Errors
    /// When the address is taken.
    pub async fn start(app: App, address: SocketAddr, pod: &str, version: &str) -> Result<Self> {
        Self::start_in(&Place::Here, app, address, pod, version).await
    }

    /// The same, in a network.
    ///
    /// # Errors
    /// When the address is taken.
    pub async fn start_in(
        place: &Place,
        app: App,
        address: SocketAddr,
        pod: &str,
        version: &str,
    ) -> Result<Self> {
        let listener = place.listen(address).await?;
        let address = listener.local_addr()?;
        let seen = Arc::new(Seen::default());
        let name = Arc::new(Name { pod: pod.to_owned(), version: version.to_owned() });
        let authority = Authority::new(pod)?;
        let certificate = authority.leaf(&Leaf { dns: &[TLS_NAME], ..Leaf::default() })?;
        let tls = TlsAcceptor::from(certificate.server_config(&[])?);
        let (exit, gone) = (CancellationToken::new(), CancellationToken::new());
        let mut task = JoinSet::new();
        let serving = serve(Application { app, tls, name, seen: Arc::clone(&seen) }, listener);
        let (told, over) = (exit.clone(), gone.clone());
        task.spawn(async move {
            told.run_until_cancelled_owned(serving).await;
            over.cancel();
        });
        Ok(Self { address, seen, root_pem: authority.root_pem().to_owned(), _task: task, exit, gone })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Exits at once, as an application that knows nothing of shutting down: whatever it has open is closed. Returns
    /// when it is gone.
    pub async fn exit(&self) {
        self.exit.cancel();
        self.gone.cancelled().await;
    }

    /// Connections so far.
    pub fn connections(&self) -> u64 {
        self.seen.connections.load(Ordering::Relaxed)
    }

    /// The root of its own certificate, PEM ([`App::TlsEcho`]).
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// Bytes of large answers that were taken from it so far.
    pub fn large_bytes(&self) -> u64 {
        self.seen.large.load(Ordering::Relaxed)
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.seen.requests.load(Ordering::Relaxed)
    }
}

/// What serves a connection.
#[derive(Clone)]
struct Application {
    app: App,
    tls: TlsAcceptor,
    name: Arc<Name>,
    seen: Arc<Seen>,
}

async fn serve(application: Application, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let number = application.seen.connections.fetch_add(1, Ordering::Relaxed);
                connections.spawn(application.clone().connection(stream, number));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

impl Application {
    async fn connection(self, stream: TcpStream, number: u64) {
        stream.set_nodelay(true).unwrap_or_default();
        let done = match self.app {
            App::Http => http::serve(stream, number, self.name, self.seen).await,
            App::TcpEcho => tcp::echo(stream, false).await,
            App::TcpBanner => tcp::echo(stream, true).await,
            App::TlsEcho => match self.tls.accept(stream).await {
                Ok(stream) => tcp::echo(stream, false).await,
                Err(error) => Err(error.into()),
            },
        };
        // Clients come and go as they like; what matters they assert themselves.
        done.unwrap_or_default();
    }
}
