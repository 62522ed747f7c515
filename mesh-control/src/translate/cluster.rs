//! Clusters: where a destination's endpoints come from and how they are dialled. Everything that a cluster is,
//! follows from its name and, for `inbound|...`, from the client's own pod.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh_common::spiffe::SpiffeId;
use mesh_common::xds::names::{ALPN_HTTP1, ALPN_HTTP2, ALPN_TCP, ClusterName};
use mesh_common::xds::proto::config::cluster::v3::{Cluster, cluster};
use mesh_common::xds::proto::config::core::v3::{
    BindConfig, ExtraSourceAddress, Http1ProtocolOptions, Http2ProtocolOptions, Metadata, TransportSocket,
};
use mesh_common::xds::proto::extensions::upstreams::http::v3::{HttpProtocolOptions, http_protocol_options};
use mesh_common::xds::protobuf::{Any, ListValue, Struct, Value, value};

use super::client::ClientKind;
use super::host::{self, NamedHost};
use super::proto::{ads, duration, fields, metadata, pack, raw_buffer, socket_address, text, upstream_tls};
use super::{ClientView, INBOUND_PASSTHROUGH_CLUSTER, endpoint, envoy, grpc};
use crate::model::facts::{Destination, Facts, PodDestination};
use crate::model::service::{Endpoint, EndpointTls, Protocol, Service, ServiceKind};
use crate::model::{ServiceKey, Settings, WorkloadKey};

use cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy};

/// The proxy dials the application from here, so that a pod that calls itself does not loop.
const INBOUND_SOURCE: &str = "127.0.0.6";
const INBOUND_SOURCE_V6: &str = "::6";
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// The cluster of this name, if there is one.
pub(super) fn cluster(name: &str, client: &dyn ClientView, facts: &dyn Facts) -> Option<Cluster> {
    let mut made = by_name(name, client, facts)?;
    match client.kind() {
        ClientKind::MeshProxy => {}
        ClientKind::Envoy(_) => envoy::adapt_cluster(&mut made),
        ClientKind::Grpc(grpc) => grpc::adapt_cluster(&mut made, &name.parse().ok()?, grpc, facts),
    }
    Some(made)
}

fn by_name(name: &str, client: &dyn ClientView, facts: &dyn Facts) -> Option<Cluster> {
    if name == INBOUND_PASSTHROUGH_CLUSTER {
        return Some(to_application(name, None, &facts.settings()));
    }
    let parsed = name.parse().ok()?;
    if let ClientKind::Envoy(envoy) = client.kind()
        && let Some(application) = envoy::to_application(&parsed, envoy)
    {
        return Some(Cluster {
            load_assignment: Some(application),
            typed_extension_protocol_options: http_options(Protocol::Detect, &ClientKind::MeshProxy),
            ..base(name, DiscoveryType::Static, &facts.settings())
        });
    }
    match parsed {
        ClusterName::Outbound { port, subset, host } if subset.is_empty() => {
            let settings = facts.settings();
            match host::parse_full(&host, &settings.domain)? {
                NamedHost::Service(key) => service_port(name, &key, port, client.kind(), &settings, facts),
                NamedHost::Pod { namespace, pod } => {
                    let key = WorkloadKey { cluster: settings.cluster.clone(), namespace, name: pod };
                    pod_port(name, &key, port, client.kind(), &settings, facts)
                }
            }
        }
        ClusterName::Outbound { .. } => None,
        ClusterName::Inbound { port } => {
            let inbound = facts.inbound(client.workload()?)?;
            let port = inbound.ports.iter().find(|p| p.port == port)?;
            Some(to_application(name, port.service.as_ref(), &facts.settings()))
        }
        ClusterName::Passthrough => Some(Cluster {
            lb_policy: LbPolicy::ClusterProvided as i32,
            typed_extension_protocol_options: http_options(Protocol::Http, &ClientKind::MeshProxy),
            ..base(name, DiscoveryType::OriginalDst, &facts.settings())
        }),
        ClusterName::BlackHole => Some(base(name, DiscoveryType::Static, &facts.settings())),
    }
}

/// What is spoken on this port of a service; `None` when it has no such port. A name outside takes every port,
/// as its DNS entry does.
pub(super) fn protocol(service: &Service, port: u16) -> Option<Protocol> {
    let declared = service.ports.iter().find(|p| p.port == port).map(|p| p.protocol);
    match service.kind {
        ServiceKind::ExternalName(_) => Some(declared.unwrap_or(Protocol::Detect)),
        ServiceKind::Cluster | ServiceKind::Headless => declared,
    }
}

/// Whether its endpoints are pods and the like, by EDS.
pub(super) fn has_endpoints(service: &Service) -> bool {
    !matches!(service.kind, ServiceKind::ExternalName(_))
}

fn service_port(
    name: &str,
    key: &ServiceKey,
    port: u16,
    kind: &ClientKind,
    settings: &Settings,
    facts: &dyn Facts,
) -> Option<Cluster> {
    let service = facts.service(key)?;
    let protocol = protocol(&service, port)?;
    let labels = istio_services(&key.hostname, &service.name, &key.namespace);
    let base = |discovery| Cluster {
        lb_policy: LbPolicy::LeastRequest as i32,
        metadata: Some(labels),
        typed_extension_protocol_options: http_options(protocol, kind),
        ..base(name, discovery, settings)
    };
    Some(match &service.kind {
        ServiceKind::ExternalName(host) => Cluster {
            load_assignment: Some(endpoint::single(name, host, port)),
            ..base(DiscoveryType::LogicalDns)
        },
        ServiceKind::Cluster | ServiceKind::Headless => Cluster {
            eds_cluster_config: Some(cluster::EdsClusterConfig {
                eds_config: Some(ads()),
                service_name: String::new(),
            }),
            transport_socket_matches: match_tls_mode(mutual_tls(
                &Wire { port, host: &key.hostname, protocol, kind, settings },
                || facts.identities(key, port).unwrap_or_default(),
            )),
            ..base(DiscoveryType::Eds)
        },
    })
}

/// A pod dialled by its own address: the cluster holds its one endpoint.
fn pod_port(
    name: &str,
    key: &WorkloadKey,
    port: u16,
    kind: &ClientKind,
    settings: &Settings,
    facts: &dyn Facts,
) -> Option<Cluster> {
    let pod = pod_destination(key, port, facts)?;
    let labels = pod.service.as_ref().map(|(host, short, namespace)| istio_services(host, short, namespace));
    Some(Cluster {
        lb_policy: LbPolicy::LeastRequest as i32,
        metadata: labels,
        typed_extension_protocol_options: http_options(pod.protocol, kind),
        transport_socket_matches: match_tls_mode(mutual_tls(
            &Wire {
                port,
                host: &host::pod_host(key, &settings.domain),
                protocol: pod.protocol,
                kind,
                settings,
            },
            || Arc::new(identity_of(&pod.endpoint).into_iter().collect()),
        )),
        load_assignment: Some(endpoint::assignment(name, [&pod.endpoint])),
        ..base(name, DiscoveryType::Static, settings)
    })
}

/// The first of the pod's addresses that stands for the pod itself.
fn pod_destination(key: &WorkloadKey, port: u16, facts: &dyn Facts) -> Option<Arc<PodDestination>> {
    let workload = facts.workload(key)?;
    workload.addresses.iter().find_map(|&ip| match &*facts.destination(ip, port)? {
        Destination::Pod(pod) if pod.endpoint.workload.as_ref().is_some_and(|w| w.key == *key) => {
            Some(pod.clone())
        }
        _ => None,
    })
}

/// To the application beside the proxy, at the address that the connection came for.
fn to_application(name: &str, service: Option<&(String, String, String)>, settings: &Settings) -> Cluster {
    Cluster {
        lb_policy: LbPolicy::ClusterProvided as i32,
        upstream_bind_config: Some(BindConfig {
            source_address: Some(socket_address(INBOUND_SOURCE, 0)),
            extra_source_addresses: vec![ExtraSourceAddress {
                address: Some(socket_address(INBOUND_SOURCE_V6, 0)),
                ..Default::default()
            }],
            ..Default::default()
        }),
        metadata: service.map(|(host, short, namespace)| istio_services(host, short, namespace)),
        // Whatever is declared: the application gets the version that arrived, as it would without a proxy.
        typed_extension_protocol_options: http_options(Protocol::Http, &ClientKind::MeshProxy),
        ..base(name, DiscoveryType::OriginalDst, settings)
    }
}

fn base(name: &str, discovery: DiscoveryType, settings: &Settings) -> Cluster {
    Cluster {
        name: name.to_owned(),
        connect_timeout: Some(duration(settings.connect_timeout_ms)),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(discovery as i32)),
        ..Default::default()
    }
}

/// How a cluster is dialled.
struct Wire<'a> {
    port: u16,
    host: &'a str,
    protocol: Protocol,
    kind: &'a ClientKind,
    settings: &'a Settings,
}

/// The mesh's mutual TLS for this client. Our own proxy knows each endpoint's identity and chooses the ALPN by
/// what a connection carries; an Envoy has one list of identities and one ALPN for the whole cluster.
fn mutual_tls(wire: &Wire<'_>, identities: impl FnOnce() -> Arc<BTreeSet<SpiffeId>>) -> TransportSocket {
    let Wire { port, host, protocol, kind, settings } = *wire;
    let sni = ClusterName::outbound(port, host).sni().unwrap_or_default();
    if let ClientKind::Envoy(envoy) = kind {
        let alpn = match protocol {
            Protocol::Http2 => ALPN_HTTP2,
            Protocol::Tcp => ALPN_TCP,
            Protocol::Http | Protocol::Detect => ALPN_HTTP1,
        };
        return envoy::upstream_tls(&envoy.certificates, sni, alpn, &identities(), &settings.trust_domain);
    }
    let alpn: &[&str] = match protocol {
        Protocol::Http2 => &[ALPN_HTTP2],
        Protocol::Tcp => &[ALPN_TCP],
        Protocol::Http | Protocol::Detect => &[ALPN_HTTP1, ALPN_HTTP2, ALPN_TCP],
    };
    upstream_tls(sni, alpn)
}

fn identity_of(endpoint: &Endpoint) -> Option<SpiffeId> {
    match &endpoint.tls {
        EndpointTls::Mutual(identity) => Some(identity.clone()),
        EndpointTls::Plaintext | EndpointTls::Refused => None,
    }
}

/// Mutual TLS to endpoints that say they take it, plaintext to the rest.
fn match_tls_mode(mutual: TransportSocket) -> Vec<cluster::TransportSocketMatch> {
    vec![
        cluster::TransportSocketMatch {
            name: "tlsMode-istio".to_owned(),
            r#match: Some(fields([("tlsMode", text("istio"))])),
            transport_socket: Some(mutual),
        },
        cluster::TransportSocketMatch {
            name: "tlsMode-disabled".to_owned(),
            r#match: Some(Struct::default()),
            transport_socket: Some(raw_buffer()),
        },
    ]
}

/// The HTTP version toward the application: the one that arrived. Only an Envoy, whose ALPN cannot follow it,
/// keeps to HTTP/1.1 where HTTP/2 is not declared.
fn http_options(protocol: Protocol, kind: &ClientKind) -> std::collections::HashMap<String, Any> {
    use http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig, explicit_http_config,
    };
    let upstream = match protocol {
        Protocol::Tcp => return std::collections::HashMap::new(),
        Protocol::Http2 => UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(explicit_http_config::ProtocolConfig::Http2ProtocolOptions(
                Http2ProtocolOptions::default(),
            )),
        }),
        Protocol::Http | Protocol::Detect if matches!(kind, ClientKind::Envoy(_)) => {
            UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
                protocol_config: Some(explicit_http_config::ProtocolConfig::HttpProtocolOptions(
                    Http1ProtocolOptions::default(),
                )),
            })
        }
        Protocol::Http | Protocol::Detect => {
            UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
                http_protocol_options: Some(Http1ProtocolOptions::default()),
                http2_protocol_options: Some(Http2ProtocolOptions::default()),
                http3_protocol_options: None,
            })
        }
    };
    let options = HttpProtocolOptions { upstream_protocol_options: Some(upstream), ..Default::default() };
    [(HTTP_OPTIONS.to_owned(), pack(&options))].into()
}

/// The service that metrics name, in Istio's form.
fn istio_services(host: &str, name: &str, namespace: &str) -> Metadata {
    let service = fields([("host", text(host)), ("name", text(name)), ("namespace", text(namespace))]);
    let list = ListValue { values: vec![Value { kind: Some(value::Kind::StructValue(service)) }] };
    metadata([("istio", fields([("services", Value { kind: Some(value::Kind::ListValue(list)) })]))])
}
