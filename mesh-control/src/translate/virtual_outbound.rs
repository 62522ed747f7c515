//! `virtualOutbound`: which addresses are worth a look-up, and what happens to all others. It never names a
//! service: it must not change when one does.

use ipnet::IpNet;
use mesh_common::xds::names;
use mesh_common::xds::proto::config::core::v3::{CidrRange, TrafficDirection};
use mesh_common::xds::proto::config::listener::v3::{FilterChain, FilterChainMatch, Listener};
use mesh_common::xds::protobuf::UInt32Value;

use super::listener::{chain, listener};
use super::proto::tcp_proxy;
use crate::model::OutboundTrafficPolicy;
use crate::model::facts::Facts;

/// The listener.
pub(super) fn virtual_outbound(name: &str, facts: &dyn Facts) -> Listener {
    let settings = facts.settings();
    let (chain_name, cluster) = match settings.outbound {
        OutboundTrafficPolicy::AllowAny => ("passthrough", names::PASSTHROUGH_CLUSTER),
        OutboundTrafficPolicy::RegistryOnly => ("blackhole", names::BLACK_HOLE_CLUSTER),
    };
    Listener {
        filter_chains: mesh_addresses(&facts.ranges()).into_iter().collect(),
        default_filter_chain: Some(chain(chain_name, tcp_proxy(cluster, &settings))),
        ..listener(name, TrafficDirection::Outbound)
    }
}

/// The chain without filters: its connections are looked up. Absent without ranges, as an empty match would
/// mean every address.
fn mesh_addresses(ranges: &[IpNet]) -> Option<FilterChain> {
    if ranges.is_empty() {
        return None;
    }
    let prefix_ranges = ranges.iter().map(|range| CidrRange {
        address_prefix: range.network().to_string(),
        prefix_len: Some(UInt32Value { value: range.prefix_len().into() }),
    });
    Some(FilterChain {
        name: names::MESH_ADDRESSES_CHAIN.to_owned(),
        filter_chain_match: Some(FilterChainMatch {
            prefix_ranges: prefix_ranges.collect(),
            ..Default::default()
        }),
        ..Default::default()
    })
}
