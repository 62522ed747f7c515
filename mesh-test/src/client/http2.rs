//! HTTP/2 with prior knowledge over a stream that is already there; gRPC unary calls.

use anyhow::{Context as _, Result};
use bytes::{BufMut as _, Bytes, BytesMut};
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};

use super::Reply;

/// One connection; clones share it.
#[derive(Debug, Clone)]
pub struct Http2Client {
    sender: SendRequest<Full<Bytes>>,
    authority: String,
}

impl Http2Client {
    /// Speaks HTTP/2 over `stream`.
    ///
    /// # Errors
    /// When the other side does not.
    pub async fn new<IO>(stream: IO, authority: &str) -> Result<Self>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(async move { connection.await.unwrap_or_default() });
        Ok(Self { sender, authority: authority.to_owned() })
    }

    /// GET of a path.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn get(&self, path: &str) -> Result<Reply> {
        self.send(Request::get(self.url(path)).body(Full::default())?).await
    }

    /// A unary call with `message`.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn call(&self, path: &str, message: &[u8]) -> Result<Reply> {
        let mut body = BytesMut::new();
        body.put_u8(0);
        body.put_u32(u32::try_from(message.len())?);
        body.put_slice(message);
        let request = Request::post(self.url(path))
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .body(Full::new(body.freeze()))?;
        self.send(request).await
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Reply> {
        let mut sender = self.sender.clone();
        let exchange = async {
            sender.ready().await?;
            let (parts, body) = sender.send_request(request).await?.into_parts();
            let body = body.collect().await?;
            let trailers = body.trailers().cloned().unwrap_or_default();
            Ok(Reply { status: parts.status, headers: parts.headers, body: body.to_bytes(), trailers })
        };
        tokio::time::timeout(std::time::Duration::from_secs(30), exchange)
            .await
            .context("no answer in time")?
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.authority)
    }
}
