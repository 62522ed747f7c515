//! Network filters: the HTTP connection manager and the TCP proxy. A filter that is not one of them is
//! refused, never skipped: it may be the one that was to deny.

use std::time::Duration;

use mesh_common::xds::proto::config::accesslog::v3 as accesslog;
use mesh_common::xds::proto::config::core::v3 as core;
use mesh_common::xds::proto::config::listener::v3 as pb;
use mesh_common::xds::proto::extensions::access_loggers::stream::v3 as stream;
use mesh_common::xds::proto::extensions::filters::http::router::v3::Router;
use mesh_common::xds::proto::extensions::filters::network::http_connection_manager::v3 as hcm;
use mesh_common::xds::proto::extensions::filters::network::tcp_proxy::v3 as tcp;
use prost::Name;

use super::errors::{Errors, take};
use super::{route, tls};
use crate::config::listener::{AccessLog, HttpManager, NetworkFilter, RouteSource, TcpProxy};

/// Envoy's defaults, but for the request headers: there it is "no limit", which lets slow clients pile up.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
const REQUEST_HEADERS_TIMEOUT: Duration = Duration::from_secs(60);

/// A network filter of a chain.
pub(super) fn network(errors: &mut Errors, message: pb::Filter) -> Option<NetworkFilter> {
    let pb::Filter { name, config_type } = message;
    let any = match config_type {
        Some(pb::filter::ConfigType::TypedConfig(any)) => any,
        Some(pb::filter::ConfigType::ConfigDiscovery(_)) => {
            return errors.refuse_at("config_discovery", "this field is not supported");
        }
        None => return errors.refuse_at("typed_config", "this field must be set"),
    };
    errors.within("typed_config", |errors| {
        if any.type_url == hcm::HttpConnectionManager::type_url() {
            let message = errors.message(&any)?;
            http_manager(errors, message).map(NetworkFilter::Http)
        } else if any.type_url == tcp::TcpProxy::type_url() {
            let message = errors.message(&any)?;
            tcp_proxy(errors, message).map(NetworkFilter::Tcp)
        } else {
            errors.refuse(format_args!("the filter {name:?} ({:?}) is not supported", any.type_url))
        }
    })
}

fn http_manager(errors: &mut Errors, message: hcm::HttpConnectionManager) -> Option<HttpManager> {
    take!(errors, message => hcm::HttpConnectionManager {
        used: [
            codec_type, stat_prefix, http_filters, common_http_protocol_options, stream_idle_timeout,
            request_headers_timeout, request_timeout, access_log, use_remote_address, upgrade_configs, route_specifier
        ],
        ignored: [],
        unset: [
            add_user_agent, tracing, http1_safe_max_connection_duration, http_protocol_options,
            http2_protocol_options, http3_protocol_options, server_name, server_header_transformation,
            scheme_header_transformation, max_request_headers_kb, stream_flush_timeout,
            drain_timeout, drain_timeout_jitter, delayed_close_timeout, access_log_flush_interval,
            flush_access_log_on_new_request, access_log_options, xff_num_trusted_hops,
            original_ip_detection_extensions, early_header_mutation_extensions, internal_address_config,
            skip_xff_append, via, generate_request_id, preserve_external_request_id,
            always_set_request_id_in_response, forward_client_cert_details, set_current_client_cert_details,
            forward_client_cert_matcher, proxy_100_continue,
            represent_ipv4_remote_address_as_ipv4_mapped_ipv6, normalize_path, merge_slashes,
            path_with_escaped_slashes_action, request_id_extension, local_reply_config,
            strip_matching_host_port, stream_error_on_invalid_http_message, path_normalization_options,
            strip_trailing_host_dot, proxy_status_config, typed_header_validation_config,
            append_x_forwarded_port, append_local_overload, add_proxy_protocol_connection_state,
            forward_proto_config, strip_port_mode
        ],
    });
    if codec_type != hcm::http_connection_manager::CodecType::Auto as i32 {
        errors.refuse_at::<()>("codec_type", "only AUTO is supported");
    }
    if use_remote_address.is_some_and(|set| set.value) {
        errors.refuse_at::<()>("use_remote_address", "this field is not supported");
    }
    router_only(errors, http_filters);
    errors.all("upgrade_configs", upgrade_configs, upgrade);
    let (idle_timeout, max_connection_duration) = match common_http_protocol_options {
        None => (Some(IDLE_TIMEOUT), None),
        Some(message) => {
            errors.within("common_http_protocol_options", |errors| connection_limits(errors, message))
        }
    };
    let headers_timeout = if request_headers_timeout.is_some() {
        errors.duration("request_headers_timeout", request_headers_timeout)
    } else {
        Some(REQUEST_HEADERS_TIMEOUT)
    };
    if headers_timeout.is_some_and(|timeout| timeout.is_zero()) {
        errors.refuse_at::<()>("request_headers_timeout", "no limit is not supported");
    }
    let request_timeout = errors.timeout("request_timeout", request_timeout, Duration::ZERO);
    // Absent is none: Envoy's five minutes would end long polls that nobody has asked to end.
    let stream_idle_timeout = errors.timeout("stream_idle_timeout", stream_idle_timeout, Duration::ZERO);
    let access_log = self::access_log(errors, access_log);
    let routes = match route_specifier {
        Some(hcm::http_connection_manager::RouteSpecifier::Rds(rds)) => {
            errors.within("rds", |errors| named_routes(errors, rds))
        }
        Some(hcm::http_connection_manager::RouteSpecifier::RouteConfig(message)) => errors
            .within("route_config", |errors| route::config(errors, message))
            .map(|config| RouteSource::Inline(config.into())),
        Some(hcm::http_connection_manager::RouteSpecifier::ScopedRoutes(_)) => {
            errors.refuse_at("scoped_routes", "this field is not supported")
        }
        None => errors.refuse("rds or route_config must be set"),
    };
    Some(HttpManager {
        stat_prefix,
        routes: routes?,
        request_headers_timeout: headers_timeout?,
        idle_timeout,
        max_connection_duration,
        request_timeout,
        stream_idle_timeout,
        access_log: access_log?,
    })
}

fn named_routes(errors: &mut Errors, message: hcm::Rds) -> Option<RouteSource> {
    let hcm::Rds { config_source, route_config_name } = message;
    let source = errors.required("config_source", config_source)?;
    errors.within("config_source", |errors| tls::ads(errors, source))?;
    if route_config_name.is_empty() {
        return errors.refuse_at("route_config_name", "this field must be set");
    }
    Some(RouteSource::Named(route_config_name))
}

/// How long a connection may rest, and how old it may become.
fn connection_limits(
    errors: &mut Errors,
    message: core::HttpProtocolOptions,
) -> (Option<Duration>, Option<Duration>) {
    take!(errors, message => core::HttpProtocolOptions {
        used: [idle_timeout, max_connection_duration],
        ignored: [],
        unset: [
            max_connection_duration_jitter, max_headers_count,
            max_response_headers_kb, max_stream_duration, headers_with_underscores_action,
            max_requests_per_connection
        ],
    });
    (
        errors.timeout("idle_timeout", idle_timeout, IDLE_TIMEOUT),
        errors.timeout("max_connection_duration", max_connection_duration, Duration::ZERO),
    )
}

/// The only HTTP filter is the router, which is built in.
fn router_only(errors: &mut Errors, filters: Vec<hcm::HttpFilter>) {
    let routers = errors.all("http_filters", filters, |errors, message| {
        take!(errors, message => hcm::HttpFilter {
            used: [name, config_type],
            ignored: [],
            unset: [is_optional, disabled],
        });
        let Some(hcm::http_filter::ConfigType::TypedConfig(any)) = config_type else {
            return errors.refuse_at("typed_config", "this field must be set");
        };
        if any.type_url != Router::type_url() {
            return errors.refuse(format_args!("the filter {name:?} ({:?}) is not supported", any.type_url));
        }
        errors.within("typed_config", |errors| {
            let message: Router = errors.message(&any)?;
            take!(errors, message => Router {
                used: [],
                ignored: [],
                unset: [
                    dynamic_stats, start_child_span, upstream_log, upstream_log_options,
                    suppress_envoy_headers, strict_check_headers, respect_expected_rq_timeout,
                    suppress_grpc_request_failure_code_stats, upstream_http_filters,
                    reject_connect_request_early_data
                ],
            });
            Some(())
        })
    });
    if routers.is_some_and(|routers| routers.len() != 1) {
        errors.refuse_at::<()>("http_filters", "exactly the router is supported");
    }
}

/// Upgrades are switched per route; here they can only be allowed.
fn upgrade(errors: &mut Errors, message: hcm::http_connection_manager::UpgradeConfig) -> Option<()> {
    take!(errors, message => hcm::http_connection_manager::UpgradeConfig {
        used: [upgrade_type, enabled],
        ignored: [],
        unset: [filters],
    });
    if !upgrade_type.eq_ignore_ascii_case("websocket") {
        return errors.refuse_at("upgrade_type", format_args!("{upgrade_type:?} is not supported"));
    }
    if enabled.is_some_and(|enabled| !enabled.value) {
        return errors.refuse_at("enabled", "switching upgrades off is supported by route only");
    }
    Some(())
}

fn tcp_proxy(errors: &mut Errors, message: tcp::TcpProxy) -> Option<TcpProxy> {
    take!(errors, message => tcp::TcpProxy {
        used: [stat_prefix, idle_timeout, access_log, max_connect_attempts, cluster_specifier],
        ignored: [],
        unset: [
            on_demand, metadata_match, downstream_idle_timeout, upstream_idle_timeout, backoff_options,
            hash_policy, tunneling_config, max_downstream_connection_duration,
            max_downstream_connection_duration_jitter_percentage, access_log_flush_interval,
            flush_access_log_on_connected, access_log_options, proxy_protocol_tlvs,
            proxy_protocol_tlv_merge_policy, upstream_connect_mode, max_early_data_bytes, check_drain_close
        ],
    });
    if max_connect_attempts.is_some_and(|attempts| attempts.value != 1) {
        errors.refuse_at::<()>("max_connect_attempts", "only 1 is supported");
    }
    let idle_timeout = errors.timeout("idle_timeout", idle_timeout, IDLE_TIMEOUT);
    let access_log = self::access_log(errors, access_log);
    let clusters = match cluster_specifier {
        Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(name)) if !name.is_empty() => Some(vec![(name, 1)]),
        Some(tcp::tcp_proxy::ClusterSpecifier::WeightedClusters(message)) => {
            errors.within("weighted_clusters", |errors| weighted(errors, message))
        }
        _ => errors.refuse_at("cluster", "this field must be set"),
    };
    Some(TcpProxy { stat_prefix, clusters: clusters?, idle_timeout, access_log: access_log? })
}

fn weighted(errors: &mut Errors, message: tcp::tcp_proxy::WeightedCluster) -> Option<Vec<(String, u32)>> {
    let tcp::tcp_proxy::WeightedCluster { clusters } = message;
    let clusters = errors.all("clusters", clusters, |errors, message| {
        take!(errors, message => tcp::tcp_proxy::weighted_cluster::ClusterWeight {
            used: [name, weight],
            ignored: [],
            unset: [metadata_match],
        });
        if name.is_empty() {
            return errors.refuse_at("name", "this field must be set");
        }
        Some((name, weight))
    })?;
    if !route::weights_are_usable(clusters.iter().map(|(_, weight)| *weight)) {
        return errors.refuse("the sum of the weights is 0 or too large");
    }
    Some(clusters)
}

#[allow(clippy::option_option)] // outer: usable; inner: on or off
fn access_log(errors: &mut Errors, logs: Vec<accesslog::AccessLog>) -> Option<Option<AccessLog>> {
    let mut logs = errors.all("access_log", logs, stdout)?.into_iter();
    match (logs.next(), logs.next()) {
        (log, None) => Some(log),
        _ => errors.refuse_at("access_log", "at most one is supported"),
    }
}

fn stdout(errors: &mut Errors, message: accesslog::AccessLog) -> Option<AccessLog> {
    take!(errors, message => accesslog::AccessLog {
        used: [config_type],
        ignored: [name],
        unset: [filter],
    });
    let accesslog::access_log::ConfigType::TypedConfig(any) = errors.required("typed_config", config_type)?;
    errors.within("typed_config", |errors| {
        let stream::StdoutAccessLog { access_log_format } = errors.message(&any)?;
        let Some(stream::stdout_access_log::AccessLogFormat::LogFormat(message)) = access_log_format else {
            return Some(AccessLog::Text);
        };
        errors.within("log_format", |errors| log_format(errors, message))
    })
}

/// The line is Istio's default one in either form: the format's own words are not read.
#[allow(deprecated)] // the older spelling of a text means the same
fn log_format(errors: &mut Errors, message: core::SubstitutionFormatString) -> Option<AccessLog> {
    use core::substitution_format_string::Format;
    take!(errors, message => core::SubstitutionFormatString {
        used: [format],
        ignored: [omit_empty_values, json_format_options],
        unset: [content_type, formatters],
    });
    match format {
        Some(Format::JsonFormat(_)) => Some(AccessLog::Json),
        None | Some(Format::TextFormat(_) | Format::TextFormatSource(_)) => Some(AccessLog::Text),
    }
}
