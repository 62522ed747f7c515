//! The TLS server that the API server calls. Anybody in the cluster can reach it: connections, bodies and time are
//! bounded, and nobody who is slow or large takes the place of another.

mod http;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_common::process::DrainGuard;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;
use crate::places::{Place, Places};
use crate::webhook::Webhook;

/// Requests at once on one connection of HTTP/2.
const STREAMS: u32 = 128;
const PING: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
const HEAD_BYTES: usize = 16 << 10;

/// What the server gives to whoever calls.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections of one address: an API server has few, with many requests on each.
    pub connections_each: usize,
    /// Connections of all.
    pub connections: usize,
    /// Time for a handshake.
    pub handshake: Duration,
    /// Time for the head of a request.
    pub head: Duration,
    /// Time for its body.
    pub body: Duration,
    /// Bytes of a body. Objects of the API server have 3 MiB at most (and etcd takes half of that); the review around
    /// them needs little.
    pub body_bytes: usize,
    /// KiB of the bodies of all requests together. A hostile one takes sixteen times its size once it is parsed.
    pub bodies_kib: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_each: 64,
            connections: 1024,
            handshake: Duration::from_secs(5),
            head: Duration::from_secs(10),
            body: Duration::from_secs(10),
            body_bytes: 4 << 20,
            bodies_kib: 16 << 10,
        }
    }
}

/// The webhook, listening.
pub struct Server {
    listener: TcpListener,
    service: Arc<http::Service>,
    tls: TlsAcceptor,
    places: Arc<Places>,
    metrics: Metrics,
    limits: Limits,
}

impl Server {
    /// On a bound listener. Once `leaving` is cancelled, every answer of HTTP/1 ends its connection: the API server
    /// never learns in time that a connection at rest is closed, so those in use must have gone elsewhere before.
    pub fn new(
        listener: TcpListener,
        tls: rustls::ServerConfig,
        webhook: Webhook,
        limits: Limits,
        leaving: CancellationToken,
    ) -> Self {
        let metrics = webhook.metrics.clone();
        let budget = Arc::new(Semaphore::new(limits.bodies_kib));
        let service = http::Service { webhook, budget, limits: limits.clone(), leaving };
        Self {
            listener,
            service: Arc::new(service),
            tls: TlsAcceptor::from(Arc::new(tls)),
            places: Places::new(limits.connections_each, limits.connections),
            metrics,
            limits,
        }
    }

    /// Serves until the process drains; then until every connection has ended, or its time is over.
    pub async fn run(self, mut guard: DrainGuard) {
        // Owned here: nobody outlives this function.
        let tasks = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = guard.draining() => break,
            };
            match accepted {
                Ok((tcp, peer)) => self.take(tcp, peer, &guard, &tasks),
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    // Out of descriptors, most likely: without a pause this loop would take a whole core.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        // Whoever dials now learns at once that it must go elsewhere.
        drop(self.listener);
        tasks.close();
        tasks.wait().await;
    }

    fn take(&self, tcp: TcpStream, peer: SocketAddr, guard: &DrainGuard, tasks: &TaskTracker) {
        let Some(place) = self.places.take(peer.ip()) else {
            self.metrics.connection("too_many");
            tracing::debug!(%peer, "too many connections; this one is closed");
            return;
        };
        let connection = Connection {
            service: Arc::clone(&self.service),
            tls: self.tls.clone(),
            metrics: self.metrics.clone(),
            limits: self.limits.clone(),
            guard: guard.clone(),
            _place: place,
        };
        tasks.spawn(connection.run(tcp, peer));
    }
}

/// One connection.
struct Connection {
    service: Arc<http::Service>,
    tls: TlsAcceptor,
    metrics: Metrics,
    limits: Limits,
    guard: DrainGuard,
    _place: Place,
}

impl Connection {
    async fn run(mut self, tcp: TcpStream, peer: SocketAddr) {
        let mut stopping = self.guard.clone();
        tokio::select! {
            () = self.serve(tcp, peer) => {}
            () = stopping.stopping() => tracing::debug!(%peer, "connection cut at the end of the drain"),
        }
    }

    async fn serve(&mut self, tcp: TcpStream, peer: SocketAddr) {
        if let Err(error) = tcp.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY cannot be set");
        }
        let stream = match tokio::time::timeout(self.limits.handshake, self.tls.accept(tcp)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                self.metrics.connection("tls_failed");
                tracing::info!(%peer, %error, "a TLS handshake failed");
                return;
            }
            Err(_) => {
                self.metrics.connection("tls_timeout");
                return;
            }
        };
        self.metrics.connection("served");
        let ended = if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            Box::pin(self.http2(stream)).await
        } else {
            Box::pin(self.http1(stream)).await
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "connection ended");
        }
    }

    async fn http2(&mut self, stream: TlsStream<TcpStream>) -> hyper::Result<()> {
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(u32::try_from(HEAD_BYTES).unwrap_or(u32::MAX))
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING_TIMEOUT);
        let connection =
            builder.serve_connection(TokioIo::new(stream), http::Service::per_connection(&self.service));
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            ended = &mut connection => return ended,
            () = self.guard.draining() => {}
        }
        connection.as_mut().graceful_shutdown();
        connection.await
    }

    async fn http1(&mut self, stream: TlsStream<TcpStream>) -> hyper::Result<()> {
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(self.limits.head).max_buf_size(HEAD_BYTES);
        let connection =
            builder.serve_connection(TokioIo::new(stream), http::Service::per_connection(&self.service));
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            ended = &mut connection => return ended,
            () = self.guard.draining() => {}
        }
        connection.as_mut().graceful_shutdown();
        connection.await
    }
}
