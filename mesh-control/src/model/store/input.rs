//! What is put into the model: objects as their authors wrote them, taken apart, not yet related to each other.

use std::net::IpAddr;

use crate::model::route::RouteRule;
use crate::model::service::EndpointHealth;
use crate::model::workload::Workload;
use crate::model::{ObjectRef, ServiceKey};

/// A pod. The model fills in what depends on other objects: identity (trust domain), zone and region (node).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodInput {
    /// The pod; `identity`, `zone` and `region` are left empty.
    pub workload: Workload,
    /// `metadata.uid`, if there is one.
    pub uid: Option<String>,
}

/// Where a node is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeInput {
    /// Label `topology.kubernetes.io/zone`.
    pub zone: String,
    /// Label `topology.kubernetes.io/region`.
    pub region: String,
}

/// An EndpointSlice: (namespace, name) of the object is its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceInput {
    /// The service it belongs to.
    pub service: ServiceKey,
    /// Name and number of each TCP port.
    pub ports: Vec<(String, u16)>,
    /// The endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its conditions.
    pub health: EndpointHealth,
    /// Its node, if the slice tells.
    pub node: String,
    /// Its zone, if the slice tells.
    pub zone: String,
    /// (namespace, name) of the pod it refers to.
    pub pod: Option<(String, String)>,
    /// Its own name under a headless service's; empty if it has none.
    pub hostname: String,
}

/// An HTTPRoute, as far as it has services as parents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteInput {
    /// The object.
    pub source: ObjectRef,
    /// `metadata.generation`.
    pub generation: i64,
    /// Creation time in seconds: the oldest wins.
    pub created: i64,
    /// Parents that are services.
    pub parents: Vec<RouteParent>,
    /// Rules with one match each, in the order of the object. Backends are not yet looked up.
    pub rules: Vec<RouteRule>,
    /// Every backend of the object, for its status.
    pub backends: Vec<RouteBackend>,
    /// What is written in it and has no code behind it: the rules concerned are broken.
    pub problems: Vec<Problem>,
}

/// A parent of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteParent {
    /// The service.
    pub service: ServiceKey,
    /// As the status shows it: `Service shop/reviews:80`.
    pub text: String,
    /// Only this port.
    pub port: Option<u16>,
    /// Only the port of this name.
    pub section: Option<String>,
    /// It cannot be a parent, whatever the model holds.
    pub problem: Option<Problem>,
}

/// A backend of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteBackend {
    /// Where it stands: `spec.rules[0].backendRefs[1]`.
    pub path: String,
    /// The service and port, or why there can be none.
    pub target: Result<(ServiceKey, u16), Problem>,
}

/// Something in an object that cannot be done as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// One word for the condition.
    pub reason: &'static str,
    /// A sentence that names the path.
    pub message: String,
}
