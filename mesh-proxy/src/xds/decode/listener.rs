//! Listeners and their filter chains. A chain whose conditions cannot all be checked is refused: a condition
//! left out would let traffic in that it was meant to keep out.

use std::sync::Arc;
use std::time::Duration;

use mesh_common::xds::names::{ListenerName, MESH_ADDRESSES_CHAIN};
use mesh_common::xds::proto::config::core::v3::TrafficDirection;
use mesh_common::xds::proto::config::listener::v3 as pb;
use mesh_common::xds::proto::extensions::filters::listener::http_inspector::v3::HttpInspector;
use mesh_common::xds::proto::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use prost::Name;

use super::errors::{Errors, take};
use super::{address, filter, tls};
use crate::config::listener::{ChainMatch, FilterChain, Inspect, Listener, NetworkFilter, Transport};

/// Envoy's own default.
const LISTENER_FILTERS_TIMEOUT: Duration = Duration::from_secs(15);

/// A resource of LDS.
pub(super) fn listener(errors: &mut Errors, resource: &str, message: pb::Listener) -> Option<Listener> {
    // Which sockets exist is for the command line to say: addresses are information here.
    take!(errors, message => pb::Listener {
        used: [
            name, filter_chains, default_filter_chain, listener_filters, listener_filters_timeout,
            continue_on_listener_filters_timeout, traffic_direction
        ],
        ignored: [address, stat_prefix, metadata, bind_to_port],
        unset: [
            additional_addresses, stats_matcher, fcds_config, filter_chain_matcher, use_original_dst,
            per_connection_buffer_limit_bytes, per_connection_buffer_high_watermark_timeout, deprecated_v1,
            drain_type, transparent, freebind, socket_options, tcp_fast_open_queue_length,
            udp_listener_config, api_listener, connection_balance_config, reuse_port, enable_reuse_port,
            access_log, tcp_backlog_size, max_connections_to_accept_per_socket_event, enable_mptcp,
            ignore_global_conn_limit, bypass_overload_manager, tcp_keepalive, listener_specifier
        ],
    });
    if name != resource {
        errors.refuse_at::<()>("name", format_args!("it is {name:?}, not {resource:?}"));
    }
    let parsed: ListenerName = errors.check("name", name.parse())?;
    direction(errors, &parsed, traffic_direction);
    let timeout = if listener_filters_timeout.is_some() {
        errors.duration("listener_filters_timeout", listener_filters_timeout)
    } else {
        Some(LISTENER_FILTERS_TIMEOUT)
    };
    let inspect = inspect(errors, listener_filters, timeout, continue_on_listener_filters_timeout);
    let on_demand = parsed == ListenerName::VirtualOutbound;
    let chains = errors.all("filter_chains", filter_chains, |errors, message| {
        chain(errors, message, on_demand).map(Arc::new)
    });
    let default_chain = match default_filter_chain {
        None => None,
        Some(message) => Some(errors.within("default_filter_chain", |errors| chain(errors, message, false))?),
    };
    Some(Listener { name, inspect: inspect?, chains: chains?, default_chain: default_chain.map(Arc::new) })
}

fn direction(errors: &mut Errors, name: &ListenerName, direction: i32) {
    let expected = match name {
        ListenerName::Inbound { .. } => TrafficDirection::Inbound,
        _ => TrafficDirection::Outbound,
    };
    if direction != expected as i32 {
        let name = expected.as_str_name();
        errors.refuse_at::<()>("traffic_direction", format_args!("it must be {name}"));
    }
}

fn inspect(
    errors: &mut Errors,
    filters: Vec<pb::ListenerFilter>,
    timeout: Option<Duration>,
    goes_on: bool,
) -> Option<Inspect> {
    let urls = errors.all("listener_filters", filters, inspector)?;
    let inspect = Inspect {
        tls: urls.contains(&Inspector::Tls),
        http: urls.contains(&Inspector::Http),
        timeout: timeout?,
    };
    if !inspect.tls && !inspect.http {
        return Some(Inspect { timeout: Duration::ZERO, ..inspect });
    }
    if !goes_on {
        errors.refuse_at::<()>("continue_on_listener_filters_timeout", "it must be true");
    }
    if inspect.timeout.is_zero() {
        errors.refuse_at::<()>("listener_filters_timeout", "waiting for ever is not supported");
    }
    Some(inspect)
}

#[derive(PartialEq)]
enum Inspector {
    Tls,
    Http,
}

fn inspector(errors: &mut Errors, message: pb::ListenerFilter) -> Option<Inspector> {
    take!(errors, message => pb::ListenerFilter {
        used: [name, config_type],
        ignored: [],
        unset: [filter_disabled],
    });
    let any = match config_type {
        Some(pb::listener_filter::ConfigType::TypedConfig(any)) => any,
        Some(pb::listener_filter::ConfigType::ConfigDiscovery(_)) => {
            return errors.refuse_at("config_discovery", "this field is not supported");
        }
        None => return errors.refuse_at("typed_config", "this field must be set"),
    };
    errors.within("typed_config", |errors| {
        if any.type_url == TlsInspector::type_url() {
            let options: TlsInspector = errors.message(&any)?;
            errors.unset("tls_inspector", &options);
            Some(Inspector::Tls)
        } else if any.type_url == HttpInspector::type_url() {
            let options: HttpInspector = errors.message(&any)?;
            errors.unset("http_inspector", &options);
            Some(Inspector::Http)
        } else {
            errors.refuse(format_args!("the listener filter {name:?} ({:?}) is not supported", any.type_url))
        }
    })
}

fn chain(errors: &mut Errors, message: pb::FilterChain, on_demand: bool) -> Option<FilterChain> {
    take!(errors, message => pb::FilterChain {
        used: [name, filter_chain_match, filters, transport_socket],
        ignored: [metadata],
        unset: [use_proxy_proto, transport_socket_connect_timeout],
    });
    let matches = match filter_chain_match {
        None => Some(ChainMatch::default()),
        Some(message) => errors.within("filter_chain_match", |errors| chain_match(errors, message)),
    };
    let tls = match transport_socket {
        None => Some(None),
        Some(socket) => errors.within("transport_socket", |errors| tls::downstream(errors, socket)).map(Some),
    };
    let filter = if on_demand && name == MESH_ADDRESSES_CHAIN && filters.is_empty() {
        Some(NetworkFilter::OnDemand)
    } else {
        terminal(errors, filters)
    };
    Some(FilterChain { name, matches: matches?, tls: tls?, filter: filter? })
}

fn terminal(errors: &mut Errors, filters: Vec<pb::Filter>) -> Option<NetworkFilter> {
    let mut filters = errors.all("filters", filters, filter::network)?.into_iter();
    match (filters.next(), filters.next()) {
        (Some(filter), None) => Some(filter),
        _ => errors.refuse_at("filters", "exactly one filter is supported"),
    }
}

fn chain_match(errors: &mut Errors, message: pb::FilterChainMatch) -> Option<ChainMatch> {
    take!(errors, message => pb::FilterChainMatch {
        used: [destination_port, prefix_ranges, server_names, transport_protocol, application_protocols],
        ignored: [],
        unset: [
            address_suffix, suffix_len, direct_source_prefix_ranges, source_type, source_prefix_ranges,
            source_ports
        ],
    });
    let port = match destination_port.map(|port| port.value) {
        None => Some(None),
        Some(port) => match u16::try_from(port) {
            Ok(port) if port != 0 => Some(Some(port)),
            _ => errors.refuse_at("destination_port", format_args!("{port} is not a port")),
        },
    };
    let prefix_ranges = errors.all("prefix_ranges", prefix_ranges, address::prefix);
    let transport = match transport_protocol.as_str() {
        "" => Some(None),
        "tls" => Some(Some(Transport::Tls)),
        "raw_buffer" => Some(Some(Transport::RawBuffer)),
        other => errors.refuse_at("transport_protocol", format_args!("{other:?} is not supported")),
    };
    for (index, name) in server_names.iter().enumerate() {
        let rest = name.strip_prefix("*.").unwrap_or(name);
        if rest.is_empty() || rest.contains('*') || rest.bytes().any(|byte| byte.is_ascii_uppercase()) {
            let reason = format_args!("{name:?} is neither a lower-case name nor *.suffix");
            errors.refuse_at::<()>(format_args!("server_names[{index}]"), reason);
        }
    }
    Some(ChainMatch {
        destination_port: port?,
        prefix_ranges: prefix_ranges?,
        server_names,
        transport: transport?,
        application_protocols,
    })
}
