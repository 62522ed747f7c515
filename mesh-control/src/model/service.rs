//! Services and the endpoints behind them.

use std::net::IpAddr;
use std::sync::Arc;

use mesh_common::spiffe::SpiffeId;

use super::workload::Workload;
use super::{Address, ServiceKey};

/// A service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Service {
    /// Its key.
    pub key: ServiceKey,
    /// Its short name: `reviews`.
    pub name: String,
    /// clusterIPs, externalIPs and load-balancer IPs; empty for headless and ExternalName.
    pub addresses: Vec<IpAddr>,
    /// What stands behind it.
    pub kind: ServiceKind,
    /// Its ports, by number.
    pub ports: Vec<ServicePort>,
    /// `internalTrafficPolicy: Local`: only endpoints on the client's node.
    pub node_local: bool,
    /// Creation time in seconds, for conflicts: the older one wins.
    pub created: i64,
}

/// What stands behind a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ServiceKind {
    /// A virtual address in front of endpoints.
    Cluster,
    /// Endpoints without a virtual address.
    Headless,
    /// A DNS name outside.
    ExternalName(String),
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// The number that clients dial.
    pub port: u16,
    /// Its name, empty if there is only one.
    pub name: String,
    /// What is spoken on it: declared by `appProtocol`, by the port's name, or by an HTTPRoute.
    pub protocol: Protocol,
}

/// What is spoken on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// HTTP/1 or HTTP/2, as the client likes.
    Http,
    /// HTTP/2 with prior knowledge; gRPC.
    Http2,
    /// Opaque bytes (also the application's own TLS: `https`, `tls`).
    Tcp,
    /// Not declared: the first bytes tell.
    Detect,
}

/// The endpoints of one port of a service. A change of it is one EDS resource.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct PortEndpoints {
    /// Sorted by address, each address once.
    pub endpoints: Vec<Endpoint>,
}

/// An endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Where it is.
    pub address: Address,
    /// The port it listens on: from the EndpointSlice's port of the same name, never from targetPort.
    pub port: u16,
    /// Whether new requests may go there.
    pub health: EndpointHealth,
    /// How it is dialled.
    pub tls: EndpointTls,
    /// Its zone.
    pub zone: String,
    /// Its region.
    pub region: String,
    /// Its node.
    pub node: String,
    /// The pod behind it, if one is known.
    pub workload: Option<Arc<Workload>>,
    /// Its own name under a headless service's, empty if it has none: `web-0` of `web-0.web.shop.svc`.
    pub hostname: String,
}

/// Whether new requests may go to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EndpointHealth {
    /// Ready.
    Ready,
    /// Serving but terminating: what is under way goes on, nothing new unless nothing else is left.
    Draining,
    /// Not ready.
    NotReady,
}

/// How an endpoint is dialled.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EndpointTls {
    /// Not in the mesh, or its port's mode is DISABLE.
    Plaintext,
    /// Mutual TLS, this identity.
    Mutual(SpiffeId),
    /// In the mesh by its label, but no pod tells its service account: must not be dialled.
    Refused,
}
