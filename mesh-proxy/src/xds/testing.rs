//! Builders of resources for the tests of this module, in the shapes that the control plane sends.

use mesh_common::xds::ResourceType;
use mesh_common::xds::proto::config::cluster::v3 as cds;
use mesh_common::xds::proto::config::core::v3 as core;
use mesh_common::xds::proto::config::endpoint::v3 as eds;
use mesh_common::xds::proto::config::listener::v3 as lds;
use mesh_common::xds::proto::config::route::v3 as rds;
use mesh_common::xds::proto::extensions::filters::http::router::v3::Router;
use mesh_common::xds::proto::extensions::filters::network::http_connection_manager::v3 as hcm;
use mesh_common::xds::proto::extensions::filters::network::tcp_proxy::v3 as tcp;
use mesh_common::xds::protobuf::Any;
use prost::{Message, Name};

use super::decode::{Decoded, decode};

pub(super) fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

pub(super) fn ads() -> Option<core::ConfigSource> {
    Some(core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource {},
        )),
        ..Default::default()
    })
}

pub(super) fn filter(any: Any) -> lds::Filter {
    lds::Filter { name: "filter".into(), config_type: Some(lds::filter::ConfigType::TypedConfig(any)) }
}

pub(super) fn tcp_filter(cluster: &str) -> lds::Filter {
    filter(pack(&tcp::TcpProxy {
        stat_prefix: "test".into(),
        cluster_specifier: Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(cluster.into())),
        ..Default::default()
    }))
}

pub(super) fn manager(routes: hcm::http_connection_manager::RouteSpecifier) -> hcm::HttpConnectionManager {
    hcm::HttpConnectionManager {
        stat_prefix: "test".into(),
        http_filters: vec![hcm::HttpFilter {
            name: "envoy.filters.http.router".into(),
            config_type: Some(hcm::http_filter::ConfigType::TypedConfig(pack(&Router::default()))),
            ..Default::default()
        }],
        route_specifier: Some(routes),
        ..Default::default()
    }
}

pub(super) fn named_routes(name: &str) -> hcm::http_connection_manager::RouteSpecifier {
    hcm::http_connection_manager::RouteSpecifier::Rds(hcm::Rds {
        config_source: ads(),
        route_config_name: name.into(),
    })
}

fn direction(name: &str) -> i32 {
    let inbound = name.starts_with("inbound/");
    (if inbound { core::TrafficDirection::Inbound } else { core::TrafficDirection::Outbound }) as i32
}

/// A listener whose default chain goes to a cluster.
pub(super) fn tcp_listener(name: &str, cluster: &str) -> lds::Listener {
    lds::Listener {
        name: name.into(),
        traffic_direction: direction(name),
        default_filter_chain: Some(lds::FilterChain {
            name: cluster.into(),
            filters: vec![tcp_filter(cluster)],
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A listener with one chain that takes routes by name.
pub(super) fn http_listener(name: &str, route: &str) -> lds::Listener {
    lds::Listener {
        name: name.into(),
        traffic_direction: direction(name),
        filter_chains: vec![lds::FilterChain {
            name: route.into(),
            filters: vec![filter(pack(&manager(named_routes(route))))],
            ..Default::default()
        }],
        ..Default::default()
    }
}

pub(super) fn forward_to(cluster: &str) -> rds::RouteAction {
    rds::RouteAction {
        cluster_specifier: Some(rds::route_action::ClusterSpecifier::Cluster(cluster.into())),
        ..Default::default()
    }
}

pub(super) fn route_to(action: rds::route::Action) -> rds::Route {
    rds::Route {
        name: "shop/all/0".into(),
        r#match: Some(rds::RouteMatch {
            path_specifier: Some(rds::route_match::PathSpecifier::Prefix("/".into())),
            ..Default::default()
        }),
        action: Some(action),
        ..Default::default()
    }
}

/// A route configuration with one route for each cluster.
pub(super) fn routes(name: &str, clusters: &[&str]) -> rds::RouteConfiguration {
    let to = |cluster: &&str| route_to(rds::route::Action::Route(forward_to(cluster)));
    rds::RouteConfiguration {
        name: name.into(),
        virtual_hosts: vec![rds::VirtualHost {
            name: name.into(),
            domains: vec!["*".into()],
            routes: clusters.iter().map(to).collect(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// A cluster with endpoints of the same name.
pub(super) fn eds_cluster(name: &str) -> cds::Cluster {
    cds::Cluster {
        name: name.into(),
        cluster_discovery_type: Some(cds::cluster::ClusterDiscoveryType::Type(
            cds::cluster::DiscoveryType::Eds as i32,
        )),
        eds_cluster_config: Some(cds::cluster::EdsClusterConfig {
            eds_config: ads(),
            service_name: String::new(),
        }),
        lb_policy: cds::cluster::LbPolicy::LeastRequest as i32,
        ..Default::default()
    }
}

/// `PassthroughCluster`.
pub(super) fn passthrough() -> cds::Cluster {
    cds::Cluster {
        name: "PassthroughCluster".into(),
        cluster_discovery_type: Some(cds::cluster::ClusterDiscoveryType::Type(
            cds::cluster::DiscoveryType::OriginalDst as i32,
        )),
        lb_policy: cds::cluster::LbPolicy::ClusterProvided as i32,
        ..Default::default()
    }
}

pub(super) fn address(ip: &str, port: u32) -> Option<core::Address> {
    Some(core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: ip.into(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port)),
            ..Default::default()
        })),
    })
}

pub(super) fn lb_endpoint(ip: &str, port: u32) -> eds::LbEndpoint {
    eds::LbEndpoint {
        host_identifier: Some(eds::lb_endpoint::HostIdentifier::Endpoint(eds::Endpoint {
            address: address(ip, port),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// Endpoints at these addresses, port 80.
pub(super) fn endpoints(name: &str, ips: &[&str]) -> eds::ClusterLoadAssignment {
    eds::ClusterLoadAssignment {
        cluster_name: name.into(),
        endpoints: vec![eds::LocalityLbEndpoints {
            lb_endpoints: ips.iter().map(|ip| lb_endpoint(ip, 80)).collect(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// Decodes a message as the resource `name`; it must be good.
pub(super) fn good<M: Message + Name>(name: &str, message: &M) -> Decoded {
    let any = pack(message);
    let kind = ResourceType::from_url(&any.type_url).unwrap();
    decode(kind, name, &any).unwrap()
}

/// The reasons why a message is refused as the resource `name`.
pub(super) fn bad<M: Message + Name>(name: &str, message: &M) -> Vec<String> {
    let any = pack(message);
    let kind = ResourceType::from_url(&any.type_url).unwrap();
    decode(kind, name, &any).err().unwrap_or_default()
}
