//! HTTP/1.1 connections to one endpoint: those at rest, for the next request. A connection is used by one
//! request at a time; one that is not known to be at rest is never handed out.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::UpstreamError;
use crate::connection::Io;
use crate::http::body::RequestBody;
use crate::telemetry::ResponseFlags;

/// Connections at rest, at most.
const MAX_IDLE: usize = 128;
/// A connection at rest is closed after this time.
const IDLE: Duration = Duration::from_secs(60);

/// The pool of one endpoint.
#[derive(Default)]
pub(crate) struct Pool {
    idle: RefCell<Vec<Http1>>,
    closed: Cell<bool>,
}

/// One connection.
pub(crate) struct Http1 {
    /// Sends requests.
    pub(crate) sender: SendRequest<RequestBody>,
    born: Instant,
    last_used: Instant,
    /// Whether a request was answered on it: only then can the peer have closed it for having been idle.
    pub(crate) reused: bool,
}

impl Pool {
    /// A connection that can send a request now; the one that was used last, so that the others may age.
    pub(crate) fn checkout(&self) -> Option<Http1> {
        let mut idle = self.idle.borrow_mut();
        let mut at = idle.len();
        while at > 0 {
            at -= 1;
            if idle[at].sender.is_closed() {
                idle.swap_remove(at);
                at = at.min(idle.len());
            } else if idle[at].sender.is_ready() {
                return Some(idle.remove(at));
            }
            // Else its last response has just ended, or its last request has not: it stays.
        }
        None
    }

    /// Takes a connection back whose response has ended.
    pub(crate) fn checkin(&self, mut connection: Http1, now: Instant) {
        let mut idle = self.idle.borrow_mut();
        if self.closed.get() || connection.sender.is_closed() || idle.len() >= MAX_IDLE {
            return;
        }
        connection.reused = true;
        connection.last_used = now;
        idle.push(connection);
    }

    /// Closes what has rested for long, or lived for longer than `max_age`.
    pub(crate) fn sweep(&self, now: Instant, max_age: Duration) {
        self.idle.borrow_mut().retain(|connection| {
            !connection.sender.is_closed()
                && now.duration_since(connection.last_used) < IDLE
                && now.duration_since(connection.born) < max_age
        });
    }

    /// Closes everything at rest, and what comes back later.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.idle.borrow_mut().clear();
    }

    /// Connections at rest.
    pub(crate) fn len(&self) -> usize {
        self.idle.borrow().len()
    }
}

/// Speaks HTTP/1.1 over an open connection. The task that drives it ends when the sender is dropped.
pub(crate) async fn handshake(io: Io) -> Result<Http1, UpstreamError> {
    // Answers with more than MAX_HEADERS headers fail: that is hyper's own bound, and one that is told goes to the heap.
    let builder = Builder::new();
    let (sender, driver) = builder.handshake::<_, RequestBody>(TokioIo::new(io)).await.map_err(|error| {
        UpstreamError::new(ResponseFlags::UPSTREAM_CONNECTION_FAILURE, format!("HTTP/1.1: {error}"))
    })?;
    tokio::task::spawn_local(async move {
        if let Err(error) = driver.with_upgrades().await {
            tracing::debug!(%error, "upstream HTTP/1.1 connection ended");
        }
    });
    let now = Instant::now();
    Ok(Http1 { sender, born: now, last_used: now, reused: false })
}
