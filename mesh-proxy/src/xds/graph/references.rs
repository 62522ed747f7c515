//! What a resource names: listeners name routes and clusters, routes name clusters, clusters name endpoints.

use crate::config::cluster::{Cluster, Discovery};
use crate::config::listener::{FilterChain, Listener, NetworkFilter, RouteSource};
use crate::config::route::{RouteAction, RouteConfig};

/// Calls back for each route configuration and each cluster that a listener names.
pub(super) fn of_listener<'a>(
    listener: &'a Listener,
    mut route: impl FnMut(&'a str),
    mut cluster: impl FnMut(&'a str),
) {
    let chains = listener.chains.iter().chain(&listener.default_chain);
    for chain in chains.map(AsRef::<FilterChain>::as_ref) {
        match &chain.filter {
            NetworkFilter::OnDemand => {}
            NetworkFilter::Tcp(tcp) => tcp.clusters.iter().for_each(|(name, _)| cluster(name)),
            NetworkFilter::Http(http) => match &http.routes {
                RouteSource::Named(name) => route(name),
                RouteSource::Inline(config) => of_route(config, &mut cluster),
            },
        }
    }
}

/// Calls back for each cluster that a route configuration names.
pub(super) fn of_route<'a>(config: &'a RouteConfig, mut cluster: impl FnMut(&'a str)) {
    for route in config.virtual_hosts.iter().flat_map(|host| &host.routes) {
        match &route.action {
            RouteAction::Forward(forward) => forward.clusters.iter().for_each(|one| cluster(&one.name)),
            RouteAction::Redirect(_) | RouteAction::Respond { .. } => {}
        }
    }
}

/// The endpoints that a cluster names.
pub(super) fn of_cluster(cluster: &Cluster) -> Option<&str> {
    match &cluster.discovery {
        Discovery::Eds(name) => Some(name),
        Discovery::Static(_) | Discovery::Dns { .. } | Discovery::OriginalDestination | Discovery::None => {
            None
        }
    }
}
