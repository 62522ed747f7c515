//! Routes: every match, every action, who sees which table.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_common::xds::ResourceType::Route;
use mesh_control::model::ObjectRef;
use mesh_control::model::route::{
    Backend, BackendTarget, HeaderChanges, PathMatch, PathRewrite, PortRoutes, RouteAction, RouteMatch,
    RouteRule, RouteTable, StringMatch,
};

use super::super::world::{Client, World, service_key};
use super::destinations::shop;
use super::{Case, case};

const REVIEWS: &str = "reviews.shop.svc.cluster.local:80";

pub fn to(service: &str, port: u16, weight: u32) -> Backend {
    Backend {
        target: BackendTarget::Service(service_key(service), port),
        weight,
        request_headers: HeaderChanges::default(),
        response_headers: HeaderChanges::default(),
    }
}

fn forward(backends: Vec<Backend>) -> RouteAction {
    RouteAction::Forward { backends, path: None, host: None }
}

pub fn rule(rule: &str, path: PathMatch, action: RouteAction) -> RouteRule {
    RouteRule {
        source: ObjectRef { kind: "HTTPRoute", namespace: "shop".to_owned(), name: "split".to_owned() },
        rule: rule.to_owned(),
        matches: RouteMatch { path, headers: Vec::new(), query: Vec::new(), method: None },
        action,
        request_headers: HeaderChanges::default(),
        response_headers: HeaderChanges::default(),
        timeout_ms: None,
        backend_timeout_ms: None,
    }
}

pub fn producer(rules: Vec<RouteRule>) -> PortRoutes {
    PortRoutes { producer: Some(Arc::new(RouteTable { rules })), consumers: BTreeMap::new() }
}

fn everything() -> PathMatch {
    PathMatch::Prefix("/".to_owned())
}

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

fn world(rules: Vec<RouteRule>) -> World {
    shop().routes("reviews", 80, producer(rules))
}

pub fn cases() -> Vec<Case> {
    let row = |name, rules| case(name, Route, REVIEWS, &world(rules));
    let seen_from = |name, namespace| Case {
        client: Client { namespace, ..Client::new() },
        ..case(name, Route, REVIEWS, &consumer_world())
    };
    vec![
        case("route-default", Route, REVIEWS, &shop()),
        case("route-no-such-port", Route, "reviews.shop.svc.cluster.local:81", &shop()),
        case("route-external-name", Route, "payments.shop.svc.cluster.local:80", &shop()),
        row("route-matches", matches()),
        row("route-weights", weights()),
        row("route-headers", headers()),
        row("route-redirects", redirects()),
        row("route-rewrites", rewrites()),
        row("route-timeouts", timeouts()),
        row("route-fails-closed", fails_closed()),
        row("route-without-rules", Vec::new()),
        seen_from("route-producer", "other"),
        seen_from("route-consumer", "client"),
    ]
}

/// Rules of each kind.
pub fn matching_world() -> World {
    world([matches(), timeouts(), headers(), rewrites(), redirects()].concat())
}

/// The service's own rule, and another one for clients in namespace `client`.
pub fn consumer_world() -> World {
    let table = |port| {
        let rules = vec![rule("0", everything(), forward(vec![to("reviews", port, 1)]))];
        Arc::new(RouteTable { rules })
    };
    let routes = PortRoutes {
        producer: Some(table(80)),
        consumers: BTreeMap::from([("client".to_owned(), table(90))]),
    };
    shop().routes("reviews", 80, routes)
}

fn matches() -> Vec<RouteRule> {
    let exact = |text: &str| StringMatch::Exact(text.to_owned());
    let regex = |text: &str| StringMatch::Regex(text.to_owned());
    let to_reviews = || forward(vec![to("reviews", 80, 1)]);
    let mut all = rule("0", PathMatch::Exact("/exact".to_owned()), to_reviews());
    all.matches.headers = vec![("x-user".to_owned(), exact("jason")), ("x-group".to_owned(), regex("a|b"))];
    all.matches.query = vec![("v".to_owned(), exact("1")), ("w".to_owned(), regex("[0-9]+"))];
    all.matches.method = Some("POST".to_owned());
    vec![
        all,
        rule("1", PathMatch::Regex("/v[0-9]+/.*".to_owned()), to_reviews()),
        rule("2", PathMatch::Prefix("/cart".to_owned()), to_reviews()),
        rule("3", PathMatch::Prefix("/cart/".to_owned()), to_reviews()),
        rule("4", PathMatch::Prefix("/a?b".to_owned()), to_reviews()),
        rule("5", PathMatch::Regex(String::new()), to_reviews()),
        rule("named", everything(), to_reviews()),
    ]
}

fn weights() -> Vec<RouteRule> {
    let split = vec![to("reviews", 80, 90), to("reviews", 90, 10), to("reviews", 5432, 0)];
    let one_left = vec![to("reviews", 80, 0), to("reviews", 90, 7)];
    let mut changed = to("reviews", 80, 3);
    changed.request_headers.set = vec![pair("x-version", "v1")];
    changed.response_headers.remove = vec!["server".to_owned()];
    vec![
        rule("0", PathMatch::Exact("/split".to_owned()), forward(split)),
        rule("1", PathMatch::Exact("/one-left".to_owned()), forward(one_left)),
        rule("2", everything(), forward(vec![changed])),
    ]
}

fn headers() -> Vec<RouteRule> {
    let mut rule = rule("0", everything(), forward(vec![to("reviews", 80, 1)]));
    rule.request_headers = HeaderChanges {
        remove: vec!["x-secret".to_owned()],
        set: vec![pair("x-set", "1"), pair("x-empty", "")],
        add: vec![pair("x-added", "2")],
    };
    rule.response_headers = HeaderChanges {
        remove: vec!["server".to_owned()],
        set: vec![pair("x-set", "3")],
        add: vec![pair("x-added", "100%")],
    };
    vec![rule]
}

fn redirects() -> Vec<RouteRule> {
    let prefix = |text: &str| Some(PathRewrite::Prefix(text.to_owned()));
    let full = |text: &str| Some(PathRewrite::Full(text.to_owned()));
    let redirect = |scheme: Option<&str>, host: Option<&str>, port, path, status| RouteAction::Redirect {
        scheme: scheme.map(str::to_owned),
        host: host.map(str::to_owned),
        port,
        path,
        status,
    };
    let path = |text: &str| PathMatch::Prefix(text.to_owned());
    vec![
        rule("0", path("/a"), redirect(Some("https"), Some("shop.example"), None, None, 301)),
        rule("1", path("/b"), redirect(None, None, Some(8443), full("/new"), 302)),
        rule("2", path("/c"), redirect(None, None, None, prefix("/new"), 307)),
        rule("3", path("/d"), redirect(Some("http"), None, Some(8080), prefix("/"), 308)),
        rule("4", everything(), redirect(None, None, None, None, 200)),
    ]
}

fn rewrites() -> Vec<RouteRule> {
    let rewrite = |path: Option<PathRewrite>, host: Option<&str>| RouteAction::Forward {
        backends: vec![to("reviews", 80, 1)],
        path,
        host: host.map(str::to_owned),
    };
    let prefix = |text: &str| Some(PathRewrite::Prefix(text.to_owned()));
    let path = |text: &str| PathMatch::Prefix(text.to_owned());
    vec![
        rule("0", path("/a"), rewrite(prefix("/x"), Some("inner.example"))),
        rule("1", path("/b/"), rewrite(prefix("/x/"), None)),
        rule("2", path("/c.d"), rewrite(prefix("/"), None)),
        rule("3", path("/e"), rewrite(Some(PathRewrite::Full(r"/whole\1".to_owned())), None)),
        rule("4", everything(), rewrite(prefix("/v2"), None)),
        rule("5", everything(), rewrite(prefix(""), None)),
    ]
}

fn timeouts() -> Vec<RouteRule> {
    let timed = |name: &str, request, backend| {
        let mut rule = rule(name, everything(), forward(vec![to("reviews", 80, 1)]));
        rule.timeout_ms = request;
        rule.backend_timeout_ms = backend;
        rule
    };
    vec![
        timed("0", Some(10_000), Some(2_500)),
        timed("1", Some(0), Some(0)),
        timed("2", None, Some(1)),
        timed("3", Some(u64::MAX), None),
    ]
}

fn fails_closed() -> Vec<RouteRule> {
    let missing = Backend {
        target: BackendTarget::Missing {
            service: service_key("gone"),
            port: 81,
            reason: "the service shop/gone does not exist".to_owned(),
        },
        ..to("reviews", 80, 50)
    };
    let invalid = Backend {
        target: BackendTarget::Invalid("the kind example.com/Bucket cannot be a backend".to_owned()),
        ..to("reviews", 80, 50)
    };
    vec![
        rule(
            "0",
            PathMatch::Exact("/half".to_owned()),
            forward(vec![to("reviews", 80, 50), invalid.clone(), missing.clone()]),
        ),
        rule("1", PathMatch::Exact("/invalid".to_owned()), forward(vec![invalid, missing])),
        rule("2", PathMatch::Exact("/none".to_owned()), forward(Vec::new())),
        rule("3", PathMatch::Exact("/zero".to_owned()), forward(vec![to("reviews", 80, 0)])),
        rule("4", everything(), RouteAction::Broken("the filter RequestMirror is not supported".to_owned())),
    ]
}
