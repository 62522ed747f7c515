//! HTTP/2 connections to one endpoint, shared by requests; another is opened when all are full. A connection
//! that has said goodbye takes no more requests and finishes those it has.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{FutureExt, Shared};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::UpstreamError;
use crate::connection::Io;
use crate::http::LocalExec;
use crate::http::body::RequestBody;
use crate::telemetry::ResponseFlags;

/// Requests at the same time on one connection, at most; the peer may allow fewer.
const MAX_STREAMS: usize = 100;
/// A connection without requests is closed after this time.
const IDLE: Duration = Duration::from_secs(60);
/// Window of one stream.
pub(crate) const STREAM_WINDOW: u32 = 64 * 1024;
/// Window of one connection.
pub(crate) const CONNECTION_WINDOW: u32 = 1024 * 1024;

type Opened = Result<(), UpstreamError>;

/// The pool of one endpoint.
#[derive(Default)]
pub(crate) struct Pool {
    open: RefCell<Vec<Rc<Http2>>>,
    opening: RefCell<Option<Shared<oneshot::Receiver<Opened>>>>,
    closed: Cell<bool>,
}

/// A connection is being opened. However that ends, the next request may open another one.
struct Opening<'a>(&'a Pool);

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        *self.0.opening.borrow_mut() = None;
    }
}

/// One connection.
pub(crate) struct Http2 {
    sender: SendRequest<RequestBody>,
    streams: Cell<usize>,
    /// Streams that the peer allows.
    allowed: Rc<Cell<usize>>,
    born: Instant,
    last_used: Cell<Instant>,
}

/// A place for one request on a connection, given back when dropped.
pub(crate) struct Stream(Rc<Http2>);

impl Stream {
    /// Sends requests.
    pub(crate) fn sender(&self) -> SendRequest<RequestBody> {
        self.0.sender.clone()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
        if self.0.streams.get() == 0 {
            self.0.last_used.set(Instant::now());
        }
    }
}

impl Pool {
    /// A place on an open connection.
    pub(crate) fn checkout(&self) -> Option<Stream> {
        let mut open = self.open.borrow_mut();
        open.retain(|connection| !connection.sender.is_closed());
        let free = open
            .iter()
            .find(|connection| connection.streams.get() < connection.allowed.get().clamp(1, MAX_STREAMS))?;
        free.streams.set(free.streams.get() + 1);
        Some(Stream(Rc::clone(free)))
    }

    /// Waits for a connection that is being opened, or opens one by `connect`; requests that come together
    /// share it.
    pub(crate) async fn opened<F>(self: &Rc<Self>, connect: impl FnOnce() -> F) -> Opened
    where
        F: Future<Output = Result<Http2, UpstreamError>> + 'static,
    {
        if self.closed.get() {
            return Err(UpstreamError::new(
                ResponseFlags::UPSTREAM_CONNECTION_FAILURE,
                "the endpoint was removed before a connection was opened",
            ));
        }
        let waiting = self.opening.borrow().clone();
        let opening = match waiting {
            Some(opening) => opening,
            None => self.open(connect()),
        };
        match opening.await {
            Ok(result) => result,
            Err(_) => Err(UpstreamError::new(
                ResponseFlags::UPSTREAM_CONNECTION_FAILURE,
                "the connection was given up while it was opened",
            )),
        }
    }

    fn open<F>(self: &Rc<Self>, connecting: F) -> Shared<oneshot::Receiver<Opened>>
    where
        F: Future<Output = Result<Http2, UpstreamError>> + 'static,
    {
        let (done, opening) = oneshot::channel();
        let opening = opening.shared();
        *self.opening.borrow_mut() = Some(opening.clone());
        let pool = Rc::clone(self);
        // A task of its own: it must not end with the request that happened to need it first. It is bounded by
        // the cluster's connect timeout.
        tokio::task::spawn_local(async move {
            let under_way = Opening(&pool);
            let result = connecting.await.map(|connection| {
                if !pool.closed.get() {
                    pool.open.borrow_mut().push(Rc::new(connection));
                }
            });
            drop(under_way);
            if done.send(result).is_err() {
                tracing::debug!("nobody waits for the HTTP/2 connection any more");
            }
        });
        opening
    }

    /// Closes what has rested for long; what has lived for longer than `max_age` finishes and closes.
    pub(crate) fn sweep(&self, now: Instant, max_age: Duration) {
        self.open.borrow_mut().retain(|connection| {
            let idle =
                connection.streams.get() == 0 && now.duration_since(connection.last_used.get()) >= IDLE;
            !idle && !connection.sender.is_closed() && now.duration_since(connection.born) < max_age
        });
    }

    /// Takes no more requests: connections finish those they have, then close.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.open.borrow_mut().clear();
    }

    /// Open connections.
    pub(crate) fn len(&self) -> usize {
        self.open.borrow().len()
    }
}

/// Speaks HTTP/2 over an open connection. The task that drives it ends when the last sender is dropped.
pub(crate) async fn handshake(io: Io) -> Result<Http2, UpstreamError> {
    let mut builder = Builder::new(LocalExec);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(64 * 1024)
        // A peer that is gone without a word must not swallow requests for minutes.
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10));
    let (sender, driver) = builder.handshake(TokioIo::new(io)).await.map_err(|error| {
        UpstreamError::new(ResponseFlags::UPSTREAM_CONNECTION_FAILURE, format!("HTTP/2: {error}"))
    })?;
    let allowed = Rc::new(Cell::new(MAX_STREAMS));
    let peer_allows = Rc::clone(&allowed);
    tokio::task::spawn_local(async move {
        let mut driver = std::pin::pin!(driver);
        let ended = std::future::poll_fn(|cx| {
            let ended = driver.as_mut().poll(cx);
            peer_allows.set(driver.current_max_send_streams());
            ended
        });
        if let Err(error) = ended.await {
            tracing::debug!(%error, "upstream HTTP/2 connection ended");
        }
    });
    let now = Instant::now();
    Ok(Http2 { sender, streams: Cell::new(0), allowed, born: now, last_used: Cell::new(now) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_broken_attempt_is_not_the_last_one() {
        let story = async {
            let pool = Rc::<Pool>::default();
            let broken = pool.opened(|| async { panic!("on purpose") }).await.unwrap_err();
            assert!(broken.reason.contains("given up"), "{broken}");
            let refused = UpstreamError::new(ResponseFlags::UPSTREAM_CONNECTION_FAILURE, "refused");
            let next = refused.clone();
            assert_eq!(pool.opened(|| async { Err(next) }).await, Err(refused));
        };
        tokio::task::LocalSet::new().run_until(story).await;
    }
}
