//! Route configurations, virtual hosts and routes. What a route does is in `route_action`.

use mesh_common::xds::proto::config::route::v3 as pb;

use super::errors::{Errors, take};
use super::{header, matcher, route_action};
use crate::config::route::{Route, RouteConfig, VirtualHost};

/// A resource of RDS.
pub(super) fn named(errors: &mut Errors, name: &str, message: pb::RouteConfiguration) -> Option<RouteConfig> {
    if message.name != name {
        errors.refuse_at::<()>("name", format_args!("it is {:?}, not {name:?}", message.name));
    }
    config(errors, message)
}

/// A route configuration, inline or by name.
pub(super) fn config(errors: &mut Errors, message: pb::RouteConfiguration) -> Option<RouteConfig> {
    take!(errors, message => pb::RouteConfiguration {
        used: [name, virtual_hosts, validate_clusters],
        ignored: [metadata],
        unset: [
            vhds, internal_only_headers, response_headers_to_add, response_headers_to_remove,
            request_headers_to_add, request_headers_to_remove, most_specific_header_mutations_wins,
            max_direct_response_body_size_bytes, cluster_specifier_plugins, request_mirror_policies,
            ignore_port_in_host_matching, vhost_header, ignore_path_parameters_in_path_matching,
            typed_per_filter_config, route_specifiers
        ],
    });
    if validate_clusters.is_some_and(|validate| validate.value) {
        errors.refuse_at::<()>("validate_clusters", "clusters may come later than routes");
    }
    let virtual_hosts = errors.all("virtual_hosts", virtual_hosts, virtual_host)?;
    let mut domains: Vec<&String> = virtual_hosts.iter().flat_map(|host| &host.domains).collect();
    domains.sort();
    if let Some(twice) = domains.windows(2).find(|pair| pair[0] == pair[1]) {
        return errors.refuse_at("virtual_hosts", format_args!("the domain {:?} stands twice", twice[0]));
    }
    Some(RouteConfig { name, virtual_hosts })
}

fn virtual_host(errors: &mut Errors, message: pb::VirtualHost) -> Option<VirtualHost> {
    take!(errors, message => pb::VirtualHost {
        used: [name, domains, routes],
        ignored: [metadata],
        unset: [
            matcher, require_tls, virtual_clusters, rate_limits, request_headers_to_add,
            request_headers_to_remove, response_headers_to_add, response_headers_to_remove, cors,
            typed_per_filter_config, include_request_attempt_count, include_attempt_count_in_response,
            retry_policy, retry_policy_typed_config, hedge_policy, include_is_timeout_retry_header,
            per_request_buffer_limit_bytes, request_body_buffer_limit, request_mirror_policies,
            route_specifiers
        ],
    });
    if domains.is_empty() {
        errors.refuse_at::<()>("domains", "at least one must be set");
    }
    for (index, domain) in domains.iter().enumerate() {
        let inner = domain.strip_prefix('*').or_else(|| domain.strip_suffix('*')).unwrap_or(domain);
        if domain.is_empty() || inner.contains('*') || inner.bytes().any(|byte| byte.is_ascii_uppercase()) {
            let reason = format_args!("{domain:?} is not a lower-case domain");
            errors.refuse_at::<()>(format_args!("domains[{index}]"), reason);
        }
    }
    let routes = errors.all("routes", routes, route)?;
    Some(VirtualHost { name, domains, routes })
}

fn route(errors: &mut Errors, message: pb::Route) -> Option<Route> {
    take!(errors, message => pb::Route {
        used: [
            name, r#match, request_headers_to_add, request_headers_to_remove, response_headers_to_add,
            response_headers_to_remove, action
        ],
        ignored: [metadata, decorator, stat_prefix],
        unset: [
            typed_per_filter_config, tracing, per_request_buffer_limit_bytes, request_body_buffer_limit,
            route_specifiers
        ],
    });
    let matches = errors
        .required("match", r#match)
        .and_then(|message| errors.within("match", |errors| matcher::route_match(errors, message)));
    let request_headers =
        header::mutation(errors, "request", request_headers_to_add, request_headers_to_remove);
    let response_headers =
        header::mutation(errors, "response", response_headers_to_add, response_headers_to_remove);
    let action = route_action::action(errors, action);
    Some(Route {
        name,
        matches: matches?,
        action: action?,
        request_headers: request_headers?,
        response_headers: response_headers?,
    })
}

/// Whether weights add up to something that can be drawn from.
pub(super) fn weights_are_usable(weights: impl Iterator<Item = u32>) -> bool {
    let sum: u64 = weights.map(u64::from).sum();
    sum != 0 && u32::try_from(sum).is_ok()
}
