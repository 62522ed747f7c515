//! Captured outbound connections: one listener takes them all and hands each to the listener of the address that
//! was dialled, if there is one.

use std::net::SocketAddr;

use mesh_common::xds::names::{self, ALPN_TCP};
use mesh_common::xds::proto::config::core::v3::{
    SubstitutionFormatString, TrafficDirection, substitution_format_string,
};
use mesh_common::xds::proto::config::listener::v3::{Filter, Listener};
use mesh_common::xds::proto::extensions::filters::common::set_filter_state::v3::{
    FilterStateValue, filter_state_value,
};
use mesh_common::xds::proto::extensions::filters::network::set_filter_state::v3::Config as SetFilterState;
use mesh_common::xds::protobuf::BoolValue;

use super::{ListenerName, any_address, yes};
use crate::model::OutboundTrafficPolicy;
use crate::model::facts::Facts;
use crate::translate::ClientView;
use crate::translate::listener::{chain, destination, listener};
use crate::translate::proto::{address, inline, network_filter, pack, tcp_proxy};

/// Where the pod's rules send outbound connections.
const PORT: u16 = 15_001;

/// The listener of all captured connections.
pub(super) fn virtual_outbound(client: &dyn ClientView, facts: &dyn Facts) -> Option<Listener> {
    let settings = facts.settings();
    let cluster = match settings.outbound {
        OutboundTrafficPolicy::AllowAny => names::PASSTHROUGH_CLUSTER,
        OutboundTrafficPolicy::RegistryOnly => names::BLACK_HOLE_CLUSTER,
    };
    let name = ListenerName::VirtualOutbound.to_string();
    Some(Listener {
        address: Some(any_address(PORT, client, facts)),
        use_original_dst: yes(),
        default_filter_chain: Some(chain(&name, tcp_proxy(cluster, &settings))),
        ..listener(&name, TrafficDirection::Outbound)
    })
}

/// The listener of connections to one address.
pub(super) fn captured(name: &str, dialled: SocketAddr, facts: &dyn Facts) -> Option<Listener> {
    let mut made = destination(name, dialled, &facts.settings(), facts)?;
    if !made.filter_chains.is_empty()
        && let Some(opaque) = &mut made.default_filter_chain
    {
        opaque.filters.insert(0, opaque_protocol());
    }
    Some(Listener {
        address: Some(address(&dialled.ip().to_string(), dialled.port())),
        bind_to_port: Some(BoolValue { value: false }),
        ..made
    })
}

/// The cluster of a port where HTTP is detected announces HTTP; what turned out to be something else must say so.
fn opaque_protocol() -> Filter {
    let text = substitution_format_string::Format::TextFormatSource(inline(ALPN_TCP.to_owned()));
    let value = FilterStateValue {
        key: Some(filter_state_value::Key::ObjectKey("envoy.network.application_protocols".to_owned())),
        value: Some(filter_state_value::Value::FormatString(SubstitutionFormatString {
            format: Some(text),
            ..Default::default()
        })),
        ..Default::default()
    };
    let config = SetFilterState { on_new_connection: vec![value], ..Default::default() };
    network_filter("envoy.filters.network.set_filter_state", pack(&config))
}
