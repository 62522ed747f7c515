//! Between whom traffic flows, as Istio's standard metrics tell it: the labels and their order. Values come
//! from configuration and certificates only, never from what a client wrote.

use std::fmt::Error;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use super::flags::ResponseFlags;
use super::names::*;
use crate::config::cluster::{ServiceLabels, WorkloadLabels};

/// Which side of the traffic the proxy stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// Beside the client.
    Source,
    /// Beside the server.
    Destination,
}

/// How the traffic was secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Security {
    /// Not known.
    Unknown,
    /// Plaintext.
    None,
    /// Mutual TLS of the mesh.
    MutualTls,
}

/// What the traffic is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestProtocol {
    /// HTTP/1 or HTTP/2.
    Http,
    /// gRPC.
    Grpc,
    /// Anything else.
    Tcp,
}

/// Between whom traffic flows: everything that two requests of one series have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traffic {
    /// Which side reports.
    pub reporter: Reporter,
    /// Who sends requests.
    pub source: Arc<WorkloadLabels>,
    /// Who answers them.
    pub destination: Arc<WorkloadLabels>,
    /// The service that was asked for.
    pub service: ServiceLabels,
    /// How it is secured.
    pub security: Security,
    /// What it is.
    pub protocol: RequestProtocol,
}

// By hand because `ServiceLabels` has no `Hash`.
impl Hash for Traffic {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let ServiceLabels { host, name, namespace } = &self.service;
        (self.reporter, self.security, self.protocol).hash(state);
        (&self.source, &self.destination, host, name, namespace).hash(state);
    }
}

impl Reporter {
    const fn label(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

impl Security {
    /// As `connection_security_policy` prints it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unknown => UNKNOWN,
            Self::None => "none",
            Self::MutualTls => "mutual_tls",
        }
    }
}

impl RequestProtocol {
    const fn label(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }
}

impl Traffic {
    /// The series that stands in when no more are made: all that is left is which side reports.
    pub(super) fn overflow(&self) -> Self {
        Self {
            reporter: self.reporter,
            source: Arc::default(),
            destination: Arc::default(),
            service: ServiceLabels::default(),
            security: self.security,
            protocol: self.protocol,
        }
    }
}

/// The outcome part of a series' labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HttpResult {
    /// The status code; `None` when outcomes without a series of their own are put together.
    pub(super) code: Option<u16>,
    /// The gRPC status, if it is gRPC.
    pub(super) grpc: Option<u16>,
}

/// All labels of one series, in Istio's order.
#[derive(Debug)]
pub(super) struct Labels<'a> {
    pub(super) traffic: &'a Traffic,
    /// `None`: several put together.
    pub(super) flags: Option<ResponseFlags>,
    pub(super) http: Option<HttpResult>,
}

impl EncodeLabelSet for Labels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> Result<(), Error> {
        let Traffic { reporter, source, destination, service, security, protocol } = self.traffic;
        let flags = self.flags.map(|flags| flags.to_string());
        let mut put = |key: &'static str, value: &str| (key, value).encode(encoder.encode_label());
        put(REPORTER, reporter.label())?;
        put(SOURCE_WORKLOAD, known(&source.workload))?;
        put(SOURCE_CANONICAL_SERVICE, known(&source.canonical_service))?;
        put(SOURCE_CANONICAL_REVISION, known(&source.canonical_revision))?;
        put(SOURCE_WORKLOAD_NAMESPACE, known(&source.namespace))?;
        put(SOURCE_PRINCIPAL, known(&source.principal))?;
        put(SOURCE_APP, known(&source.app))?;
        put(SOURCE_VERSION, known(&source.version))?;
        put(SOURCE_CLUSTER, known(&source.cluster))?;
        put(DESTINATION_SERVICE, known(&service.host))?;
        put(DESTINATION_SERVICE_NAMESPACE, known(&service.namespace))?;
        put(DESTINATION_SERVICE_NAME, known(&service.name))?;
        put(DESTINATION_WORKLOAD, known(&destination.workload))?;
        put(DESTINATION_CANONICAL_SERVICE, known(&destination.canonical_service))?;
        put(DESTINATION_CANONICAL_REVISION, known(&destination.canonical_revision))?;
        put(DESTINATION_WORKLOAD_NAMESPACE, known(&destination.namespace))?;
        put(DESTINATION_PRINCIPAL, known(&destination.principal))?;
        put(DESTINATION_APP, known(&destination.app))?;
        put(DESTINATION_VERSION, known(&destination.version))?;
        put(DESTINATION_CLUSTER, known(&destination.cluster))?;
        put(REQUEST_PROTOCOL, protocol.label())?;
        put(RESPONSE_FLAGS, flags.as_deref().unwrap_or(UNKNOWN))?;
        put(CONNECTION_SECURITY_POLICY, security.label())?;
        if let Some(HttpResult { code, grpc }) = &self.http {
            put(RESPONSE_CODE, &code.map_or_else(|| UNKNOWN.to_owned(), |code| code.to_string()))?;
            // Istio leaves it empty for what is not gRPC.
            put(GRPC_RESPONSE_STATUS, &grpc.map(|status| status.to_string()).unwrap_or_default())?;
        }
        Ok(())
    }
}

fn known(value: &str) -> &str {
    if value.is_empty() { UNKNOWN } else { value }
}
