//! The list of all names of a type, for clients that ask for everything. It is made, kept and versioned like a
//! resource, under the name `*`, and never goes out.

use std::collections::BTreeSet;

use mesh_common::xds::ResourceType;
use mesh_common::xds::names::{self, ClusterName};
use mesh_common::xds::protobuf::Any;

use super::client::{ClientKind, EnvoyClient};
use super::envoy::ListenerName;
use super::{ClientView, INBOUND_PASSTHROUGH_CLUSTER, host};
use crate::model::facts::Facts;
use crate::model::service::ServiceKind;

/// The name of the list.
pub const NAME: &str = "*";

/// The names in an encoded list.
pub fn names(body: &[u8]) -> impl Iterator<Item = &str> {
    std::str::from_utf8(body).unwrap_or_default().lines()
}

/// The list for this client; `None` when it may not have everything of this type.
pub(super) fn list(kind: ResourceType, client: &dyn ClientView, facts: &dyn Facts) -> Option<Any> {
    let ClientKind::Envoy(envoy) = client.kind() else { return None };
    let names = match kind {
        ResourceType::Cluster => clusters(envoy, client, facts),
        ResourceType::Listener => listeners(envoy, facts),
        _ => return None,
    };
    let text: Vec<String> = names.into_iter().collect();
    Some(Any { type_url: kind.url().to_owned(), value: text.join("\n").into_bytes() })
}

fn clusters(envoy: &EnvoyClient, client: &dyn ClientView, facts: &dyn Facts) -> BTreeSet<String> {
    let mut names = BTreeSet::from([names::BLACK_HOLE_CLUSTER.to_owned()]);
    for_each_service(facts, |service| {
        for port in &service.ports {
            names.insert(ClusterName::outbound(port.port, &service.key.hostname).to_string());
        }
    });
    names.extend(envoy.inbound.iter().map(|bind| inbound(bind.listen.port())));
    if envoy.captures() {
        names.extend([names::PASSTHROUGH_CLUSTER, INBOUND_PASSTHROUGH_CLUSTER].map(str::to_owned));
        let own = client.workload().and_then(|pod| facts.inbound(pod));
        names.extend(own.iter().flat_map(|own| &own.ports).map(|port| inbound(port.port)));
        let domain = &facts.settings().domain;
        for_each_headless_pod(facts, |workload, address| {
            names
                .insert(ClusterName::outbound(address.port(), &host::pod_host(workload, domain)).to_string());
        });
    }
    names
}

fn inbound(port: u16) -> String {
    ClusterName::Inbound { port }.to_string()
}

fn listeners(envoy: &EnvoyClient, facts: &dyn Facts) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut add = |name: ListenerName| names.insert(name.to_string());
    if envoy.proxy_port.is_some() {
        add(ListenerName::HttpProxy);
    }
    for bind in &envoy.inbound {
        add(ListenerName::Inbound(bind.listen));
    }
    if !envoy.captures() {
        return names;
    }
    add(ListenerName::VirtualOutbound);
    add(ListenerName::VirtualInbound);
    for_each_service(facts, |service| {
        for port in &service.ports {
            for &ip in &service.addresses {
                add(ListenerName::Captured((ip, port.port).into()));
            }
        }
    });
    for_each_headless_pod(facts, |_, address| {
        add(ListenerName::Captured(address));
    });
    names
}

fn for_each_service(facts: &dyn Facts, mut each: impl FnMut(&crate::model::service::Service)) {
    for key in &*facts.services() {
        if let Some(service) = facts.service(key) {
            each(&service);
        }
    }
}

/// Clients dial the pods of a headless service by their own addresses.
fn for_each_headless_pod(
    facts: &dyn Facts,
    mut each: impl FnMut(&crate::model::WorkloadKey, std::net::SocketAddr),
) {
    for_each_service(facts, |service| {
        let ports = service.ports.iter().filter(|_| service.kind == ServiceKind::Headless);
        for endpoints in ports.filter_map(|port| facts.endpoints(&service.key, port.port)) {
            for endpoint in &endpoints.endpoints {
                if let Some(workload) = &endpoint.workload {
                    each(&workload.key, (endpoint.address.ip, endpoint.port).into());
                }
            }
        }
    });
}
