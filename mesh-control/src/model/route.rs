//! Routing rules with a service as parent, ready to be matched from first to last.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{ObjectRef, ServiceKey};

/// All rules of one port of a service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct PortRoutes {
    /// Rules from the service's own namespace: for every client without rules of its own.
    pub producer: Option<Arc<RouteTable>>,
    /// Rules from clients' namespaces: each replaces the producer's for that namespace, never merges.
    pub consumers: BTreeMap<String, Arc<RouteTable>>,
}

/// Rules in the order in which they are tried: sorted by the precedence of the Gateway API. A request that
/// none matches is answered 404.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RouteTable {
    /// Each has exactly one match.
    pub rules: Vec<RouteRule>,
}

/// One rule with one match.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RouteRule {
    /// The object it comes from.
    pub source: ObjectRef,
    /// Position of the rule in its object, or its name.
    pub rule: String,
    /// When it applies.
    pub matches: RouteMatch,
    /// What it does.
    pub action: RouteAction,
    /// Changes to requests.
    pub request_headers: HeaderChanges,
    /// Changes to responses.
    pub response_headers: HeaderChanges,
    /// `timeouts.request`, milliseconds; 0 turns the time-out off.
    pub timeout_ms: Option<u64>,
    /// `timeouts.backendRequest`, milliseconds; 0 turns the time-out off.
    pub backend_timeout_ms: Option<u64>,
}

/// Conditions; all must hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RouteMatch {
    /// On the path.
    pub path: PathMatch,
    /// On headers, names in lower case.
    pub headers: Vec<(String, StringMatch)>,
    /// On query parameters.
    pub query: Vec<(String, StringMatch)>,
    /// On the method.
    pub method: Option<String>,
}

/// Condition on a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// By segment: `/a` matches `/a` and `/a/b`.
    Prefix(String),
    /// RE2 syntax, the whole path.
    Regex(String),
}

/// Condition on a text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum StringMatch {
    /// Byte for byte.
    Exact(String),
    /// RE2 syntax, the whole value.
    Regex(String),
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RouteAction {
    /// To backends by weight; a rule without backends answers 500, and so does a sum of weights of 0.
    Forward {
        /// The backends.
        backends: Vec<Backend>,
        /// New path.
        path: Option<PathRewrite>,
        /// New Host.
        host: Option<String>,
    },
    /// 3xx.
    Redirect {
        /// Scheme.
        scheme: Option<String>,
        /// Host.
        host: Option<String>,
        /// Port.
        port: Option<u16>,
        /// Path.
        path: Option<PathRewrite>,
        /// Status.
        status: u16,
    },
    /// The rule cannot be enforced: it fails closed, with 500 and this reason.
    Broken(String),
}

/// How a path is rewritten.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PathRewrite {
    /// The whole path.
    Full(String),
    /// The matched prefix.
    Prefix(String),
}

/// A backend.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Backend {
    /// Where to.
    pub target: BackendTarget,
    /// Its share of the sum of weights.
    pub weight: u32,
    /// Changes to requests that go here, after the rule's.
    pub request_headers: HeaderChanges,
    /// Changes to responses from here, before the rule's.
    pub response_headers: HeaderChanges,
}

/// Where a backend is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum BackendTarget {
    /// A service's port.
    Service(ServiceKey, u16),
    /// It cannot be resolved or is not permitted: its share is answered 500. Holds the reason.
    Invalid(String),
    /// There is no such service, or it has no such port: its share is answered 500.
    Missing {
        /// The service as it is named.
        service: ServiceKey,
        /// The port as it is named.
        port: u16,
        /// The reason.
        reason: String,
    },
}

/// Changes to headers. Names in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct HeaderChanges {
    /// Removed.
    pub remove: Vec<String>,
    /// Replaced.
    pub set: Vec<(String, String)>,
    /// Appended.
    pub add: Vec<(String, String)>,
}
