//! Looked-up listeners: what an address and port, or a host name and port, mean to a client. One that exists
//! never falls through to plaintext passthrough: a port that no service has is refused.

use std::net::SocketAddr;

use mesh_common::xds::names::{self, ClusterName};
use mesh_common::xds::proto::config::core::v3::TrafficDirection;
use mesh_common::xds::proto::config::listener::v3::{Filter, FilterChain, FilterChainMatch, Listener};
use mesh_common::xds::proto::extensions::filters::network::http_connection_manager::v3::Rds;

use super::ClientView;
use super::cluster;
use super::host::{self, Resolved};
use super::proto::{RouteSpecifier, ads, duration, http_manager, inspectors, tcp_proxy};
use super::route;
use crate::model::Settings;
use crate::model::facts::{Destination, Facts};
use crate::model::service::{Protocol, Service};

/// What the HTTP inspector calls the plaintext HTTP versions.
pub(super) const PLAINTEXT_HTTP: [&str; 2] = ["http/1.1", "h2c"];

/// The chain of an address or name of the mesh on which nothing listens.
const NO_SUCH_PORT_CHAIN: &str = "no-such-port";
/// The chain of an address that several pods claim.
const CONTESTED_CHAIN: &str = "contested-address";

/// `10.96.3.4:80`.
pub(super) fn by_address(name: &str, address: SocketAddr, facts: &dyn Facts) -> Option<Listener> {
    // One spelling for one address, else one resource would live under many names.
    if address.to_string() != name {
        return None;
    }
    destination(name, address, &facts.settings(), facts)
}

/// `host/reviews:80`.
pub(super) fn by_host(
    name: &str,
    host: &str,
    port: u16,
    client: &dyn ClientView,
    facts: &dyn Facts,
) -> Option<Listener> {
    let settings = facts.settings();
    match host::resolve(host, client, &settings, facts)? {
        Resolved::Service(service) => Some(service_port(name, &service, port, &settings)),
        Resolved::Pod(ip) => destination(name, SocketAddr::new(ip, port), &settings, facts),
    }
}

/// What an address and port stand for.
pub(super) fn destination(
    name: &str,
    address: SocketAddr,
    settings: &Settings,
    facts: &dyn Facts,
) -> Option<Listener> {
    match &*facts.destination(address.ip(), address.port())? {
        Destination::Service(key) => {
            let service = facts.service(key)?;
            Some(service_port(name, &service, address.port(), settings))
        }
        Destination::NoSuchPort(_) => Some(no_such_port(name, settings)),
        Destination::Contested => Some(refusing(name, CONTESTED_CHAIN, settings)),
        Destination::Pod(pod) => {
            let workload = pod.endpoint.workload.as_deref()?;
            let host = host::pod_host(&workload.key, &settings.domain);
            let cluster = ClusterName::outbound(address.port(), &host).to_string();
            let routes = RouteSpecifier::RouteConfig(route::whole_cluster(
                &names::route_name(&host, address.port()),
                &cluster,
            ));
            Some(outbound(
                name,
                pod.protocol,
                &cluster,
                &names::route_name(&host, address.port()),
                routes,
                settings,
            ))
        }
    }
}

fn service_port(name: &str, service: &Service, port: u16, settings: &Settings) -> Listener {
    let Some(protocol) = cluster::protocol(service, port) else {
        return no_such_port(name, settings);
    };
    let host = &service.key.hostname;
    let route_name = names::route_name(host, port);
    let routes =
        RouteSpecifier::Rds(Rds { config_source: Some(ads()), route_config_name: route_name.clone() });
    let cluster = ClusterName::outbound(port, host).to_string();
    outbound(name, protocol, &cluster, &route_name, routes, settings)
}

/// The chains of one destination, by what is spoken there.
fn outbound(
    name: &str,
    protocol: Protocol,
    cluster: &str,
    route_name: &str,
    routes: RouteSpecifier,
    settings: &Settings,
) -> Listener {
    let http = |matches: Option<FilterChainMatch>| FilterChain {
        name: route_name.to_owned(),
        filter_chain_match: matches,
        filters: vec![http_manager(route_name, routes, settings)],
        ..Default::default()
    };
    let tcp = || Some(chain(cluster, tcp_proxy(cluster, settings)));
    let base = listener(name, TrafficDirection::Outbound);
    match protocol {
        Protocol::Http | Protocol::Http2 => Listener { filter_chains: vec![http(None)], ..base },
        Protocol::Tcp => Listener { default_filter_chain: tcp(), ..base },
        Protocol::Detect => detecting(
            Listener {
                filter_chains: vec![http(Some(FilterChainMatch {
                    transport_protocol: "raw_buffer".to_owned(),
                    application_protocols: PLAINTEXT_HTTP.map(str::to_owned).to_vec(),
                    ..Default::default()
                }))],
                default_filter_chain: tcp(),
                ..base
            },
            settings,
        ),
    }
}

fn no_such_port(name: &str, settings: &Settings) -> Listener {
    refusing(name, NO_SUCH_PORT_CHAIN, settings)
}

/// Takes nothing; the name of the chain says why.
fn refusing(name: &str, why: &str, settings: &Settings) -> Listener {
    Listener {
        default_filter_chain: Some(chain(why, tcp_proxy(names::BLACK_HOLE_CLUSTER, settings))),
        ..listener(name, TrafficDirection::Outbound)
    }
}

/// A listener without chains and inspectors.
pub(super) fn listener(name: &str, direction: TrafficDirection) -> Listener {
    Listener { name: name.to_owned(), traffic_direction: direction as i32, ..Default::default() }
}

/// A chain for whatever comes.
pub(super) fn chain(name: &str, filter: Filter) -> FilterChain {
    FilterChain { name: name.to_owned(), filters: vec![filter], ..Default::default() }
}

/// The listener, looking at first bytes; without any in time, a connection is opaque.
pub(super) fn detecting(listener: Listener, settings: &Settings) -> Listener {
    Listener {
        listener_filters: inspectors(),
        listener_filters_timeout: Some(duration(settings.detection_timeout_ms)),
        continue_on_listener_filters_timeout: true,
        ..listener
    }
}
