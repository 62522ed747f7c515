//! Listeners and filter chains: what to do with an accepted connection.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::route::RouteConfig;

/// A listener resource, decoded.
#[derive(Debug, Clone, PartialEq)]
pub struct Listener {
    /// The resource's name.
    pub name: String,
    /// What to look at in the first bytes before a chain is chosen.
    pub inspect: Inspect,
    /// Chains with conditions; the most specific match wins (Envoy's order, see [`ChainMatch`]).
    pub chains: Vec<Arc<FilterChain>>,
    /// For connections that no chain matches. `None`: such connections are closed.
    pub default_chain: Option<Arc<FilterChain>>,
}

/// Which first bytes are read before a filter chain is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inspect {
    /// Look for a TLS ClientHello: transport, server name, ALPN.
    pub tls: bool,
    /// Look for HTTP/1 and HTTP/2.
    pub http: bool,
    /// How long to wait for the client's first bytes. After it the connection is what no inspector
    /// recognised; on an outbound listener the server is dialled tentatively then.
    pub timeout: Duration,
}

/// The conditions of a chain. An empty condition matches everything. Compared in Envoy's order: destination
/// port, destination address (longest prefix), server name, transport protocol, application protocol; a
/// chain that names the most specific value at the first differing step wins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChainMatch {
    /// The port the client dialled.
    pub destination_port: Option<u16>,
    /// The address the client dialled.
    pub prefix_ranges: Vec<IpNet>,
    /// The TLS server name, exact or `*.suffix`.
    pub server_names: Vec<String>,
    /// What the first bytes are.
    pub transport: Option<Transport>,
    /// ALPN of the ClientHello; or, in plaintext, `http/1.1` and `h2c` as the HTTP inspector saw them.
    pub application_protocols: Vec<String>,
}

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A TLS ClientHello.
    Tls,
    /// Anything else.
    RawBuffer,
}

/// A filter chain.
#[derive(Debug, Clone, PartialEq)]
pub struct FilterChain {
    /// Its name, such as `inbound|8080||`; shown in dumps, logs and errors.
    pub name: String,
    /// When it applies.
    pub matches: ChainMatch,
    /// Whether mutual TLS is terminated here.
    pub tls: Option<DownstreamTls>,
    /// What then happens.
    pub filter: NetworkFilter,
}

/// Termination of the mesh's mutual TLS: TLS 1.3, own workload certificate, client certificate required and
/// verified against the trust bundle. There is no other kind in a sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DownstreamTls {
    /// Protocols offered, in order.
    pub alpn: Vec<String>,
}

/// The terminal filter of a chain.
#[derive(Debug, Clone, PartialEq)]
pub enum NetworkFilter {
    /// `envoy.filters.network.http_connection_manager`.
    Http(HttpManager),
    /// `envoy.filters.network.tcp_proxy`.
    Tcp(TcpProxy),
    /// The chain of `virtualOutbound` named `mesh-addresses`: look the destination up by name.
    OnDemand,
}

/// HTTP connection manager.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpManager {
    /// Prefix of its name in logs.
    pub stat_prefix: String,
    /// Where routes come from.
    pub routes: RouteSource,
    /// All request headers must have arrived within this time.
    pub request_headers_timeout: Duration,
    /// A connection without requests is closed after this time. `None`: never.
    pub idle_timeout: Option<Duration>,
    /// A connection that is older takes no new requests, and closes after those it has. `None`: no limit.
    pub max_connection_duration: Option<Duration>,
    /// The whole request must have come within this time, unless it is answered before. `None`: no limit.
    pub request_timeout: Option<Duration>,
    /// A request on which no byte passes either way for this long is ended. `None`: never.
    pub stream_idle_timeout: Option<Duration>,
    /// Line format of the access log, if it is on.
    pub access_log: Option<AccessLog>,
}

/// Where a connection manager's routes come from.
#[derive(Debug, Clone, PartialEq)]
pub enum RouteSource {
    /// In the listener itself.
    Inline(Arc<RouteConfig>),
    /// By name, in [`super::store::Snapshot::routes`].
    Named(String),
}

/// TCP proxy.
#[derive(Debug, Clone, PartialEq)]
pub struct TcpProxy {
    /// Prefix of its name in logs.
    pub stat_prefix: String,
    /// Clusters and their weights; one entry with weight 1 for a plain cluster. Never empty, sum never 0.
    pub clusters: Vec<(String, u32)>,
    /// No byte either way for this long closes the connection. `None`: never.
    pub idle_timeout: Option<Duration>,
    /// Line format of the access log, if it is on.
    pub access_log: Option<AccessLog>,
}

/// The access log of a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLog {
    /// One line of text, Istio's default format.
    Text,
    /// One JSON object a line.
    Json,
}
