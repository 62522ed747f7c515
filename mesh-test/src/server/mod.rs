//! Applications for tests, in the test's own process. Each says what it saw; none knows of the mesh.

mod http;
mod tcp;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::topology::App;

pub use http::Echo;
pub use tcp::BANNER;

/// A running application; it ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    seen: Arc<Seen>,
    _task: JoinSet<()>,
}

/// What arrived so far.
#[derive(Debug, Default)]
pub struct Seen {
    /// Connections.
    pub connections: AtomicU64,
    /// Requests (HTTP only).
    pub requests: AtomicU64,
}

/// Who the application says it is.
#[derive(Debug, Clone)]
pub(crate) struct Name {
    pub(crate) pod: String,
    pub(crate) version: String,
}

impl Server {
    /// Starts an application on `address` (port 0: any).
    ///
    /// # Errors
    /// When the address is taken.
    pub async fn start(app: App, address: SocketAddr, pod: &str, version: &str) -> Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let seen = Arc::new(Seen::default());
        let name = Arc::new(Name { pod: pod.to_owned(), version: version.to_owned() });
        let mut task = JoinSet::new();
        task.spawn(serve(app, listener, name, Arc::clone(&seen)));
        Ok(Self { address, seen, _task: task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections so far.
    pub fn connections(&self) -> u64 {
        self.seen.connections.load(Ordering::Relaxed)
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.seen.requests.load(Ordering::Relaxed)
    }
}

async fn serve(app: App, listener: TcpListener, name: Arc<Name>, seen: Arc<Seen>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let number = seen.connections.fetch_add(1, Ordering::Relaxed);
                connections.spawn(connection(app, stream, number, Arc::clone(&name), Arc::clone(&seen)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(app: App, stream: TcpStream, number: u64, name: Arc<Name>, seen: Arc<Seen>) {
    let done = match app {
        App::Http => http::serve(stream, number, name, seen).await,
        App::TcpEcho => tcp::echo(stream, false).await,
        App::TcpBanner => tcp::echo(stream, true).await,
    };
    // Clients come and go as they like; what matters they assert themselves.
    done.unwrap_or_default();
}
