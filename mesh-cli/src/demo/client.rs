//! A small HTTP client that goes through a sidecar's forward-proxy port, as an application with HTTP_PROXY
//! set does. Connections are kept and used again; a request is sent a second time only when hyper says that
//! not a byte of it was sent.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_IDLE: usize = 256;

type Sender = SendRequest<Empty<Bytes>>;

/// The client; clones share connections.
#[derive(Debug, Clone)]
pub(super) struct Client {
    proxy: SocketAddr,
    idle: Arc<Mutex<Vec<Sender>>>,
}

/// Why there is no good answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// The URL is none.
    #[error("{0:?} is not an absolute URL")]
    Url(String),
    /// The connection failed.
    #[error("{url}: {reason}")]
    Connection { url: String, reason: String },
    /// It took too long.
    #[error("{0}: no answer within 10 seconds")]
    Slow(String),
    /// The answer is an error.
    #[error("{url}: status {status}: {body}")]
    Status { url: String, status: u16, body: String },
}

impl Client {
    pub(super) fn new(proxy: SocketAddr) -> Self {
        Self { proxy, idle: Arc::default() }
    }

    /// The body of a 200.
    pub(super) async fn get(&self, url: &str) -> Result<Bytes, ClientError> {
        let exchange = tokio::time::timeout(TIMEOUT, self.exchange(url)).await;
        exchange.map_err(|_| ClientError::Slow(url.to_owned()))?
    }

    async fn exchange(&self, url: &str) -> Result<Bytes, ClientError> {
        let failed =
            |error: hyper::Error| ClientError::Connection { url: url.to_owned(), reason: reason(&error) };
        let mut request = request(url)?;
        let (mut sender, response) = loop {
            let (mut sender, fresh) = self.sender(url).await?;
            match sender.try_send_request(request).await {
                Ok(response) => break (sender, response),
                Err(mut error) => match error.take_message() {
                    Some(unsent) if !fresh => request = unsent,
                    _ => return Err(failed(error.into_error())),
                },
            }
        };
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(failed)?.to_bytes();
        if sender.ready().await.is_ok() {
            self.keep(sender);
        }
        if status == 200 {
            return Ok(body);
        }
        let body = String::from_utf8_lossy(&body).trim().to_owned();
        Err(ClientError::Status { url: url.to_owned(), status, body })
    }

    /// A connection that is kept, or a new one (then `true`).
    async fn sender(&self, url: &str) -> Result<(Sender, bool), ClientError> {
        while let Some(sender) = self.lock().pop() {
            if sender.is_ready() {
                return Ok((sender, false));
            }
        }
        let failed = |reason: String| ClientError::Connection { url: url.to_owned(), reason };
        let stream = TcpStream::connect(self.proxy)
            .await
            .map_err(|error| failed(format!("the sidecar at {} does not answer: {error}", self.proxy)))?;
        stream.set_nodelay(true).map_err(|error| failed(error.to_string()))?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(reason(&error)))?;
        // Ends when the last sender is dropped; its error is the request's error.
        tokio::spawn(async move { connection.await.unwrap_or_default() });
        Ok((sender, true))
    }

    fn keep(&self, sender: Sender) {
        let mut idle = self.lock();
        if idle.len() < MAX_IDLE {
            idle.push(sender);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Sender>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn request(url: &str) -> Result<http::Request<Empty<Bytes>>, ClientError> {
    let bad = || ClientError::Url(url.to_owned());
    let uri: http::Uri = url.parse().map_err(|_| bad())?;
    let host = uri.authority().ok_or_else(bad)?.to_string();
    http::Request::get(uri).header(http::header::HOST, host).body(Empty::new()).map_err(|_| bad())
}

/// hyper's sentence and what is behind it.
fn reason(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
