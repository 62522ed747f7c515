//! `RouteConfiguration`: the routing rules of one port of a service, first match wins. A rule that cannot be
//! kept fails closed: it answers 500 and says why, and never falls through to the next one.

mod action;
mod matching;

use mesh_common::xds::names::{self, ClusterName};
use mesh_common::xds::proto::config::core::v3::{HeaderValue, HeaderValueOption, header_value_option};
use mesh_common::xds::proto::config::route::v3::{
    Route, RouteAction as ActionProto, RouteConfiguration, RouteMatch as MatchProto, VirtualHost, route,
    route_action, route_match,
};
use mesh_common::xds::protobuf::BoolValue;

use super::client::ClientKind;
use super::host::{self, NamedHost};
use super::proto::duration;
use super::{ClientView, cluster, envoy, grpc};
use crate::model::facts::Facts;
use crate::model::route::{HeaderChanges, PortRoutes, RouteRule, RouteTable};

/// The routes of this name for this client.
pub(super) fn route_configuration(
    name: &str,
    client: &dyn ClientView,
    facts: &dyn Facts,
) -> Option<RouteConfiguration> {
    let of_service = || of_service(name, client, facts);
    Some(match client.kind() {
        ClientKind::MeshProxy => of_service()?,
        ClientKind::Envoy(_) => {
            let mut made = match name == envoy::PROXY_ROUTES {
                true => envoy::proxy_routes(client, facts),
                false => of_service()?,
            };
            envoy::adapt_routes(&mut made);
            made
        }
        ClientKind::Grpc(_) => {
            let mut made = of_service()?;
            grpc::adapt_routes(&mut made);
            made
        }
    })
}

/// The routes of `<full name>:<port>` for this client, if there is such a service and port.
pub(super) fn of_service(
    name: &str,
    client: &dyn ClientView,
    facts: &dyn Facts,
) -> Option<RouteConfiguration> {
    let (host, port) = names::parse_route_name(name).ok()?;
    let domain = &facts.settings().domain;
    let NamedHost::Service(key) = host::parse_full(host, domain)? else {
        return None;
    };
    cluster::protocol(&*facts.service(&key)?, port)?;
    let routes = facts.routes(&key, port);
    let Some(table) = routes.as_deref().and_then(|routes| table(routes, client)) else {
        return Some(whole_cluster(name, &ClusterName::outbound(port, host).to_string()));
    };
    Some(configuration(name, table.rules.iter().map(|rule| encode(rule, domain)).collect()))
}

/// The client's own rules, else the service's. Whose namespace it is matters only if somebody has own rules.
fn table<'a>(routes: &'a PortRoutes, client: &dyn ClientView) -> Option<&'a RouteTable> {
    let own = match routes.consumers.is_empty() {
        true => None,
        false => routes.consumers.get(client.namespace()),
    };
    own.or(routes.producer.as_ref()).map(AsRef::as_ref)
}

/// Every request to this cluster.
pub(super) fn whole_cluster(name: &str, cluster: &str) -> RouteConfiguration {
    let matches = MatchProto {
        path_specifier: Some(route_match::PathSpecifier::Prefix("/".to_owned())),
        ..Default::default()
    };
    let action = ActionProto {
        // Envoy would give up after 15 seconds; without the mesh nobody does.
        timeout: Some(duration(0)),
        cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(cluster.to_owned())),
        ..Default::default()
    };
    let all = Route {
        name: "default".to_owned(),
        r#match: Some(matches),
        action: Some(route::Action::Route(action)),
        ..Default::default()
    };
    configuration(name, vec![all])
}

fn configuration(name: &str, routes: Vec<Route>) -> RouteConfiguration {
    let host =
        VirtualHost { name: name.to_owned(), domains: vec!["*".to_owned()], routes, ..Default::default() };
    RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![host],
        // A backend that does not exist is answered for by its share of requests, not by a refused update.
        validate_clusters: Some(BoolValue { value: false }),
        ..Default::default()
    }
}

fn encode(rule: &RouteRule, domain: &str) -> Route {
    let source = &rule.source;
    let request = Headers::of(&rule.request_headers);
    let response = Headers::of(&rule.response_headers);
    Route {
        name: format!("{}/{}/{}", source.namespace, source.name, rule.rule),
        r#match: Some(matching::encode(&rule.matches)),
        action: Some(action::encode(rule, domain)),
        request_headers_to_add: request.add,
        request_headers_to_remove: request.remove,
        response_headers_to_add: response.add,
        response_headers_to_remove: response.remove,
        ..Default::default()
    }
}

/// Header changes as they stand in routes and in weighted clusters.
#[derive(Default)]
struct Headers {
    add: Vec<HeaderValueOption>,
    remove: Vec<String>,
}

impl Headers {
    fn of(changes: &HeaderChanges) -> Self {
        use header_value_option::HeaderAppendAction::{AppendIfExistsOrAdd, OverwriteIfExistsOrAdd};
        let option = |(key, value): &(String, String), action| HeaderValueOption {
            // A percent sign begins a command there.
            header: Some(HeaderValue {
                key: key.clone(),
                value: value.replace('%', "%%"),
                raw_value: Vec::new(),
            }),
            append_action: action as i32,
            // An empty value is a value; Envoy would leave the header out.
            keep_empty_value: value.is_empty(),
            ..Default::default()
        };
        let set = changes.set.iter().map(|header| option(header, OverwriteIfExistsOrAdd));
        let add = changes.add.iter().map(|header| option(header, AppendIfExistsOrAdd));
        Self { add: set.chain(add).collect(), remove: changes.remove.clone() }
    }
}
