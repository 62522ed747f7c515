//! Routes: from a request to clusters by weight, or to an answer of the proxy's own.

use std::time::Duration;

use http::uri::Authority;
use http::{HeaderName, HeaderValue, Method, StatusCode};

/// `envoy.config.route.v3.RouteConfiguration`, decoded.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteConfig {
    /// The resource's name, or the listener's own name when inline.
    pub name: String,
    /// The most specific domain wins: exact, longest suffix (`*.x`), longest prefix (`x.*`), `*`.
    pub virtual_hosts: Vec<VirtualHost>,
}

/// A virtual host.
#[derive(Debug, Clone, PartialEq)]
pub struct VirtualHost {
    /// Its name.
    pub name: String,
    /// Hosts it answers for, lower case, without ports unless a port is meant.
    pub domains: Vec<String>,
    /// The first route that matches wins. No match: 404.
    pub routes: Vec<Route>,
}

/// A route.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// `<namespace>/<route>/<rule>` for users' rules; shown in logs and errors.
    pub name: String,
    /// When it applies.
    pub matches: RouteMatch,
    /// What it does.
    pub action: RouteAction,
    /// Changes to the request before it goes out.
    pub request_headers: HeaderMutation,
    /// Changes to the response before it goes back.
    pub response_headers: HeaderMutation,
}

/// Conditions of a route; all must hold.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteMatch {
    /// On the path, without query.
    pub path: PathMatch,
    /// On headers.
    pub headers: Vec<HeaderMatch>,
    /// On query parameters.
    pub query: Vec<QueryMatch>,
    /// On the method.
    pub method: Option<Method>,
}

/// Condition on the path.
#[derive(Debug, Clone)]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// `/a` matches `/a` and `/a/b`, not `/ab`. Kept without trailing slash.
    PathSeparatedPrefix(String),
    /// Plain string prefix; `/` matches everything.
    Prefix(String),
    /// The whole path, linear time.
    Regex(regex::Regex),
}

/// Condition on a header.
#[derive(Debug, Clone, PartialEq)]
pub struct HeaderMatch {
    /// The header; several values are joined by a comma before they are compared, as Envoy does.
    pub name: HeaderName,
    /// What to compare.
    pub value: ValueMatch,
    /// The condition holds when the comparison fails.
    pub invert: bool,
}

/// Condition on a query parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct QueryMatch {
    /// The parameter; its first occurrence counts.
    pub name: String,
    /// What to compare.
    pub value: ValueMatch,
}

/// How a value is compared.
#[derive(Debug, Clone)]
pub enum ValueMatch {
    /// It is there, whatever it is.
    Present,
    /// Byte for byte.
    Exact(String),
    /// It starts so.
    Prefix(String),
    /// The whole value, linear time.
    Regex(regex::bytes::Regex),
}

/// What a route does.
#[derive(Debug, Clone, PartialEq)]
pub enum RouteAction {
    /// To clusters.
    Forward(Forward),
    /// 3xx with a Location.
    Redirect(Redirect),
    /// An answer of the proxy's own.
    Respond {
        /// Its status.
        status: StatusCode,
        /// Its body.
        body: String,
    },
}

/// Forward to clusters.
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// Never empty, sum of weights never 0.
    pub clusters: Vec<WeightedCluster>,
    /// The answer when the picked cluster does not exist.
    pub cluster_not_found: StatusCode,
    /// From the last byte of the request to the last byte of the response. `None`: no limit.
    pub timeout: Option<Duration>,
    /// Of one attempt. `None`: as `timeout`.
    pub per_try_timeout: Option<Duration>,
    /// No byte either way for this long ends the request; zero: no limit. `None`: as the connection manager says.
    pub idle_timeout: Option<Duration>,
    /// New path.
    pub path_rewrite: Option<PathRewrite>,
    /// New Host.
    pub host_rewrite: Option<Authority>,
    /// Whether `Upgrade: websocket` (and CONNECT-less upgrades in general) may pass.
    pub upgrades: bool,
}

/// A cluster of a route, with what is done only for it.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedCluster {
    /// The cluster's name.
    pub name: String,
    /// Its share of the sum of weights.
    pub weight: u32,
    /// Changes to the request, after the route's own.
    pub request_headers: HeaderMutation,
    /// Changes to the response, before the route's own.
    pub response_headers: HeaderMutation,
}

/// How a path is rewritten.
#[derive(Debug, Clone)]
pub enum PathRewrite {
    /// Replace the matched prefix.
    Prefix(String),
    /// Replace what the regex matches (RE2 substitution `\1` already turned into the crate's `${1}`).
    Regex {
        /// What to look for, first match only.
        pattern: regex::Regex,
        /// What to put there.
        substitution: String,
    },
    /// Replace the whole path, keep the query.
    Full(String),
}

/// A redirect. What is `None` is taken from the request.
#[derive(Debug, Clone, PartialEq)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// Host name without port.
    pub host: Option<String>,
    /// Port; the default one of the scheme is not written.
    pub port: Option<u16>,
    /// Path.
    pub path: Option<PathRewrite>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

/// Changes to headers: removed first, then set, then added.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HeaderMutation {
    /// Removed, all occurrences.
    pub remove: Vec<HeaderName>,
    /// Replaces all occurrences.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Appended.
    pub add: Vec<(HeaderName, HeaderValue)>,
}

impl PartialEq for PathMatch {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b))
            | (Self::PathSeparatedPrefix(a), Self::PathSeparatedPrefix(b))
            | (Self::Prefix(a), Self::Prefix(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

impl PartialEq for ValueMatch {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Present, Self::Present) => true,
            (Self::Exact(a), Self::Exact(b)) | (Self::Prefix(a), Self::Prefix(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

impl PartialEq for PathRewrite {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Prefix(a), Self::Prefix(b)) | (Self::Full(a), Self::Full(b)) => a == b,
            (Self::Regex { pattern: a, substitution: x }, Self::Regex { pattern: b, substitution: y }) => {
                a.as_str() == b.as_str() && x == y
            }
            _ => false,
        }
    }
}
