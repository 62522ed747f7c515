//! Connections that the pod's network rules sent here (see [`crate::redirect`]): where they wanted to go, and
//! that this is not the proxy itself.

use std::io;
use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

/// Ports at which captured connections arrive, on every address of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capture {
    /// Connections to the pod.
    pub inbound: u16,
    /// Connections from the pod.
    pub outbound: u16,
    /// Where the proxy's own admin pages are served: never reached through the proxy.
    pub admin: u16,
}

/// Why there is no destination to go on to.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoDestination {
    /// Whoever dialled knows the proxy's port, by whatever address.
    #[error(
        "the connection is for the proxy's own port {0}, which is for captured connections only; it would come \
         back for ever"
    )]
    Own(u16),
    /// The kernel does not know.
    #[error(
        "the kernel does not say where the connection wanted to go ({0}); are the network rules of `mesh-proxy \
         redirect` in place?"
    )]
    Unknown(io::Error),
}

impl NoDestination {
    /// The reason as a metric's label.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Own(_) => "own_port",
            Self::Unknown(_) => "not_captured",
        }
    }
}

/// Where a captured connection from the pod wanted to go. Others may well serve something at the numbers of this
/// proxy's ports.
pub(super) fn outbound(stream: &TcpStream) -> Result<SocketAddr, NoDestination> {
    let (original, local) = addresses(stream)?;
    not_here(original, local)
}

/// Where a captured connection to the pod wanted to go: to none of the proxy's own ports.
pub(super) fn inbound(stream: &TcpStream, capture: Capture) -> Result<SocketAddr, NoDestination> {
    let (original, local) = addresses(stream)?;
    not_own(not_here(original, local)?, capture)
}

/// A connection that nothing redirected wants to go where it is.
fn not_here(original: SocketAddr, local: SocketAddr) -> Result<SocketAddr, NoDestination> {
    if original == local { Err(NoDestination::Own(original.port())) } else { Ok(original) }
}

fn not_own(original: SocketAddr, capture: Capture) -> Result<SocketAddr, NoDestination> {
    let Capture { inbound, outbound, admin } = capture;
    let port = original.port();
    if [inbound, outbound, admin].contains(&port) { Err(NoDestination::Own(port)) } else { Ok(original) }
}

fn addresses(stream: &TcpStream) -> Result<(SocketAddr, SocketAddr), NoDestination> {
    let addresses = || {
        let local = stream.local_addr()?;
        Ok((original(stream, local)?, local))
    };
    addresses().map_err(NoDestination::Unknown)
}

fn original(stream: &TcpStream, local: SocketAddr) -> io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    let address = if local.is_ipv4() { socket.original_dst_v4()? } else { socket.original_dst_v6()? };
    let address = address.as_socket().ok_or(io::ErrorKind::InvalidData)?;
    // Without scope and flow label: they mean nothing to another machine.
    Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_ports_are_refused_by_any_address() {
        let capture = Capture { inbound: 15006, outbound: 15001, admin: 15000 };
        for (original, local, allowed_in, allowed_out) in [
            ("10.1.2.3:80", "127.0.0.1:15001", true, true),
            ("[fd00::1]:80", "[::1]:15001", true, true),
            ("10.1.2.3:15001", "10.1.2.3:15006", false, true),
            ("10.1.2.3:15006", "10.1.2.3:15006", false, false),
            ("10.1.2.3:15000", "10.1.2.3:15006", false, true),
            ("127.0.0.1:15001", "127.0.0.1:15001", false, false),
            ("[::1]:15001", "[::1]:15001", false, false),
        ] {
            let (original, local) = (original.parse().unwrap(), local.parse().unwrap());
            let out = not_here(original, local);
            assert_eq!(out.is_ok(), allowed_out, "{original} at {local}");
            let into = out.and_then(|original| not_own(original, capture));
            assert_eq!(into.is_ok(), allowed_in, "{original} at {local}");
        }
    }
}
