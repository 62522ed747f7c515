//! The Envoy protos that the mesh uses and the names of its resources. Protos are named here, in the
//! proxy's `xds` and in the control plane's `translate` and `serve`, and nowhere else.

pub mod names;

pub use envoy_types::pb::envoy as proto;
pub use envoy_types::pb::google::protobuf;

use std::fmt;

/// Bytes that a compiled regular expression of a route may take: the control plane refuses a larger one in the
/// user's object, so that no proxy has to refuse the resource made of it.
pub const REGEX_SIZE_LIMIT: usize = 1 << 20;

/// The types of resource that the mesh exchanges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    /// `envoy.config.cluster.v3.Cluster`.
    Cluster,
    /// `envoy.config.endpoint.v3.ClusterLoadAssignment`.
    Endpoints,
    /// `envoy.config.listener.v3.Listener`.
    Listener,
    /// `envoy.config.route.v3.RouteConfiguration`.
    Route,
    /// `envoy.extensions.transport_sockets.tls.v3.Secret`: here only the trust bundle, never a key.
    Secret,
    /// `istio.workload.Address`.
    Workload,
}

impl ResourceType {
    /// Every type, in the order in which updates are sent: what is referred to goes first.
    pub const ALL: [Self; 6] =
        [Self::Secret, Self::Cluster, Self::Endpoints, Self::Listener, Self::Route, Self::Workload];

    /// The type URL, as it stands in requests and responses.
    pub const fn url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            Self::Workload => "type.googleapis.com/istio.workload.Address",
        }
    }

    /// The type of this URL, if the mesh knows it.
    pub fn from_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.url() == url)
    }

    /// A short name for logs, metrics and tables.
    pub const fn short(self) -> &'static str {
        match self {
            Self::Cluster => "cds",
            Self::Endpoints => "eds",
            Self::Listener => "lds",
            Self::Route => "rds",
            Self::Secret => "sds",
            Self::Workload => "wds",
        }
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}
