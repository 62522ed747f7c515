//! Clusters as Envoy needs them: limits that it would otherwise invent are lifted.

use mesh_common::xds::names::ClusterName;
use mesh_common::xds::proto::config::cluster::v3::{
    CircuitBreakers, Cluster, circuit_breakers::Thresholds, cluster::CommonLbConfig,
};
use mesh_common::xds::proto::r#type::v3::Percent;
use mesh_common::xds::protobuf::UInt32Value;

use crate::translate::client::EnvoyClient;
use crate::translate::endpoint;

/// What Envoy would do unasked, undone.
pub(in crate::translate) fn adapt(cluster: &mut Cluster) {
    // It would stop at 1,024 of each.
    let without_limit = Some(UInt32Value { value: u32::MAX });
    cluster.circuit_breakers = Some(CircuitBreakers {
        thresholds: vec![Thresholds {
            max_connections: without_limit,
            max_pending_requests: without_limit,
            max_requests: without_limit,
            max_retries: without_limit,
            ..Default::default()
        }],
        ..Default::default()
    });
    // It would send to draining endpoints as soon as half of all drain. Now only when nothing else is left.
    cluster.common_lb_config =
        Some(CommonLbConfig { healthy_panic_threshold: Some(Percent { value: 1.0 }), ..Default::default() });
}

/// The address of the application behind a port, where that is said explicitly.
pub(in crate::translate) fn to_application(
    name: &ClusterName,
    envoy: &EnvoyClient,
) -> Option<endpoint::Assignment> {
    let ClusterName::Inbound { port } = name else { return None };
    let bind = envoy.inbound.iter().find(|bind| bind.listen.port() == *port)?;
    Some(endpoint::single(&name.to_string(), &bind.app.ip().to_string(), bind.app.port()))
}
