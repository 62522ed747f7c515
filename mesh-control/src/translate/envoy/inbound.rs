//! Connections that arrive for the pod: the same chains as our own proxy has, on a listener that takes what is
//! captured, or on the port itself.

use std::net::SocketAddr;

use mesh_common::xds::names;
use mesh_common::xds::proto::config::core::v3::TrafficDirection;
use mesh_common::xds::proto::config::listener::v3::{
    FilterChainMatch, Listener, ListenerFilter, listener_filter,
};
use mesh_common::xds::proto::extensions::filters::listener::original_dst::v3::OriginalDst;
use mesh_common::xds::protobuf::UInt32Value;

use super::{ListenerName, any_address};
use crate::model::facts::Facts;
use crate::model::service::Protocol;
use crate::translate::ClientView;
use crate::translate::client::EnvoyClient;
use crate::translate::inbound::{Port, chains};
use crate::translate::listener::{chain, detecting, listener};
use crate::translate::proto::{address, pack, tcp_proxy};

/// Where the pod's rules send inbound connections.
const PORT: u16 = 15_006;

/// The listener of all captured connections.
pub(super) fn captured(envoy: &EnvoyClient, client: &dyn ClientView, facts: &dyn Facts) -> Option<Listener> {
    let settings = facts.settings();
    let inbound = facts.inbound(client.workload()?)?;
    let mut filter_chains = chains(&inbound, Some(envoy), &settings);
    // A connection to this very port would be sent to itself, for ever.
    let mut own = chain("virtualInbound-blackhole", tcp_proxy(names::BLACK_HOLE_CLUSTER, &settings));
    own.filter_chain_match = Some(FilterChainMatch {
        destination_port: Some(UInt32Value { value: PORT.into() }),
        ..Default::default()
    });
    filter_chains.push(own);
    let base = listener(&ListenerName::VirtualInbound.to_string(), TrafficDirection::Inbound);
    let mut made = detecting(Listener { filter_chains, ..base }, &settings);
    // First: what looks at the bytes must know for whom they are.
    made.listener_filters.insert(
        0,
        ListenerFilter {
            name: "envoy.filters.listener.original_dst".to_owned(),
            config_type: Some(listener_filter::ConfigType::TypedConfig(pack(&OriginalDst {}))),
            ..Default::default()
        },
    );
    Some(Listener { address: Some(any_address(PORT, client, facts)), ..made })
}

/// The listener of one port.
pub(super) fn bound(
    name: &str,
    at: SocketAddr,
    envoy: &EnvoyClient,
    client: &dyn ClientView,
    facts: &dyn Facts,
) -> Option<Listener> {
    envoy.inbound.iter().find(|bind| bind.listen == at)?;
    let settings = facts.settings();
    let inbound = facts.inbound(client.workload()?)?;
    let known = inbound.ports.iter().find(|port| port.port == at.port());
    let (mode, protocol) =
        known.map_or((inbound.default_mode, Protocol::Detect), |port| (port.mode, port.protocol));
    let port = Port { number: Some(at.port()), settings: &settings, envoy: Some(envoy) };
    let filter_chains = port.chains(mode, protocol);
    let base = listener(name, TrafficDirection::Inbound);
    let made = detecting(Listener { filter_chains, ..base }, &settings);
    Some(Listener { address: Some(address(&at.ip().to_string(), at.port())), ..made })
}
