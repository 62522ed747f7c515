//! From Envoy's messages to [`crate::config`]. A resource that cannot be used is refused whole, with every
//! reason and the path of the field. Never accept a set field that has no code behind it: each message is
//! taken apart field by field with [`take`], so that a new field of the protos does not compile until
//! somebody has said what becomes of it.

mod address;
mod cluster;
mod endpoint;
mod errors;
mod filter;
mod header;
mod listener;
mod matcher;
mod metadata;
mod route;
mod route_action;
mod secret;
mod tls;
mod workload;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use mesh_common::trust::TrustBundle;
use mesh_common::xds::ResourceType;
use mesh_common::xds::protobuf::Any;

use crate::config::cluster::{Cluster, Endpoints};
use crate::config::listener::Listener;
use crate::config::route::RouteConfig;
use crate::config::store::PeerWorkload;

pub use errors::Errors;
pub(super) use workload::address_of;

/// A resource that can be used.
#[derive(Debug, Clone)]
pub enum Decoded {
    /// The trust bundle.
    Bundle(TrustBundle),
    /// A listener.
    Listener(Arc<Listener>),
    /// A route configuration.
    Route(Arc<RouteConfig>),
    /// A cluster.
    Cluster(Box<Cluster>),
    /// The endpoints of a cluster.
    Endpoints(Arc<Endpoints>),
    /// Who is behind an address.
    Workload(Arc<PeerWorkload>),
}

/// Decodes the resource `name` of type `kind`.
///
/// # Errors
/// Every reason why it cannot be used, each with the path of its field.
pub fn decode(kind: ResourceType, name: &str, any: &Any) -> Result<Decoded, Vec<String>> {
    let mut errors = Errors::default();
    let decoded = match kind {
        ResourceType::Secret => {
            errors.message(any).and_then(|m| secret::bundle(&mut errors, name, m)).map(Decoded::Bundle)
        }
        ResourceType::Listener => errors
            .message(any)
            .and_then(|m| listener::listener(&mut errors, name, m))
            .map(|l| Decoded::Listener(Arc::new(l))),
        ResourceType::Route => errors
            .message(any)
            .and_then(|m| route::named(&mut errors, name, m))
            .map(|r| Decoded::Route(Arc::new(r))),
        ResourceType::Cluster => errors
            .message(any)
            .and_then(|m| cluster::cluster(&mut errors, name, m))
            .map(|c| Decoded::Cluster(Box::new(c))),
        ResourceType::Endpoints => errors
            .message(any)
            .and_then(|m| endpoint::named(&mut errors, name, m))
            .map(|e| Decoded::Endpoints(Arc::new(e))),
        ResourceType::Workload => errors
            .message_of(any, ResourceType::Workload.url())
            .and_then(|m| workload::workload(&mut errors, name, m))
            .map(|w| Decoded::Workload(Arc::new(w))),
    };
    errors.finish(decoded)
}
