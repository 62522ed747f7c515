//! Clusters and their endpoints: where requests can go, and how a connection to there is made.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_common::spiffe::SpiffeId;

/// `envoy.config.cluster.v3.Cluster`, decoded.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// The resource's name.
    pub name: String,
    /// The service that metrics name as destination.
    pub service: ServiceLabels,
    /// Where endpoints come from.
    pub discovery: Discovery,
    /// Limit for one TCP connect with its TLS handshake.
    pub connect_timeout: Duration,
    /// How connections are secured.
    pub tls: UpstreamTls,
    /// Which HTTP version is spoken to the endpoint.
    pub http: UpstreamHttp,
    /// Source addresses to dial from.
    pub bind: Bind,
}

/// Source addresses to dial from, one of each family (inbound: 127.0.0.6 and ::6); without one the system
/// chooses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bind {
    /// Toward IPv4.
    pub v4: Option<Ipv4Addr>,
    /// Toward IPv6.
    pub v6: Option<Ipv6Addr>,
}

/// The destination service as metrics name it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceLabels {
    /// `reviews.shop.svc.cluster.local`; empty when unknown.
    pub host: String,
    /// `reviews`; empty when unknown.
    pub name: String,
    /// `shop`; empty when unknown.
    pub namespace: String,
}

/// Where a cluster's endpoints come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Discovery {
    /// By EDS, under this name.
    Eds(String),
    /// In the cluster itself.
    Static(Arc<Endpoints>),
    /// By DNS, each address an endpoint in plaintext unless the cluster has TLS.
    Dns {
        /// The name to resolve.
        host: String,
        /// The port to dial.
        port: u16,
    },
    /// The address that the client asked for.
    OriginalDestination,
    /// No endpoint: every request fails. `BlackHoleCluster`.
    None,
}

/// How connections to endpoints are secured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpstreamTls {
    /// Plaintext.
    None,
    /// Mutual TLS to endpoints that take it ([`Endpoint::tls`]), plaintext to the rest.
    ByEndpoint(MeshTls),
}

/// The mesh's mutual TLS toward an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshTls {
    /// Server name sent: `outbound_.80_._.reviews.shop.svc.cluster.local`.
    pub sni: String,
}

/// Which HTTP version goes upstream. It never affects opaque TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamHttp {
    /// The one of the downstream request (Envoy: `use_downstream_protocol_config`).
    AsDownstream,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge (gRPC).
    Http2,
}

/// The endpoints of a cluster at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Endpoints {
    /// Grouped by locality; lower priority first when sorted.
    pub localities: Vec<Locality>,
}

/// Endpoints of one place.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Locality {
    /// Region, empty when unknown.
    pub region: String,
    /// Zone, empty when unknown.
    pub zone: String,
    /// 0 is used first.
    pub priority: u32,
    /// The endpoints.
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// One endpoint. Two endpoints that differ in anything but health are different endpoints:
/// their connections are never shared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Where to dial.
    pub address: SocketAddr,
    /// What must be known of its identity.
    pub tls: EndpointTls,
    /// Whether new requests may go there.
    pub health: Health,
    /// Load balancing weight, at least 1.
    pub weight: u32,
    /// Who it is, for metrics.
    pub workload: Arc<WorkloadLabels>,
}

/// How an endpoint is to be dialled.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EndpointTls {
    /// It is not in the mesh: plaintext.
    Plaintext,
    /// Mutual TLS; the peer must prove exactly this identity.
    Mutual(SpiffeId),
    /// In the mesh, but its identity is not known: it must not be dialled at all. Holds the reason.
    Refused(String),
}

/// Whether new requests may go to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Health {
    /// Yes.
    Healthy,
    /// No new requests; those under way go on.
    Draining,
    /// No.
    Unhealthy,
}

/// A workload as Istio's standard metrics name it. Empty text means unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct WorkloadLabels {
    /// Name of the deployment, or of whatever owns the pod.
    pub workload: String,
    /// Its namespace.
    pub namespace: String,
    /// `service.istio.io/canonical-name`, else `app.kubernetes.io/name`, else `app`, else the workload.
    pub canonical_service: String,
    /// `service.istio.io/canonical-revision`, else `app.kubernetes.io/version`, else `version`, else `latest`.
    pub canonical_revision: String,
    /// Label `app`.
    pub app: String,
    /// Label `version`.
    pub version: String,
    /// The cluster it runs in.
    pub cluster: String,
    /// Its SPIFFE identity in full, when known. Metrics print it as it is.
    pub principal: String,
}
