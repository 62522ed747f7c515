//! Who is behind an address. The labels are for metrics; an identity in here proves nothing.

use std::net::IpAddr;
use std::sync::Arc;

use mesh_common::spiffe::SpiffeId;
use mesh_common::workload as pb;

use super::errors::{Errors, take};
use crate::config::cluster::WorkloadLabels;
use crate::config::store::PeerWorkload;

/// The address in the name `<network>/<ip>` of a workload.
pub(crate) fn address_of(resource: &str) -> Option<IpAddr> {
    resource.rsplit_once('/')?.1.parse().ok()
}

/// The workload that the resource named `resource` speaks of.
pub(super) fn workload(errors: &mut Errors, resource: &str, message: pb::Address) -> Option<PeerWorkload> {
    let pb::Address { r#type } = message;
    match errors.required("workload", r#type)? {
        pb::address::Type::Workload(message) => {
            errors.within("workload", |errors| peer(errors, resource, message))
        }
    }
}

fn peer(errors: &mut Errors, resource: &str, message: pb::Workload) -> Option<PeerWorkload> {
    take!(errors, message => pb::Workload {
        used: [name, namespace, addresses, trust_domain, service_account, canonical_name,
            canonical_revision, workload_name, cluster_id],
        ignored: [uid, network, node, workload_type, locality],
        unset: [],
    });
    let named = address_of(resource);
    if named.is_none() || !addresses.iter().any(|bytes| ip(bytes) == named) {
        errors.refuse_at::<()>("addresses", format_args!("the address of {resource:?} is not among them"));
    }
    let identity = if service_account.is_empty() {
        None
    } else {
        let domain = if trust_domain.is_empty() { "cluster.local" } else { &trust_domain };
        errors.check("service_account", SpiffeId::new(domain, &namespace, &service_account))
    };
    let workload = if workload_name.is_empty() { name } else { workload_name };
    // The message has no field for the labels `app` and `version`: what they are called in a mesh is what it has.
    let labels = WorkloadLabels {
        workload,
        namespace,
        app: canonical_name.clone(),
        version: canonical_revision.clone(),
        canonical_service: canonical_name,
        canonical_revision,
        cluster: cluster_id,
        principal: identity.as_ref().map(|id| id.as_str().to_owned()).unwrap_or_default(),
    };
    Some(PeerWorkload { identity, labels: Arc::new(labels) })
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}
