//! Sockets: bind, accept, hand out. One acceptor on the control thread gives each accepted socket to the next
//! data worker in turn; running out of file descriptors must never end it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::{OptionFuture, join_all};
use mesh_common::process::{DrainGuard, DrainWatch};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::refuse::LogBudget;
use super::{Addresses, Capture, InboundPort, ListenError, Options, inbound, outbound};
use crate::connect::keepalive;
use crate::worker::Worker;

/// All bound listeners, not accepting yet.
#[derive(Debug)]
pub struct Listeners {
    addresses: Addresses,
    sockets: Vec<(TcpListener, Door)>,
    max_connections: usize,
    propagation: Duration,
    linger: Duration,
}

/// Which kind of listener a connection came through.
#[derive(Debug, Clone, Copy)]
enum Door {
    Inbound(InboundPort),
    Outbound,
    CapturedInbound(Capture),
    CapturedOutbound,
}

impl Door {
    fn is_inbound(self) -> bool {
        matches!(self, Self::Inbound(_) | Self::CapturedInbound(_))
    }
}

impl Listeners {
    /// Binds every listener. Call it inside the control thread's runtime.
    ///
    /// # Errors
    /// When an address cannot be listened on.
    pub fn bind(options: &Options) -> Result<Self, ListenError> {
        let mut addresses = Addresses::default();
        let mut sockets = Vec::new();
        for &InboundPort { listen, app } in &options.inbound {
            if listen == app {
                return Err(ListenError::Loop(listen));
            }
            let (socket, listen) = bind(listen)?;
            addresses.inbound.push(listen);
            sockets.push((socket, Door::Inbound(InboundPort { listen, app })));
        }
        if let Some(address) = options.outbound {
            let (socket, address) = bind(address)?;
            addresses.outbound = Some(address);
            sockets.push((socket, Door::Outbound));
        }
        if let Some(capture) = options.capture {
            for (port, door) in [
                (capture.inbound, Door::CapturedInbound(capture)),
                (capture.outbound, Door::CapturedOutbound),
            ] {
                sockets.extend(bind_everywhere(port)?.into_iter().map(|(socket, _)| (socket, door)));
            }
        }
        let Options { max_connections, propagation, linger, .. } = *options;
        Ok(Self { addresses, sockets, max_connections, propagation, linger })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The accepting side, for the control thread, and one queue for each data worker.
    pub fn split(self, workers: usize) -> (Acceptor, Vec<Accepted>) {
        self.split_bounded(workers, HAND_OUT_BOUND)
    }

    fn split_bounded(self, workers: usize, bound: usize) -> (Acceptor, Vec<Accepted>) {
        let (senders, queues) = (0..workers).map(|_| mpsc::channel(bound)).unzip();
        let queues = Vec::into_iter(queues).map(|queue| Accepted { queue }).collect();
        let permits = Arc::new(Semaphore::new(self.max_connections.min(Semaphore::MAX_PERMITS)));
        let hand_out = HandOut { workers: senders, next: 0.into(), permits, outbound: Arc::default() };
        let Self { sockets, propagation, linger, .. } = self;
        (Acceptor { sockets, propagation, linger, hand_out }, queues)
    }
}

/// Connections that may wait for one worker to take them.
const HAND_OUT_BOUND: usize = 256;
/// Connections that may wait in the kernel to be accepted.
const BACKLOG: i32 = 4096;

/// A listener for IPv4 and, where the pod has it, one for IPv6: the kernel tells the original destination only
/// to a socket of the same family.
pub(crate) fn bind_everywhere(port: u16) -> Result<Vec<(TcpListener, SocketAddr)>, ListenError> {
    let mut sockets = vec![bind((Ipv4Addr::UNSPECIFIED, port).into())?];
    match bind((Ipv6Addr::UNSPECIFIED, port).into()) {
        Ok(socket) => sockets.push(socket),
        // This pod has no IPv6.
        Err(ListenError::NotLocal(_)) => {}
        Err(ListenError::Io { source, .. }) if source.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
        Err(error) => return Err(error),
    }
    Ok(sockets)
}

pub(crate) fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ListenError> {
    let open = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        // Accepted sockets take these over from the listening one.
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(&keepalive())?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from_std(socket.into())?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    open().map_err(|source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::Taken(address),
        io::ErrorKind::PermissionDenied => ListenError::Denied(address),
        io::ErrorKind::AddrNotAvailable => ListenError::NotLocal(address),
        _ => ListenError::Io { address, source },
    })
}

/// Accepts connections, on the control thread.
#[derive(Debug)]
pub struct Acceptor {
    sockets: Vec<(TcpListener, Door)>,
    propagation: Duration,
    linger: Duration,
    hand_out: HandOut,
}

impl Acceptor {
    /// Accepts for as long as it is polled. Once drain has begun and the propagation window is over, inbound
    /// listeners close; outbound goes on. When the process is to end, it waits until the application has had no
    /// connection for a moment.
    pub async fn run(self, drain: DrainGuard) {
        let Self { sockets, propagation, linger, hand_out } = self;
        let watch = drain.watch();
        let (inbound, outbound): (Vec<_>, Vec<_>) =
            sockets.into_iter().partition(|(_, door)| door.is_inbound());
        let silence = (!outbound.is_empty()).then(|| silence(drain.clone(), linger, &hand_out.outbound));
        let inbound = async {
            accept_all(&inbound, &hand_out, &watch, Some(propagation)).await;
            drop((inbound, drain));
        };
        let outbound = accept_all(&outbound, &hand_out, &watch, None);
        tokio::join!(inbound, outbound, OptionFuture::from(silence));
        // Without an outbound port there is nothing left to do; the workers' queues stay open all the same.
        std::future::pending::<()>().await;
    }
}

/// Keeps a process that is to end from being done while its application opens connections, or has done so within
/// `linger`: it may be at work still, and nobody else says when it is over.
async fn silence(drain: DrainGuard, linger: Duration, open: &Arc<()>) {
    let mut watch = drain.watch();
    let mut held = Some(drain);
    watch.finishing().await;
    let mut since = Instant::now();
    loop {
        if Arc::strong_count(open) > 1 {
            since = Instant::now();
        }
        if since.elapsed() >= linger {
            held = None;
        } else if held.is_none() {
            held = watch.guard();
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn accept_all(
    sockets: &[(TcpListener, Door)],
    hand_out: &HandOut,
    drain: &DrainWatch,
    window: Option<Duration>,
) {
    join_all(sockets.iter().map(|(socket, door)| accept(socket, *door, hand_out, drain, window))).await;
}

/// Accepts on one listener: until drain has begun and `window` is over, or for ever. It ends between two
/// connections, never with one in its hands.
async fn accept(
    socket: &TcpListener,
    door: Door,
    hand_out: &HandOut,
    drain: &DrainWatch,
    window: Option<Duration>,
) {
    let mut closing = pin!(closing(drain.clone(), window));
    let mut pause = FIRST_PAUSE;
    loop {
        let accepted = tokio::select! {
            accepted = accept_one(socket) => accepted,
            () = &mut closing => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                pause = FIRST_PAUSE;
                // None once all work is done: the process ends at this moment.
                let Some(guard) = drain.guard() else { return };
                hand_out.give(stream, peer, door, guard).await;
            }
            Err(error) if is_clients_fault(&error) => {}
            Err(error) => {
                // Out of descriptors or memory: what is open goes on, and closing connections free some.
                if LOG.allow() {
                    tracing::warn!(%error, "a connection could not be accepted, it waits");
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

async fn closing(mut drain: DrainWatch, window: Option<Duration>) {
    match window {
        Some(window) => {
            drain.draining().await;
            tokio::time::sleep(window).await;
        }
        None => std::future::pending().await,
    }
}

/// How often it is looked whether the application has connections, at the end of the process.
const LOOK: Duration = Duration::from_millis(50);
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
static LOG: LogBudget = LogBudget::new();

/// The socket leaves this thread's runtime at once: it belongs to the worker that gets it.
async fn accept_one(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (stream, peer) = listener.accept().await?;
    Ok((stream.into_std()?, peer))
}

/// Errors of the connection that was about to be accepted, not of the listener (accept(2)).
fn is_clients_fault(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionReset, HostUnreachable, Interrupted, NetworkUnreachable,
    };
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | HostUnreachable | Interrupted | NetworkUnreachable
    )
}

/// Gives connections to the workers in turn.
#[derive(Debug)]
struct HandOut {
    workers: Vec<mpsc::Sender<Handed>>,
    next: AtomicUsize,
    permits: Arc<Semaphore>,
    /// Cloned for each of the application's connections, so that they can be counted.
    outbound: Arc<()>,
}

/// A connection on its way to a worker. It carries its guard along: one that was accepted is served, also when
/// the drain comes to its end while it waits for the worker.
#[derive(Debug)]
struct Handed {
    stream: TcpStream,
    peer: SocketAddr,
    door: Door,
    permit: OwnedSemaphorePermit,
    guard: DrainGuard,
    outbound: Option<Arc<()>>,
}

impl HandOut {
    async fn give(&self, stream: TcpStream, peer: SocketAddr, door: Door, guard: DrainGuard) {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            // Waiting instead would let idle clients block everyone; closing tells this one at once.
            if LOG.allow() {
                tracing::warn!(%peer, "too many connections are open, this one is closed");
            }
            return;
        };
        let outbound = (!door.is_inbound()).then(|| Arc::clone(&self.outbound));
        let mut handed = Handed { stream, peer, door, permit, guard, outbound };
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let count = self.workers.len();
        for worker in (0..count).filter_map(|offset| self.workers.get((turn.wrapping_add(offset)) % count)) {
            match worker.try_send(handed) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Full(back) | mpsc::error::TrySendError::Closed(back)) => {
                    handed = back;
                }
            }
        }
        // Every queue is full: the kernel's backlog is the next one.
        if let Some(worker) = self.workers.get(turn % count.max(1))
            && worker.send(handed).await.is_err()
        {
            tracing::error!("a data worker is gone");
        }
    }
}

/// The connections handed to one data worker.
#[derive(Debug)]
pub struct Accepted {
    queue: mpsc::Receiver<Handed>,
}

/// Serves the connections handed to `worker`, each as a task of its own, until the acceptor is gone.
/// Call it inside the worker's `LocalSet`.
pub async fn serve(worker: Rc<Worker>, accepted: Accepted) {
    let Accepted { mut queue } = accepted;
    let mut connections = JoinSet::new();
    let mut drain = worker.drain.clone();
    // For all of them here: a connection that listened itself would ask at each of its wake-ups, under a lock that
    // all workers share.
    let mut stopping = pin!(drain.stopping());
    let (mut open, mut stopped) = (true, false);
    while open || !connections.is_empty() {
        tokio::select! {
            handed = queue.recv(), if open => match handed {
                Some(handed) if !stopped => {
                    connections.spawn_local(connection(Rc::clone(&worker), handed));
                }
                Some(_) => {}
                None => open = false,
            },
            Some(ended) = connections.join_next() => report(ended),
            () = &mut stopping, if !stopped => {
                stopped = true;
                connections.abort_all();
            }
        }
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && !error.is_cancelled()
    {
        tracing::error!(%error, "a connection's task broke");
    }
}

async fn connection(worker: Rc<Worker>, handed: Handed) {
    // Held to the end: the place among all connections, and what keeps the process from being done.
    let Handed { stream, peer, door, permit: _permit, guard: _guard, outbound: _outbound } = handed;
    let stream = match register(stream) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::warn!(%error, "an accepted connection could not be taken over");
            return;
        }
    };
    // Boxed: the futures of both directions are large, and one of them is enough.
    let serving: std::pin::Pin<Box<dyn Future<Output = ()>>> = match door {
        Door::Inbound(port) => Box::pin(inbound::serve(worker, stream, peer, port)),
        Door::Outbound => Box::pin(outbound::serve(worker, stream, peer)),
        Door::CapturedInbound(capture) => Box::pin(inbound::captured(worker, stream, peer, capture)),
        Door::CapturedOutbound => Box::pin(outbound::captured(worker, stream, peer)),
    };
    serving.await;
}

/// Makes the socket this worker's own.
fn register(stream: TcpStream) -> io::Result<tokio::net::TcpStream> {
    if !SockRef::from(&stream).tcp_nodelay()? {
        stream.set_nodelay(true)?; // not on Linux, where it was taken over from the listener
    }
    tokio::net::TcpStream::from_std(stream)
}

#[cfg(test)]
mod tests;
