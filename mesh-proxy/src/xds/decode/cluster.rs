//! Clusters. What balances, retries or breaks circuits in a way that has no code yet is refused.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use mesh_common::xds::proto::config::cluster::v3 as pb;
use mesh_common::xds::proto::config::core::v3 as core;
use mesh_common::xds::proto::config::endpoint::v3 as endpoints;
use mesh_common::xds::proto::extensions::upstreams::http::v3 as http;
use mesh_common::xds::protobuf::value::Kind;
use mesh_common::xds::protobuf::{Any, ListValue, Struct, Value};

use super::errors::{Errors, take};
use super::{address, endpoint, metadata, tls};
use crate::config::cluster::{Bind, Cluster, Discovery, ServiceLabels, UpstreamHttp, UpstreamTls};

/// Envoy's own default.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// A resource of CDS.
pub(super) fn cluster(errors: &mut Errors, resource: &str, message: pb::Cluster) -> Option<Cluster> {
    take!(errors, message => pb::Cluster {
        used: [
            name, eds_cluster_config, connect_timeout, lb_policy, load_assignment,
            typed_extension_protocol_options, dns_lookup_family, upstream_bind_config, transport_socket,
            transport_socket_matches, metadata, cluster_discovery_type
        ],
        ignored: [alt_stat_name],
        unset: [
            transport_socket_matcher, stats_matcher, per_connection_buffer_limit_bytes,
            per_connection_buffer_high_watermark_timeout, health_checks, max_requests_per_connection,
            circuit_breakers, upstream_http_protocol_options, common_http_protocol_options,
            http_protocol_options, http2_protocol_options, dns_refresh_rate, dns_jitter,
            dns_failure_refresh_rate, respect_dns_ttl, dns_resolvers, use_tcp_for_dns_lookups,
            dns_resolution_config, typed_dns_resolver_config, wait_for_warm_on_init, outlier_detection,
            cleanup_interval, lb_subset_config, common_lb_config, protocol_selection,
            upstream_connection_options, close_connections_on_host_health_failure,
            ignore_health_on_host_removal, filters, load_balancing_policy, lrs_server,
            lrs_report_endpoint_metrics, track_timeout_budgets, upstream_config, track_cluster_stats,
            preconnect_policy, connection_pool_per_downstream_connection, queuing_policies, lb_config
        ],
    });
    if name != resource {
        errors.refuse_at::<()>("name", format_args!("it is {name:?}, not {resource:?}"));
    }
    let kind = discovery_type(errors, cluster_discovery_type)?;
    let discovery = discovery(errors, &name, kind, eds_cluster_config, load_assignment);
    errors.within("lb_policy", |errors| balancing(errors, discovery.as_ref(), lb_policy));
    errors.within("dns_lookup_family", |errors| lookup_family(errors, dns_lookup_family));
    let connect_timeout = if connect_timeout.is_some() {
        errors.duration("connect_timeout", connect_timeout)
    } else {
        Some(CONNECT_TIMEOUT)
    };
    if connect_timeout.is_some_and(|timeout| timeout.is_zero()) {
        errors.refuse_at::<()>("connect_timeout", "it must be more than nothing");
    }
    let tls = upstream_tls(errors, transport_socket, transport_socket_matches);
    // Endpoints that are known by nothing but an address would be dialled in plaintext.
    if let (Some(UpstreamTls::ByEndpoint(_)), Some(Discovery::Dns { .. } | Discovery::OriginalDestination)) =
        (&tls, &discovery)
    {
        let reason = "TLS is supported for endpoints whose identity is told only, such as those of EDS";
        errors.refuse_at::<()>("transport_socket_matches", reason);
    }
    let http = upstream_http(errors, typed_extension_protocol_options);
    let bind = bind(errors, upstream_bind_config);
    let service = errors.within("metadata.filter_metadata.istio", |errors| {
        service(errors, metadata::filter(metadata, "istio"))
    });
    Some(Cluster {
        name,
        service: service?,
        discovery: discovery?,
        connect_timeout: connect_timeout?,
        tls: tls?,
        http: http?,
        bind: bind?,
    })
}

type DiscoveryType = pb::cluster::DiscoveryType;

fn discovery_type(
    errors: &mut Errors,
    kind: Option<pb::cluster::ClusterDiscoveryType>,
) -> Option<DiscoveryType> {
    match kind {
        Some(pb::cluster::ClusterDiscoveryType::Type(kind)) => errors
            .check("type", DiscoveryType::try_from(kind).map_err(|_| format!("{kind} is not supported"))),
        Some(pb::cluster::ClusterDiscoveryType::ClusterType(_)) => {
            errors.refuse_at("cluster_type", "this field is not supported")
        }
        None => Some(DiscoveryType::Static),
    }
}

fn discovery(
    errors: &mut Errors,
    name: &str,
    kind: DiscoveryType,
    eds: Option<pb::cluster::EdsClusterConfig>,
    load_assignment: Option<endpoints::ClusterLoadAssignment>,
) -> Option<Discovery> {
    if kind != DiscoveryType::Eds {
        errors.unset("eds_cluster_config", &eds);
    }
    if matches!(kind, DiscoveryType::Eds | DiscoveryType::OriginalDst) {
        errors.unset("load_assignment", &load_assignment);
    }
    match kind {
        DiscoveryType::OriginalDst => Some(Discovery::OriginalDestination),
        DiscoveryType::Eds => {
            let eds = errors.required("eds_cluster_config", eds)?;
            errors.within("eds_cluster_config", |errors| {
                let pb::cluster::EdsClusterConfig { eds_config, service_name } = eds;
                let source = errors.required("eds_config", eds_config)?;
                errors.within("eds_config", |errors| tls::ads(errors, source))?;
                Some(Discovery::Eds(if service_name.is_empty() { name.to_owned() } else { service_name }))
            })
        }
        DiscoveryType::Static => match load_assignment {
            None => Some(Discovery::None),
            Some(message) => errors.within("load_assignment", |errors| {
                endpoint::assignment(errors, message).map(|all| Discovery::Static(all.into()))
            }),
        },
        DiscoveryType::StrictDns | DiscoveryType::LogicalDns => {
            let message = errors.required("load_assignment", load_assignment)?;
            errors.within("load_assignment", |errors| dns(errors, message))
        }
    }
}

/// The one name of a DNS cluster.
fn dns(errors: &mut Errors, message: endpoints::ClusterLoadAssignment) -> Option<Discovery> {
    take!(errors, message => endpoints::ClusterLoadAssignment {
        used: [endpoints],
        ignored: [cluster_name],
        unset: [named_endpoints, policy],
    });
    let found = errors.all("endpoints", endpoints, |errors, message| {
        take!(errors, message => endpoints::LocalityLbEndpoints {
            used: [lb_endpoints],
            ignored: [locality, metadata, load_balancing_weight],
            unset: [priority, proximity, lb_config],
        });
        errors.all("lb_endpoints", lb_endpoints, dns_endpoint)
    })?;
    let mut found = found.into_iter().flatten();
    match (found.next(), found.next()) {
        (Some((host, port)), None) => Some(Discovery::Dns { host, port }),
        _ => errors.refuse("a DNS cluster has exactly one endpoint"),
    }
}

fn dns_endpoint(errors: &mut Errors, message: endpoints::LbEndpoint) -> Option<(String, u16)> {
    take!(errors, message => endpoints::LbEndpoint {
        used: [host_identifier],
        ignored: [health_status, metadata, load_balancing_weight],
        unset: [],
    });
    let Some(endpoints::lb_endpoint::HostIdentifier::Endpoint(message)) = host_identifier else {
        return errors.refuse_at("endpoint", "this field must be set");
    };
    errors.within("endpoint", |errors| {
        let address = endpoint::dialled(errors, message)?;
        let (host, port) = address::host_and_port(errors, address)?;
        if port == 0 || host.is_empty() {
            return errors.refuse_at("address", "a host and a port must be set");
        }
        Some((host, port))
    })
}

/// Where there is a choice, the endpoint with the fewest requests is picked; nothing else is built.
fn balancing(errors: &mut Errors, discovery: Option<&Discovery>, policy: i32) {
    use pb::cluster::LbPolicy::{ClusterProvided, LeastRequest, RoundRobin};
    let allowed: &[pb::cluster::LbPolicy] = match discovery {
        None => return,
        Some(Discovery::Eds(_)) => &[LeastRequest],
        Some(Discovery::Static(all))
            if all.localities.iter().map(|l| l.endpoints.len()).sum::<usize>() > 1 =>
        {
            &[LeastRequest]
        }
        Some(Discovery::OriginalDestination) => &[ClusterProvided],
        Some(Discovery::Static(_) | Discovery::Dns { .. } | Discovery::None) => &[LeastRequest, RoundRobin],
    };
    if !allowed.iter().any(|known| *known as i32 == policy) {
        errors.refuse::<()>(format_args!("the value {policy} is not supported here, {allowed:?} is"));
    }
}

fn lookup_family(errors: &mut Errors, family: i32) {
    use pb::cluster::DnsLookupFamily::{All, Auto, V4Preferred};
    if ![Auto, V4Preferred, All].into_iter().any(|known| known as i32 == family) {
        errors.refuse::<()>(format_args!("the value {family} is not supported"));
    }
}

fn upstream_tls(
    errors: &mut Errors,
    socket: Option<core::TransportSocket>,
    matches: Vec<pb::cluster::TransportSocketMatch>,
) -> Option<UpstreamTls> {
    if let Some(socket) = socket
        && errors.within("transport_socket", |errors| tls::upstream(errors, socket))?.is_some()
    {
        return errors.refuse_at("transport_socket", "TLS is chosen by transport_socket_matches");
    }
    let sockets = errors.all("transport_socket_matches", matches, |errors, message| {
        let pb::cluster::TransportSocketMatch { name: _, r#match, transport_socket } = message;
        let mut fields = r#match.map(|Struct { fields }| fields).unwrap_or_default();
        let mode = errors.within("match", |errors| {
            let mode = metadata::text(errors, &mut fields, "tlsMode");
            metadata::nothing_else(errors, &fields);
            mode
        })?;
        let socket = errors.required("transport_socket", transport_socket)?;
        let socket = errors.within("transport_socket", |errors| tls::upstream(errors, socket))?;
        match (mode.as_str(), socket) {
            ("istio", Some(tls)) => Some(Some(tls)),
            ("", None) => Some(None),
            (mode, _) => errors.refuse(format_args!("the tlsMode {mode:?} does not go with this socket")),
        }
    })?;
    match sockets.as_slice() {
        [] | [None] => Some(UpstreamTls::None),
        [Some(tls)] | [Some(tls), None] => Some(UpstreamTls::ByEndpoint(tls.clone())),
        _ => errors.refuse_at("transport_socket_matches", "first TLS, then plaintext, and nothing else"),
    }
}

fn upstream_http(errors: &mut Errors, mut options: HashMap<String, Any>) -> Option<UpstreamHttp> {
    let http = options.remove(HTTP_OPTIONS);
    let mut others: Vec<String> = options.into_keys().collect();
    others.sort();
    for other in others {
        errors
            .refuse_at::<()>("typed_extension_protocol_options", format_args!("{other:?} is not supported"));
    }
    let Some(any) = http else { return Some(UpstreamHttp::AsDownstream) };
    errors.within(format_args!("typed_extension_protocol_options[{HTTP_OPTIONS}]"), |errors| {
        let message: http::HttpProtocolOptions = errors.message(&any)?;
        take!(errors, message => http::HttpProtocolOptions {
            used: [upstream_protocol_options],
            ignored: [],
            unset: [
                common_http_protocol_options, upstream_http_protocol_options, http_filters,
                header_validation_config, outlier_detection, request_mirror_policies, hash_policy,
                retry_policy
            ],
        });
        http_version(errors, upstream_protocol_options)
    })
}

fn http_version(
    errors: &mut Errors,
    options: Option<http::http_protocol_options::UpstreamProtocolOptions>,
) -> Option<UpstreamHttp> {
    use http::http_protocol_options as options;
    use options::UpstreamProtocolOptions::{AutoConfig, ExplicitHttpConfig, UseDownstreamProtocolConfig};
    use options::explicit_http_config::ProtocolConfig;
    match options {
        None => Some(UpstreamHttp::Http1),
        Some(ExplicitHttpConfig(config)) => {
            errors.within("explicit_http_config", |errors| match config.protocol_config {
                Some(ProtocolConfig::HttpProtocolOptions(http1)) => {
                    errors.unset("http_protocol_options", &http1);
                    Some(UpstreamHttp::Http1)
                }
                Some(ProtocolConfig::Http2ProtocolOptions(http2)) => {
                    errors.unset("http2_protocol_options", &http2);
                    Some(UpstreamHttp::Http2)
                }
                Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                    errors.refuse_at("http3_protocol_options", "this field is not supported")
                }
                None => errors.refuse("a protocol must be set"),
            })
        }
        Some(UseDownstreamProtocolConfig(config)) => {
            errors.within("use_downstream_protocol_config", |errors| {
                take!(errors, config => options::UseDownstreamHttpConfig {
                    used: [http_protocol_options, http2_protocol_options],
                    ignored: [],
                    unset: [http3_protocol_options],
                });
                errors.unset("http_protocol_options", &http_protocol_options.unwrap_or_default());
                errors.unset("http2_protocol_options", &http2_protocol_options.unwrap_or_default());
                Some(UpstreamHttp::AsDownstream)
            })
        }
        Some(AutoConfig(_)) => errors.refuse_at("auto_config", "this field is not supported"),
    }
}

fn bind(errors: &mut Errors, config: Option<core::BindConfig>) -> Option<Bind> {
    let Some(message) = config else { return Some(Bind::default()) };
    errors.within("upstream_bind_config", |errors| {
        take!(errors, message => core::BindConfig {
            used: [source_address, extra_source_addresses],
            ignored: [],
            unset: [
                freebind, socket_options, additional_source_addresses, local_address_selector,
                validate_network_namespaces
            ],
        });
        let mut bind = Bind::default();
        let first = errors.required("source_address", source_address)?;
        bind_to(errors, "source_address".to_owned(), first, &mut bind);
        for (index, extra) in extra_source_addresses.into_iter().enumerate() {
            errors.within(format!("extra_source_addresses[{index}]"), |errors| {
                take!(errors, extra => core::ExtraSourceAddress {
                    used: [address], ignored: [], unset: [socket_options],
                });
                let address = errors.required("address", address)?;
                bind_to(errors, "address".to_owned(), address, &mut bind);
                Some(())
            });
        }
        Some(bind)
    })
}

fn bind_to(errors: &mut Errors, field: String, address: core::SocketAddress, bind: &mut Bind) {
    errors.within(field, |errors| {
        let Some((host, port)) = address::socket_address(errors, address) else { return };
        if port != 0 {
            errors.refuse_at::<()>("port_value", "it must be 0");
        }
        let taken = match address::ip(errors, "address", &host) {
            Some(IpAddr::V4(ip)) => bind.v4.replace(ip).is_some(),
            Some(IpAddr::V6(ip)) => bind.v6.replace(ip).is_some(),
            None => false,
        };
        if taken {
            errors.refuse::<()>("another one of the same family is given already");
        }
    });
}

/// The destination service, as Istio writes it. Other keys of Istio's are information.
fn service(errors: &mut Errors, mut istio: HashMap<String, Value>) -> Option<ServiceLabels> {
    let values = match istio.remove("services").and_then(|value| value.kind) {
        None => return Some(ServiceLabels::default()),
        Some(Kind::ListValue(ListValue { values })) => values,
        Some(_) => return errors.refuse_at("services", "a list is expected"),
    };
    let Some(first) = values.into_iter().next() else { return Some(ServiceLabels::default()) };
    let Some(Kind::StructValue(Struct { mut fields })) = first.kind else {
        return errors.refuse_at("services[0]", "a structure is expected");
    };
    errors.within("services[0]", |errors| {
        Some(ServiceLabels {
            host: metadata::text(errors, &mut fields, "host")?,
            name: metadata::text(errors, &mut fields, "name")?,
            namespace: metadata::text(errors, &mut fields, "namespace")?,
        })
    })
}
