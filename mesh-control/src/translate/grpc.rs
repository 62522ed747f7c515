//! What gRPC's own xDS clients get: an ApiListener by the name that the application dials, and only what such a
//! client understands. What it does not understand it refuses, and with it the whole resource.

use mesh_common::spiffe::SpiffeId;
use mesh_common::xds::names::{self, ClusterName};
use mesh_common::xds::proto::config::cluster::v3::{Cluster, cluster::LbPolicy};
use mesh_common::xds::proto::config::listener::v3::{ApiListener, Listener};
use mesh_common::xds::proto::config::route::v3::route_action::MaxStreamDuration;
use mesh_common::xds::proto::config::route::v3::{
    DirectResponseAction, Route, RouteConfiguration, route, route_action, route_match,
};
use mesh_common::xds::proto::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, Rds,
};
use mesh_common::xds::proto::extensions::transport_sockets::tls::v3::{
    CertificateProviderPluginInstance, CertificateValidationContext, CommonTlsContext, UpstreamTlsContext,
    common_tls_context,
};
use mesh_common::xds::proto::r#type::matcher::v3::{
    RegexMatcher, StringMatcher, string_matcher::MatchPattern,
};

use super::client::GrpcClient;
use super::host::{self, NamedHost, Resolved};
use super::proto::{RouteSpecifier, ads, inline, pack, router, transport_socket};
use super::{ClientView, cluster};
use crate::model::facts::Facts;
use crate::model::service::{Endpoint, EndpointTls};

/// What the application dials: `reviews.shop.svc.cluster.local:80`, or a shorter form of it.
pub(super) fn listener(name: &str, client: &dyn ClientView, facts: &dyn Facts) -> Option<Listener> {
    let (host, port) = names::parse_route_name(name).ok()?;
    let Resolved::Service(service) = host::resolve(host, client, &facts.settings(), facts)? else {
        return None;
    };
    cluster::protocol(&service, port)?;
    let route_config_name = names::route_name(&service.key.hostname, port);
    let manager = HttpConnectionManager {
        http_filters: vec![router()],
        route_specifier: Some(RouteSpecifier::Rds(Rds { config_source: Some(ads()), route_config_name })),
        ..Default::default()
    };
    Some(Listener {
        name: name.to_owned(),
        api_listener: Some(ApiListener { api_listener: Some(pack(&manager)) }),
        ..Default::default()
    })
}

/// Says the same in words that gRPC knows. A rule that cannot be said becomes an action that it does not know: it
/// fails those calls.
pub(super) fn adapt_routes(routes: &mut RouteConfiguration) {
    for route in routes.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes) {
        adapt_route(route);
    }
}

fn adapt_route(route: &mut Route) {
    if let Some(matches) = &mut route.r#match
        && let Some(route_match::PathSpecifier::PathSeparatedPrefix(prefix)) = &matches.path_specifier
    {
        // A prefix by segment is unknown to it.
        let regex = format!("{}(/.*)?", regex::escape(prefix));
        matches.path_specifier =
            Some(route_match::PathSpecifier::SafeRegex(RegexMatcher { regex, engine_type: None }));
    }
    if changes(route) {
        // Unknown to it, too: the call would go on as if the rule did not say so. This action it refuses.
        let reason = "a gRPC client cannot change headers, paths or hosts, as this rule does; use a sidecar";
        route.action = Some(route::Action::DirectResponse(DirectResponseAction {
            status: 500,
            body: Some(inline(reason.to_owned())),
            ..Default::default()
        }));
    }
    if let Some(route::Action::Route(action)) = &mut route.action {
        // Its limit of a call; as nothing is tried again, a try is the call. No policy of retries is without any.
        let a_try = action.retry_policy.take().and_then(|policy| policy.per_try_timeout);
        let limits = [action.timeout, a_try].into_iter().flatten();
        let limits = limits.filter(|limit| limit.seconds > 0 || limit.nanos > 0);
        let limit = limits.min_by_key(|limit| (limit.seconds, limit.nanos));
        action.max_stream_duration =
            limit.map(|limit| MaxStreamDuration { max_stream_duration: Some(limit), ..Default::default() });
    }
}

/// Whether a rule changes requests or responses.
fn changes(route: &Route) -> bool {
    let Some(route::Action::Route(action)) = &route.action else { return false };
    let clusters = match &action.cluster_specifier {
        Some(route_action::ClusterSpecifier::WeightedClusters(weighted)) => weighted.clusters.as_slice(),
        _ => &[],
    };
    let rewrites = !action.prefix_rewrite.is_empty()
        || action.regex_rewrite.is_some()
        || action.host_rewrite_specifier.is_some();
    let rule = !route.request_headers_to_add.is_empty()
        || !route.request_headers_to_remove.is_empty()
        || !route.response_headers_to_add.is_empty()
        || !route.response_headers_to_remove.is_empty();
    rewrites
        || rule
        || clusters.iter().any(|cluster| {
            !cluster.request_headers_to_add.is_empty()
                || !cluster.request_headers_to_remove.is_empty()
                || !cluster.response_headers_to_add.is_empty()
                || !cluster.response_headers_to_remove.is_empty()
        })
}

/// Round robin is the one policy that all of gRPC's languages have.
pub(super) fn adapt_cluster(made: &mut Cluster, name: &ClusterName, grpc: &GrpcClient, facts: &dyn Facts) {
    made.lb_policy = LbPolicy::RoundRobin as i32;
    made.transport_socket_matches.clear();
    made.typed_extension_protocol_options.clear();
    let ClusterName::Outbound { port, host, .. } = name else { return };
    let domain = &facts.settings().domain;
    let (Some(provider), Some(NamedHost::Service(key))) = (&grpc.provider, host::parse_full(host, domain))
    else {
        return;
    };
    let identities = facts.identities(&key, *port).unwrap_or_default();
    if identities.is_empty() {
        return;
    }
    let exact = |identity: &SpiffeId| StringMatcher {
        match_pattern: Some(MatchPattern::Exact(identity.as_str().to_owned())),
        ignore_case: false,
    };
    let instance = |name: &str| CertificateProviderPluginInstance {
        instance_name: provider.clone(),
        certificate_name: name.to_owned(),
    };
    // gRPC reads the older of the two fields for this.
    #[allow(deprecated)]
    let validation = CertificateValidationContext {
        ca_certificate_provider_instance: Some(instance(names::TRUST_BUNDLE)),
        match_subject_alt_names: identities.iter().map(exact).collect(),
        ..Default::default()
    };
    let context = UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_certificate_provider_instance: Some(instance(names::OWN_CERTIFICATE)),
            validation_context_type: Some(common_tls_context::ValidationContextType::ValidationContext(
                validation,
            )),
            ..Default::default()
        }),
        ..Default::default()
    };
    made.transport_socket = Some(transport_socket("envoy.transport_sockets.tls", pack(&context)));
}

/// gRPC secures a cluster, not an endpoint: where its cluster has mutual TLS, only such endpoints are left.
pub(super) fn takes(endpoint: &Endpoint, secured: bool) -> bool {
    match endpoint.tls {
        EndpointTls::Mutual(_) => true,
        EndpointTls::Plaintext => !secured,
        EndpointTls::Refused => false,
    }
}
