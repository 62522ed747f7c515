//! A wire that is long and loses packets: carries every frame of a pod by hand, late or never. For kernels that
//! cannot do it themselves (`sch_netem`), and for those that can: it needs nothing but packet sockets.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;
use rand::Rng as _;
use tokio::time::Instant;

use crate::namespace::{ip, run};

/// How bad a wire is, in each direction.
#[derive(Debug, Clone, Copy)]
pub struct Quality {
    /// How late each frame arrives.
    pub delay: Duration,
    /// How many in a thousand do not arrive.
    pub lost_per_mille: u32,
}

/// A pod's wire in the hands of this test; it is cut when this is dropped.
#[derive(Debug)]
pub struct SlowWire {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    stopped: AtomicBool,
    carried: AtomicU64,
    lost: AtomicU64,
}

impl SlowWire {
    /// Takes the wire of pod number `host` out of the bridge, and carries its frames from now on. In the network
    /// of the calling thread; needs root, `ip` and `ethtool`. The pod's own device must have been told to finish
    /// what it sends (`ethtool -K eth0 tx off`).
    ///
    /// # Errors
    /// When the system refuses.
    pub fn of(host: u8, quality: Quality) -> Result<Self> {
        let (pod, near, far) = (format!("pod{host}"), format!("near{host}"), format!("far{host}"));
        ip(&format!("link add {near} type veth peer name {far}"))?;
        ip(&format!("link set {pod} nomaster"))?;
        ip(&format!("link set {far} master mesh0 up"))?;
        ip(&format!("link set {near} up promisc on"))?;
        ip(&format!("link set {pod} promisc on"))?;
        // What no device will finish must be whole before it is carried: checksums, and segments of one frame.
        run("ethtool", &format!("-K {far} tx off"))?;
        let shared = Arc::new(Shared::default());
        carry(&pod, &near, quality, &shared)?;
        carry(&near, &pod, quality, &shared)?;
        Ok(Self { shared })
    }

    /// Frames that were carried, and frames that were lost.
    pub fn counts(&self) -> (u64, u64) {
        (self.shared.carried.load(Ordering::Relaxed), self.shared.lost.load(Ordering::Relaxed))
    }
}

impl Drop for SlowWire {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
    }
}

/// Frames under way: when each is due.
type Queue = Arc<(Mutex<VecDeque<(Instant, Vec<u8>)>>, Condvar)>;

/// More than a window of TCP; what comes then is lost, as in any router.
const MAX_UNDER_WAY: usize = 10_000;
/// `PACKET_OUTGOING`: a frame that this machine sent by the interface itself.
const PACKET_OUTGOING: u8 = 4;
const TICK: TimeVal = TimeVal::new(0, 50_000);

/// Carries frames of one direction.
fn carry(from: &str, to: &str, quality: Quality, shared: &Arc<Shared>) -> Result<()> {
    let (from, to) = (open(from)?, open(to)?);
    let queue = Queue::default();
    let (reading, read_shared) = (Arc::clone(&queue), Arc::clone(shared));
    thread::Builder::new()
        .name("wire in".to_owned())
        .spawn(move || read(&from, quality, &reading, &read_shared))?;
    let shared = Arc::clone(shared);
    thread::Builder::new().name("wire out".to_owned()).spawn(move || write(&to, &queue, &shared))?;
    Ok(())
}

fn read(from: &OwnedFd, quality: Quality, queue: &Queue, shared: &Shared) {
    let mut frame = vec![0; 64 << 10];
    while !shared.stopped.load(Ordering::Relaxed) {
        let Ok((length, Some(sender))) = recvfrom::<LinkAddr>(from.as_raw_fd(), &mut frame) else { continue };
        if sender.pkttype() == PACKET_OUTGOING {
            continue; // what the other direction has carried
        }
        let (frames, news) = &**queue;
        let mut frames = frames.lock().unwrap_or_else(PoisonError::into_inner);
        if frames.len() >= MAX_UNDER_WAY || rand::rng().random_ratio(quality.lost_per_mille, 1000) {
            shared.lost.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        frames.push_back((Instant::now() + quality.delay, frame[..length].to_vec()));
        news.notify_one();
    }
}

fn write(to: &OwnedFd, queue: &Queue, shared: &Shared) {
    let (frames, news) = &**queue;
    while !shared.stopped.load(Ordering::Relaxed) {
        let next = {
            let frames = frames.lock().unwrap_or_else(PoisonError::into_inner);
            let wait = news.wait_timeout_while(frames, Duration::from_millis(50), |frames| frames.is_empty());
            wait.unwrap_or_else(PoisonError::into_inner).0.pop_front()
        };
        let Some((due, frame)) = next else { continue };
        thread::sleep(due.saturating_duration_since(Instant::now()));
        // A frame that the device does not take is one more that is lost.
        match send(to.as_raw_fd(), &frame, MsgFlags::empty()) {
            Ok(_) => shared.carried.fetch_add(1, Ordering::Relaxed),
            Err(_) => shared.lost.fetch_add(1, Ordering::Relaxed),
        };
    }
}

/// A packet socket at one interface, which sees what comes in there.
fn open(interface: &str) -> Result<OwnedFd> {
    let device = device(interface)?;
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
        .context("packet sockets need root")?;
    bind(socket.as_raw_fd(), &device)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TICK)?;
    setsockopt(&socket, sockopt::RcvBuf, &(8 << 20))?;
    Ok(socket)
}

fn device(interface: &str) -> Result<LinkAddr> {
    let mut all = nix::ifaddrs::getifaddrs()?;
    let found = all.find_map(|entry| {
        (entry.interface_name == interface).then(|| entry.address?.as_link_addr().copied()).flatten()
    });
    found.with_context(|| format!("there is no interface {interface}"))
}
