//! Connections to endpoints: dialled, secured, pooled. Nothing here chooses an endpoint, and nothing here
//! ever falls back from mutual TLS to plaintext.

pub(crate) mod dial;
pub mod dns;
pub(crate) mod http1;
pub(crate) mod http2;
pub mod own;
mod rest;
pub(crate) mod tcp;

use std::sync::Arc;
use std::time::Duration;

use socket2::TcpKeepalive;

use crate::config::cluster::{Endpoint, ServiceLabels, WorkloadLabels};
use crate::connection::Io;
use crate::telemetry::{ResponseFlags, Security};

/// How TCP finds out that an idle peer is gone without a word: within a minute, at either end of the proxy.
pub(crate) fn keepalive() -> TcpKeepalive {
    let interval = Duration::from_secs(10);
    TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(interval).with_retries(3)
}

/// An open connection for opaque TCP.
#[derive(Debug)]
pub struct UpstreamTcp {
    /// The bytes.
    pub io: Io,
    /// The endpoint that was dialled; none for an original destination.
    pub endpoint: Option<Arc<Endpoint>>,
    /// How the connection is secured.
    pub security: Security,
    /// The service, for metrics.
    pub service: ServiceLabels,
    /// The workload behind the endpoint, for metrics.
    pub destination: Arc<WorkloadLabels>,
}

/// Why there is no upstream for a request or connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct UpstreamError {
    /// In Envoy's terms.
    pub flags: ResponseFlags,
    /// For a person: what failed and what to look at.
    pub reason: String,
    /// No endpoint has seen the request, or it is one that may be sent twice.
    pub unprocessed: bool,
}

impl UpstreamError {
    pub(crate) fn new(flags: ResponseFlags, reason: impl Into<String>) -> Self {
        Self { flags, reason: reason.into(), unprocessed: false }
    }

    /// The same; another endpoint may have the request.
    pub(crate) fn unprocessed(self) -> Self {
        Self { unprocessed: true, ..self }
    }
}
