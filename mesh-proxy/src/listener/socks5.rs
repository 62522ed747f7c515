//! The server side of SOCKS5 (RFC 1928) as far as a forward proxy needs it: no authentication, CONNECT to an
//! IPv4 or IPv6 address or a host. Sans-io; it never panics, whatever the client sends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Buf, BytesMut};

use crate::connection::Target;

/// The first byte of every SOCKS5 client.
pub const VERSION: u8 = 5;

/// The answer: "no authentication".
const NO_AUTHENTICATION: &[u8] = &[VERSION, 0];
/// The answer: none of the offered methods.
const NO_METHOD: &[u8] = &[VERSION, 0xff];

/// Where a handshake stands. Give it the bytes so far, again and again, until it is done.
#[derive(Debug, Default)]
pub struct Handshake {
    greeted: bool,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Read more.
    NeedMore,
    /// Send this, then go on.
    Send(&'static [u8]),
    /// The client wants to go there: find out whether it may, then send a [`reply`].
    Connect(Target),
    /// Send this and close.
    Refuse {
        /// The answer in the protocol.
        answer: Vec<u8>,
        /// For people.
        reason: &'static str,
    },
}

/// Reply codes (RFC 1928, section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The bytes that follow go to the target.
    Succeeded = 0,
    /// The proxy cannot say anything better.
    GeneralFailure = 1,
    /// The target must not be dialled.
    NotAllowed = 2,
    /// Only CONNECT is supported.
    CommandNotSupported = 7,
    /// Not an IPv4 or IPv6 address, nor a host.
    AddressTypeNotSupported = 8,
}

/// A reply to the request. The bound address is not told: nobody needs it.
pub fn reply(code: Code) -> Vec<u8> {
    vec![VERSION, code as u8, 0, 1, 0, 0, 0, 0, 0, 0]
}

impl Handshake {
    /// Consumes what it can of `bytes`; what the client sent after its request stays in there.
    pub fn next(&mut self, bytes: &mut BytesMut) -> Step {
        if self.greeted { request(bytes) } else { self.greeting(bytes) }
    }

    fn greeting(&mut self, bytes: &mut BytesMut) -> Step {
        if bytes.first().is_some_and(|&version| version != VERSION) {
            return refuse(NO_METHOD.to_vec(), "not SOCKS version 5");
        }
        let Some(&count) = bytes.get(1) else { return Step::NeedMore };
        let end = 2 + usize::from(count);
        let Some(methods) = bytes.get(2..end) else { return Step::NeedMore };
        if !methods.contains(&0) {
            return refuse(
                NO_METHOD.to_vec(),
                "the client insists on authentication, which this port does not have",
            );
        }
        bytes.advance(end);
        self.greeted = true;
        Step::Send(NO_AUTHENTICATION)
    }
}

fn request(bytes: &mut BytesMut) -> Step {
    const CONNECT: u8 = 1;
    match **bytes {
        [version, ..] if version != VERSION => refuse(reply(Code::GeneralFailure), "not SOCKS version 5"),
        [_, command, ..] if command != CONNECT => {
            refuse(reply(Code::CommandNotSupported), "only the command CONNECT is supported")
        }
        [_, _, _, kind, ref rest @ ..] => match destination(kind, rest) {
            Destination::NeedMore => Step::NeedMore,
            Destination::Bad(code, reason) => refuse(reply(code), reason),
            Destination::Is(target, length) => {
                bytes.advance(4 + length);
                Step::Connect(target)
            }
        },
        _ => Step::NeedMore,
    }
}

enum Destination {
    NeedMore,
    Bad(Code, &'static str),
    /// With the length of its spelling.
    Is(Target, usize),
}

/// Address and port after the type `kind`.
fn destination(kind: u8, rest: &[u8]) -> Destination {
    const IPV4: u8 = 1;
    const DOMAIN: u8 = 3;
    const IPV6: u8 = 4;
    match kind {
        IPV4 => match rest {
            [a, b, c, d, port @ ..] => {
                with_port(port, 4, |port| address(Ipv4Addr::new(*a, *b, *c, *d), port))
            }
            _ => Destination::NeedMore,
        },
        IPV6 => match rest.split_first_chunk::<16>() {
            Some((octets, port)) => with_port(port, 16, |port| address(Ipv6Addr::from(*octets), port)),
            None => Destination::NeedMore,
        },
        DOMAIN => {
            let Some((&length, rest)) = rest.split_first() else { return Destination::NeedMore };
            let Some((host, port)) = rest.split_at_checked(length.into()) else {
                return Destination::NeedMore;
            };
            match std::str::from_utf8(host) {
                Ok(host) if host.is_ascii() && !host.is_empty() => {
                    let target = |port| Target::Host { host: host.to_ascii_lowercase(), port };
                    with_port(port, 1 + host.len(), target)
                }
                _ => Destination::Bad(Code::GeneralFailure, "the host name is empty or not ASCII"),
            }
        }
        _ => Destination::Bad(Code::AddressTypeNotSupported, "unknown address type"),
    }
}

fn address(ip: impl Into<IpAddr>, port: u16) -> Target {
    Target::Address(SocketAddr::new(ip.into(), port))
}

fn with_port(rest: &[u8], before: usize, target: impl FnOnce(u16) -> Target) -> Destination {
    match rest {
        [high, low, ..] => match u16::from_be_bytes([*high, *low]) {
            0 => Destination::Bad(Code::GeneralFailure, "port 0 cannot be dialled"),
            port => Destination::Is(target(port), before + 2),
        },
        _ => Destination::NeedMore,
    }
}

fn refuse(answer: Vec<u8>, reason: &'static str) -> Step {
    Step::Refuse { answer, reason }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GREETING: &[u8] = &[5, 1, 0];

    /// Feeds `bytes` in pieces of `size`; what was sent, the last step, what is left.
    fn feed(bytes: &[u8], size: usize) -> (Vec<u8>, Step, Vec<u8>) {
        let (mut handshake, mut buffer, mut sent) = (Handshake::default(), BytesMut::new(), Vec::new());
        let mut pieces = bytes.chunks(size.max(1));
        loop {
            match handshake.next(&mut buffer) {
                Step::Send(answer) => sent.extend_from_slice(answer),
                Step::NeedMore => match pieces.next() {
                    Some(piece) => buffer.extend_from_slice(piece),
                    None => return (sent, Step::NeedMore, buffer.to_vec()),
                },
                done => {
                    let rest = pieces.flatten().copied();
                    return (sent, done, buffer.iter().copied().chain(rest).collect());
                }
            }
        }
    }

    #[test]
    fn a_table_of_requests() {
        let host = Target::Host { host: "db.shop".to_owned(), port: 80 };
        let refused = |code| Err(reply(code));
        for (request, wanted) in [
            (&b"\x05\x01\0\x01\x0a\x60\x03\x04\0\x50"[..], Ok("10.96.3.4:80".to_owned())),
            (b"\x05\x01\0\x04\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x01\xbb", Ok("[fd00::1]:443".to_owned())),
            (b"\x05\x01\0\x03\x07DB.shop\0\x50", Ok(host.to_string())),
            (b"\x05\x02\0\x01", refused(Code::CommandNotSupported)),
            (b"\x05\x01\0\x02", refused(Code::AddressTypeNotSupported)),
            (b"\x05\x01\0\x03\x00\0\x50", refused(Code::GeneralFailure)),
            (b"\x05\x01\0\x03\x01\xff\0\x50", refused(Code::GeneralFailure)),
            (b"\x05\x01\0\x01\x0a\x60\x03\x04\0\0", refused(Code::GeneralFailure)),
            (b"\x04\x01\0", refused(Code::GeneralFailure)),
        ] {
            let bytes = [GREETING, request, b"early"].concat();
            for size in [1, 3, bytes.len()] {
                let (sent, step, rest) = feed(&bytes, size);
                assert_eq!(sent, NO_AUTHENTICATION);
                match (step, &wanted) {
                    (Step::Connect(target), Ok(text)) => {
                        assert_eq!((&target.to_string(), &rest[..]), (text, &b"early"[..]));
                    }
                    (Step::Refuse { answer, .. }, Err(wanted)) => assert_eq!(&answer, wanted),
                    (step, wanted) => panic!("{request:?}: {step:?}, not {wanted:?}"),
                }
            }
        }
    }

    #[test]
    fn greetings_without_a_usable_method_are_refused() {
        for greeting in [&[4, 1, 0][..], &[5, 1, 2], &[5, 0]] {
            let (_, step, _) = feed(greeting, 1);
            assert!(matches!(step, Step::Refuse { answer, .. } if answer == NO_METHOD), "{greeting:?}");
        }
        assert_eq!(feed(&[5, 2, 1], 1).1, Step::NeedMore);
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(tail in prop::collection::vec(any::<u8>(), 0..40), size in 1usize..8) {
            for start in [&b""[..], GREETING, b"\x05\x01\0\x05\x01\0\x03"] {
                let bytes = [start, &tail].concat();
                prop_assert_eq!(feed(&bytes, size), feed(&bytes, bytes.len()));
            }
        }
    }
}
