//! Reads the admin pages of the mesh's processes: one GET, one answer, bounded in time and size.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_PAGE: usize = 64 << 20;

/// Why a page could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    /// Nobody listens there.
    #[error("cannot reach {address} ({reason}); is it running, and is this its admin address?")]
    Unreachable { address: SocketAddr, reason: String },
    /// It took longer than a page may take.
    #[error("{address} did not answer {path} within 5 seconds; look at its log")]
    Slow { address: SocketAddr, path: String },
    /// It answered with an error.
    #[error("{address} answered {path} with status {status}: {body}")]
    Status { address: SocketAddr, path: String, status: u16, body: String },
    /// The answer is something else.
    #[error(
        "{address} answered {path} with something that is not JSON ({reason}); is it a mesh's admin port?"
    )]
    NotJson { address: SocketAddr, path: String, reason: String },
}

/// The page as text, whatever its status.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Result<(u16, String), AdminError> {
    let slow = || AdminError::Slow { address, path: path.to_owned() };
    tokio::time::timeout(TIMEOUT, fetch(address, path)).await.map_err(|_| slow())?
}

/// The page, when its status is 200.
pub(crate) async fn text(address: SocketAddr, path: &str) -> Result<String, AdminError> {
    match get(address, path).await? {
        (200, body) => Ok(body),
        (status, body) => {
            let body = body.trim().to_owned();
            Err(AdminError::Status { address, path: path.to_owned(), status, body })
        }
    }
}

/// The page as JSON.
pub(crate) async fn json(address: SocketAddr, path: &str) -> Result<Value, AdminError> {
    let body = text(address, path).await?;
    serde_json::from_str(&body).map_err(|error| AdminError::NotJson {
        address,
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

async fn fetch(address: SocketAddr, path: &str) -> Result<(u16, String), AdminError> {
    let unreachable = |reason: String| AdminError::Unreachable { address, reason };
    let stream = TcpStream::connect(address).await.map_err(|e| unreachable(e.to_string()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| unreachable(e.to_string()))?;
    let request = http::Request::get(path)
        .header(http::header::HOST, address.to_string())
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| unreachable(e.to_string()))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| unreachable(e.to_string()))?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_PAGE).collect().await;
        let body = body.map_err(|e| unreachable(e.to_string()))?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    // The connection is driven here, not spawned: when the answer is there, nothing is left behind.
    let connection = async {
        // Its error, if any, is the exchange's error too.
        connection.await.unwrap_or_default();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        answer = exchange => answer,
        () = connection => Err(unreachable("the connection ended".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn page(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let read = stream.read(&mut [0; 1024]).await.unwrap();
            assert!(read > 0);
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        address
    }

    #[tokio::test]
    async fn answers_and_their_errors() {
        let address = page("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{\"a\":1}").await;
        assert_eq!(json(address, "/x").await.unwrap()["a"], 1);
        let address = page("HTTP/1.1 503 No\r\ncontent-length: 5\r\n\r\nlater").await;
        let error = json(address, "/x").await.unwrap_err().to_string();
        assert!(error.contains("status 503: later"), "{error}");
        let address = page("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await;
        assert!(json(address, "/x").await.unwrap_err().to_string().contains("not JSON"));
    }

    #[tokio::test]
    async fn nobody_there() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = text(address, "/x").await.unwrap_err().to_string();
        assert!(error.starts_with("cannot reach 127.0.0.1:"), "{error}");
    }
}
