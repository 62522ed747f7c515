//! `ClusterLoadAssignment`: the endpoints of one port of a service. An endpoint whose identity is unknown is
//! never written as one that takes plaintext.

use std::collections::BTreeMap;

use mesh_common::xds::names::ClusterName;
use mesh_common::xds::proto::config::core::v3::{HealthStatus, Locality, Metadata};
use mesh_common::xds::proto::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint as EndpointProto, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
};
use mesh_common::xds::protobuf::UInt32Value;

use super::client::ClientKind;
use super::host::{self, NamedHost};
use super::proto::{address, fields, metadata, text};
use super::{ClientView, cluster, grpc};
use crate::model::facts::Facts;
use crate::model::service::{Endpoint, EndpointHealth, EndpointTls};
use crate::model::workload::Workload;

/// The endpoints of the cluster of this name, if it has endpoints by EDS.
pub(super) fn load_assignment(
    name: &str,
    client: &dyn ClientView,
    facts: &dyn Facts,
) -> Option<ClusterLoadAssignment> {
    let Ok(ClusterName::Outbound { port, subset, host }) = name.parse() else {
        return None;
    };
    let settings = facts.settings();
    let NamedHost::Service(key) = host::parse_full(&host, &settings.domain)? else {
        return None;
    };
    let service = facts.service(&key)?;
    if !subset.is_empty() || !cluster::has_endpoints(&service) {
        return None;
    }
    let all = facts.endpoints(&key, port)?;
    // The node is read only here, so that all other services are one resource for all clients.
    let node = service.node_local.then(|| client.node());
    let near = all.endpoints.iter().filter(|endpoint| node.is_none_or(|node| endpoint.node == node));
    Some(match client.kind() {
        ClientKind::MeshProxy => assignment(name, near),
        ClientKind::Envoy(_) => assignment(name, near.filter(|endpoint| is_for_envoy(endpoint))),
        ClientKind::Grpc(grpc) => {
            let identities = facts.identities(&key, port).unwrap_or_default();
            let secured = grpc.provider.is_some() && !identities.is_empty();
            let mut made = assignment(name, near.filter(|endpoint| grpc::takes(endpoint, secured)));
            for place in &mut made.endpoints {
                // gRPC passes over a place without a weight.
                let weight = u32::try_from(place.lb_endpoints.len()).unwrap_or(u32::MAX);
                place.load_balancing_weight = Some(UInt32Value { value: weight });
            }
            made
        }
    })
}

/// It would dial a refused endpoint in plaintext, and an unready one when nothing else is left.
fn is_for_envoy(endpoint: &Endpoint) -> bool {
    endpoint.tls != EndpointTls::Refused && endpoint.health != EndpointHealth::NotReady
}

/// An assignment of one address.
pub(super) fn single(name: &str, host: &str, port: u16) -> Assignment {
    let endpoint = EndpointProto { address: Some(address(host, port)), ..Default::default() };
    Assignment {
        cluster_name: name.to_owned(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: vec![LbEndpoint {
                host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(endpoint)),
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    }
}

pub(super) use mesh_common::xds::proto::config::endpoint::v3::ClusterLoadAssignment as Assignment;

/// These endpoints, grouped by place.
pub(super) fn assignment<'a>(
    name: &str,
    endpoints: impl IntoIterator<Item = &'a Endpoint>,
) -> ClusterLoadAssignment {
    let mut places: BTreeMap<(&str, &str), Vec<LbEndpoint>> = BTreeMap::new();
    for endpoint in endpoints {
        places.entry((&endpoint.region, &endpoint.zone)).or_default().push(lb_endpoint(endpoint));
    }
    let localities = places.into_iter().map(|((region, zone), lb_endpoints)| LocalityLbEndpoints {
        locality: Some(Locality {
            region: region.to_owned(),
            zone: zone.to_owned(),
            sub_zone: String::new(),
        }),
        lb_endpoints,
        ..Default::default()
    });
    ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: localities.collect(),
        ..Default::default()
    }
}

fn lb_endpoint(endpoint: &Endpoint) -> LbEndpoint {
    let health = match endpoint.health {
        EndpointHealth::Ready => HealthStatus::Healthy,
        EndpointHealth::Draining => HealthStatus::Draining,
        EndpointHealth::NotReady => HealthStatus::Unhealthy,
    };
    let host = EndpointProto {
        address: Some(address(&endpoint.address.ip.to_string(), endpoint.port)),
        ..Default::default()
    };
    LbEndpoint {
        health_status: health as i32,
        metadata: endpoint_metadata(endpoint),
        load_balancing_weight: Some(UInt32Value { value: 1 }),
        host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(host)),
    }
}

fn endpoint_metadata(endpoint: &Endpoint) -> Option<Metadata> {
    let workload = endpoint.workload.as_deref();
    let mut parts = Vec::new();
    let mut mesh = Vec::new();
    match &endpoint.tls {
        EndpointTls::Plaintext => {}
        EndpointTls::Mutual(identity) => {
            parts.push(("envoy.transport_socket_match", fields([("tlsMode", text("istio"))])));
            mesh.push(("spiffe", text(identity.as_str())));
        }
        EndpointTls::Refused => mesh.push(("refused", text(&refusal(endpoint, workload)))),
    }
    if let Some(workload) = workload {
        parts.push(("istio", fields([("workload", text(&istio_workload(workload)))])));
        for (key, value) in [("app", &workload.app), ("version", &workload.version)] {
            if !value.is_empty() {
                mesh.push((key, text(value)));
            }
        }
    }
    if !mesh.is_empty() {
        parts.push(("mesh", fields(mesh)));
    }
    (!parts.is_empty()).then(|| metadata(parts))
}

fn refusal(endpoint: &Endpoint, workload: Option<&Workload>) -> String {
    let ip = endpoint.address.ip;
    match workload {
        Some(Workload { key, service_account, .. }) => format!(
            "the pod {}/{} ({ip}) takes mutual TLS, but its service account {service_account:?} gives no identity",
            key.namespace, key.name
        ),
        None => format!("the endpoint {ip} takes mutual TLS, but no pod tells its service account"),
    }
}

/// Istio's form: `<workload>;<namespace>;<canonical service>;<canonical revision>;<cluster>`.
fn istio_workload(workload: &Workload) -> String {
    [
        workload.workload_name.as_str(),
        &workload.key.namespace,
        &workload.canonical_service,
        &workload.canonical_revision,
        &workload.key.cluster,
    ]
    .join(";")
}
