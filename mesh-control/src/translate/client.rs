//! The kinds of clients, and what each says of itself that its resources depend on. A kind is part of every
//! cache key: what was made for one kind never reaches another.

use std::net::SocketAddr;

/// Where Envoy finds key, chain and roots, unless its node says otherwise.
pub const DEFAULT_CERTIFICATES: &str = "/var/run/secrets/mesh/certificate";

/// What a client is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum ClientKind {
    /// Our own proxy: looks up what it needs, has its certificate in memory.
    #[default]
    MeshProxy,
    /// A stock Envoy: wants everything, reads its certificate from files.
    Envoy(EnvoyClient),
    /// gRPC's own client: asks for the services that the application calls.
    Grpc(GrpcClient),
}

impl ClientKind {
    /// Its name, as pages and logs show it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::MeshProxy => "mesh-proxy",
            Self::Envoy(_) => "envoy",
            Self::Grpc(_) => "grpc",
        }
    }
}

/// A stock Envoy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EnvoyClient {
    /// The folder that `mesh-proxy certificate` writes.
    pub certificates: String,
    /// Its forward-proxy port, if it has one: then no traffic is captured.
    pub proxy_port: Option<u16>,
    /// Where it listens for its application, if it does so explicitly: then no traffic is captured.
    pub inbound: Vec<Bind>,
}

impl Default for EnvoyClient {
    fn default() -> Self {
        Self { certificates: DEFAULT_CERTIFICATES.to_owned(), proxy_port: None, inbound: Vec::new() }
    }
}

impl EnvoyClient {
    /// Whether the pod's traffic is redirected to it.
    pub fn captures(&self) -> bool {
        self.proxy_port.is_none() && self.inbound.is_empty()
    }
}

/// A port of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Bind {
    /// Where connections arrive.
    pub listen: SocketAddr,
    /// Where the application listens.
    pub app: SocketAddr,
}

/// gRPC's own client.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct GrpcClient {
    /// The certificate provider of its bootstrap that holds the workload's certificate; without one it dials
    /// in plaintext.
    pub provider: Option<String>,
}
