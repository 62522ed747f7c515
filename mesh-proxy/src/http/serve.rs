//! One downstream connection to its end: which HTTP version, hyper's server over it, the worker's orders to
//! close. The first bytes decide, never a guess from the port.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;

use super::connection::{Conn, Order};
use super::downstream::{Downstream, Flow};
use super::{LocalExec, Scope, exchange, headers};
use crate::connect::http2::{CONNECTION_WINDOW, STREAM_WINDOW};
use crate::connection::Connection;
use crate::worker::Worker;

/// Requests at the same time on one HTTP/2 connection.
const MAX_STREAMS: u32 = 200;
const MAX_HEADER_LIST: u32 = 64 * 1024;

/// Serves a connection to its end.
pub async fn serve(worker: Rc<Worker>, connection: Connection, scope: Scope) {
    let flow = Arc::<Flow>::default();
    let (conn, io) = Conn::new(worker, connection, scope, Arc::clone(&flow));
    let mut io = Downstream::new(io, flow);
    let http2 = match before(Order::Close, &conn, io.is_http2()).await {
        Some(Ok(http2)) => http2,
        Some(Err(error)) => {
            tracing::debug!(%error, peer = %conn.peer, "downstream connection ended before a request");
            return;
        }
        None => return,
    };
    let result = if http2 { Box::pin(serve_http2(&conn, io)).await } else { serve_http1(&conn, io).await };
    if let Err(error) = result {
        tracing::debug!(%error, peer = %conn.peer, "downstream connection ended");
    }
}

/// `future`, unless the worker orders this first.
async fn before<T>(order: Order, conn: &Conn, future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| {
        if conn.order(cx.waker()) >= order {
            return Poll::Ready(None);
        }
        future.as_mut().poll(cx).map(Some)
    })
    .await
}

/// hyper takes 25 KiB for a connection of HTTP/1, used or not: what rests is taken back from it, and waits by itself.
async fn serve_http1(conn: &Rc<Conn>, mut io: Downstream) -> hyper::Result<()> {
    while let Some(mut resting) = Box::pin(serve_until_rest(conn, io)).await? {
        match before(Order::Close, conn, resting.wait()).await {
            Some(Ok(true)) => io = resting,
            Some(Ok(false)) | None => {
                before(Order::Abort, conn, resting.shutdown()).await;
                return Ok(());
            }
            Some(Err(error)) => {
                tracing::debug!(%error, peer = %conn.peer, "downstream connection ended at rest");
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Serves until the connection ends, or rests: then it is given back.
async fn serve_until_rest(conn: &Rc<Conn>, io: Downstream) -> hyper::Result<Option<Downstream>> {
    let flow = Arc::clone(io.flow());
    let service = service_fn(|request| exchange::handle(Rc::clone(conn), request));
    let mut served = http1::Builder::new()
        .auto_date_header(false)
        // One more than is taken, so that the answer to too many is ours and says why.
        .max_headers(headers::MAX_HEADERS * 2)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    conn.may_rest();
    let mut closing = false;
    let rests = std::future::poll_fn(|cx| {
        match conn.order(cx.waker()) {
            Order::Serve | Order::Drain => {}
            Order::Close if closing => {}
            Order::Close => {
                closing = true;
                Pin::new(&mut served).graceful_shutdown();
            }
            Order::Abort => return Poll::Ready(Ok(false)),
        }
        if let Poll::Ready(ended) = Pin::new(&mut served).poll(cx) {
            return Poll::Ready(ended.map(|()| false));
        }
        if closing || !conn.is_to_rest() || flow.is_blocked() {
            return Poll::Pending;
        }
        // No request is under way and nothing waits to be written: hyper is between two requests, and ends at once. If it
        // does not, or has read on, it was not: the connection ends when it does, as what it left unread is no request.
        closing = true;
        flow.keep(true);
        Pin::new(&mut served).graceful_shutdown();
        let ended = Pin::new(&mut served).poll(cx);
        flow.keep(ended.is_ready());
        ended.map_ok(|()| flow.head_since().is_none())
    })
    .await?;
    Ok(served.into_parts().filter(|_| rests).map(|parts| {
        conn.rests();
        let mut io = parts.io.into_inner();
        io.unread(parts.read_buf);
        io
    }))
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
