//! Resources as text for people. Envoy's messages have no JSON form here; this is the debug form of Rust.

use mesh_common::workload::Address;
use mesh_common::xds::ResourceType;
use mesh_common::xds::proto::config::cluster::v3::Cluster;
use mesh_common::xds::proto::config::endpoint::v3::ClusterLoadAssignment;
use mesh_common::xds::proto::config::listener::v3::Listener;
use mesh_common::xds::proto::config::route::v3::RouteConfiguration;
use mesh_common::xds::proto::extensions::transport_sockets::tls::v3::Secret;
use prost::Message;

/// The text of an encoded resource.
pub fn text(kind: ResourceType, body: &[u8]) -> String {
    fn show<M: Message + Default + std::fmt::Debug>(body: &[u8]) -> String {
        M::decode(body).map_or_else(|error| error.to_string(), |message| format!("{message:#?}"))
    }
    match kind {
        ResourceType::Cluster => show::<Cluster>(body),
        ResourceType::Endpoints => show::<ClusterLoadAssignment>(body),
        ResourceType::Listener => show::<Listener>(body),
        ResourceType::Route => show::<RouteConfiguration>(body),
        ResourceType::Secret => show::<Secret>(body),
        ResourceType::Workload => show::<Address>(body),
    }
}
