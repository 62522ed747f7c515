//! Clients as applications have them: HTTP through a forward proxy, tunnels, HTTP/2, gRPC.

mod control;
mod dialer;
mod http1;
mod http2;
mod tunnel;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use crate::server::Echo;

pub use control::{CONTROL_NAME, ControlClient, NodeName};
pub use dialer::{Dialer, Names};
pub use http1::{HttpClient, exchange};
pub use http2::Http2Client;
pub use tunnel::{connect, socks5};

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// Its trailers.
    pub trailers: HeaderMap,
}

impl Reply {
    /// What the application says of the request.
    ///
    /// # Errors
    /// When the answer is not a 200 of such an application.
    pub fn echo(&self) -> Result<Echo> {
        ensure!(self.status == 200, "{self}");
        serde_json::from_slice(&self.body).with_context(|| format!("no echo: {self}"))
    }

    /// A header's text, empty when absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The reason that the mesh gives for an answer of its own.
    pub fn reason(&self) -> &str {
        self.header("x-mesh-reason")
    }
}

impl std::fmt::Display for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body = String::from_utf8_lossy(&self.body);
        write!(f, "status {} [{}] {}", self.status, self.reason(), body.trim())
    }
}
