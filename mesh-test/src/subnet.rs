//! Loopback addresses of a world: a /24 of 127.0.0.0/8 and a port that is free on all of its pods, so that
//! worlds run side by side. A listener on the last address marks the network as taken.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Result, bail};
use rand::Rng as _;

use crate::topology::PORTS;

const ATTEMPTS: usize = 100;
/// Marks a network as taken, for tests and for `meshctl demo` alike; nothing is ever sent to it.
const CLAIM_PORT: u16 = 15_099;

/// A claimed network.
#[derive(Debug)]
pub struct Subnet {
    network: [u8; 3],
    port: u16,
    _claim: TcpListener,
}

impl Subnet {
    /// Finds a network for pods 1 to `pods`, with [`Subnet::port`] and those after it ([`PORTS`]) free on each.
    ///
    /// # Errors
    /// When none is free.
    pub fn claim(pods: u8) -> Result<Self> {
        for _ in 0..ATTEMPTS {
            let mut random = rand::rng();
            let network = [127, random.random_range(10..250), random.random_range(0..=255)];
            // Below the range from which the system picks source ports.
            let port = random.random_range(10_000..30_000);
            if let Ok(claim) = try_claim(network, pods, port) {
                return Ok(Self { network, port, _claim: claim });
            }
        }
        bail!("no network of 127.0.0.0/8 is free after {ATTEMPTS} attempts")
    }

    /// The address of a pod.
    pub fn address(&self, host: u8) -> Ipv4Addr {
        let [a, b, c] = self.network;
        Ipv4Addr::new(a, b, c, host)
    }

    /// The first of the ports that pods are reached at.
    pub fn port(&self) -> u16 {
        self.port
    }
}

fn try_claim(network: [u8; 3], pods: u8, port: u16) -> std::io::Result<TcpListener> {
    let [a, b, c] = network;
    let claim = TcpListener::bind(SocketAddr::from((Ipv4Addr::new(a, b, c, 254), CLAIM_PORT)))?;
    for host in 1..=pods {
        for distance in PORTS {
            TcpListener::bind(SocketAddr::from((Ipv4Addr::new(a, b, c, host), port + distance)))?;
        }
    }
    Ok(claim)
}
