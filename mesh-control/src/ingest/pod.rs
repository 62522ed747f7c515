//! Pod. Its spec is the kubelet's: the mesh reads who it is, where it is, and what it is called in metrics.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use mesh_common::capture::{EXCLUDE_INBOUND_PORTS, PortRange, REDIRECT_CONTAINER};
use mesh_common::maker::Maker;
use mesh_common::xds::names::TLS_MODE_LABEL;

use super::invalid;
use crate::api::InvalidObject;
use crate::model::WorkloadKey;
use crate::model::store::input::PodInput;
use crate::model::workload::{Workload, WorkloadKind};

pub(super) fn pod(key: &WorkloadKey, pod: &core::Pod) -> Result<PodInput, InvalidObject> {
    let spec = pod.spec.clone().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    let label =
        |names: &[&str]| names.iter().find_map(|name| labels.get(*name)).filter(|value| !value.is_empty());

    let mut addresses: Vec<IpAddr> = Vec::new();
    let ips = status.pod_ips.unwrap_or_default().into_iter().map(|ip| ip.ip);
    for text in status.pod_ip.into_iter().chain(ips).filter(|text| !text.is_empty()) {
        let ip =
            text.parse().map_err(|_| invalid("/status/podIPs", format!("{text:?} is not an IP address")))?;
        if !addresses.contains(&ip) {
            addresses.push(ip);
        }
    }

    let (workload_name, workload_kind) = owner(&key.name, pod.metadata.owner_references.as_deref(), &labels);
    let workload_name = label(&["service.istio.io/workload-name"]).cloned().unwrap_or(workload_name);
    let canonical = label(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
    let revision = label(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
    let service_account = spec.service_account_name.filter(|name| !name.is_empty());
    // A finished pod keeps its object, while its address goes to another.
    let finished = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    Ok(PodInput {
        uid: pod.metadata.uid.clone().filter(|uid| !uid.is_empty()),
        workload: Workload {
            key: key.clone(),
            addresses,
            host_network: spec.host_network.unwrap_or(false),
            identity: None,
            service_account: service_account.unwrap_or_else(|| "default".to_owned()),
            meshed: labels.get(TLS_MODE_LABEL).is_some_and(|mode| mode == "istio"),
            uncaptured: uncaptured(spec.init_containers.as_deref().unwrap_or_default()),
            canonical_service: canonical.unwrap_or(&workload_name).clone(),
            canonical_revision: revision.cloned().unwrap_or_else(|| "latest".to_owned()),
            app: label(&["app"]).cloned().unwrap_or_default(),
            version: label(&["version"]).cloned().unwrap_or_default(),
            workload_name,
            workload_kind,
            node: spec.node_name.unwrap_or_default(),
            zone: String::new(),
            region: String::new(),
            labels,
            live: !finished,
            leaving: pod.metadata.deletion_timestamp.is_some(),
        },
    })
}

/// What the injector told the container that captures the pod's connections to leave alone. What that container could
/// not have read either is nothing: it would have failed.
fn uncaptured(init: &[core::Container]) -> Vec<PortRange> {
    let redirect = init.iter().find(|container| container.name == REDIRECT_CONTAINER);
    let arguments = redirect.and_then(|container| container.args.as_deref()).unwrap_or_default();
    let lists = arguments.iter().filter_map(|it| it.strip_prefix(EXCLUDE_INBOUND_PORTS)?.strip_prefix('='));
    lists.flat_map(|list| list.split(',')).filter_map(|ports| ports.parse().ok()).collect()
}

/// Who keeps the pod alive.
fn owner(
    pod: &str,
    owners: Option<&[OwnerReference]>,
    labels: &BTreeMap<String, String>,
) -> (String, WorkloadKind) {
    let mut owners = owners.into_iter().flatten();
    let Some(owner) = owners.find(|owner| owner.controller == Some(true)) else {
        return (pod.to_owned(), WorkloadKind::Pod);
    };
    let maker = Maker::of(&owner.kind, &owner.name, labels.get("pod-template-hash").map(String::as_str));
    let kind = match maker {
        Maker::Workload(_) => WorkloadKind::Deployment,
        Maker::CronJob(_) => WorkloadKind::CronJob,
        Maker::Job(_) => WorkloadKind::Job,
    };
    (maker.name().to_owned(), kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_are_left_alone() {
        let container = |name: &str, args: &[&str]| core::Container {
            name: name.to_owned(),
            args: Some(args.iter().map(|arg| (*arg).to_owned()).collect()),
            ..core::Container::default()
        };
        let own = container("own", &["--exclude-inbound-ports=1"]);
        for (args, expected) in [
            (&["redirect", "--verify", "--exclude-inbound-ports=22,8000-8010"][..], "22 8000-8010"),
            (&["redirect", "--exclude-outbound-ports=22"], ""),
            (&["redirect", "--exclude-inbound-ports=http,9090"], "9090"),
            (&["redirect"], ""),
        ] {
            let found = uncaptured(&[own.clone(), container("mesh-redirect", args)]);
            let found: Vec<_> = found.iter().map(ToString::to_string).collect();
            assert_eq!(found.join(" "), expected, "{args:?}");
        }
        assert_eq!(uncaptured(&[own]), []);
    }

    #[test]
    fn owners() {
        let labels = [("pod-template-hash".to_owned(), "abc12".to_owned())].into();
        let cases = [
            ("ReplicaSet", "reviews-v1-abc12", "reviews-v1", WorkloadKind::Deployment),
            ("Job", "once", "once", WorkloadKind::Job),
            ("Job", "backup-28371234", "backup", WorkloadKind::CronJob),
        ];
        for (kind, name, expected, expected_kind) in cases {
            let reference = OwnerReference {
                kind: kind.to_owned(),
                name: name.to_owned(),
                controller: Some(true),
                ..OwnerReference::default()
            };
            let found = owner("pod", Some(&[reference]), &labels);
            assert_eq!(found, (expected.to_owned(), expected_kind), "{kind} {name}");
        }
        assert_eq!(owner("pod", None, &labels), ("pod".to_owned(), WorkloadKind::Pod));
    }
}
