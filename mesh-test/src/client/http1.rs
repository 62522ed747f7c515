//! HTTP/1.1 through a forward proxy, or straight to an address. Connections are kept; a request is sent a
//! second time only when hyper says that not a byte of it was sent.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::uri::Authority;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Reply;
use super::dialer::Dialer;

const TIMEOUT: Duration = Duration::from_secs(30);

type Sender = SendRequest<Full<Bytes>>;

/// The client; clones share connections.
#[derive(Debug, Clone)]
pub struct HttpClient {
    dialer: Dialer,
    idle: Arc<Mutex<Vec<(SocketAddr, Sender)>>>,
    /// Addresses of hosts that were asked for: as with most clients, a name is not looked up for each request.
    known: Arc<Mutex<BTreeMap<String, SocketAddr>>>,
}

impl HttpClient {
    /// A client that sends everything to `proxy`.
    pub fn new(proxy: SocketAddr) -> Self {
        Self::with(Dialer::Forward(proxy))
    }

    /// A client with this way out: straight to each host, or everything to a proxy, which learns from the
    /// absolute URL where to.
    pub fn with(dialer: Dialer) -> Self {
        Self { dialer, idle: Arc::default(), known: Arc::default() }
    }

    /// GET of an absolute URL.
    ///
    /// # Errors
    /// When there is no answer. An answer of any status is one.
    pub async fn get(&self, url: &str) -> Result<Reply> {
        self.send(Request::get(url).body(Full::default())?).await
    }

    /// Sends a request with an absolute URL.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn send(&self, mut request: Request<Full<Bytes>>) -> Result<Reply> {
        let authority = request.uri().authority().context("the URL is not absolute")?.clone();
        request.headers_mut().entry(header::HOST).or_insert(authority.as_str().parse()?);
        if !matches!(self.dialer, Dialer::Forward(_)) {
            let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
            *request.uri_mut() = path.parse()?;
        }
        let exchange = async {
            let to = self.address(&authority).await?;
            self.exchange(to, request).await
        };
        tokio::time::timeout(TIMEOUT, exchange).await.context("no answer in time")?
    }

    async fn address(&self, authority: &Authority) -> Result<SocketAddr> {
        let known =
            self.known.lock().unwrap_or_else(PoisonError::into_inner).get(authority.as_str()).copied();
        if let Some(known) = known {
            return Ok(known);
        }
        let found = self.dialer.address(authority.host(), authority.port_u16().unwrap_or(80)).await?;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(authority.to_string(), found);
        Ok(found)
    }

    async fn exchange(&self, to: SocketAddr, mut request: Request<Full<Bytes>>) -> Result<Reply> {
        loop {
            let (mut sender, fresh) = self.sender(to).await?;
            let response = match sender.try_send_request(request).await {
                Ok(response) => response,
                Err(mut error) => match error.take_message() {
                    Some(unsent) if !fresh => {
                        request = unsent;
                        continue;
                    }
                    _ => return Err(error.into_error()).context("no answer"),
                },
            };
            let (parts, body) = response.into_parts();
            let body = body.collect().await.context("the answer broke off")?;
            if sender.ready().await.is_ok() {
                self.idle.lock().unwrap_or_else(PoisonError::into_inner).push((to, sender));
            }
            let trailers = body.trailers().cloned().unwrap_or_default();
            return Ok(Reply {
                status: parts.status,
                headers: parts.headers,
                body: body.to_bytes(),
                trailers,
            });
        }
    }

    async fn sender(&self, to: SocketAddr) -> Result<(Sender, bool)> {
        loop {
            match self.take(to) {
                Some(sender) if sender.is_ready() => return Ok((sender, false)),
                Some(_) => {}
                None => return Ok((handshake(self.dialer.place().connect(to).await?).await?, true)),
            }
        }
    }

    fn take(&self, to: SocketAddr) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let at = idle.iter().rposition(|(address, _)| *address == to)?;
        Some(idle.swap_remove(at).1)
    }
}

/// One exchange over a stream that is already there, in origin form.
///
/// # Errors
/// When there is no answer.
pub async fn exchange<IO>(stream: IO, host: &str, path: &str) -> Result<Reply>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut sender = handshake(stream).await?;
    let request = Request::get(path).header(header::HOST, host).body(Full::default())?;
    let response = tokio::time::timeout(TIMEOUT, sender.send_request(request)).await??;
    let (parts, body) = response.into_parts();
    let body = body.collect().await?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    Ok(Reply { status: parts.status, headers: parts.headers, body: body.to_bytes(), trailers })
}

async fn handshake<IO>(stream: IO) -> Result<Sender>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the last sender; its error is the request's error.
    tokio::spawn(async move { connection.await.unwrap_or_default() });
    Ok(sender)
}
