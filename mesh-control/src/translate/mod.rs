//! From the model to Envoy's resources: one resource, for one client, from its name alone. Pure: no I/O,
//! no clock, no state. Whatever a resource depends on is read through [`Facts`] and [`ClientView`], and nothing
//! is read that it does not depend on: the reads are its version and its cache key.

pub mod client;
mod cluster;
mod endpoint;
mod envoy;
pub mod everything;
mod grpc;
mod host;
mod inbound;
mod listener;
mod proto;
mod route;
mod secret;
mod virtual_outbound;
mod workload;

use mesh_common::xds::ResourceType;
use mesh_common::xds::names::ListenerName;
use mesh_common::xds::proto::config::listener::v3::Listener;
use mesh_common::xds::protobuf::Any;

use self::client::ClientKind;
use crate::model::WorkloadKey;
use crate::model::facts::Facts;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Request<'a> {
    /// The type.
    pub kind: ResourceType,
    /// The name, as the client wrote it.
    pub name: &'a str,
}

/// What translation may ask of the client, one attribute at a time. Implemented by the recorder, which notes
/// what was read.
pub trait ClientView {
    /// What it is. Always part of the cache key, so that reading it costs nothing.
    fn kind(&self) -> &ClientKind;
    /// The namespace of the client.
    fn namespace(&self) -> &str;
    /// The pod that the client is the sidecar of, if it is one.
    fn workload(&self) -> Option<&WorkloadKey>;
    /// The node the client runs on; empty when unknown.
    fn node(&self) -> &str;
    /// The zone of that node; empty when unknown.
    fn zone(&self) -> &str;
}

/// Why a resource cannot be made. A name that stands for nothing is not an error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TranslateError {
    /// There is no root certificate to send.
    #[error("there is no trust bundle to send: every proxy that got an empty one would trust nobody")]
    NoTrustBundle,
}

/// The cluster of inbound connections to ports that no service and no policy names.
const INBOUND_PASSTHROUGH_CLUSTER: &str = "InboundPassthroughCluster";

/// The resource of this name for this client; `None` when there is no such thing.
///
/// # Errors
/// When the resource exists but must not be sent as it is.
pub fn translate(
    request: Request<'_>,
    client: &dyn ClientView,
    facts: &dyn Facts,
) -> Result<Option<Any>, TranslateError> {
    let name = request.name;
    if name == everything::NAME {
        return Ok(everything::list(request.kind, client, facts));
    }
    Ok(match request.kind {
        ResourceType::Secret => secret::secret(name, facts)?.map(|r| proto::pack(&r)),
        ResourceType::Cluster => cluster::cluster(name, client, facts).map(|r| proto::pack(&r)),
        ResourceType::Endpoints => endpoint::load_assignment(name, client, facts).map(|r| proto::pack(&r)),
        ResourceType::Listener => listener(name, client, facts).map(|r| proto::pack(&r)),
        ResourceType::Route => route::route_configuration(name, client, facts).map(|r| proto::pack(&r)),
        ResourceType::Workload => workload::workload(name, facts).map(|r| Any {
            type_url: request.kind.url().to_owned(),
            value: prost::Message::encode_to_vec(&r),
        }),
    })
}

fn listener(name: &str, client: &dyn ClientView, facts: &dyn Facts) -> Option<Listener> {
    match client.kind() {
        ClientKind::MeshProxy => {}
        ClientKind::Envoy(envoy) => return envoy::listener(name, envoy, client, facts),
        ClientKind::Grpc(_) => return grpc::listener(name, client, facts),
    }
    match name.parse().ok()? {
        ListenerName::Inbound { namespace, pod } => inbound::inbound(name, &namespace, &pod, facts),
        ListenerName::VirtualOutbound => Some(virtual_outbound::virtual_outbound(name, facts)),
        ListenerName::Address(address) => listener::by_address(name, address, facts),
        ListenerName::Host { host, port } => listener::by_host(name, &host, port, client, facts),
    }
}
