//! Tables of what is taken and what is refused, with the path of the field.

use std::time::Duration;

use mesh_common::xds::proto::config::core::v3 as core;
use mesh_common::xds::proto::config::route::v3 as rds;
use mesh_common::xds::proto::r#type::matcher::v3 as matcher;
use mesh_common::xds::protobuf::value::Kind;
use mesh_common::xds::protobuf::{Struct, Value};

use super::Decoded;
use crate::config::cluster::{Discovery, EndpointTls, UpstreamTls};
use crate::config::route::{PathMatch, PathRewrite, RouteAction};
use crate::xds::testing::{
    bad, eds_cluster, endpoints, forward_to, good, http_listener, route_to, routes, tcp_listener,
};

fn route_with(change: impl FnOnce(&mut rds::Route)) -> rds::RouteConfiguration {
    let mut route = route_to(rds::route::Action::Route(forward_to("a")));
    change(&mut route);
    let mut config = routes("r:80", &[]);
    config.virtual_hosts[0].routes = vec![route];
    config
}

fn decoded_route(change: impl FnOnce(&mut rds::Route)) -> crate::config::route::Route {
    let Decoded::Route(config) = good("r:80", &route_with(change)) else { unreachable!() };
    config.virtual_hosts[0].routes[0].clone()
}

fn action(change: impl FnOnce(&mut rds::RouteAction)) -> impl FnOnce(&mut rds::Route) {
    |route| {
        let mut action = forward_to("a");
        change(&mut action);
        route.action = Some(rds::route::Action::Route(action));
    }
}

fn regex(text: &str) -> matcher::RegexMatcher {
    matcher::RegexMatcher { regex: text.into(), engine_type: None }
}

const ROUTE: &str = "virtual_hosts[0].routes[0]";

#[test]
fn every_reason_is_collected_with_its_path() {
    let mut config = route_with(|route| {
        route.tracing = Some(Default::default());
        route.r#match.as_mut().unwrap().grpc = Some(Default::default());
        route.request_headers_to_remove = vec![":path".into()];
    });
    config.vhost_header = "x".into();
    assert_eq!(
        bad("r:80", &config),
        [
            "vhost_header: this field is not supported".to_owned(),
            format!("{ROUTE}.tracing: this field is not supported"),
            format!("{ROUTE}.match.grpc: this field is not supported"),
            format!(
                "{ROUTE}.request_headers_to_remove[0]: \":path\" is not the name of a header that can be changed"
            ),
        ]
    );
}

#[test]
fn routes_that_are_refused() {
    type Change = Box<dyn FnOnce(&mut rds::Route)>;
    let boxed = |change: fn(&mut rds::RouteAction)| -> Change { Box::new(action(change)) };
    let table: Vec<(&str, Change)> = vec![
        (".route.cluster", boxed(|a| a.cluster_specifier = None)),
        (".route.max_stream_duration", boxed(|a| a.max_stream_duration = Some(Default::default()))),
        (
            ".route.retry_policy.num_retries",
            boxed(|a| {
                a.retry_policy = Some(rds::RetryPolicy { retry_on: "5xx".into(), ..Default::default() });
            }),
        ),
        (
            ".match.safe_regex.regex",
            Box::new(|route| {
                route.r#match.as_mut().unwrap().path_specifier =
                    Some(rds::route_match::PathSpecifier::SafeRegex(regex("a)(b")));
            }),
        ),
        (
            ".match.path_separated_prefix",
            Box::new(|route| {
                route.r#match.as_mut().unwrap().path_specifier =
                    Some(rds::route_match::PathSpecifier::PathSeparatedPrefix("/a/".into()));
            }),
        ),
        (
            ".request_headers_to_add[0].header.value",
            Box::new(|route| {
                route.request_headers_to_add = vec![core::HeaderValueOption {
                    header: Some(core::HeaderValue {
                        key: "x".into(),
                        value: "%REQ(y)%".into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }];
            }),
        ),
    ];
    for (path, change) in table {
        let reasons = bad("r:80", &route_with(change));
        assert!(
            reasons.len() == 1 && reasons[0].starts_with(&format!("{ROUTE}{path}: ")),
            "{path}: {reasons:?}"
        );
    }
}

#[test]
fn routes_that_are_taken() {
    let route = decoded_route(action(|action| {
        action.timeout = Some(Default::default());
        action.regex_rewrite =
            Some(matcher::RegexMatchAndSubstitute { pattern: Some(regex(".*")), substitution: "/x".into() });
    }));
    let RouteAction::Forward(forward) = route.action else { unreachable!() };
    assert_eq!((forward.timeout, forward.path_rewrite), (None, Some(PathRewrite::Full("/x".into()))));

    let route = decoded_route(action(|action| {
        action.regex_rewrite = Some(matcher::RegexMatchAndSubstitute {
            pattern: Some(regex("^/(a+)")),
            substitution: r"/$\1\\".into(),
        });
    }));
    let RouteAction::Forward(forward) = route.action else { unreachable!() };
    assert_eq!(forward.timeout, Some(Duration::from_secs(15)));
    let Some(PathRewrite::Regex { pattern, substitution }) = forward.path_rewrite else { unreachable!() };
    assert_eq!(pattern.replace("/aa/b", substitution.as_str()), r"/$aa\/b");

    let route = decoded_route(|route| {
        route.r#match.as_mut().unwrap().path_specifier =
            Some(rds::route_match::PathSpecifier::SafeRegex(regex("/a|/b")));
    });
    let PathMatch::Regex(path) = route.matches.path else { unreachable!() };
    assert!(path.is_match("/a") && path.is_match("/b") && !path.is_match("/ab"));
}

#[test]
fn listeners_and_clusters_that_are_refused() {
    let mut listener = http_listener("10.0.0.1:80", "r:80");
    listener.traffic_direction = 1;
    listener.filter_chains[0].filters.clear();
    listener.use_original_dst = Some(Default::default());
    let reasons = bad("10.0.0.1:80", &listener);
    assert_eq!(reasons.len(), 3, "{reasons:?}");
    assert!(bad("other:80", &tcp_listener("10.0.0.1:80", "a"))[0].starts_with("name: "));

    let mut cluster = eds_cluster("a");
    cluster.lb_policy = 2;
    cluster.circuit_breakers = Some(Default::default());
    let reasons = bad("a", &cluster);
    assert!(
        reasons[0].starts_with("circuit_breakers: ") && reasons[1].starts_with("lb_policy: "),
        "{reasons:?}"
    );
    let Decoded::Cluster(cluster) = good("a", &eds_cluster("a")) else { unreachable!() };
    assert_eq!((cluster.discovery, cluster.tls), (Discovery::Eds("a".into()), UpstreamTls::None));
}

fn metadata(filters: &[(&str, &[(&str, &str)])]) -> Option<core::Metadata> {
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.into())) };
    let fields = |fields: &[(&str, &str)]| Struct {
        fields: fields.iter().map(|(key, value)| ((*key).into(), text(value))).collect(),
    };
    let filter_metadata = filters.iter().map(|(name, all)| ((*name).into(), fields(all))).collect();
    Some(core::Metadata { filter_metadata, ..Default::default() })
}

#[test]
fn an_endpoint_of_the_mesh_is_never_plaintext() {
    let tls_of = |metadata| {
        let mut message = endpoints("a", &["10.0.0.1"]);
        message.endpoints[0].lb_endpoints[0].metadata = metadata;
        let Decoded::Endpoints(all) = good("a", &message) else { unreachable!() };
        all.localities[0].endpoints[0].tls.clone()
    };
    let istio: (&str, &[(&str, &str)]) = ("envoy.transport_socket_match", &[("tlsMode", "istio")]);
    assert_eq!(tls_of(None), EndpointTls::Plaintext);
    assert!(matches!(tls_of(metadata(&[istio])), EndpointTls::Refused(_)));
    assert_eq!(tls_of(metadata(&[("mesh", &[("refused", "why")])])), EndpointTls::Refused("why".into()));
    let id = "spiffe://cluster.local/ns/shop/sa/web";
    let mutual = tls_of(metadata(&[istio, ("mesh", &[("spiffe", id)])]));
    assert_eq!(mutual, EndpointTls::Mutual(id.parse().unwrap()));

    let mut message = endpoints("a", &["web", "10.0.0.1"]);
    message.endpoints[0].lb_endpoints[1].metadata =
        metadata(&[istio, ("mesh", &[("spiffe", "x"), ("y", "z")])]);
    let reasons = bad("a", &message);
    assert_eq!(reasons.len(), 3, "{reasons:?}");
}
