//! What a route does: forward, redirect, answer.

use std::time::Duration;

use http::StatusCode;
use http::uri::Authority;
use mesh_common::xds::proto::config::route::v3 as pb;
use mesh_common::xds::proto::r#type::matcher::v3::RegexMatchAndSubstitute;

use super::errors::{Errors, take};
use super::{header, matcher, route, secret};
use crate::config::route::{Forward, PathRewrite, Redirect, RouteAction, WeightedCluster};

/// Envoy's own default for a route that says nothing; zero means no limit.
const ROUTE_TIMEOUT: Duration = Duration::from_secs(15);

/// The action of a route.
pub(super) fn action(errors: &mut Errors, action: Option<pb::route::Action>) -> Option<RouteAction> {
    match action {
        Some(pb::route::Action::Route(message)) => {
            errors.within("route", |errors| forward(errors, message)).map(RouteAction::Forward)
        }
        Some(pb::route::Action::Redirect(message)) => {
            errors.within("redirect", |errors| redirect(errors, message)).map(RouteAction::Redirect)
        }
        Some(pb::route::Action::DirectResponse(message)) => {
            errors.within("direct_response", |errors| respond(errors, message))
        }
        Some(pb::route::Action::FilterAction(_)) => {
            errors.refuse_at("filter_action", "this field is not supported")
        }
        Some(pb::route::Action::NonForwardingAction(_)) => {
            errors.refuse_at("non_forwarding_action", "this field is not supported")
        }
        None => errors.refuse("an action must be set"),
    }
}

fn forward(errors: &mut Errors, message: pb::RouteAction) -> Option<Forward> {
    take!(errors, message => pb::RouteAction {
        used: [
            cluster_not_found_response_code, prefix_rewrite, regex_rewrite, timeout, retry_policy,
            upgrade_configs, cluster_specifier, host_rewrite_specifier, idle_timeout
        ],
        ignored: [],
        unset: [
            metadata_match, path_rewrite_policy, path_rewrite, append_x_forwarded_host, flush_timeout, early_data_policy, retry_policy_typed_config, request_mirror_policies, priority,
            rate_limits, include_vh_rate_limits, hash_policy, cors, max_grpc_timeout, grpc_timeout_offset,
            internal_redirect_policy, internal_redirect_action, max_internal_redirects, hedge_policy,
            max_stream_duration
        ],
    });
    let clusters = clusters(errors, cluster_specifier);
    let cluster_not_found = not_found(errors, cluster_not_found_response_code);
    let timeout = errors.timeout("timeout", timeout, ROUTE_TIMEOUT);
    let per_try_timeout = retry_policy
        .and_then(|message| errors.within("retry_policy", |errors| per_try_timeout(errors, message)));
    let idle_timeout = if idle_timeout.is_some() {
        errors.duration("idle_timeout", idle_timeout).map(Some)
    } else {
        Some(None)
    };
    let path_rewrite = rewritten_path(errors, prefix_rewrite, regex_rewrite);
    let host_rewrite = host_rewrite(errors, host_rewrite_specifier);
    let switches = errors.all("upgrade_configs", upgrade_configs, upgrade);
    Some(Forward {
        clusters: clusters?,
        cluster_not_found: cluster_not_found?,
        timeout,
        per_try_timeout,
        idle_timeout: idle_timeout?,
        path_rewrite: path_rewrite?,
        host_rewrite: host_rewrite?,
        upgrades: switches?.into_iter().all(|enabled| enabled),
    })
}

fn clusters(
    errors: &mut Errors,
    clusters: Option<pb::route_action::ClusterSpecifier>,
) -> Option<Vec<WeightedCluster>> {
    use pb::route_action::ClusterSpecifier;
    match clusters {
        Some(ClusterSpecifier::Cluster(name)) if !name.is_empty() => Some(vec![WeightedCluster {
            name,
            weight: 1,
            request_headers: Default::default(),
            response_headers: Default::default(),
        }]),
        Some(ClusterSpecifier::WeightedClusters(message)) => {
            errors.within("weighted_clusters", |errors| weighted_clusters(errors, message))
        }
        Some(ClusterSpecifier::Cluster(_)) | None => errors.refuse_at("cluster", "this field must be set"),
        Some(
            ClusterSpecifier::ClusterHeader(_)
            | ClusterSpecifier::ClusterSpecifierPlugin(_)
            | ClusterSpecifier::InlineClusterSpecifierPlugin(_),
        ) => errors.refuse("only cluster and weighted_clusters are supported"),
    }
}

fn weighted_clusters(errors: &mut Errors, message: pb::WeightedCluster) -> Option<Vec<WeightedCluster>> {
    take!(errors, message => pb::WeightedCluster {
        used: [clusters, total_weight],
        ignored: [runtime_key_prefix],
        unset: [random_value_specifier],
    });
    let clusters = errors.all("clusters", clusters, weighted_cluster)?;
    let sum: u64 = clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
    if !route::weights_are_usable(clusters.iter().map(|cluster| cluster.weight)) {
        return errors.refuse("the sum of the weights is 0 or too large");
    }
    if total_weight.is_some_and(|total| u64::from(total.value) != sum) {
        return errors.refuse_at("total_weight", "it is not the sum of the weights");
    }
    Some(clusters)
}

fn weighted_cluster(
    errors: &mut Errors,
    message: pb::weighted_cluster::ClusterWeight,
) -> Option<WeightedCluster> {
    take!(errors, message => pb::weighted_cluster::ClusterWeight {
        used: [
            name, weight, request_headers_to_add, request_headers_to_remove, response_headers_to_add,
            response_headers_to_remove
        ],
        ignored: [],
        unset: [cluster_header, metadata_match, typed_per_filter_config, host_rewrite_specifier],
    });
    if name.is_empty() {
        errors.refuse_at::<()>("name", "this field must be set");
    }
    let weight = errors.required("weight", weight).map(|weight| weight.value);
    let request_headers =
        header::mutation(errors, "request", request_headers_to_add, request_headers_to_remove);
    let response_headers =
        header::mutation(errors, "response", response_headers_to_add, response_headers_to_remove);
    Some(WeightedCluster {
        name,
        weight: weight?,
        request_headers: request_headers?,
        response_headers: response_headers?,
    })
}

fn not_found(errors: &mut Errors, code: i32) -> Option<StatusCode> {
    use pb::route_action::ClusterNotFoundResponseCode as Code;
    match Code::try_from(code) {
        Ok(Code::ServiceUnavailable) => Some(StatusCode::SERVICE_UNAVAILABLE),
        Ok(Code::NotFound) => Some(StatusCode::NOT_FOUND),
        Ok(Code::InternalServerError) => Some(StatusCode::INTERNAL_SERVER_ERROR),
        Err(_) => errors.refuse_at("cluster_not_found_response_code", "the value is not supported"),
    }
}

/// A policy without retries: only the limit of the one try is read.
fn per_try_timeout(errors: &mut Errors, message: pb::RetryPolicy) -> Option<Duration> {
    take!(errors, message => pb::RetryPolicy {
        used: [retry_on, num_retries, per_try_timeout],
        ignored: [],
        unset: [
            per_try_idle_timeout, retry_priority, retry_host_predicate, retry_options_predicates,
            host_selection_retry_max_attempts, retriable_status_codes, retry_back_off,
            rate_limited_retry_back_off, retriable_headers, retriable_request_headers,
            refresh_cluster_on_retry
        ],
    });
    // Envoy's default is one retry, but nothing is retried while no condition is named.
    if !retry_on.is_empty() && num_retries.is_none_or(|number| number.value != 0) {
        errors.refuse_at::<()>("num_retries", "retries are not supported");
    }
    errors.timeout("per_try_timeout", per_try_timeout, Duration::ZERO)
}

#[allow(clippy::option_option)] // outer: usable; inner: set
fn rewritten_path(
    errors: &mut Errors,
    prefix: String,
    regex: Option<RegexMatchAndSubstitute>,
) -> Option<Option<PathRewrite>> {
    match (prefix.is_empty(), regex) {
        (true, None) => Some(None),
        (false, None) => Some(Some(PathRewrite::Prefix(prefix))),
        (true, Some(message)) => {
            errors.within("regex_rewrite", |errors| regex_rewrite(errors, message)).map(Some)
        }
        (false, Some(_)) => errors.refuse("prefix_rewrite and regex_rewrite exclude each other"),
    }
}

fn regex_rewrite(errors: &mut Errors, message: RegexMatchAndSubstitute) -> Option<PathRewrite> {
    let RegexMatchAndSubstitute { pattern, substitution } = message;
    let pattern = errors.required("pattern", pattern)?;
    let substitution = errors.within("substitution", |errors| substitution_of(errors, &substitution))?;
    if matches!(pattern.regex.as_str(), ".*" | "^.*$" | "^.*" | ".+" | "^.+$" | "^/.*$" | "/.*")
        && let Some(text) = &substitution.literal
    {
        return Some(PathRewrite::Full(text.clone()));
    }
    let pattern = errors.within("pattern", |errors| matcher::anywhere(errors, pattern))?;
    if substitution.highest >= pattern.captures_len() {
        return errors.refuse_at("substitution", format_args!("there is no group {}", substitution.highest));
    }
    Some(PathRewrite::Regex { pattern, substitution: substitution.text })
}

/// A substitution in the regex crate's words.
struct Substitution {
    text: String,
    /// The same, when it names no group.
    literal: Option<String>,
    highest: usize,
}

fn substitution_of(errors: &mut Errors, re2: &str) -> Option<Substitution> {
    let (mut text, mut literal, mut highest, mut groups) = (String::new(), String::new(), 0, false);
    let mut chars = re2.chars();
    while let Some(char) = chars.next() {
        let plain = if char == '\\' {
            match chars.next() {
                Some('\\') => '\\',
                Some(digit @ '0'..='9') => {
                    text.push_str(&format!("${{{digit}}}"));
                    highest = highest.max(usize::from(digit as u8 - b'0'));
                    groups = true;
                    continue;
                }
                _ => return errors.refuse("a backslash is followed by a digit or a backslash"),
            }
        } else {
            char
        };
        // `$` is the crate's own sign for a group.
        if plain == '$' {
            text.push('$');
        }
        text.push(plain);
        literal.push(plain);
    }
    Some(Substitution { text, literal: (!groups).then_some(literal), highest })
}

#[allow(clippy::option_option)] // outer: usable; inner: set
fn host_rewrite(
    errors: &mut Errors,
    host: Option<pb::route_action::HostRewriteSpecifier>,
) -> Option<Option<Authority>> {
    match host {
        None => Some(None),
        Some(pb::route_action::HostRewriteSpecifier::HostRewriteLiteral(host)) => {
            let value = host.parse().map_err(|_| format!("{host:?} is not a host"));
            errors.check("host_rewrite_literal", value).map(Some)
        }
        Some(_) => errors.refuse("only host_rewrite_literal is supported"),
    }
}

fn upgrade(errors: &mut Errors, message: pb::route_action::UpgradeConfig) -> Option<bool> {
    take!(errors, message => pb::route_action::UpgradeConfig {
        used: [upgrade_type, enabled],
        ignored: [],
        unset: [connect_config],
    });
    if !upgrade_type.eq_ignore_ascii_case("websocket") {
        return errors.refuse_at("upgrade_type", format_args!("{upgrade_type:?} is not supported"));
    }
    Some(enabled.is_none_or(|enabled| enabled.value))
}

fn redirect(errors: &mut Errors, message: pb::RedirectAction) -> Option<Redirect> {
    take!(errors, message => pb::RedirectAction {
        used: [
            host_redirect, port_redirect, response_code, scheme_rewrite_specifier, path_rewrite_specifier
        ],
        ignored: [],
        unset: [strip_query],
    });
    use pb::redirect_action::{PathRewriteSpecifier, RedirectResponseCode as Code, SchemeRewriteSpecifier};
    let scheme = match scheme_rewrite_specifier {
        None | Some(SchemeRewriteSpecifier::HttpsRedirect(false)) => None,
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".to_owned()),
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => Some(scheme),
    };
    if scheme.as_deref().is_some_and(|scheme| scheme != "http" && scheme != "https") {
        errors.refuse_at::<()>("scheme_redirect", "it is http or https");
    }
    let port = match u16::try_from(port_redirect) {
        Ok(port) => Some((port != 0).then_some(port)),
        Err(_) => errors.refuse_at("port_redirect", format_args!("{port_redirect} is not a port")),
    };
    let path = match path_rewrite_specifier {
        None => Some(None),
        Some(PathRewriteSpecifier::PathRedirect(path)) => Some(Some(PathRewrite::Full(path))),
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => Some(Some(PathRewrite::Prefix(prefix))),
        Some(PathRewriteSpecifier::RegexRewrite(message)) => {
            errors.within("regex_rewrite", |errors| regex_rewrite(errors, message)).map(Some)
        }
        Some(PathRewriteSpecifier::PathRewrite(_)) => {
            errors.refuse_at("path_rewrite", "this field is not supported")
        }
    };
    let status = match Code::try_from(response_code) {
        Ok(Code::MovedPermanently) => Some(StatusCode::MOVED_PERMANENTLY),
        Ok(Code::Found) => Some(StatusCode::FOUND),
        Ok(Code::SeeOther) => Some(StatusCode::SEE_OTHER),
        Ok(Code::TemporaryRedirect) => Some(StatusCode::TEMPORARY_REDIRECT),
        Ok(Code::PermanentRedirect) => Some(StatusCode::PERMANENT_REDIRECT),
        Err(_) => errors.refuse_at("response_code", "the value is not supported"),
    };
    let host = (!host_redirect.is_empty()).then_some(host_redirect);
    Some(Redirect { scheme, host, port: port?, path: path?, status: status? })
}

fn respond(errors: &mut Errors, message: pb::DirectResponseAction) -> Option<RouteAction> {
    take!(errors, message => pb::DirectResponseAction {
        used: [status, body],
        ignored: [],
        unset: [body_format],
    });
    let body = match body {
        None => Some(String::new()),
        Some(source) => errors.within("body", |errors| secret::inline(errors, source)),
    };
    let code = u16::try_from(status).ok().filter(|code| (200..600).contains(code));
    let status = match code.and_then(|code| StatusCode::from_u16(code).ok()) {
        Some(status) => Some(status),
        None => errors.refuse_at("status", format_args!("{status} is not a status from 200 to 599")),
    };
    Some(RouteAction::Respond { status: status?, body: body? })
}
