//! The proxy's own addresses that must never be dialled: whoever came by one of them and is sent there again
//! would come back for ever.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// The addresses. Cheap to clone; never changes.
#[derive(Debug, Clone, Default)]
pub struct OwnAddresses(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    listening: Vec<SocketAddr>,
    local: Vec<IpAddr>,
}

impl OwnAddresses {
    /// What is listened on, and the addresses of the machine or pod; loopback ones need not be named.
    pub fn new(
        listening: impl IntoIterator<Item = SocketAddr>,
        local: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        let listening = listening.into_iter().map(canonical).collect();
        let local = local.into_iter().map(|ip| ip.to_canonical()).collect();
        Self(Arc::new(Inner { listening, local }))
    }

    /// Whether a connection to this address would reach the proxy itself.
    pub fn holds(&self, address: SocketAddr) -> bool {
        let to = canonical(address);
        let is_local = || to.ip().is_loopback() || self.0.local.contains(&to.ip());
        self.0.listening.iter().any(|own| {
            // The unspecified address reaches this machine, whichever side it stands on.
            let same = own.ip() == to.ip() || to.ip().is_unspecified();
            own.port() == to.port() && (same || (own.ip().is_unspecified() && is_local()))
        })
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_in_every_spelling() {
        let parse = |text: &str| text.parse::<SocketAddr>().unwrap();
        let pod: IpAddr = "10.0.0.1".parse().unwrap();
        let own = OwnAddresses::new([parse("0.0.0.0:15001"), parse("127.0.0.11:15002")], [pod]);
        for (to, expected) in [
            ("10.0.0.1:15001", true),
            ("127.0.0.1:15001", true),
            ("127.9.9.9:15001", true),
            ("[::1]:15001", true),
            ("[::ffff:10.0.0.1]:15001", true),
            ("0.0.0.0:15001", true),
            ("10.0.0.2:15001", false),
            ("10.0.0.1:15003", false),
            ("127.0.0.11:15002", true),
            ("0.0.0.0:15002", true),
            ("127.0.0.12:15002", false),
            ("10.0.0.1:15002", false),
        ] {
            assert_eq!(own.holds(parse(to)), expected, "{to}");
        }
    }
}
