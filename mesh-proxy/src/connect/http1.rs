//! HTTP/1.1 connections to one endpoint that wait for the next request. A connection is used by one request at a time; one
//! that is not known to be idle is never handed out.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use futures_util::FutureExt as _;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::UpstreamError;
use super::rest::{Handle, lend};
use crate::connection::{Io, REST};
use crate::http::body::RequestBody;
use crate::telemetry::ResponseFlags;

/// Connections that wait, at most. As many as there are requests at once: one that is closed now is opened again, with a
/// handshake, at the next moment.
const MAX_IDLE: usize = 1024;
/// A connection that waits is closed after this time.
const IDLE: Duration = Duration::from_secs(60);

/// The pool of one endpoint.
#[derive(Default)]
pub(crate) struct Pool {
    idle: RefCell<Vec<Http1>>,
    resting: RefCell<Vec<Resting>>,
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
    handle: Handle,
}

/// One that rests.
struct Resting {
    handle: Handle,
    born: Instant,
    last_used: Instant,
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
        drop(idle);
        let mut resting = self.resting.borrow_mut();
        while let Some(Resting { handle, born, .. }) = resting.pop() {
            // It takes no time: nothing passes.
            if let Some(Ok(connection)) = handle.take().and_then(|io| handshake(io).now_or_never()) {
                return Some(Http1 { born, reused: true, ..connection });
            }
        }
        None
    }

    /// Takes a connection back whose response has ended.
    pub(crate) fn checkin(&self, mut connection: Http1, now: Instant) {
        let mut idle = self.idle.borrow_mut();
        let waiting = idle.len() + self.resting.borrow().len();
        if self.closed.get() || connection.sender.is_closed() || waiting >= MAX_IDLE {
            return;
        }
        connection.reused = true;
        connection.last_used = now;
        idle.push(connection);
    }

    /// Closes what has waited for long, or lived for longer than `max_age`, and lets rest what has waited for a while.
    pub(crate) fn sweep(&self, now: Instant, max_age: Duration) {
        let is_old =
            |born, last_used| now.duration_since(born) >= max_age || now.duration_since(last_used) >= IDLE;
        let mut resting = self.resting.borrow_mut();
        resting.retain(|it| !it.handle.is_gone() && !is_old(it.born, it.last_used));
        let mut idle = self.idle.borrow_mut();
        idle.retain(|it| !it.sender.is_closed() && !is_old(it.born, it.last_used));
        let rests = |it: &mut Http1| it.sender.is_ready() && now.duration_since(it.last_used) >= REST;
        resting.extend(idle.extract_if(.., rests).map(|Http1 { handle, born, last_used, .. }| {
            // It comes back when hyper hears that there will be no other request.
            handle.recall();
            Resting { handle, born, last_used }
        }));
    }

    /// Closes everything that waits, and what comes back later.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.idle.borrow_mut().clear();
        self.resting.borrow_mut().clear();
    }

    #[cfg(test)]
    pub(crate) fn resting(&self) -> usize {
        self.resting.borrow().iter().filter(|it| it.handle.is_held()).count()
    }

    /// Connections that wait.
    pub(crate) fn len(&self) -> usize {
        self.idle.borrow().len() + self.resting.borrow().len()
    }
}

/// Speaks HTTP/1.1 over an open connection. The task that drives it ends with its owner.
pub(crate) async fn handshake(io: Io) -> Result<Http1, UpstreamError> {
    // Answers with more than MAX_HEADERS headers fail: that is hyper's own bound, and one that is told goes to the heap.
    let builder = Builder::new();
    let (lent, handle, keeper) = lend(io);
    let (sender, driver) =
        builder.handshake::<_, RequestBody>(TokioIo::new(lent)).await.map_err(|error| {
            UpstreamError::new(ResponseFlags::UPSTREAM_CONNECTION_FAILURE, format!("HTTP/1.1: {error}"))
        })?;
    tokio::task::spawn_local(async move {
        match driver.with_upgrades().await {
            Ok(()) => keeper.keep().await,
            Err(error) => tracing::debug!(%error, "upstream HTTP/1.1 connection ended"),
        }
    });
    let now = Instant::now();
    Ok(Http1 { sender, born: now, last_used: now, reused: false, handle })
}
