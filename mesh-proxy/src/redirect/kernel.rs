//! Speaks netlink: hands a batch to the kernel, reads rules back, adds an address. The kernel answers within
//! the call that asks, so nothing here waits.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkDeserializable,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_netfilter::NetfilterMessage;
use netlink_packet_route::address::{
    AddressAttribute, AddressHeader, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr};

use super::RedirectError;
use super::message::{self, Expression};
use super::plan::{PROXY_TO_APP_V6, Plan};

/// `NETLINK_ROUTE` and `NETLINK_NETFILTER`.
const ROUTE: isize = 0;
const NETFILTER: isize = 12;
/// In a network namespace the loopback interface is always the first.
const LOOPBACK_INDEX: u32 = 1;

/// Replaces our table.
pub(super) fn replace(plan: &Plan) -> Result<(), RedirectError> {
    let socket = open(NETFILTER)?;
    let mut batch = message::replace(plan);
    let mut bytes = Vec::new();
    for (number, message) in (1..).zip(&mut batch) {
        message.header.sequence_number = number;
        write(message, &mut bytes);
    }
    // The first and the last only frame the others, and are not answered.
    let mut unanswered = batch.len() - 2;
    send(&socket, &bytes)?;
    while unanswered > 0 {
        for answer in receive::<NetfilterMessage>(&socket)? {
            match answer.payload {
                NetlinkPayload::Error(ErrorMessage { code: None, .. }) => {
                    unanswered = unanswered.saturating_sub(1)
                }
                NetlinkPayload::Error(error) => return Err(RedirectError::refused(&error.to_io())),
                _ => {}
            }
        }
    }
    Ok(())
}

/// The rules that our table has now: chain and expressions, in their order.
pub(super) fn rules() -> Result<Vec<(String, Vec<Expression>)>, RedirectError> {
    let socket = open(NETFILTER)?;
    let mut bytes = Vec::new();
    write(&mut message::list_rules(), &mut bytes);
    send(&socket, &bytes)?;
    let mut rules = Vec::new();
    loop {
        for answer in receive::<NetfilterMessage>(&socket)? {
            match answer.payload {
                NetlinkPayload::Done(_) => return Ok(rules),
                NetlinkPayload::Error(error) => return Err(RedirectError::refused(&error.to_io())),
                NetlinkPayload::InnerMessage(message) => rules.extend(message::listed(message)),
                _ => {}
            }
        }
    }
}

/// Whether this namespace speaks IPv6 at all.
pub(super) fn has_ipv6() -> bool {
    fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6").is_ok_and(|text| text.trim() == "0")
}

/// Gives the loopback interface the address from which the proxy dials the application by IPv6.
pub(super) fn add_proxy_address() -> Result<(), RedirectError> {
    let socket = open(ROUTE)?;
    let address: Ipv6Addr = PROXY_TO_APP_V6;
    let mut message = AddressMessage::default();
    message.header = AddressHeader {
        family: AddressFamily::Inet6,
        prefix_len: 128,
        flags: AddressHeaderFlags::Nodad,
        scope: AddressScope::Host,
        index: LOOPBACK_INDEX,
    };
    message.attributes =
        [AddressAttribute::Local, AddressAttribute::Address].map(|kind| kind(IpAddr::V6(address))).into();
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewAddress(message));
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    let mut bytes = Vec::new();
    write(&mut message, &mut bytes);
    send(&socket, &bytes)?;
    for answer in receive::<RouteNetlinkMessage>(&socket)? {
        if let NetlinkPayload::Error(ErrorMessage { code: Some(_), .. }) = &answer.payload
            && let NetlinkPayload::Error(error) = answer.payload
        {
            return Err(RedirectError::refused(&error.to_io()));
        }
    }
    Ok(())
}

fn open(protocol: isize) -> Result<Socket, RedirectError> {
    let open = || {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        Ok(socket)
    };
    open().map_err(|error: io::Error| RedirectError::refused(&error))
}

fn send(socket: &Socket, bytes: &[u8]) -> Result<(), RedirectError> {
    let sent =
        socket.send_to(bytes, &SocketAddr::new(0, 0), 0).map_err(|error| RedirectError::refused(&error))?;
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(RedirectError::Answer("it took a part of the request".to_owned()))
    }
}

fn write<I: NetlinkSerializable>(message: &mut NetlinkMessage<I>, bytes: &mut Vec<u8>) {
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + message.buffer_len(), 0);
    message.serialize(&mut bytes[start..]);
}

/// The messages of one datagram.
fn receive<I: NetlinkDeserializable>(socket: &Socket) -> Result<Vec<NetlinkMessage<I>>, RedirectError> {
    let (bytes, _) = socket.recv_from_full().map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => RedirectError::Answer("it did not answer".to_owned()),
        _ => RedirectError::refused(&error),
    })?;
    let mut messages = Vec::new();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let message = NetlinkMessage::<I>::deserialize(rest)
            .map_err(|error| RedirectError::Answer(error.to_string()))?;
        // Each begins at a multiple of four (netlink(7)).
        let length = (message.header.length as usize).next_multiple_of(4);
        messages.push(message);
        match rest.get(length..) {
            Some(more) if length > 0 => rest = more,
            _ => break,
        }
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written to the kernel is understood by whoever reads it.
    #[test]
    fn a_batch_is_read_back() {
        let plan =
            Plan::new(&crate::redirect::tests::options(&["--exclude-outbound-ranges=10.0.0.0/9,fd00::/9"]));
        let mut bytes = Vec::new();
        let mut batch = message::replace(&plan);
        batch.iter_mut().for_each(|message| write(message, &mut bytes));
        let mut rest = &bytes[..];
        for message in batch {
            let read = message::Message::deserialize(rest).unwrap();
            assert_eq!(read, message);
            rest = &rest[message.buffer_len()..];
        }
        assert!(rest.is_empty());
    }
}
