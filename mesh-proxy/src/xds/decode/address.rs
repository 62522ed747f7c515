//! Addresses, prefixes and ports. Never accept a host name where an address is meant.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use mesh_common::xds::proto::config::core::v3 as core;

use super::errors::{Errors, take};

/// A host, as text, and a port.
pub(super) fn host_and_port(errors: &mut Errors, address: Option<core::Address>) -> Option<(String, u16)> {
    let core::Address { address } = errors.required("address", address)?;
    errors.within("address", |errors| match address {
        Some(core::address::Address::SocketAddress(address)) => {
            errors.within("socket_address", |errors| socket_address(errors, address))
        }
        Some(core::address::Address::Pipe(_)) => {
            errors.refuse_at("pipe", "only socket addresses are supported")
        }
        Some(core::address::Address::EnvoyInternalAddress(_)) => {
            errors.refuse_at("envoy_internal_address", "only socket addresses are supported")
        }
        None => errors.refuse("a socket address must be set"),
    })
}

/// An IP address and a port that can be dialled.
pub(super) fn dialled(errors: &mut Errors, address: Option<core::Address>) -> Option<SocketAddr> {
    let (host, port) = host_and_port(errors, address)?;
    if port == 0 {
        return errors.refuse_at("address.socket_address.port_value", "a port is 1 to 65535");
    }
    let ip = ip(errors, "address.socket_address.address", &host)?;
    Some(SocketAddr::new(ip, port))
}

/// The host and port of a socket address.
pub(super) fn socket_address(errors: &mut Errors, message: core::SocketAddress) -> Option<(String, u16)> {
    take!(errors, message => core::SocketAddress {
        used: [address, port_specifier],
        ignored: [],
        unset: [protocol, resolver_name, ipv4_compat, network_namespace_filepath],
    });
    let port = match port_specifier {
        Some(core::socket_address::PortSpecifier::PortValue(port)) => {
            errors.check("port_value", u16::try_from(port).map_err(|_| format!("{port} is not a port")))?
        }
        Some(core::socket_address::PortSpecifier::NamedPort(_)) => {
            return errors.refuse_at("named_port", "this field is not supported");
        }
        None => 0,
    };
    Some((address, port))
}

/// An IP address.
pub(super) fn ip(errors: &mut Errors, field: &str, text: &str) -> Option<IpAddr> {
    errors.check(field, text.parse().map_err(|_| format!("{text:?} is not an IP address")))
}

/// An address range.
pub(super) fn prefix(errors: &mut Errors, message: core::CidrRange) -> Option<IpNet> {
    take!(errors, message => core::CidrRange {
        used: [address_prefix, prefix_len],
        ignored: [],
        unset: [],
    });
    let ip = ip(errors, "address_prefix", &address_prefix)?;
    let len = prefix_len.map_or(0, |len| len.value);
    let net = u8::try_from(len).ok().and_then(|len| IpNet::new(ip, len).ok());
    errors.check("prefix_len", net.ok_or_else(|| format!("{len} is too long")).map(|net| net.trunc()))
}
