//! What translation may ask of the model, one fact at a time. Whoever translates reads through
//! [`Facts`], so that what a resource was made from is known exactly: that is what its version is a
//! hash of, and what tells which resources a change concerns.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_common::spiffe::SpiffeId;

use super::route::PortRoutes;
use super::service::{PortEndpoints, Service};
use super::workload::{Inbound, Workload};
use super::{ServiceKey, Settings, WorkloadKey};

/// The name of a fact.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FactKey {
    /// Mesh-wide settings.
    Settings,
    /// The ranges of the mesh's addresses.
    Ranges,
    /// A service without its endpoints.
    Service(ServiceKey),
    /// The names of all services.
    Services,
    /// The identities behind one port of a service.
    Identities(ServiceKey, u16),
    /// The endpoints of one port of a service.
    Endpoints(ServiceKey, u16),
    /// The routing rules of one port of a service.
    Routes(ServiceKey, u16),
    /// A pod.
    Workload(WorkloadKey),
    /// What a pod's proxy does with connections that arrive.
    Inbound(WorkloadKey),
    /// What an address (of the own network) and port stand for.
    Destination(IpAddr, u16),
    /// Which pod is behind an address of the own network.
    Owner(IpAddr),
    /// The trust bundle, PEM.
    TrustBundle,
}

/// What an address and port stand for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Destination {
    /// A virtual address and port of this service. The oldest wins if several claim it.
    Service(ServiceKey),
    /// A pod's address: dialled directly.
    Pod(Arc<PodDestination>),
    /// A virtual address of the mesh, but no service has this port. Nothing listens there.
    NoSuchPort(ServiceKey),
    /// Several pods claim the address for themselves: whose identity to expect is not known, so it must not be dialled.
    Contested,
}

/// A pod that is dialled by its own address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodDestination {
    /// The endpoint, as a service's endpoint would be: address, port, how it is dialled.
    pub endpoint: super::service::Endpoint,
    /// What is spoken on the port, if a service declares it.
    pub protocol: super::service::Protocol,
    /// The headless service it belongs to (full name, name, namespace), for metrics.
    pub service: Option<(String, String, String)>,
}

/// A read of the model. Every method is one [`FactKey`]. Implemented by the store of the model, and by the
/// recorder that notes what a translation reads.
pub trait Facts {
    /// [`FactKey::Settings`].
    fn settings(&self) -> Arc<Settings>;
    /// [`FactKey::Ranges`]: at most 64, sorted, none inside another. Loopback, link-local and multicast are
    /// never in it, except pods' loopback addresses in standalone mode (never 127.0.0.1 and ::1).
    fn ranges(&self) -> Arc<Vec<IpNet>>;
    /// [`FactKey::Service`].
    fn service(&self, key: &ServiceKey) -> Option<Arc<Service>>;
    /// [`FactKey::Services`].
    fn services(&self) -> Arc<BTreeSet<ServiceKey>>;
    /// [`FactKey::Identities`]: of all endpoints that take mutual TLS; `None` when the service or port does not
    /// exist. It changes far less often than the endpoints.
    fn identities(&self, key: &ServiceKey, port: u16) -> Option<Arc<BTreeSet<SpiffeId>>>;
    /// [`FactKey::Endpoints`]; `None` when the service or port does not exist.
    fn endpoints(&self, key: &ServiceKey, port: u16) -> Option<Arc<PortEndpoints>>;
    /// [`FactKey::Routes`]; `None` when no route has this port as parent.
    fn routes(&self, key: &ServiceKey, port: u16) -> Option<Arc<PortRoutes>>;
    /// [`FactKey::Workload`].
    fn workload(&self, key: &WorkloadKey) -> Option<Arc<Workload>>;
    /// [`FactKey::Inbound`].
    fn inbound(&self, key: &WorkloadKey) -> Option<Arc<Inbound>>;
    /// [`FactKey::Destination`]; `None` when the address is nobody's in the mesh.
    fn destination(&self, ip: IpAddr, port: u16) -> Option<Arc<Destination>>;
    /// [`FactKey::Owner`]; `None` when nobody or several (hostNetwork) have the address.
    fn owner(&self, ip: IpAddr) -> Option<Arc<Workload>>;
    /// [`FactKey::TrustBundle`].
    fn trust_bundle(&self) -> Arc<String>;
}
