//! What only a stock Envoy gets: listeners with real addresses, certificates from files. Everything that is not
//! said here is what our own proxy gets. It must never hold an option that Envoy refuses: one refused listener
//! costs all that come in the same response.

mod cluster;
mod inbound;
mod name;
mod outbound;
mod proxy;
mod tls;

use mesh_common::xds::proto::config::core::v3::Address;
use mesh_common::xds::proto::config::listener::v3::Listener;
use mesh_common::xds::proto::config::route::v3::{RetryPolicy, RouteConfiguration};
use mesh_common::xds::protobuf::{BoolValue, UInt32Value};

pub(super) use cluster::{adapt as adapt_cluster, to_application};
pub(super) use name::ListenerName;
pub(super) use proxy::{ROUTES as PROXY_ROUTES, route_configuration as proxy_routes};
pub(super) use tls::{downstream as downstream_tls, upstream as upstream_tls};

use super::ClientView;
use super::client::EnvoyClient;
use crate::model::facts::Facts;

/// The listener of this name.
pub(super) fn listener(
    name: &str,
    envoy: &EnvoyClient,
    client: &dyn ClientView,
    facts: &dyn Facts,
) -> Option<Listener> {
    match name.parse().ok()? {
        ListenerName::VirtualOutbound => outbound::virtual_outbound(client, facts),
        ListenerName::VirtualInbound => inbound::captured(envoy, client, facts),
        ListenerName::Captured(address) => outbound::captured(name, address, facts),
        ListenerName::Inbound(address) => inbound::bound(name, address, envoy, client, facts),
        ListenerName::HttpProxy => proxy::listener(name, envoy.proxy_port?, client, facts),
    }
}

/// Envoy sends a request again only where it is certain that nobody saw it, as our own proxy does.
pub(super) fn adapt_routes(routes: &mut RouteConfiguration) {
    for host in &mut routes.virtual_hosts {
        host.retry_policy = Some(RetryPolicy {
            retry_on: "connect-failure,refused-stream,reset-before-request".to_owned(),
            num_retries: Some(UInt32Value { value: 2 }),
            ..Default::default()
        });
    }
}

/// Every address of the pod's network namespace, of both families where the pod has IPv6.
fn any_address(port: u16, client: &dyn ClientView, facts: &dyn Facts) -> Address {
    use super::proto::socket_address;
    let pod = client.workload().and_then(|key| facts.workload(key));
    let v6 = pod.is_some_and(|pod| pod.addresses.iter().any(std::net::IpAddr::is_ipv6));
    let mut address = socket_address(if v6 { "::" } else { "0.0.0.0" }, port);
    address.ipv4_compat = v6;
    Address {
        address: Some(mesh_common::xds::proto::config::core::v3::address::Address::SocketAddress(address)),
    }
}

fn yes() -> Option<BoolValue> {
    Some(BoolValue { value: true })
}
