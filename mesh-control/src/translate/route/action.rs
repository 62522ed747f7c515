//! What a rule does: forward by weight, redirect, or answer. What cannot be expressed becomes an answer of 500
//! with the reason.

use mesh_common::xds::names::ClusterName;
use mesh_common::xds::proto::config::route::v3::{
    DirectResponseAction, RedirectAction, RetryPolicy, RouteAction as ActionProto, WeightedCluster,
    redirect_action, route, route_action, weighted_cluster,
};
use mesh_common::xds::proto::r#type::matcher::v3::RegexMatchAndSubstitute;
use mesh_common::xds::protobuf::UInt32Value;

use super::Headers;
use super::matching::{regex, segments};
use crate::model::route::{
    Backend, BackendTarget, HeaderChanges, PathMatch, PathRewrite, RouteAction, RouteRule,
};
use crate::translate::proto::{duration, inline};

use redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};

/// Envoy's limit of the body of an answer, unless told otherwise.
const MAX_BODY: usize = 4096;
/// No service has a subset of this name.
const NO_SUBSET: &str = "!";

/// The action of a rule.
pub(super) fn encode(rule: &RouteRule, domain: &str) -> route::Action {
    match &rule.action {
        RouteAction::Forward { backends, path, host } => {
            let used: Vec<&Backend> = backends.iter().filter(|backend| backend.weight > 0).collect();
            if let Some(reasons) = all_broken(&used) {
                return refuse(&reasons);
            }
            let Some(clusters) = clusters(rule, &used, domain) else {
                return refuse("no backend of this rule has a weight above 0");
            };
            route::Action::Route(forward(rule, clusters, path.as_ref(), host.as_ref()))
        }
        RouteAction::Redirect { scheme, host, port, path, status } => {
            let Some(code) = redirect_code(*status) else {
                return refuse(&format!("{status} is not the status of a redirect"));
            };
            route::Action::Redirect(RedirectAction {
                host_redirect: host.clone().unwrap_or_default(),
                port_redirect: redirect_port(scheme.as_deref(), *port).into(),
                response_code: code as i32,
                scheme_rewrite_specifier: scheme.clone().map(SchemeRewriteSpecifier::SchemeRedirect),
                path_rewrite_specifier: path.as_ref().map(|path| redirect_path(&rule.matches.path, path)),
                ..Default::default()
            })
        }
        RouteAction::Broken(reason) => refuse(reason),
    }
}

fn refuse(reason: &str) -> route::Action {
    let body = &reason[..reason.floor_char_boundary(MAX_BODY)];
    route::Action::DirectResponse(DirectResponseAction {
        status: 500,
        body: Some(inline(body.to_owned())),
        ..Default::default()
    })
}

fn forward(
    rule: &RouteRule,
    clusters: route_action::ClusterSpecifier,
    path: Option<&PathRewrite>,
    host: Option<&String>,
) -> ActionProto {
    let mut action = ActionProto {
        cluster_specifier: Some(clusters),
        cluster_not_found_response_code: route_action::ClusterNotFoundResponseCode::InternalServerError
            as i32,
        timeout: Some(duration(rule.timeout_ms.unwrap_or(0))),
        retry_policy: rule.backend_timeout_ms.filter(|&ms| ms > 0).map(one_try),
        host_rewrite_specifier: host.cloned().map(route_action::HostRewriteSpecifier::HostRewriteLiteral),
        ..Default::default()
    };
    match path.map(|path| rewrite(&rule.matches.path, path)) {
        None => {}
        Some(Rewrite::Prefix(prefix)) => action.prefix_rewrite = prefix,
        Some(Rewrite::Regex(substitute)) => action.regex_rewrite = Some(substitute),
    }
    action
}

fn one_try(ms: u64) -> RetryPolicy {
    RetryPolicy {
        num_retries: Some(UInt32Value { value: 0 }),
        per_try_timeout: Some(duration(ms)),
        ..Default::default()
    }
}

/// Why none of the backends can be reached; `None` when one can, or there is none.
fn all_broken(used: &[&Backend]) -> Option<String> {
    let mut reasons = Vec::new();
    for backend in used {
        match &backend.target {
            BackendTarget::Service(..) => return None,
            BackendTarget::Invalid(reason) | BackendTarget::Missing { reason, .. } => {
                reasons.push(reason.as_str())
            }
        }
    }
    reasons.dedup();
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

/// The backends that get requests; `None` when there is none.
fn clusters(rule: &RouteRule, used: &[&Backend], domain: &str) -> Option<route_action::ClusterSpecifier> {
    let unchanged = HeaderChanges::default();
    let name = |backend: &Backend| cluster_name(&backend.target, &rule.source.namespace, domain);
    match used {
        [] => None,
        [only] if only.request_headers == unchanged && only.response_headers == unchanged => {
            Some(route_action::ClusterSpecifier::Cluster(name(only)))
        }
        _ => Some(route_action::ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: used.iter().map(|backend| weighted(name(backend), backend)).collect(),
            ..Default::default()
        })),
    }
}

/// A backend that is not one gets a name that no cluster can have, and that says which it is where that is known: its
/// share is answered 500.
fn cluster_name(target: &BackendTarget, namespace: &str, domain: &str) -> String {
    let name = match target {
        BackendTarget::Service(key, port) => ClusterName::outbound(*port, &key.hostname),
        BackendTarget::Missing { service, port, reason: _ } => ClusterName::Outbound {
            port: *port,
            subset: NO_SUBSET.to_owned(),
            host: service.hostname.clone(),
        },
        BackendTarget::Invalid(_) => ClusterName::outbound(1, &format!("invalid.{namespace}.{domain}")),
    };
    name.to_string()
}

fn weighted(name: String, backend: &Backend) -> weighted_cluster::ClusterWeight {
    let request = Headers::of(&backend.request_headers);
    let response = Headers::of(&backend.response_headers);
    weighted_cluster::ClusterWeight {
        name,
        weight: Some(UInt32Value { value: backend.weight }),
        request_headers_to_add: request.add,
        request_headers_to_remove: request.remove,
        response_headers_to_add: response.add,
        response_headers_to_remove: response.remove,
        ..Default::default()
    }
}

/// 0 keeps the request's. A scheme without a port means the scheme's own port, not the one of the request.
fn redirect_port(scheme: Option<&str>, port: Option<u16>) -> u16 {
    match (port, scheme) {
        (Some(port), _) => port,
        (None, Some("https")) => 443,
        (None, Some("http")) => 80,
        (None, _) => 0,
    }
}

fn redirect_code(status: u16) -> Option<RedirectResponseCode> {
    Some(match status {
        301 => RedirectResponseCode::MovedPermanently,
        302 => RedirectResponseCode::Found,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => return None,
    })
}

fn redirect_path(matched: &PathMatch, path: &PathRewrite) -> PathRewriteSpecifier {
    if let PathRewrite::Full(path) = path {
        return PathRewriteSpecifier::PathRedirect(path.clone());
    }
    match rewrite(matched, path) {
        Rewrite::Prefix(prefix) => PathRewriteSpecifier::PrefixRewrite(prefix),
        Rewrite::Regex(substitute) => PathRewriteSpecifier::RegexRewrite(substitute),
    }
}

/// How Envoy rewrites a path.
enum Rewrite {
    Prefix(String),
    Regex(RegexMatchAndSubstitute),
}

/// Envoy replaces a prefix as text; the Gateway API does so by segment, and the slash between must come out as
/// one: `/foo` to `/` makes `/bar` of `/foo/bar`, and `/` to `/v2` makes `/v2/bar` of `/bar`.
fn rewrite(matched: &PathMatch, path: &PathRewrite) -> Rewrite {
    let prefix = match path {
        PathRewrite::Full(path) => return substitute(".*", path),
        PathRewrite::Prefix(prefix) => segments(prefix),
    };
    let PathMatch::Prefix(matched) = matched else {
        return Rewrite::Prefix(prefix.to_owned());
    };
    match (segments(matched), prefix) {
        ("", "") => Rewrite::Prefix("/".to_owned()),
        ("", prefix) => Rewrite::Prefix(format!("{prefix}/")),
        (matched, "") => Rewrite::Regex(RegexMatchAndSubstitute {
            pattern: Some(regex(&format!("^{}/?(.*)", ::regex::escape(matched)))),
            substitution: r"/\1".to_owned(),
        }),
        (_, prefix) => Rewrite::Prefix(prefix.to_owned()),
    }
}

fn substitute(pattern: &str, text: &str) -> Rewrite {
    Rewrite::Regex(RegexMatchAndSubstitute {
        pattern: Some(regex(pattern)),
        // In a substitution a backslash refers to a group.
        substitution: text.replace('\\', r"\\"),
    })
}
