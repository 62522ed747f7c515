//! Tables of what is taken and what is refused, with the path of the field.

use std::time::Duration;

use mesh_common::xds::proto::config::cluster::v3 as cds;
use mesh_common::xds::proto::config::core::v3 as core;
use mesh_common::xds::proto::config::route::v3 as rds;
use mesh_common::xds::proto::extensions::filters::network::http_connection_manager::v3 as hcm;
use mesh_common::xds::proto::extensions::transport_sockets::tls::v3 as tls;
use mesh_common::xds::proto::r#type::matcher::v3 as matcher;
use mesh_common::xds::protobuf::value::Kind;
use mesh_common::xds::protobuf::{Struct, Value};

use super::Decoded;
use crate::config::cluster::{Discovery, EndpointTls, UpstreamTls};
use crate::config::listener::NetworkFilter;
use crate::config::route::{PathMatch, PathRewrite, RouteAction};
use crate::xds::testing::{
    ads, bad, eds_cluster, endpoints, filter, forward_to, good, http_listener, manager, named_routes, pack,
    passthrough, route_to, routes, tcp_listener,
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

#[test]
fn limits_of_a_connection_manager() {
    let decoded = |change: fn(&mut hcm::HttpConnectionManager)| {
        let mut message = manager(named_routes("r:80"));
        change(&mut message);
        let mut listener = http_listener("10.0.0.1:80", "r:80");
        listener.filter_chains[0].filters = vec![filter(pack(&message))];
        let any = pack(&listener);
        super::decode(mesh_common::xds::ResourceType::Listener, "10.0.0.1:80", &any)
    };
    let taken = decoded(|manager| {
        let seconds = |seconds| Some(mesh_common::xds::protobuf::Duration { seconds, nanos: 0 });
        (manager.stream_idle_timeout, manager.request_timeout) = (seconds(7), seconds(8));
        let options = manager.common_http_protocol_options.get_or_insert_default();
        (options.idle_timeout, options.max_connection_duration) = (seconds(9), seconds(10));
    });
    let Ok(Decoded::Listener(listener)) = taken else { unreachable!() };
    let NetworkFilter::Http(taken) = &listener.chains[0].filter else { unreachable!() };
    let limits =
        [taken.stream_idle_timeout, taken.request_timeout, taken.idle_timeout, taken.max_connection_duration];
    assert_eq!(limits.map(|limit| limit.unwrap().as_secs()), [7, 8, 9, 10]);

    type Change = fn(&mut hcm::HttpConnectionManager);
    let refused: [(&str, Change); 4] = [
        ("stream_flush_timeout", |it| it.stream_flush_timeout = Some(Default::default())),
        ("drain_timeout", |it| it.drain_timeout = Some(Default::default())),
        ("common_http_protocol_options.max_stream_duration", |it| {
            it.common_http_protocol_options.get_or_insert_default().max_stream_duration =
                Some(Default::default());
        }),
        ("common_http_protocol_options.max_requests_per_connection", |it| {
            it.common_http_protocol_options.get_or_insert_default().max_requests_per_connection =
                Some(Default::default());
        }),
    ];
    for (field, change) in refused {
        let reasons = decoded(change).unwrap_err();
        let path = format!("filter_chains[0].filters[0].typed_config.{field}: ");
        assert!(reasons.len() == 1 && reasons[0].starts_with(&path), "{reasons:?}");
    }
}

#[test]
fn tls_needs_endpoints_whose_identity_is_known() {
    let secret = |name: &str| tls::SdsSecretConfig { name: name.into(), sds_config: ads() };
    let context = tls::UpstreamTlsContext {
        sni: "outbound_.80_._.web.shop.svc".into(),
        common_tls_context: Some(tls::CommonTlsContext {
            tls_params: Some(tls::TlsParameters {
                tls_minimum_protocol_version: tls::tls_parameters::TlsProtocol::TlSv13 as i32,
                tls_maximum_protocol_version: tls::tls_parameters::TlsProtocol::TlSv13 as i32,
                ..Default::default()
            }),
            tls_certificate_sds_secret_configs: vec![secret("default")],
            validation_context_type: Some(
                tls::common_tls_context::ValidationContextType::ValidationContextSdsSecretConfig(secret(
                    "ROOTCA",
                )),
            ),
            ..Default::default()
        }),
        ..Default::default()
    };
    let istio = Value { kind: Some(Kind::StringValue("istio".into())) };
    let sockets = vec![cds::cluster::TransportSocketMatch {
        name: "tls".into(),
        r#match: Some(Struct { fields: [("tlsMode".to_owned(), istio)].into() }),
        transport_socket: Some(core::TransportSocket {
            name: "tls".into(),
            config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack(&context))),
        }),
    }];
    let by_eds = cds::Cluster { transport_socket_matches: sockets.clone(), ..eds_cluster("a") };
    let Decoded::Cluster(cluster) = good("a", &by_eds) else { unreachable!() };
    assert!(matches!(cluster.tls, UpstreamTls::ByEndpoint(_)));
    let original = cds::Cluster { transport_socket_matches: sockets.clone(), ..passthrough() };
    let by_name = cds::Cluster {
        transport_socket_matches: sockets,
        lb_policy: cds::cluster::LbPolicy::RoundRobin as i32,
        eds_cluster_config: None,
        load_assignment: Some(endpoints("a", &["web.example.com"])),
        cluster_discovery_type: Some(cds::cluster::ClusterDiscoveryType::Type(
            cds::cluster::DiscoveryType::StrictDns as i32,
        )),
        ..eds_cluster("a")
    };
    for (name, message) in [("PassthroughCluster", original), ("a", by_name)] {
        let reasons = bad(name, &message);
        assert!(reasons.len() == 1 && reasons[0].starts_with("transport_socket_matches: "), "{reasons:?}");
    }
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
