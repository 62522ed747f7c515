//! One downstream connection to its end: which HTTP version, hyper's server over it, the worker's orders to
//! close. The first bytes decide, never a guess from the port.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::connection::{Conn, Order};
use super::{LocalExec, Scope, exchange, headers};
use crate::connect::http2::{CONNECTION_WINDOW, STREAM_WINDOW};
use crate::connection::{Connection, Io};
use crate::worker::Worker;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Requests at the same time on one HTTP/2 connection.
const MAX_STREAMS: u32 = 200;
const MAX_HEADER_LIST: u32 = 64 * 1024;

/// Serves a connection to its end.
pub async fn serve(worker: Rc<Worker>, connection: Connection, scope: Scope) {
    let head_since = Arc::new(AtomicU64::new(0));
    let (conn, io) = Conn::new(worker, connection, scope, Arc::clone(&head_since));
    let mut io = Downstream { io, ahead: Bytes::new(), head_since: Some(head_since), born: Instant::now() };
    let http2 = match aborted(&conn, io.is_http2()).await {
        Some(Ok(http2)) => http2,
        Some(Err(error)) => {
            tracing::debug!(%error, peer = %conn.peer, "downstream connection ended before a request");
            return;
        }
        None => return,
    };
    let result =
        if http2 { Box::pin(serve_http2(&conn, io)).await } else { Box::pin(serve_http1(&conn, io)).await };
    if let Err(error) = result {
        tracing::debug!(%error, peer = %conn.peer, "downstream connection ended");
    }
}

/// `future`, unless the worker wants the connection closed first.
async fn aborted<T>(conn: &Conn, future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| {
        if conn.order(cx.waker()) >= Order::Close {
            return Poll::Ready(None);
        }
        future.as_mut().poll(cx).map(Some)
    })
    .await
}

async fn serve_http1(conn: &Rc<Conn>, io: Downstream) -> hyper::Result<()> {
    let service = service_fn(|request| exchange::handle(Rc::clone(conn), request));
    let served = http1::Builder::new()
        .auto_date_header(false)
        // One more than is taken, so that the answer to too many is ours and says why.
        .max_headers(headers::MAX_HEADERS * 2)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut served = std::pin::pin!(served);
    let mut closing = false;
    std::future::poll_fn(|cx| {
        match conn.order(cx.waker()) {
            Order::Serve | Order::Drain => {}
            Order::Close if closing => {}
            Order::Close => {
                closing = true;
                served.as_mut().graceful_shutdown();
            }
            Order::Abort => return Poll::Ready(Ok(())),
        }
        served.as_mut().poll(cx)
    })
    .await
}

async fn serve_http2(conn: &Rc<Conn>, io: Downstream) -> hyper::Result<()> {
    let shared = Rc::clone(conn);
    let service = service_fn(move |request| exchange::handle(Rc::clone(&shared), request));
    let served = http2::Builder::new(LocalExec)
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .serve_connection(TokioIo::new(io), service);
    let mut served = std::pin::pin!(served);
    let mut closing = false;
    std::future::poll_fn(|cx| {
        match conn.order(cx.waker()) {
            Order::Serve => {}
            Order::Drain | Order::Close if closing => {}
            Order::Drain | Order::Close => {
                closing = true;
                served.as_mut().graceful_shutdown();
            }
            Order::Abort => return Poll::Ready(Ok(())),
        }
        served.as_mut().poll(cx)
    })
    .await
}

/// The downstream's bytes: what was read ahead, then the rest. Notes when a request's head begins, so that one
/// that never ends can be given up without a timer for each request.
struct Downstream {
    io: Io,
    ahead: Bytes,
    /// Only for HTTP/1: on HTTP/2 bytes also come while there is no request.
    head_since: Option<Arc<AtomicU64>>,
    born: Instant,
}

impl Downstream {
    /// Reads until it is sure whether this is HTTP/2.
    async fn is_http2(&mut self) -> io::Result<bool> {
        let mut seen = BytesMut::with_capacity(PREFACE.len());
        while seen.len() < PREFACE.len() && PREFACE.starts_with(&seen) {
            let mut rest = (&mut self.io).take((PREFACE.len() - seen.len()) as u64);
            if rest.read_buf(&mut seen).await? == 0 {
                break;
            }
        }
        let http2 = &seen[..] == PREFACE;
        if http2 {
            self.head_since = None;
        }
        self.note();
        self.ahead = seen.freeze();
        Ok(http2)
    }

    fn note(&self) {
        if let Some(head_since) = self.head_since.as_ref().filter(|since| since.load(Ordering::Relaxed) == 0)
        {
            let since = self.born.elapsed().as_millis() as u64;
            head_since.store(since.max(1), Ordering::Relaxed);
        }
    }
}

impl AsyncRead for Downstream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let ahead = this.ahead.len().min(buf.remaining());
        buf.put_slice(&this.ahead.split_to(ahead));
        if ahead > 0 && buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        // What follows at once is read with it: hyper doubles its buffer when it has to read twice for one head.
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        if buf.filled().len() > before + ahead {
            this.note();
        }
        // If this failed, so does the next.
        if ahead > 0 { Poll::Ready(Ok(())) } else { read }
    }
}

impl AsyncWrite for Downstream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
