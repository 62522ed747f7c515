//! The mesh as plain data: no Kubernetes types, no protos, no I/O, no clock. `ingest` writes it, `translate`
//! reads it. Values are shared (`Arc`) and compared before they are stored, so that an edit that changes
//! nothing here changes nothing anywhere.

pub mod facts;
pub mod policy;
pub mod route;
pub mod service;
pub mod store;
pub mod workload;

use std::fmt;
use std::net::IpAddr;

/// (network, ip): an address is unique only within its network.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// Empty for the default network.
    pub network: String,
    /// The IP address.
    pub ip: IpAddr,
}

/// (namespace, hostname).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// The service's namespace.
    pub namespace: String,
    /// Its full name: `reviews.shop.svc.cluster.local`.
    pub hostname: String,
}

/// (cluster, namespace, name).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadKey {
    /// The cluster's id, such as `Kubernetes`.
    pub cluster: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
}

/// (group, kind, namespace, name): the object a user wrote.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    /// Such as `HTTPRoute`.
    pub kind: &'static str,
    /// Its namespace, empty for cluster-wide objects.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// Mesh-wide settings, with the names of Istio's MeshConfig.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Settings {
    /// `trustDomain`.
    pub trust_domain: String,
    /// The DNS domain of the cluster, `cluster.local`.
    pub domain: String,
    /// This cluster's id.
    pub cluster: String,
    /// This cluster's network; empty is the default one.
    pub network: String,
    /// `rootNamespace`: mesh-wide policies live here.
    pub root_namespace: String,
    /// `outboundTrafficPolicy.mode`.
    pub outbound: OutboundTrafficPolicy,
    /// `accessLogFile` (only `/dev/stdout`) with `accessLogEncoding`.
    pub access_log: Option<AccessLogEncoding>,
    /// `protocolDetectionTimeout`, milliseconds.
    pub detection_timeout_ms: u64,
    /// `connectTimeout`, milliseconds.
    pub connect_timeout_ms: u64,
    /// No Kubernetes: pods have loopback addresses, which are then addresses of the mesh like any other.
    pub standalone: bool,
}

/// What happens to destinations outside of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutboundTrafficPolicy {
    /// They are dialled as they are.
    AllowAny,
    /// They are refused.
    RegistryOnly,
}

/// How access log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AccessLogEncoding {
    /// A line of text.
    Text,
    /// A JSON object.
    Json,
}
