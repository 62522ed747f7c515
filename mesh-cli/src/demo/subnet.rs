//! Loopback addresses for the pods: a /24 of 127.0.0.0/8 that nobody else uses, and a port that is free on
//! all of them. A listener on the last address marks the network as taken while the demo runs.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use rand::Rng as _;

/// A claimed network.
#[derive(Debug)]
pub(super) struct Subnet {
    network: [u8; 3],
    port: u16,
    _claim: TcpListener,
}

/// No network is free.
#[derive(Debug, thiserror::Error)]
#[error(
    "no free network was found in 127.0.0.0/8 after {ATTEMPTS} attempts (the last: {0}); is loopback up?"
)]
pub(crate) struct SubnetError(String);

const ATTEMPTS: usize = 50;
/// Marks a network as taken, for the demo and for tests alike; nothing is ever sent to it.
const CLAIM_PORT: u16 = 15_099;
/// The port that pods listen on, if it is free: people know it from other demos.
const FAVOURITE: u16 = 9080;

impl Subnet {
    /// Finds a network for pods 1 to `pods`.
    pub(super) fn claim(pods: u8) -> Result<Self, SubnetError> {
        let mut last = String::new();
        for attempt in 0..ATTEMPTS {
            let mut random = rand::rng();
            let network = [127, random.random_range(10..250), random.random_range(0..=255)];
            // Below the range from which the system picks source ports.
            let port = if attempt < 5 { FAVOURITE } else { random.random_range(10_000..30_000) };
            match try_claim(network, pods, port) {
                Ok(claim) => return Ok(Self { network, port, _claim: claim }),
                Err(error) => last = error.to_string(),
            }
        }
        Err(SubnetError(last))
    }

    /// The address of a pod.
    pub(super) fn address(&self, host: u8) -> Ipv4Addr {
        let [a, b, c] = self.network;
        Ipv4Addr::new(a, b, c, host)
    }

    /// The port that every pod listens on.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// `127.31.7.0/24`.
    pub(super) fn range(&self) -> String {
        format!("{}/24", self.address(0))
    }
}

fn try_claim(network: [u8; 3], pods: u8, port: u16) -> std::io::Result<TcpListener> {
    let [a, b, c] = network;
    let claim = TcpListener::bind(SocketAddr::from((Ipv4Addr::new(a, b, c, 254), CLAIM_PORT)))?;
    for host in 1..=pods {
        TcpListener::bind(SocketAddr::from((Ipv4Addr::new(a, b, c, host), port)))?;
    }
    Ok(claim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_claimed_once() {
        let subnet = Subnet::claim(3).unwrap();
        let taken = try_claim(subnet.network, 3, subnet.port).unwrap_err();
        assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
    }
}
