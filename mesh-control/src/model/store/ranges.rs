//! The ranges of the mesh's addresses: few, and stable while addresses come and go inside them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// No more than this many: each proxy looks at all of them for every connection.
const MAX_RANGES: usize = 64;

/// Counts addresses by the block they fall into. Only the first and the last address of a block change anything.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    blocks: BTreeMap<IpNet, usize>,
    standalone: bool,
}

impl Ranges {
    pub(super) fn new(standalone: bool) -> Self {
        Self { blocks: BTreeMap::new(), standalone }
    }

    /// Returns whether the cover may be another one now.
    pub(super) fn add(&mut self, ip: IpAddr) -> bool {
        block(ip, self.standalone).is_some_and(|block| self.add_net(block))
    }

    /// A whole range. Returns whether the cover may be another one now.
    pub(super) fn add_net(&mut self, net: IpNet) -> bool {
        let count = self.blocks.entry(net).or_default();
        *count += 1;
        *count == 1
    }

    /// Returns whether the cover may be another one now.
    pub(super) fn remove(&mut self, ip: IpAddr) -> bool {
        block(ip, self.standalone).is_some_and(|block| self.remove_net(block))
    }

    /// A whole range. Returns whether the cover may be another one now.
    pub(super) fn remove_net(&mut self, net: IpNet) -> bool {
        let Some(count) = self.blocks.get_mut(&net) else { return false };
        *count -= 1;
        let gone = *count == 0;
        if gone {
            self.blocks.remove(&net);
        }
        gone
    }

    /// Sorted, none inside another, at most [`MAX_RANGES`].
    pub(super) fn cover(&self) -> Vec<IpNet> {
        let mut cover: BTreeSet<IpNet> = self.blocks.keys().copied().collect();
        // Blocks are widened together, so that the order in which addresses came does not show.
        while cover.len() > MAX_RANGES {
            let widest = cover.iter().map(IpNet::prefix_len).max().unwrap_or(0);
            cover = cover
                .into_iter()
                .map(|net| if net.prefix_len() == widest { wider(net) } else { net })
                .collect();
        }
        let all: Vec<IpNet> = cover.into_iter().collect();
        let inside = |net: &IpNet| all.iter().any(|other| other != net && other.contains(net));
        all.iter().filter(|net| !inside(net)).copied().collect()
    }
}

/// The block that stands for an address; `None` for addresses that are never looked up.
fn block(ip: IpAddr, standalone: bool) -> Option<IpNet> {
    let length = match ip {
        IpAddr::V4(ip) if ip.is_loopback() => {
            (standalone && ip != std::net::Ipv4Addr::LOCALHOST).then_some(24)
        }
        IpAddr::V4(ip) if ip.is_link_local() || ip.is_multicast() || ip.is_unspecified() => None,
        // Public addresses are somebody's load balancer: its neighbours are strangers, and looking each up is waste.
        IpAddr::V4(ip) => Some(if is_internal(ip) { 16 } else { 24 }),
        IpAddr::V6(ip) if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() => None,
        IpAddr::V6(ip) if ip.is_unicast_link_local() => None,
        IpAddr::V6(_) => Some(64),
    };
    IpNet::new(ip, length?).ok().map(|net| net.trunc())
}

/// Private, or the shared space of carriers, which clusters use too.
fn is_internal(ip: std::net::Ipv4Addr) -> bool {
    ip.is_private() || (ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64)
}

/// One step up: a block of the longest kind gives way to a larger one.
fn wider(net: IpNet) -> IpNet {
    match net {
        IpNet::V4(v4) => Ipv4Net::new(v4.network(), v4.prefix_len().saturating_sub(4))
            .map_or(net, |wide| IpNet::V4(wide.trunc())),
        IpNet::V6(v6) => Ipv6Net::new(v6.network(), v6.prefix_len().saturating_sub(8))
            .map_or(net, |wide| IpNet::V6(wide.trunc())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cover(standalone: bool, ips: impl IntoIterator<Item = String>) -> Vec<String> {
        let mut ranges = Ranges::new(standalone);
        for ip in ips {
            ranges.add(ip.parse().unwrap());
        }
        ranges.cover().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn few_and_wide() {
        let cases: [(bool, &[&str], &[&str]); 5] = [
            (false, &["10.96.0.1", "10.96.3.4", "10.244.1.9"], &["10.96.0.0/16", "10.244.0.0/16"]),
            (false, &["fd00::1", "fd00::2:1", "fd00:1::1"], &["fd00::/64", "fd00:1::/64"]),
            (false, &["127.0.0.11", "::1", "169.254.1.1", "224.0.0.1", "0.0.0.0", "fe80::1"], &[]),
            (true, &["127.0.0.1", "127.0.1.11", "127.0.1.12"], &["127.0.1.0/24"]),
            (false, &["203.0.113.7"], &["203.0.113.0/24"]),
        ];
        for (standalone, ips, expected) in cases {
            assert_eq!(cover(standalone, ips.iter().map(ToString::to_string)), expected, "{ips:?}");
        }
    }

    #[test]
    fn never_more_than_64() {
        let mut many = cover(false, (0..200).map(|i| format!("10.{i}.0.1")));
        assert!(many.len() <= MAX_RANGES, "{many:?}");
        let net: IpNet = many.remove(0).parse().unwrap();
        assert!(net.contains(&"10.0.0.1".parse::<IpAddr>().unwrap()));
        let mixed = (0..250).flat_map(|i| [format!("8.{i}.0.1"), format!("fd00:{i}::1")]);
        let mixed = cover(false, mixed);
        assert!(mixed.len() <= MAX_RANGES, "{mixed:?}");
    }

    #[test]
    fn declared_ranges_hold_without_addresses() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let mut ranges = Ranges::new(false);
        assert!(ranges.add_net(net("10.96.0.0/12")) && ranges.add_net(net("fd00:96::/112")));
        assert_eq!(ranges.cover(), [net("10.96.0.0/12"), net("fd00:96::/112")]);
        ranges.add("10.97.1.1".parse().unwrap());
        ranges.add("fd00:96::5".parse().unwrap());
        assert_eq!(ranges.cover(), [net("10.96.0.0/12"), net("fd00:96::/64")]);
        assert!(ranges.remove_net(net("10.96.0.0/12")));
        assert_eq!(ranges.cover(), [net("10.97.0.0/16"), net("fd00:96::/64")]);
    }

    #[test]
    fn only_the_first_and_the_last_of_a_block_count() {
        let mut ranges = Ranges::new(false);
        let ip = |text: &str| text.parse().unwrap();
        assert!(ranges.add(ip("10.1.0.1")));
        assert!(!ranges.add(ip("10.1.7.1")));
        assert!(!ranges.remove(ip("10.1.0.1")));
        assert!(ranges.remove(ip("10.1.7.1")));
        assert!(ranges.cover().is_empty());
    }
}
