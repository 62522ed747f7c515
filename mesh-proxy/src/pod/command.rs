//! Two questions to the proxy that runs in the same pod: `wait` and `drain`, kubelet's handlers. They need nothing but
//! its admin address, and say in one sentence what is wrong.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::Empty;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::exchange::{exchange, text};
use crate::options::{DrainOptions, WaitOptions};

/// How often the proxy is asked.
const EVERY: Duration = Duration::from_millis(20);
/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(2);

/// Why a question has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody is there.
    #[error(
        "no proxy answers at {admin}: {reason}; is `mesh-proxy run` running in this pod? --admin names another address"
    )]
    NoProxy {
        /// Where.
        admin: SocketAddr,
        /// Why.
        reason: String,
    },
    /// It is not ready.
    #[error("the proxy is not ready after {waited:?}: {missing}; its log says why")]
    NotReady {
        /// How long it was waited for.
        waited: Duration,
        /// What it says itself.
        missing: String,
    },
    /// It answers something else.
    #[error("{admin} answers with status {status}: {body}; is it the admin address of mesh-proxy?")]
    Unexpected {
        /// Where.
        admin: SocketAddr,
        /// The status.
        status: StatusCode,
        /// The answer.
        body: String,
    },
}

/// Returns when the proxy is ready.
///
/// # Errors
/// When it is not within the time.
pub async fn wait(options: &WaitOptions) -> Result<(), AskError> {
    let WaitOptions { admin, timeout: limit } = *options;
    let mut last = Err("it was not asked".to_owned());
    let ready = async {
        loop {
            last = ask(admin, Method::GET, "/readyz").await;
            if matches!(last, Ok((StatusCode::OK, _))) {
                return;
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    if timeout(limit, ready).await.is_ok() {
        return Ok(());
    }
    Err(match last {
        Err(reason) => AskError::NoProxy { admin, reason },
        Ok((StatusCode::SERVICE_UNAVAILABLE, missing)) => AskError::NotReady { waited: limit, missing },
        Ok((status, body)) => AskError::Unexpected { admin, status, body },
    })
}

/// Begins the drain of the proxy, which may have begun before.
///
/// # Errors
/// When there is no proxy.
pub async fn drain(options: &DrainOptions) -> Result<(), AskError> {
    let admin = options.admin;
    match ask(admin, Method::POST, "/drain").await {
        Ok((status, _)) if status.is_success() => Ok(()),
        Ok((status, body)) => Err(AskError::Unexpected { admin, status, body }),
        Err(reason) => Err(AskError::NoProxy { admin, reason }),
    }
}

async fn ask(admin: SocketAddr, method: Method, path: &str) -> Result<(StatusCode, String), String> {
    let asking = async {
        let stream = TcpStream::connect(admin).await.map_err(|error| error.to_string())?;
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(|_| format!("{path} is not a path"))?;
        let host = HeaderValue::try_from(admin.to_string()).map_err(|error| error.to_string())?;
        request.headers_mut().insert(HOST, host);
        let answer = exchange(stream, false, request).await?;
        let (status, body) = (answer.response.status(), text(answer.response.into_body()).await);
        Ok((status, body))
    };
    timeout(ANSWER, asking).await.unwrap_or_else(|_| Err(format!("no answer within {ANSWER:?}")))
}
