//! The few resources that a lone sidecar needs to carry TCP to one endpoint.

use std::net::SocketAddr;

use mesh_common::xds::proto::config::cluster::v3::Cluster;
use mesh_common::xds::proto::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use mesh_common::xds::proto::config::core::v3::address::Address as AddressKind;
use mesh_common::xds::proto::config::core::v3::data_source::Specifier;
use mesh_common::xds::proto::config::core::v3::socket_address::PortSpecifier;
use mesh_common::xds::proto::config::core::v3::{Address, DataSource, SocketAddress, TrafficDirection};
use mesh_common::xds::proto::config::endpoint::v3::lb_endpoint::HostIdentifier;
use mesh_common::xds::proto::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use mesh_common::xds::proto::config::listener::v3::filter::ConfigType;
use mesh_common::xds::proto::config::listener::v3::{Filter, FilterChain, Listener};
use mesh_common::xds::proto::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use mesh_common::xds::proto::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
use mesh_common::xds::proto::extensions::transport_sockets::tls::v3::secret::Type as SecretType;
use mesh_common::xds::proto::extensions::transport_sockets::tls::v3::{CertificateValidationContext, Secret};
use mesh_common::xds::protobuf::Any;
use mesh_common::xds::{ResourceType, names};
use prost::Message as _;

const TCP_PROXY: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";

/// A message as a resource of its type.
pub fn any(kind: ResourceType, message: &impl prost::Message) -> Any {
    Any { type_url: kind.url().to_owned(), value: message.encode_to_vec() }
}

/// The trust bundle.
pub fn trust_bundle(root_pem: &str) -> Secret {
    Secret {
        name: names::TRUST_BUNDLE.to_owned(),
        r#type: Some(SecretType::ValidationContext(CertificateValidationContext {
            trusted_ca: Some(DataSource {
                specifier: Some(Specifier::InlineString(root_pem.to_owned())),
                ..DataSource::default()
            }),
            ..CertificateValidationContext::default()
        })),
    }
}

/// A listener whose every connection goes to `cluster` as it is.
pub fn tcp_listener(name: &str, direction: TrafficDirection, cluster: &str) -> Listener {
    let proxy = TcpProxy {
        stat_prefix: cluster.to_owned(),
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        ..TcpProxy::default()
    };
    let config = Any { type_url: TCP_PROXY.to_owned(), value: proxy.encode_to_vec() };
    let filter = Filter {
        name: "envoy.filters.network.tcp_proxy".to_owned(),
        config_type: Some(ConfigType::TypedConfig(config)),
    };
    Listener {
        name: name.to_owned(),
        traffic_direction: direction.into(),
        default_filter_chain: Some(FilterChain {
            name: cluster.to_owned(),
            filters: vec![filter],
            ..FilterChain::default()
        }),
        ..Listener::default()
    }
}

/// An inbound listener that takes nothing.
pub fn closed_inbound(name: &str) -> Listener {
    Listener {
        name: name.to_owned(),
        traffic_direction: TrafficDirection::Inbound.into(),
        ..Listener::default()
    }
}

/// A cluster with one endpoint, in plaintext.
pub fn static_cluster(name: &str, endpoint: SocketAddr) -> Cluster {
    let address = Address {
        address: Some(AddressKind::SocketAddress(SocketAddress {
            address: endpoint.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(endpoint.port().into())),
            ..SocketAddress::default()
        })),
    };
    let endpoint = LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(address),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    };
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        connect_timeout: Some(mesh_common::xds::protobuf::Duration { seconds: 5, nanos: 0 }),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: name.to_owned(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![endpoint],
                ..LocalityLbEndpoints::default()
            }],
            ..ClusterLoadAssignment::default()
        }),
        ..Cluster::default()
    }
}
