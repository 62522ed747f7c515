//! Service.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

use super::{created, invalid, port_number, protocol};
use crate::api::InvalidObject;
use crate::model::ServiceKey;
use crate::model::service::{Service, ServiceKind, ServicePort};

pub(super) fn service(
    key: ServiceKey,
    name: &str,
    service: &core::Service,
) -> Result<Service, InvalidObject> {
    let core::Service { metadata, spec, status } = service;
    let core::ServiceSpec {
        cluster_ip,
        cluster_ips,
        external_ips,
        external_name,
        internal_traffic_policy,
        ports,
        type_,
        // Endpoints come from EndpointSlices, which have taken these into account.
        selector: _,
        publish_not_ready_addresses: _,
        // About who allocates addresses, and about traffic from outside of the cluster.
        allocate_load_balancer_node_ports: _,
        external_traffic_policy: _,
        health_check_node_port: _,
        ip_families: _,
        ip_family_policy: _,
        load_balancer_class: _,
        load_balancer_ip: _,
        load_balancer_source_ranges: _,
        // Preferences of kube-proxy, which the mesh replaces by its own balancing.
        session_affinity: _,
        session_affinity_config: _,
        traffic_distribution: _,
    } = spec.clone().unwrap_or_default();

    let cluster_ips: Vec<String> =
        cluster_ip.into_iter().chain(cluster_ips.unwrap_or_default()).filter(|ip| !ip.is_empty()).collect();
    let kind = if type_.as_deref() == Some("ExternalName") {
        let host = external_name.unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
        if host.is_empty() {
            return Err(invalid("/spec/externalName", "a service of type ExternalName needs a name"));
        }
        ServiceKind::ExternalName(host)
    } else if cluster_ips.iter().any(|ip| ip == "None") {
        ServiceKind::Headless
    } else {
        ServiceKind::Cluster
    };

    let mut addresses = Vec::new();
    if kind == ServiceKind::Cluster {
        let balancer = status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
        let balancer = balancer.into_iter().flatten().filter_map(|ingress| ingress.ip.clone());
        add_addresses(&mut addresses, "/spec/clusterIPs", cluster_ips)?;
        add_addresses(&mut addresses, "/spec/externalIPs", external_ips.unwrap_or_default())?;
        add_addresses(&mut addresses, "/status/loadBalancer/ingress", balancer)?;
    }
    Ok(Service {
        key,
        name: name.to_owned(),
        addresses,
        kind,
        ports: tcp_ports(ports.unwrap_or_default())?,
        node_local: internal_traffic_policy.as_deref() == Some("Local"),
        created: created(metadata),
    })
}

fn add_addresses(
    addresses: &mut Vec<IpAddr>,
    pointer: &str,
    texts: impl IntoIterator<Item = String>,
) -> Result<(), InvalidObject> {
    for text in texts {
        let ip = text.parse().map_err(|_| invalid(pointer, format!("{text:?} is not an IP address")))?;
        if !addresses.contains(&ip) {
            addresses.push(ip);
        }
    }
    Ok(())
}

/// UDP and SCTP pass the mesh untouched.
fn tcp_ports(ports: Vec<core::ServicePort>) -> Result<Vec<ServicePort>, InvalidObject> {
    let mut found: Vec<ServicePort> = Vec::new();
    for (i, port) in ports.into_iter().enumerate() {
        let core::ServicePort {
            app_protocol,
            name,
            port,
            protocol: transport,
            // The endpoint's port comes from the EndpointSlice's port of the same name.
            target_port: _,
            // Reached from outside of the mesh.
            node_port: _,
        } = port;
        if transport.is_some_and(|transport| transport != "TCP") {
            continue;
        }
        let number = port_number(&format!("/spec/ports/{i}/port"), port)?;
        if found.iter().any(|known| known.port == number) {
            return Err(invalid(
                format!("/spec/ports/{i}/port"),
                format!("the port {number} is there twice"),
            ));
        }
        let name = name.unwrap_or_default();
        let protocol = protocol::declared(app_protocol.as_deref(), &name, number);
        found.push(ServicePort { port: number, name, protocol });
    }
    found.sort_by_key(|port| port.port);
    Ok(found)
}
