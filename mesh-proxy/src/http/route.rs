//! From a request to a route: pure, no clock, no randomness of its own. It never looks at anything but the
//! request's head and the route configuration.

use http::{HeaderMap, HeaderName, Method};
use percent_encoding::percent_decode_str;

use crate::config::route::{
    Forward, HeaderMatch, PathMatch, QueryMatch, Route, RouteConfig, RouteMatch, ValueMatch, VirtualHost,
    WeightedCluster,
};

/// What of a request decides its route.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// Host, with port if it has one.
    pub authority: &'a str,
    /// Canonical, without query.
    pub path: &'a str,
    /// Without the question mark.
    pub query: Option<&'a str>,
    /// The method.
    pub method: &'a Method,
    /// The headers.
    pub headers: &'a HeaderMap,
}

/// The route of a request; none: 404.
pub fn choose<'a>(config: &'a RouteConfig, head: &Head<'_>) -> Option<&'a Route> {
    let host = virtual_host(config, head.authority)?;
    host.routes.iter().find(|route| matches(&route.matches, head))
}

/// The virtual host for an authority: exact, longest suffix, longest prefix, `*`; each first with the port that
/// the client wrote, then without.
pub fn virtual_host<'a>(config: &'a RouteConfig, authority: &str) -> Option<&'a VirtualHost> {
    // Nearly every configuration of a mesh has this one host: the service's address has decided already.
    if let [only] = config.virtual_hosts.as_slice()
        && only.domains.len() == 1
        && only.domains[0] == "*"
    {
        return Some(only);
    }
    let authority = authority.to_ascii_lowercase();
    let bare = without_port(&authority);
    let domains = || config.virtual_hosts.iter().flat_map(|h| h.domains.iter().map(move |d| (d.as_str(), h)));
    domains()
        .filter_map(|(domain, host)| Some((specificity(domain, &authority, bare)?, host)))
        .reduce(|best, next| if next.0 > best.0 { next } else { best })
        .map(|(_, host)| host)
}

/// How specific a domain is for an authority; none when it does not match.
fn specificity(domain: &str, authority: &str, bare: &str) -> Option<(u8, usize)> {
    if domain == "*" {
        return Some((0, 0));
    }
    let either = |test: &dyn Fn(&str) -> bool| test(authority) || test(bare);
    if let Some(suffix) = domain.strip_prefix('*') {
        return either(&|host| host.len() > suffix.len() && host.ends_with(suffix))
            .then_some((2, suffix.len()));
    }
    if let Some(prefix) = domain.strip_suffix('*') {
        return either(&|host| host.len() > prefix.len() && host.starts_with(prefix))
            .then_some((1, prefix.len()));
    }
    either(&|host| host == domain).then_some((3, domain.len()))
}

/// A host without its port: `[fd00::1]:80` to `[fd00::1]`.
pub fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !is_bare_ipv6(host) => host,
        _ => authority,
    }
}

/// An IPv6 address outside brackets: its last colon does not begin a port.
fn is_bare_ipv6(host: &str) -> bool {
    host.contains(':') && !host.ends_with(']')
}

fn matches(conditions: &RouteMatch, head: &Head<'_>) -> bool {
    path_matches(&conditions.path, head.path)
        && conditions.method.as_ref().is_none_or(|method| method == head.method)
        && conditions.headers.iter().all(|condition| header_matches(condition, head.headers))
        && conditions.query.iter().all(|condition| query_matches(condition, head.query))
}

fn path_matches(condition: &PathMatch, path: &str) -> bool {
    match condition {
        PathMatch::Exact(exact) => path == exact,
        PathMatch::Prefix(prefix) => path.starts_with(prefix.as_str()),
        PathMatch::PathSeparatedPrefix(prefix) => {
            path.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        PathMatch::Regex(regex) => {
            // The whole path: an alternation may match less first, so the bounds are looked at only when they
            // fit; the decoder anchors patterns.
            regex.find(path).is_some_and(|found| found.start() == 0 && found.end() == path.len())
        }
    }
}

fn header_matches(condition: &HeaderMatch, headers: &HeaderMap) -> bool {
    value_of(headers, &condition.name).is_some_and(|value| value_matches(&condition.value, &value))
        != condition.invert
}

/// The header's value, several joined by a comma.
fn value_of<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<std::borrow::Cow<'a, [u8]>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    let Some(second) = values.next() else { return Some(first.as_bytes().into()) };
    let mut joined = first.as_bytes().to_vec();
    for value in std::iter::once(second).chain(values) {
        joined.push(b',');
        joined.extend_from_slice(value.as_bytes());
    }
    Some(joined.into())
}

fn value_matches(condition: &ValueMatch, value: &[u8]) -> bool {
    match condition {
        ValueMatch::Present => true,
        ValueMatch::Exact(exact) => value == exact.as_bytes(),
        ValueMatch::Prefix(prefix) => value.starts_with(prefix.as_bytes()),
        ValueMatch::Regex(regex) => {
            regex.find(value).is_some_and(|found| found.start() == 0 && found.end() == value.len())
        }
    }
}

fn query_matches(condition: &QueryMatch, query: Option<&str>) -> bool {
    let first = query.unwrap_or_default().split('&').find_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name: Vec<u8> = percent_decode_str(name).collect();
        (name == condition.name.as_bytes()).then(|| percent_decode_str(value).collect::<Vec<u8>>())
    });
    first.is_some_and(|value| value_matches(&condition.value, &value))
}

/// The sum of a forward's weights, the bound for the `point` of [`pick`].
pub fn total_weight(forward: &Forward) -> u64 {
    forward.clusters.iter().map(|cluster| u64::from(cluster.weight)).sum()
}

/// The cluster at `point`, a random number below [`total_weight`].
pub fn pick(forward: &Forward, mut point: u64) -> Option<&WeightedCluster> {
    for cluster in &forward.clusters {
        let weight = u64::from(cluster.weight);
        if point < weight {
            return Some(cluster);
        }
        point -= weight;
    }
    forward.clusters.last()
}
