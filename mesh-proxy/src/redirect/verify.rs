//! Proves that capture works: the kernel has exactly our rules, and a connection to an address that no network
//! has comes out at this very pod, where the rule counts it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use netlink_packet_core::Nla as _;
use netlink_packet_netfilter::nftables::{ExpressionAttribute, Expressions, ListAttribute};

use super::message::{self, Expression};
use mesh_common::capture::PortRange;

use super::plan::{Hook, Plan};
use super::{RedirectError, RedirectOptions, kernel};

/// A captured connection ends at once; one that is not captured leaves for a network where nobody is.
const PATIENCE: Duration = Duration::from_secs(1);
/// Addresses for documentation (RFC 5737, RFC 3849): nobody has them.
const NOBODY: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// What was proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// The rules are in place, and a connection to this address was captured.
    Captured(SocketAddr),
    /// The rules are in place; they exclude every address that could be tried.
    AllExcluded,
}

/// Proves that `plan` is at work.
pub(super) fn verify(options: &RedirectOptions, plan: &Plan) -> Result<Proof, RedirectError> {
    let wanted: Vec<_> = plan
        .chains
        .iter()
        .flat_map(|chain| {
            chain.rules.iter().map(|rule| (chain.hook.name().to_owned(), message::expressions(rule)))
        })
        .collect();
    let found = kernel::rules()?;
    if let Some(at) = difference(&wanted, &found) {
        return Err(RedirectError::NotInPlace { at, wanted: wanted.len(), found: found.len() });
    }
    try_connection(options)
}

/// The place of the first rule that is another one.
fn difference(wanted: &[(String, Vec<Expression>)], found: &[(String, Vec<Expression>)]) -> Option<usize> {
    (0..wanted.len().max(found.len())).find(|&at| match (wanted.get(at), found.get(at)) {
        (Some((chain, wanted)), Some((in_chain, found))) => {
            chain != in_chain
                || wanted.len() != found.len()
                || !wanted.iter().zip(found).all(|(wanted, found)| is_same(wanted, found))
        }
        _ => true,
    })
}

/// Whether the kernel tells what was asked for. It adds what it counted and what was left to its defaults, in an
/// order of its own.
fn is_same(wanted: &Expression, found: &Expression) -> bool {
    use Expressions::{Bitwise, Cmp, Immediate, Meta, Other, Payload};
    fn all<T: PartialEq>(wanted: &[T], found: &[T]) -> bool {
        wanted.iter().all(|attribute| found.contains(attribute))
    }
    match (data(wanted), data(found)) {
        (Some(Bitwise(wanted)), Some(Bitwise(found))) => all(wanted, found),
        (Some(Cmp(wanted)), Some(Cmp(found))) => all(wanted, found),
        (Some(Immediate(wanted)), Some(Immediate(found))) => all(wanted, found),
        (Some(Meta(wanted)), Some(Meta(found))) => all(wanted, found),
        (Some(Payload(wanted)), Some(Payload(found))) => all(wanted, found),
        (
            Some(Other { expression_type: wanted, attributes: all_wanted }),
            Some(Other { expression_type: found, attributes: all_found }),
        ) => wanted == found && all(all_wanted, all_found),
        _ => false,
    }
}

fn data(expression: &Expression) -> Option<&Expressions> {
    let ListAttribute::Element(attributes) = expression else { return None };
    attributes.iter().find_map(|attribute| match attribute {
        ExpressionAttribute::Data(data) => Some(data),
        _ => None,
    })
}

fn try_connection(options: &RedirectOptions) -> Result<Proof, RedirectError> {
    let candidates: Vec<SocketAddr> = NOBODY
        .into_iter()
        .filter(|ip| !options.exclude_outbound_ranges.iter().any(|range| range.contains(ip)))
        .filter_map(|ip| Some(SocketAddr::new(ip, free_port(&options.exclude_outbound_ports)?)))
        .collect();
    let mut unreachable = None;
    for &address in &candidates {
        let before = captured()?;
        let outcome = TcpStream::connect_timeout(&address, PATIENCE);
        if captured()? > before {
            return Ok(Proof::Captured(address));
        }
        match outcome {
            // This family has no way out; perhaps the other one has.
            Err(error) if no_route(&error) => unreachable = Some(error),
            _ => return Err(RedirectError::NotCaptured(address)),
        }
    }
    match unreachable {
        Some(error) => Err(RedirectError::NoRoute(error)),
        None => Ok(Proof::AllExcluded),
    }
}

fn no_route(error: &io::Error) -> bool {
    use io::ErrorKind::{AddrNotAvailable, HostUnreachable, NetworkUnreachable, Unsupported};
    matches!(error.kind(), NetworkUnreachable | HostUnreachable | AddrNotAvailable | Unsupported)
        || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

fn free_port(excluded: &[PortRange]) -> Option<u16> {
    (1024..=u16::MAX).find(|&port| !excluded.iter().any(|range| range.contains(port)))
}

/// How many connections the last rule of the output chain has captured.
fn captured() -> Result<u64, RedirectError> {
    /// `NFTA_COUNTER_PACKETS`.
    const PACKETS: u16 = 2;
    let rules = kernel::rules()?;
    let last = rules.iter().rfind(|(chain, _)| chain == Hook::Output.name());
    let packets = last.and_then(|(_, list)| {
        list.iter().filter_map(data).find_map(|data| match data {
            Expressions::Other { expression_type, attributes } if expression_type == "counter" => {
                let packets = attributes.iter().find(|attribute| attribute.kind() == PACKETS)?;
                let mut bytes = [0; 8];
                (packets.value_len() == bytes.len()).then(|| packets.emit_value(&mut bytes))?;
                Some(u64::from_be_bytes(bytes))
            }
            _ => None,
        })
    });
    packets.ok_or_else(|| RedirectError::Answer("the capturing rule counts nothing".to_owned()))
}
