//! `istio.workload.Address`: who is behind an address, for metrics. Never a base for a decision: the peer's
//! certificate says who it is.

use std::net::IpAddr;

use mesh_common::workload::{self as pb, address};

use crate::model::facts::Facts;
use crate::model::workload::{Workload, WorkloadKind};

/// The pod behind `<network>/<ip>`, if it is exactly one.
pub(super) fn workload(name: &str, facts: &dyn Facts) -> Option<pb::Address> {
    let (network, ip_text) = name.split_once('/')?;
    let ip: IpAddr = ip_text.parse().ok()?;
    // One spelling for one address, else one resource would live under many names.
    if ip.to_string() != ip_text {
        return None;
    }
    let settings = facts.settings();
    if network != settings.network {
        return None;
    }
    let workload = facts.owner(ip)?;
    Some(pb::Address { r#type: Some(address::Type::Workload(encode(&workload, network))) })
}

fn encode(workload: &Workload, network: &str) -> pb::Workload {
    let identity = workload.identity.as_ref();
    let key = &workload.key;
    pb::Workload {
        uid: format!("{}//Pod/{}/{}", key.cluster, key.namespace, key.name),
        name: key.name.clone(),
        namespace: key.namespace.clone(),
        addresses: workload.addresses.iter().copied().map(octets).collect(),
        network: network.to_owned(),
        trust_domain: identity.map(|id| id.trust_domain().to_owned()).unwrap_or_default(),
        service_account: identity.map(|id| id.service_account().to_owned()).unwrap_or_default(),
        node: workload.node.clone(),
        canonical_name: workload.canonical_service.clone(),
        canonical_revision: workload.canonical_revision.clone(),
        workload_type: kind(workload.workload_kind).into(),
        workload_name: workload.workload_name.clone(),
        cluster_id: key.cluster.clone(),
        locality: locality(workload),
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn kind(kind: WorkloadKind) -> pb::WorkloadType {
    match kind {
        WorkloadKind::Deployment => pb::WorkloadType::Deployment,
        WorkloadKind::CronJob => pb::WorkloadType::Cronjob,
        WorkloadKind::Job => pb::WorkloadType::Job,
        WorkloadKind::Pod => pb::WorkloadType::Pod,
    }
}

fn locality(workload: &Workload) -> Option<pb::Locality> {
    if workload.region.is_empty() && workload.zone.is_empty() {
        return None;
    }
    Some(pb::Locality {
        region: workload.region.clone(),
        zone: workload.zone.clone(),
        subzone: String::new(),
    })
}
