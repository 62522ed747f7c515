//! Sockets: bind, accept, hand out. One acceptor on the control thread gives each accepted socket to the next
//! data worker in turn; running out of file descriptors must never end it.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use mesh_common::process::DrainGuard;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use super::refuse::LogBudget;
use super::{Addresses, InboundPort, ListenError, Options, inbound, outbound};
use crate::worker::Worker;

/// All bound listeners, not accepting yet.
#[derive(Debug)]
pub struct Listeners {
    addresses: Addresses,
    sockets: Vec<(TcpListener, Door)>,
    max_connections: usize,
    propagation: Duration,
}

/// Which kind of listener a connection came through.
#[derive(Debug, Clone, Copy)]
enum Door {
    Inbound(InboundPort),
    Outbound,
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
        let (max_connections, propagation) = (options.max_connections, options.propagation);
        Ok(Self { addresses, sockets, max_connections, propagation })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The accepting side, for the control thread, and one queue for each data worker.
    pub fn split(self, workers: usize) -> (Acceptor, Vec<Accepted>) {
        let (senders, queues) = (0..workers).map(|_| mpsc::channel(HAND_OUT_BOUND)).unzip();
        let queues = Vec::into_iter(queues).map(|queue| Accepted { queue }).collect();
        let permits = Arc::new(Semaphore::new(self.max_connections.min(Semaphore::MAX_PERMITS)));
        let hand_out = HandOut { workers: senders, next: 0.into(), permits };
        (Acceptor { sockets: self.sockets, propagation: self.propagation, hand_out }, queues)
    }
}

/// Connections that may wait for one worker to take them.
const HAND_OUT_BOUND: usize = 256;
/// Connections that may wait in the kernel to be accepted.
const BACKLOG: i32 = 4096;

fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ListenError> {
    let open = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        // Accepted sockets take these over from the listening one.
        socket.set_tcp_nodelay(true)?;
        let (idle, interval) = (Duration::from_secs(60), Duration::from_secs(20));
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle).with_interval(interval))?;
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
    hand_out: HandOut,
}

impl Acceptor {
    /// Accepts for as long as it is polled. Once drain has begun and the propagation window is over, inbound
    /// listeners close; outbound goes on, and no longer keeps the process from being done.
    pub async fn run(self, mut drain: DrainGuard) {
        let Self { sockets, propagation, hand_out } = self;
        let (inbound, outbound): (Vec<_>, Vec<_>) =
            sockets.into_iter().partition(|(_, door)| matches!(door, Door::Inbound(_)));
        let inbound = async {
            tokio::select! {
                _ = join_all(inbound.iter().map(|(socket, door)| accept(socket, *door, &hand_out))) => {}
                () = async { drain.draining().await; tokio::time::sleep(propagation).await } => {}
            }
            drop((inbound, drain));
        };
        let outbound = join_all(outbound.iter().map(|(socket, door)| accept(socket, *door, &hand_out)));
        tokio::join!(inbound, outbound);
        // Without an outbound port there is nothing left to do; the workers' queues stay open all the same.
        std::future::pending::<()>().await;
    }
}

/// Accepts on one listener, for ever.
async fn accept(socket: &TcpListener, door: Door, hand_out: &HandOut) {
    let mut pause = FIRST_PAUSE;
    loop {
        match accept_one(socket).await {
            Ok((stream, peer)) => {
                pause = FIRST_PAUSE;
                hand_out.give(stream, peer, door).await;
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
}

/// A connection on its way to a worker.
#[derive(Debug)]
struct Handed {
    stream: TcpStream,
    peer: SocketAddr,
    door: Door,
    permit: OwnedSemaphorePermit,
}

impl HandOut {
    async fn give(&self, stream: TcpStream, peer: SocketAddr, door: Door) {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            // Waiting instead would let idle clients block everyone; closing tells this one at once.
            if LOG.allow() {
                tracing::warn!(%peer, "too many connections are open, this one is closed");
            }
            return;
        };
        let mut handed = Handed { stream, peer, door, permit };
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
    loop {
        tokio::select! {
            handed = queue.recv() => match handed {
                Some(handed) => {
                    if let Some(guard) = worker.drain.guard() {
                        connections.spawn_local(connection(Rc::clone(&worker), handed, guard));
                    }
                }
                None => break,
            },
            Some(ended) = connections.join_next() => report(ended),
        }
    }
    while let Some(ended) = connections.join_next().await {
        report(ended);
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a connection's task broke");
    }
}

async fn connection(worker: Rc<Worker>, handed: Handed, mut guard: DrainGuard) {
    let Handed { stream, peer, door, permit } = handed;
    let stream = match register(stream) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::warn!(%error, "an accepted connection could not be taken over");
            return;
        }
    };
    // Boxed: the futures of both directions are large, and one of them is enough.
    let serve: std::pin::Pin<Box<dyn Future<Output = ()>>> = match door {
        Door::Inbound(port) => Box::pin(inbound::serve(worker, stream, peer, port)),
        Door::Outbound => Box::pin(outbound::serve(worker, stream, peer)),
    };
    tokio::select! {
        () = serve => {}
        () = guard.stopping() => {}
    }
    drop(permit);
}

/// Makes the socket this worker's own.
fn register(stream: TcpStream) -> io::Result<tokio::net::TcpStream> {
    if !SockRef::from(&stream).tcp_nodelay()? {
        stream.set_nodelay(true)?; // not on Linux, where it was taken over from the listener
    }
    tokio::net::TcpStream::from_std(stream)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use mesh_common::process::drain;

    use super::*;

    fn options(count: usize) -> Options {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let app = "127.0.0.1:1".parse().unwrap();
        Options {
            inbound: vec![InboundPort { listen: any, app }; count],
            outbound: Some(any),
            propagation: Duration::ZERO,
            ..Options::default()
        }
    }

    #[tokio::test]
    async fn says_what_is_wrong_with_an_address() {
        let taken = Listeners::bind(&options(1)).unwrap();
        let listen = taken.addresses().inbound[0];
        let bind = |listen: SocketAddr, app: SocketAddr| {
            let inbound = vec![InboundPort { listen, app }];
            Listeners::bind(&Options { inbound, ..Options::default() }).unwrap_err()
        };
        let app = "127.0.0.1:1".parse().unwrap();
        assert!(matches!(bind(listen, app), ListenError::Taken(address) if address == listen));
        assert!(matches!(bind(app, app), ListenError::Loop(_)));
        assert!(matches!(bind("192.0.2.1:0".parse().unwrap(), app), ListenError::NotLocal(_)));
    }

    #[tokio::test]
    async fn connections_are_handed_out_in_turn() {
        let listeners = Listeners::bind(&options(1)).unwrap();
        let addresses = listeners.addresses().clone();
        let (acceptor, mut queues) = listeners.split(3);
        let (_trigger, guard) = drain();
        let clients = async {
            let mut clients = Vec::new();
            for turn in 0..9 {
                let to = if turn % 2 == 0 { addresses.inbound[0] } else { addresses.outbound.unwrap() };
                clients.push(tokio::net::TcpStream::connect(to).await.unwrap());
            }
            let mut per_worker = HashMap::new();
            for (index, Accepted { queue }) in queues.iter_mut().enumerate() {
                for _ in 0..3 {
                    let handed = queue.recv().await.unwrap();
                    assert!(handed.stream.nodelay().unwrap());
                    assert!(SockRef::from(&handed.stream).keepalive().unwrap());
                    *per_worker.entry(index).or_insert(0) += 1;
                }
            }
            per_worker
        };
        let per_worker = tokio::select! {
            () = acceptor.run(guard) => unreachable!("it accepts for ever"),
            per_worker = clients => per_worker,
        };
        assert_eq!(per_worker, HashMap::from([(0, 3), (1, 3), (2, 3)]));
    }

    #[tokio::test]
    async fn draining_closes_inbound_and_keeps_outbound() {
        let listeners = Listeners::bind(&options(1)).unwrap();
        let addresses = listeners.addresses().clone();
        let (acceptor, mut queues) = listeners.split(1);
        let (trigger, guard) = drain();
        let acceptor = tokio::spawn(acceptor.run(guard));
        assert!(trigger.drain(Duration::from_secs(60)).await, "the acceptor holds nothing up");
        assert!(tokio::net::TcpStream::connect(addresses.inbound[0]).await.is_err());
        let _client = tokio::net::TcpStream::connect(addresses.outbound.unwrap()).await.unwrap();
        assert!(matches!(queues[0].queue.recv().await, Some(Handed { door: Door::Outbound, .. })));
        acceptor.abort();
    }

    #[tokio::test]
    async fn connections_above_the_limit_are_closed() {
        use tokio::io::AsyncReadExt;
        let listeners = Listeners::bind(&Options { max_connections: 1, ..options(1) }).unwrap();
        let to = listeners.addresses().inbound[0];
        let (acceptor, mut queues) = listeners.split(1);
        let (_trigger, guard) = drain();
        let clients = async {
            let _first = tokio::net::TcpStream::connect(to).await.unwrap();
            let held = queues[0].queue.recv().await.unwrap();
            let mut second = tokio::net::TcpStream::connect(to).await.unwrap();
            assert_eq!(second.read(&mut [0]).await.unwrap(), 0);
            drop(held);
            let _third = tokio::net::TcpStream::connect(to).await.unwrap();
            assert!(queues[0].queue.recv().await.is_some());
        };
        tokio::select! {
            () = acceptor.run(guard) => unreachable!("it accepts for ever"),
            () = clients => {}
        }
    }
}
