//! The forward-proxy port: HTTP by the names and virtual addresses of services, without any capture. What is not
//! a service of the mesh is answered, never passed on: Envoy would have to dial itself.

use std::collections::HashSet;
use std::net::IpAddr;

use mesh_common::xds::names;
use mesh_common::xds::proto::config::core::v3::TrafficDirection;
use mesh_common::xds::proto::config::listener::v3::Listener;
use mesh_common::xds::proto::config::route::v3::{
    DirectResponseAction, Route, RouteConfiguration, RouteMatch, VirtualHost, route, route_match,
};
use mesh_common::xds::proto::extensions::filters::network::http_connection_manager::v3::Rds;
use mesh_common::xds::protobuf::BoolValue;

use crate::model::facts::{Destination, Facts};
use crate::model::service::{Protocol, Service};
use crate::translate::listener::{chain, listener as base};
use crate::translate::proto::{RouteSpecifier, address, ads, http_manager, inline};
use crate::translate::{ClientView, route as service_route};

/// The name of its routes.
pub(in crate::translate) const ROUTES: &str = "http_proxy";

const NOT_IN_THE_MESH: &str = "no service of the mesh that speaks HTTP has this name and port, and the forward-proxy port of an Envoy carries nothing else";

/// The listener.
pub(super) fn listener(
    name: &str,
    port: u16,
    client: &dyn ClientView,
    facts: &dyn Facts,
) -> Option<Listener> {
    let settings = facts.settings();
    // Where pods share a machine, each has a loopback address of its own.
    let ip = match settings.standalone {
        true => facts.workload(client.workload()?)?.addresses.first()?.to_string(),
        false => "127.0.0.1".to_owned(),
    };
    let routes =
        RouteSpecifier::Rds(Rds { config_source: Some(ads()), route_config_name: ROUTES.to_owned() });
    Some(Listener {
        address: Some(address(&ip, port)),
        filter_chains: vec![chain(name, http_manager(name, routes, &settings))],
        ..base(name, TrafficDirection::Outbound)
    })
}

/// The routes of all services.
pub(in crate::translate) fn route_configuration(
    client: &dyn ClientView,
    facts: &dyn Facts,
) -> RouteConfiguration {
    let mut virtual_hosts = Vec::new();
    let mut taken = HashSet::new();
    for key in &*facts.services() {
        let Some(service) = facts.service(key) else { continue };
        for port in service.ports.iter().filter(|port| port.protocol != Protocol::Tcp) {
            let mut domains = domains(&service, port.port, client, facts);
            domains.retain(|domain| taken.insert(domain.clone()));
            virtual_hosts.extend(virtual_host(&service, port.port, domains, client, facts));
        }
    }
    virtual_hosts.push(stranger());
    RouteConfiguration {
        name: ROUTES.to_owned(),
        virtual_hosts,
        validate_clusters: Some(BoolValue { value: false }),
        ..Default::default()
    }
}

fn virtual_host(
    service: &Service,
    port: u16,
    domains: Vec<String>,
    client: &dyn ClientView,
    facts: &dyn Facts,
) -> Option<VirtualHost> {
    if domains.is_empty() {
        return None;
    }
    let name = names::route_name(&service.key.hostname, port);
    let routes = service_route::of_service(&name, client, facts)?.virtual_hosts.pop()?.routes;
    Some(VirtualHost { name, domains, routes, ..Default::default() })
}

/// Every way to write a service's name or address with this port; port 80 need not be written.
fn domains(service: &Service, port: u16, client: &dyn ClientView, facts: &dyn Facts) -> Vec<String> {
    let (name, namespace) = (&service.name, &service.key.namespace);
    let mut hosts =
        vec![service.key.hostname.clone(), format!("{name}.{namespace}.svc"), format!("{name}.{namespace}")];
    if client.namespace() == namespace {
        hosts.push(name.clone());
    }
    for &ip in &service.addresses {
        // Several services may claim an address; one has it.
        let owner = facts.destination(ip, port);
        if matches!(owner.as_deref(), Some(Destination::Service(key)) if *key == service.key) {
            hosts.push(match ip {
                IpAddr::V4(ip) => ip.to_string(),
                IpAddr::V6(ip) => format!("[{ip}]"),
            });
        }
    }
    let with_port: Vec<String> = hosts.iter().map(|host| format!("{host}:{port}")).collect();
    if port == 80 { [hosts, with_port].concat() } else { with_port }
}

fn stranger() -> VirtualHost {
    let answer = DirectResponseAction {
        status: 502,
        body: Some(inline(NOT_IN_THE_MESH.to_owned())),
        ..Default::default()
    };
    let all = Route {
        name: "not-in-the-mesh".to_owned(),
        r#match: Some(RouteMatch {
            path_specifier: Some(route_match::PathSpecifier::Prefix("/".to_owned())),
            ..Default::default()
        }),
        action: Some(route::Action::DirectResponse(answer)),
        ..Default::default()
    };
    VirtualHost {
        name: "not-in-the-mesh".to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![all],
        ..Default::default()
    }
}
