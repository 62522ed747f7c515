//! HTTP/1.1 through a forward proxy, or straight to an address. Connections are kept; a request is sent a
//! second time only when hyper says that not a byte of it was sent.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::Reply;

const TIMEOUT: Duration = Duration::from_secs(30);

type Sender = SendRequest<Full<Bytes>>;

/// The client; clones share connections.
#[derive(Debug, Clone)]
pub struct HttpClient {
    proxy: SocketAddr,
    idle: Arc<Mutex<Vec<Sender>>>,
}

impl HttpClient {
    /// A client that sends everything to `proxy`.
    pub fn new(proxy: SocketAddr) -> Self {
        Self { proxy, idle: Arc::default() }
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
        let host = request.uri().authority().context("the URL is not absolute")?.to_string();
        request.headers_mut().entry(header::HOST).or_insert(host.parse()?);
        tokio::time::timeout(TIMEOUT, self.exchange(request)).await.context("no answer in time")?
    }

    async fn exchange(&self, mut request: Request<Full<Bytes>>) -> Result<Reply> {
        loop {
            let (mut sender, fresh) = self.sender().await?;
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
                self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
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

    async fn sender(&self) -> Result<(Sender, bool)> {
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match idle {
                Some(sender) if sender.is_ready() => return Ok((sender, false)),
                Some(_) => {}
                None => {
                    let stream = TcpStream::connect(self.proxy).await.context("the proxy is not there")?;
                    stream.set_nodelay(true)?;
                    return Ok((handshake(stream).await?, true));
                }
            }
        }
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
