//! What passes on a pod's wire: seen by a relay before it on loopback, by a packet socket where it is an
//! interface of its own.

use std::io::Read as _;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use socket2::{Domain, Protocol, Socket, Type};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::relay::Relay;

/// More than a scenario ever sends; the rest is not kept.
const MAX_KEPT: usize = 16 << 20;
/// `ETH_P_ALL`: packets of every protocol.
const ETH_P_ALL: u16 = 0x0003;
/// How long a read waits, so that the end is seen.
const TICK: Duration = Duration::from_millis(50);

/// The wire of one pod.
#[derive(Debug)]
pub enum Wire {
    /// A relay that every connection to the pod passes.
    Relay(Relay),
    /// A copy of every packet from or to the pod.
    Packets(Packets),
}

/// A packet capture; it ends when this is dropped.
#[derive(Debug)]
pub struct Packets {
    kept: Arc<Mutex<Vec<u8>>>,
    _stop: DropGuard,
}

impl Wire {
    /// How many times `marker` passed, both directions.
    pub fn count(&self, marker: &[u8]) -> usize {
        match self {
            Self::Relay(relay) => relay.count(marker),
            Self::Packets(packets) => packets.count(marker),
        }
    }

    /// Bytes that passed.
    pub fn len(&self) -> usize {
        match self {
            Self::Relay(relay) => relay.len(),
            Self::Packets(packets) => packets.bytes(),
        }
    }

    /// Whether nothing passed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Packets {
    /// Keeps the packets of `pod`, in the network of the calling thread. Packet sockets need root.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn of(pod: IpAddr) -> Result<Self> {
        let protocol = Protocol::from(i32::from(ETH_P_ALL.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol))?;
        socket.set_read_timeout(Some(TICK))?;
        socket.set_recv_buffer_size(8 << 20)?;
        let (kept, stop) = (Arc::new(Mutex::new(Vec::new())), CancellationToken::new());
        let (copy, stopped) = (Arc::clone(&kept), stop.clone());
        std::thread::Builder::new()
            .name("packets".to_owned())
            .spawn(move || keep(socket, pod, &copy, &stopped))?;
        Ok(Self { kept, _stop: stop.drop_guard() })
    }

    /// How many times `marker` passed, both directions.
    pub fn count(&self, marker: &[u8]) -> usize {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.windows(marker.len()).filter(|window| *window == marker).count()
    }

    /// Bytes that passed.
    pub fn bytes(&self) -> usize {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

fn keep(mut socket: Socket, pod: IpAddr, kept: &Mutex<Vec<u8>>, stopped: &CancellationToken) {
    let mut packet = vec![0; 64 << 10];
    while !stopped.is_cancelled() {
        let Ok(length) = socket.read(&mut packet) else { continue };
        let packet = &packet[..length];
        // Source and destination in the headers of IPv4 (RFC 791) and IPv6 (RFC 8200).
        let is_pods = match pod {
            IpAddr::V4(ip) => {
                packet.get(12..20).is_some_and(|ends| ends.chunks(4).any(|end| end == ip.octets()))
            }
            IpAddr::V6(ip) => {
                packet.get(8..40).is_some_and(|ends| ends.chunks(16).any(|end| end == ip.octets()))
            }
        };
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if is_pods && kept.len() < MAX_KEPT {
            kept.extend_from_slice(packet);
        }
    }
}
