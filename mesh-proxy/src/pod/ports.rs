//! The ports themselves: bound on every address of the pod, served on the control thread. Anybody in the cluster may
//! dial them, so everything is bounded: connections in all and of one address, bytes of a request, time.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::pages::Pages;
use crate::listener::{ListenError, bind_everywhere, bind_one};

/// Connections of one port, and those of one address among them: whoever opens many leaves the others theirs.
const CONNECTIONS: usize = 256;
const OF_ONE_ADDRESS: usize = 32;
/// Bytes of a request's head.
const HEAD: usize = 16 * 1024;
/// How long it may take.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// How long an answer may take to be read.
const READ_TIME: Duration = Duration::from_secs(60);
/// After a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// What a port is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Port {
    /// Merged metrics, probes and handlers of the application.
    Status,
    /// Readiness.
    Ready,
    /// The proxy's own metrics.
    Stats,
}

impl Port {
    /// Its flag.
    fn flag(self) -> &'static str {
        match self {
            Self::Status => "--status-port",
            Self::Ready => "--ready-port",
            Self::Stats => "--stats-port",
        }
    }
}

/// A port that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("{error} ({flag})", flag = port.flag())]
pub struct PortError {
    port: Port,
    error: ListenError,
}

/// The ports, open.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    sockets: Vec<(Port, TcpListener, SocketAddr)>,
}

impl Ports {
    /// Opens `ports`: on every address of the pod, or on the one that is given.
    pub(crate) fn bind(
        ports: impl IntoIterator<Item = (Port, u16)>,
        only: Option<IpAddr>,
    ) -> Result<Self, PortError> {
        let mut all = Self::default();
        for (port, number) in ports {
            let bound = match only {
                Some(ip) => bind_one(SocketAddr::new(ip, number)).map(|bound| vec![bound]),
                None => bind_everywhere(number),
            };
            let bound = bound.map_err(|error| PortError { port, error })?;
            all.sockets.extend(bound.into_iter().map(|(socket, address)| (port, socket, address)));
        }
        Ok(all)
    }

    /// Where they are.
    pub(crate) fn addresses(&self) -> Vec<(Port, SocketAddr)> {
        self.sockets.iter().map(|(port, _, address)| (*port, *address)).collect()
    }

    /// Serves `pages`, for as long as it is polled.
    pub(crate) async fn serve(self, pages: Pages) {
        let pages = Arc::new(pages);
        join_all(self.sockets.iter().map(|(port, socket, _)| accept(socket, *port, &pages))).await;
    }
}

async fn accept(socket: &TcpListener, port: Port, pages: &Arc<Pages>) {
    // Owned here: they end with the port.
    let mut connections = JoinSet::new();
    let mut places = Places::default();
    loop {
        tokio::select! {
            accepted = socket.accept() => match accepted {
                Ok((stream, peer)) => if let Some(place) = places.take(peer.ip()) {
                    connections.spawn(connection(stream, port, Arc::clone(pages), place));
                }
                Err(error) => {
                    tracing::debug!(%error, "a connection to a port of the pod could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => places.shrink(),
        }
    }
}

async fn connection(stream: TcpStream, port: Port, pages: Arc<Pages>, place: Arc<()>) {
    let limit = HEAD_TIME + READ_TIME + pages.longest();
    let service = service_fn(|request| pages.answer(port, request));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(limit, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection to a port of the pod ended"),
        Err(_) => tracing::debug!("a connection to a port of the pod took too long"),
    }
    drop(place);
}

/// Who has how many connections.
#[derive(Default)]
struct Places(HashMap<IpAddr, Vec<std::sync::Weak<()>>>);

impl Places {
    /// A place for one more, given back when dropped; none when there are too many.
    fn take(&mut self, ip: IpAddr) -> Option<Arc<()>> {
        self.shrink();
        let all: usize = self.0.values().map(Vec::len).sum();
        let own = self.0.entry(ip).or_default();
        if all >= CONNECTIONS || own.len() >= OF_ONE_ADDRESS {
            return None;
        }
        let place = Arc::new(());
        own.push(Arc::downgrade(&place));
        Some(place)
    }

    fn shrink(&mut self) {
        self.0.retain(|_, places| {
            places.retain(|place| place.strong_count() > 0);
            !places.is_empty()
        });
    }
}

impl From<PortError> for io::Error {
    fn from(error: PortError) -> Self {
        Self::other(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_all_places() {
        let mut places = Places::default();
        let ip = |n: usize| IpAddr::from([10, 0, 0, u8::try_from(n).unwrap()]);
        let mut held: Vec<_> = (0..OF_ONE_ADDRESS).map(|_| places.take(ip(0)).unwrap()).collect();
        assert!(places.take(ip(0)).is_none(), "one address has its share");
        held.extend((OF_ONE_ADDRESS..CONNECTIONS).map(|n| places.take(ip(1 + n / OF_ONE_ADDRESS)).unwrap()));
        assert!(places.take(ip(99)).is_none(), "there are no more");
        held.pop();
        assert!(places.take(ip(99)).is_some(), "a place comes back");
        drop(held);
        places.shrink();
        assert!(places.0.len() <= 1, "nothing is kept of those that are gone");
    }
}
