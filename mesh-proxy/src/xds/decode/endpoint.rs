//! Endpoints: where to dial, and what the peer must prove. An endpoint of the mesh whose identity is not
//! known must never become one that is dialled in plaintext.

use std::collections::HashMap;
use std::sync::Arc;

use mesh_common::spiffe::SpiffeId;
use mesh_common::xds::proto::config::core::v3::{HealthStatus, Locality as PbLocality, Metadata};
use mesh_common::xds::proto::config::endpoint::v3 as pb;
use mesh_common::xds::protobuf::Value;

use super::errors::{Errors, take};
use super::{address, metadata};
use crate::config::cluster::{Endpoint, EndpointTls, Endpoints, Health, Locality, WorkloadLabels};

/// A resource of EDS.
pub(super) fn named(
    errors: &mut Errors,
    name: &str,
    message: pb::ClusterLoadAssignment,
) -> Option<Endpoints> {
    if message.cluster_name != name {
        return errors
            .refuse_at("cluster_name", format_args!("it is {:?}, not {name:?}", message.cluster_name));
    }
    assignment(errors, message)
}

/// The endpoints of a load assignment.
pub(super) fn assignment(errors: &mut Errors, message: pb::ClusterLoadAssignment) -> Option<Endpoints> {
    take!(errors, message => pb::ClusterLoadAssignment {
        used: [endpoints],
        ignored: [cluster_name],
        unset: [named_endpoints, policy],
    });
    let mut localities = errors.all("endpoints", endpoints, locality)?;
    localities.sort_by_key(|locality| locality.priority);
    Some(Endpoints { localities })
}

fn locality(errors: &mut Errors, message: pb::LocalityLbEndpoints) -> Option<Locality> {
    // The weight of a locality counts only with locality-weighted balancing, which no cluster can ask for.
    take!(errors, message => pb::LocalityLbEndpoints {
        used: [locality, lb_endpoints, priority],
        ignored: [metadata, load_balancing_weight],
        unset: [proximity, lb_config],
    });
    let PbLocality { region, zone, sub_zone: _ } = locality.unwrap_or_default();
    let endpoints = errors.all("lb_endpoints", lb_endpoints, endpoint)?;
    Some(Locality { region, zone, priority, endpoints: endpoints.into_iter().map(Arc::new).collect() })
}

fn endpoint(errors: &mut Errors, message: pb::LbEndpoint) -> Option<Endpoint> {
    take!(errors, message => pb::LbEndpoint {
        used: [health_status, metadata, load_balancing_weight, host_identifier],
        ignored: [],
        unset: [],
    });
    let health = health(errors, health_status);
    let (tls, labels) = identity(errors, metadata)?;
    let weight = load_balancing_weight.map_or(1, |weight| weight.value);
    if weight == 0 {
        errors.refuse_at::<()>("load_balancing_weight", "a weight is at least 1");
    }
    let address = match host_identifier {
        Some(pb::lb_endpoint::HostIdentifier::Endpoint(message)) => errors.within("endpoint", |errors| {
            let address = dialled(errors, message)?;
            address::dialled(errors, address)
        })?,
        Some(pb::lb_endpoint::HostIdentifier::EndpointName(_)) => {
            return errors.refuse_at("endpoint_name", "this field is not supported");
        }
        None => return errors.refuse_at("endpoint", "this field must be set"),
    };
    Some(Endpoint { address, tls, health: health?, weight, workload: Arc::new(labels) })
}

/// The address of an endpoint, as the message has it.
#[allow(clippy::option_option)] // outer: usable; inner: set
pub(super) fn dialled(
    errors: &mut Errors,
    message: pb::Endpoint,
) -> Option<Option<mesh_common::xds::proto::config::core::v3::Address>> {
    take!(errors, message => pb::Endpoint {
        used: [address],
        ignored: [hostname, observability_name],
        unset: [health_check_config, additional_addresses],
    });
    Some(address)
}

fn health(errors: &mut Errors, status: i32) -> Option<Health> {
    match HealthStatus::try_from(status) {
        Ok(HealthStatus::Unknown | HealthStatus::Healthy) => Some(Health::Healthy),
        Ok(HealthStatus::Draining) => Some(Health::Draining),
        Ok(HealthStatus::Unhealthy | HealthStatus::Timeout) => Some(Health::Unhealthy),
        Ok(HealthStatus::Degraded) | Err(_) => {
            errors.refuse_at("health_status", format_args!("the value {status} is not supported"))
        }
    }
}

/// What an endpoint's metadata says of its identity, and how metrics name it.
fn identity(errors: &mut Errors, metadata: Option<Metadata>) -> Option<(EndpointTls, WorkloadLabels)> {
    let mut matching = metadata::filter(metadata.clone(), "envoy.transport_socket_match");
    let mut mesh = metadata::filter(metadata.clone(), "mesh");
    let mut istio = metadata::filter(metadata, "istio");
    errors.within("metadata.filter_metadata", |errors| {
        let mode = errors.within("envoy.transport_socket_match", |errors| {
            let mode = metadata::text(errors, &mut matching, "tlsMode");
            metadata::nothing_else(errors, &matching);
            mode
        })?;
        let mut labels = errors.within("istio", |errors| labels(errors, &mut istio))?;
        let tls = errors.within("mesh", |errors| {
            let tls = tls(errors, &mode, &mut mesh);
            labels.app = metadata::text(errors, &mut mesh, "app")?;
            labels.version = metadata::text(errors, &mut mesh, "version")?;
            metadata::nothing_else(errors, &mesh);
            tls
        })?;
        if let EndpointTls::Mutual(id) = &tls {
            labels.principal = id.as_str().to_owned();
        }
        Some((tls, labels))
    })
}

fn tls(errors: &mut Errors, mode: &str, mesh: &mut HashMap<String, Value>) -> Option<EndpointTls> {
    let refused = metadata::text(errors, mesh, "refused")?;
    let spiffe = metadata::text(errors, mesh, "spiffe")?;
    if !refused.is_empty() {
        return Some(EndpointTls::Refused(refused));
    }
    match mode {
        "istio" if spiffe.is_empty() => {
            Some(EndpointTls::Refused("it takes mutual TLS, but its identity is not known".to_owned()))
        }
        "istio" => errors.check("spiffe", spiffe.parse::<SpiffeId>()).map(EndpointTls::Mutual),
        "" if !spiffe.is_empty() => Some(EndpointTls::Refused(
            "it has an identity, but does not say that it takes mutual TLS".to_owned(),
        )),
        "" | "disabled" => Some(EndpointTls::Plaintext),
        other => errors.refuse(format_args!("the tlsMode {other:?} is not supported")),
    }
}

/// `<workload>;<namespace>;<canonical service>;<canonical revision>;<cluster>`, as Istio writes it.
fn labels(errors: &mut Errors, istio: &mut HashMap<String, Value>) -> Option<WorkloadLabels> {
    let text = metadata::text(errors, istio, "workload")?;
    let mut parts = text.split(';').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    Some(WorkloadLabels {
        workload: next(),
        namespace: next(),
        canonical_service: next(),
        canonical_revision: next(),
        cluster: next(),
        ..WorkloadLabels::default()
    })
}
