//! Routes as tables: what matches, where it goes, what it becomes.

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::super::{rewrite, route as routing};
use super::fixture::{forward, route};
use crate::config::route::*;
use routing::Head;

fn head<'a>(authority: &'a str, path: &'a str, headers: &'a HeaderMap) -> Head<'a> {
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    Head { authority, path, query, method: &Method::GET, headers }
}

fn named(name: &str, matches: RouteMatch) -> Route {
    let action = RouteAction::Forward(forward(&[("c", 1)]));
    Route { name: name.into(), matches, ..route(PathMatch::Prefix("/".into()), action) }
}

fn on_path(path: PathMatch) -> RouteMatch {
    RouteMatch { path, headers: vec![], query: vec![], method: None }
}

fn one_host(routes: Vec<Route>) -> RouteConfig {
    super::fixture::routes(routes)
}

#[test]
fn paths() {
    let exact = || PathMatch::Exact("/a".into());
    let segment = || PathMatch::PathSeparatedPrefix("/a".into());
    let prefix = || PathMatch::Prefix("/a".into());
    let regex = || PathMatch::Regex(regex::Regex::new("/v[0-9]+/x").unwrap());
    for (condition, path, expected) in [
        (exact(), "/a", true),
        (exact(), "/a?q", true),
        (exact(), "/a/", false),
        (exact(), "/A", false),
        (segment(), "/a", true),
        (segment(), "/a/", true),
        (segment(), "/a/b", true),
        (segment(), "/ab", false),
        (prefix(), "/ab", true),
        (prefix(), "/b", false),
        (regex(), "/v12/x", true),
        (regex(), "/v12/xy", false),
        (regex(), "/y/v12/x", false),
    ] {
        let config = one_host(vec![named("r", on_path(condition.clone()))]);
        let headers = HeaderMap::new();
        let chosen = routing::choose(&config, &head("a", path, &headers));
        assert_eq!(chosen.is_some(), expected, "{condition:?} {path}");
    }
}

#[test]
fn headers_queries_and_methods() {
    let header = |value: ValueMatch, invert| {
        let header = HeaderMatch { name: HeaderName::from_static("x-canary"), value, invert };
        RouteMatch { headers: vec![header], ..on_path(PathMatch::Prefix("/".into())) }
    };
    let query = |value: ValueMatch| {
        let query = QueryMatch { name: "user".into(), value };
        RouteMatch { query: vec![query], ..on_path(PathMatch::Prefix("/".into())) }
    };
    let method = |method| RouteMatch { method: Some(method), ..on_path(PathMatch::Prefix("/".into())) };
    let regex = || ValueMatch::Regex(regex::bytes::Regex::new("y.s").unwrap());
    for (matches, path, canary, expected) in [
        (header(ValueMatch::Exact("yes".into()), false), "/", &["yes"][..], true),
        (header(ValueMatch::Exact("yes".into()), false), "/", &["no"], false),
        (header(ValueMatch::Exact("yes".into()), false), "/", &[], false),
        (header(ValueMatch::Exact("yes".into()), true), "/", &[], true),
        (header(ValueMatch::Exact("a,b".into()), false), "/", &["a", "b"], true),
        (header(ValueMatch::Present, false), "/", &[""], true),
        (header(ValueMatch::Prefix("ye".into()), false), "/", &["yes"], true),
        (header(regex(), false), "/", &["yes"], true),
        (header(regex(), false), "/", &["yes!"], false),
        (query(ValueMatch::Exact("jo e".into())), "/?a=1&user=jo%20e&user=x", &[], true),
        (query(ValueMatch::Exact("x".into())), "/?user=jo&user=x", &[], false),
        (query(ValueMatch::Present), "/?user", &[], true),
        (query(ValueMatch::Present), "/", &[], false),
        (method(Method::GET), "/", &[], true),
        (method(Method::POST), "/", &[], false),
    ] {
        let config = one_host(vec![named("r", matches.clone())]);
        let mut headers = HeaderMap::new();
        canary.iter().for_each(|value| {
            headers.append("x-canary", HeaderValue::from_static(value));
        });
        let chosen = routing::choose(&config, &head("a", path, &headers));
        assert_eq!(chosen.is_some(), expected, "{matches:?} {path} {canary:?}");
    }
}

#[test]
fn the_most_specific_host_and_the_first_route_win() {
    let host = |domains: &[&str]| VirtualHost {
        name: domains.join(" "),
        domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
        routes: vec![],
    };
    let virtual_hosts = vec![
        host(&["*"]),
        host(&["a.example", "b:8080"]),
        host(&["*.example"]),
        host(&["*.x.example"]),
        host(&["c.*"]),
    ];
    let config = RouteConfig { name: "r".into(), virtual_hosts };
    for (authority, expected) in [
        ("A.example:80", "a.example b:8080"),
        ("b:8080", "a.example b:8080"),
        ("b", "*"),
        ("q.example", "*.example"),
        ("q.x.example", "*.x.example"),
        ("c.org", "c.*"),
        ("[fd00::1]:80", "*"),
    ] {
        let chosen = routing::virtual_host(&config, authority).map(|host| host.name.as_str());
        assert_eq!(chosen, Some(expected), "{authority}");
    }
    let any = || on_path(PathMatch::Prefix("/".into()));
    let config = one_host(vec![named("first", any()), named("second", any())]);
    assert_eq!(routing::choose(&config, &head("a", "/", &HeaderMap::new())).unwrap().name, "first");
}

#[test]
fn weights_are_shares() {
    let split = forward(&[("a", 90), ("none", 0), ("b", 10)]);
    let total = routing::total_weight(&split);
    let of = |name| (0..total).filter(|point| routing::pick(&split, *point).unwrap().name == name).count();
    assert_eq!((total, of("a"), of("none"), of("b")), (100, 90, 0, 10));
}

#[test]
fn rewrites() {
    let segment = PathMatch::PathSeparatedPrefix("/a".into());
    let prefix = PathMatch::Prefix("/a".into());
    let root = PathMatch::Prefix("/".into());
    let regex =
        PathRewrite::Regex { pattern: regex::Regex::new("^/(.*)$").unwrap(), substitution: "/x/${1}".into() };
    for (rewrite, matched, path, expected) in [
        (PathRewrite::Full("/z".into()), &segment, "/a/b", "/z"),
        (PathRewrite::Prefix("/z".into()), &segment, "/a/b", "/z/b"),
        (PathRewrite::Prefix("/z/".into()), &segment, "/a/b", "/z/b"),
        (PathRewrite::Prefix("/z".into()), &segment, "/a", "/z"),
        (PathRewrite::Prefix("/".into()), &segment, "/a/b", "/b"),
        (PathRewrite::Prefix("/".into()), &segment, "/a", "/"),
        (PathRewrite::Prefix("".into()), &segment, "/a", "/"),
        (PathRewrite::Prefix("/z".into()), &prefix, "/ab", "/zb"),
        (PathRewrite::Prefix("/z".into()), &root, "/b", "/z/b"),
        (regex, &root, "/b/c", "/x/b/c"),
    ] {
        assert_eq!(rewrite::path(&rewrite, matched, path), expected, "{rewrite:?} {matched:?} {path}");
    }
}

#[test]
fn redirects() {
    let none = || Redirect { scheme: None, host: None, port: None, path: None, status: StatusCode::FOUND };
    let text = |text: &str| Some(text.to_owned());
    let matched = PathMatch::PathSeparatedPrefix("/a".into());
    for (redirect, authority, expected) in [
        (Redirect { host: text("new"), ..none() }, "old", "http://new/a/b?q=1"),
        (Redirect { host: text("new"), ..none() }, "old:8080", "http://new:8080/a/b?q=1"),
        (Redirect { scheme: text("https"), ..none() }, "old:8080", "https://old/a/b?q=1"),
        (Redirect { scheme: text("https"), port: Some(443), ..none() }, "old", "https://old/a/b?q=1"),
        (Redirect { port: Some(8443), ..none() }, "old", "http://old:8443/a/b?q=1"),
        (Redirect { port: Some(80), ..none() }, "old:8080", "http://old/a/b?q=1"),
        (Redirect { path: Some(PathRewrite::Prefix("/z".into())), ..none() }, "old", "http://old/z/b?q=1"),
        (
            Redirect { path: Some(PathRewrite::Full("/z".into())), ..none() },
            "[fd00::1]",
            "http://[fd00::1]/z?q=1",
        ),
    ] {
        let headers = HeaderMap::new();
        let location = rewrite::location(&redirect, &matched, &head(authority, "/a/b?q=1", &headers), "http");
        assert_eq!(location.unwrap(), expected, "{redirect:?} {authority}");
    }
}

#[test]
fn header_changes_are_removed_then_set_then_added() {
    let name = HeaderName::from_static;
    let value = HeaderValue::from_static;
    let mutation = HeaderMutation {
        remove: vec![name("x-gone"), name("x-both")],
        set: vec![(name("x-set"), value("new"))],
        add: vec![(name("x-set"), value("more")), (name("x-both"), value("again"))],
    };
    let mut headers = HeaderMap::new();
    for (key, text) in [("x-gone", "1"), ("x-gone", "2"), ("x-set", "old"), ("x-both", "old")] {
        headers.append(key, value(text));
    }
    rewrite::headers(&mutation, &mut headers);
    let all = |key: &str| headers.get_all(key).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!((all("x-gone"), all("x-set"), all("x-both")), (vec![], vec!["new", "more"], vec!["again"]));
}
