//! What decides a request's way: the chain of its connection, or, on the forward-proxy port, what its own URI or
//! Host is looked up to be. A request whose configuration is late fails; it is never sent past the mesh.

use std::sync::Arc;

use http::StatusCode;
use http::uri::Authority;

use super::connection::Conn;
use super::reply::Reply;
use super::{Scope, route};
use crate::config::listener::{AccessLog, FilterChain, HttpManager, NetworkFilter, RouteSource, Transport};
use crate::config::route::RouteConfig;
use crate::connection::Target;
use crate::listener::{self, chain};
use crate::tcp;
use crate::telemetry::ResponseFlags;

/// Where a request's way is written.
pub(super) enum Plan {
    /// In routes.
    Routes {
        /// The routes.
        routes: Routes,
        /// Where the request wants to go, when that is not where its connection does.
        target: Option<Target>,
    },
    /// There are no routes: to this cluster.
    Cluster {
        /// Its name.
        name: String,
        /// Where the request wants to go.
        target: Target,
        /// The chain's access log.
        access_log: Option<AccessLog>,
    },
}

/// Routes of a filter chain, whose filter is a connection manager.
pub(super) struct Routes {
    chain: Arc<FilterChain>,
}

impl Routes {
    /// The connection manager.
    pub(super) fn manager(&self) -> Option<&HttpManager> {
        match &self.chain.filter {
            NetworkFilter::Http(manager) => Some(manager),
            NetworkFilter::Tcp(_) | NetworkFilter::OnDemand => None,
        }
    }

    /// The routes in force now.
    pub(super) async fn current(&self, conn: &Conn) -> Result<Arc<RouteConfig>, Reply> {
        let NetworkFilter::Http(manager) = &self.chain.filter else { return Err(not_http(&self.chain)) };
        let name = match &manager.routes {
            RouteSource::Inline(config) => return Ok(Arc::clone(config)),
            RouteSource::Named(name) => name,
        };
        let store = &conn.worker.store;
        if let Some(found) = store.snapshot().routes.get(name) {
            return Ok(Arc::clone(found));
        }
        // A connection that rested for long may hold a listener that was changed meanwhile and then let go as
        // unused, and its routes with it.
        if let Scope::Chain { listener, .. } = &conn.scope
            && let Ok(listener) = listener.name.parse()
        {
            Box::pin(store.listener(&listener)).await.map_err(|error| {
                let (status, flags) = (StatusCode::SERVICE_UNAVAILABLE, ResponseFlags::NO_CLUSTER);
                Reply::failure(status, flags, error.to_string())
            })?;
        }
        store.snapshot().routes.get(name).cloned().ok_or_else(|| {
            let reason = format!("the route configuration {name} is not there");
            Reply::failure(StatusCode::SERVICE_UNAVAILABLE, ResponseFlags::NO_CLUSTER, reason)
        })
    }
}

impl Plan {
    /// The format of the access log, if it is on.
    pub(super) fn access_log(&self) -> Option<AccessLog> {
        match self {
            Self::Routes { routes, .. } => routes.manager()?.access_log,
            Self::Cluster { access_log, .. } => *access_log,
        }
    }
}

/// What decides the way of a request to `authority`.
pub(super) async fn plan(conn: &Conn, authority: &Authority, scheme: Option<&str>) -> Result<Plan, Reply> {
    match &conn.scope {
        Scope::Chain { chain, .. } => {
            Ok(Plan::Routes { routes: Routes { chain: Arc::clone(chain) }, target: None })
        }
        Scope::Forward => Box::pin(look_up(conn, authority, scheme)).await,
    }
}

async fn look_up(conn: &Conn, authority: &Authority, scheme: Option<&str>) -> Result<Plan, Reply> {
    let target = target(authority, scheme)?;
    let resolved = listener::resolve(&conn.worker.store, conn.own, target)
        .await
        .map_err(|refused| Reply::failure(StatusCode::SERVICE_UNAVAILABLE, refused.flags, refused.reason))?;
    let facts = chain::Facts {
        port: resolved.target.port(),
        address: match &resolved.target {
            Target::Address(address) => Some(address.ip()),
            Target::Host { .. } => None,
        },
        transport: Transport::RawBuffer,
        server_name: None,
        protocols: &["http/1.1".to_owned()],
    };
    let chain = chain::choose(&resolved.listener, &facts).map_err(|error| {
        Reply::failure(StatusCode::SERVICE_UNAVAILABLE, ResponseFlags::NO_ROUTE, error.to_string())
    })?;
    match &chain.filter {
        NetworkFilter::Http(_) => {
            Ok(Plan::Routes { routes: Routes { chain: Arc::clone(chain) }, target: Some(resolved.target) })
        }
        NetworkFilter::Tcp(proxy) => {
            let name = tcp::cluster_of(proxy).to_owned();
            Ok(Plan::Cluster { name, target: resolved.target, access_log: proxy.access_log })
        }
        NetworkFilter::OnDemand => Err(not_http(chain)),
    }
}

fn target(authority: &Authority, scheme: Option<&str>) -> Result<Target, Reply> {
    let bad = |reason: &str| {
        Reply::failure(StatusCode::BAD_REQUEST, ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR, reason)
    };
    if scheme.is_some_and(|scheme| !scheme.eq_ignore_ascii_case("http")) {
        return Err(bad("a forward proxy takes http:// URLs; use CONNECT for others"));
    }
    let text = authority.as_str();
    let host = route::without_port(text);
    let port = match text.get(host.len() + 1..) {
        Some(port) => port.parse().map_err(|_| bad("the request's port is not a port"))?,
        None => 80,
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    Ok(match bare.parse() {
        Ok(ip) => Target::Address(std::net::SocketAddr::new(ip, port)),
        Err(_) => Target::Host { host: host.to_ascii_lowercase(), port },
    })
}

fn not_http(chain: &FilterChain) -> Reply {
    let reason = format!("filter chain {} does not take HTTP requests", chain.name);
    Reply::failure(StatusCode::SERVICE_UNAVAILABLE, ResponseFlags::NO_ROUTE, reason)
}
