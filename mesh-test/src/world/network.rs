//! The network of a world: addresses of loopback, or pods as network namespaces joined by a bridge. There the
//! test itself is a host of the same network, outside of the mesh.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use rand::Rng as _;

use crate::namespace::{Namespace, ip};
use crate::place::Place;
use crate::subnet::Subnet;
use crate::topology::Families;

/// How the traffic of a world's pods gets to their sidecars.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Explicit ports on loopback: no root needed.
    Loopback,
    /// Captured, in network namespaces. The calling thread, and all of its runtime, must be in a namespace of its
    /// own (see [`crate::namespace::enter_new`]).
    Namespaces,
}

/// The test's own addresses.
const HOST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const HOST_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
/// The port that the pods' applications serve.
const PORT: u16 = 8080;
/// Addresses for measurements between networks (RFC 2544): here, all of the world outside of the mesh.
const OUTSIDE: &str = "198.18.0.0/15";

#[derive(Debug)]
pub(super) enum Network {
    Loopback(Subnet),
    Bridge(Families, Vec<Namespace>),
}

impl Network {
    /// A network for pods 1 to `pods`.
    pub(super) fn create(way: Way, families: Families, pods: u8) -> Result<Self> {
        match way {
            Way::Loopback => {
                ensure!(families == Families::V4, "loopback has one address of IPv6 only");
                Ok(Self::Loopback(Subnet::claim(pods)?))
            }
            Way::Namespaces => {
                // With an address of its own: else it takes that of one of its ports, and may change it.
                ip("link add mesh0 address 02:77:00:00:00:01 type bridge")?;
                for address in families.choose(HOST.into(), HOST_V6.into()) {
                    ip(&format!("addr add {} dev mesh0", with_length(address)))?;
                }
                ip("link set mesh0 up")?;
                ip(&format!("route add local {OUTSIDE} dev lo"))?;
                let pods = (1..=pods).map(|host| join(host, families)).collect::<Result<_>>()?;
                Ok(Self::Bridge(families, pods))
            }
        }
    }

    /// Where sockets of a pod are opened.
    pub(super) fn place(&self, host: u8) -> Result<Place> {
        match self {
            Self::Loopback(_) => Ok(Place::Here),
            Self::Bridge(_, pods) => {
                let pod = pods.get(usize::from(host.wrapping_sub(1))).context("no such pod")?;
                Ok(Place::In(pod.clone()))
            }
        }
    }

    /// The addresses of a pod, the main one first.
    pub(super) fn addresses(&self, host: u8) -> Vec<IpAddr> {
        match self {
            Self::Loopback(subnet) => vec![subnet.address(host).into()],
            Self::Bridge(families, _) => pod_addresses(host, *families),
        }
    }

    /// The port at which every pod is reached.
    pub(super) fn port(&self) -> u16 {
        match self {
            Self::Loopback(subnet) => subnet.port(),
            Self::Bridge(..) => PORT,
        }
    }

    /// Where mesh-control listens (port 0: any).
    pub(super) fn control(&self) -> SocketAddr {
        match self {
            Self::Loopback(_) => (Ipv4Addr::LOCALHOST, 0).into(),
            Self::Bridge(Families::V6, _) => (HOST_V6, 0).into(),
            Self::Bridge(..) => (HOST, 0).into(),
        }
    }

    /// A random address that is outside of the mesh, and this machine's all the same.
    pub(super) fn outside(&self) -> Ipv4Addr {
        let [a, b, c]: [u8; 3] = rand::rng().random();
        match self {
            Self::Bridge(..) => Ipv4Addr::new(198, 18 + a % 2, b, c),
            Self::Loopback(subnet) => {
                let address = Ipv4Addr::new(127, a, b, c);
                if address.octets()[..3] == subnet.address(0).octets()[..3] {
                    Ipv4Addr::LOCALHOST
                } else {
                    address
                }
            }
        }
    }
}

fn pod_addresses(host: u8, families: Families) -> Vec<IpAddr> {
    let v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 1, host.into());
    families.choose(Ipv4Addr::new(10, 77, 1, host).into(), v6.into())
}

/// For `ip addr add`; nobody else can have an address of IPv6, so nobody is asked whether he has.
fn with_length(address: IpAddr) -> String {
    if address.is_ipv4() { format!("{address}/16") } else { format!("{address}/64 nodad") }
}

/// A namespace at the bridge.
fn join(host: u8, families: Families) -> Result<Namespace> {
    let pod = Namespace::create()?;
    let id = pod.thread();
    ip(&format!("link add pod{host} type veth peer name eth0 netns {id}"))?;
    ip(&format!("link set pod{host} master mesh0 up"))?;
    let inside = |arguments: String| -> Result<()> {
        let status = std::process::Command::new("nsenter")
            .arg(format!("--net=/proc/{}/task/{id}/ns/net", std::process::id()))
            .arg("ip")
            .args(arguments.split_whitespace())
            .status()
            .context("cannot start nsenter; on Debian it is in the package util-linux")?;
        ensure!(status.success(), "ip {arguments} failed in the namespace of pod {host}");
        Ok(())
    };
    for address in pod_addresses(host, families) {
        inside(format!("addr add {} dev eth0", with_length(address)))?;
    }
    inside("link set eth0 up".to_owned())?;
    for gateway in families.choose(HOST.into(), HOST_V6.into()) {
        inside(format!("route add default via {gateway} dev eth0"))?;
    }
    Ok(pod)
}
