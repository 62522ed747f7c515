//! A wire that one can look at: relays TCP connections and keeps every byte of both directions.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;

/// More than a scenario ever sends; the rest is not kept.
const MAX_KEPT: usize = 16 << 20;

/// A running relay; it ends when this is dropped.
#[derive(Debug)]
pub struct Relay {
    kept: Arc<Mutex<Vec<u8>>>,
    _task: JoinSet<()>,
}

impl Relay {
    /// Listens on `from`, and connects on to `to`, from the address that the client came from, as a wire would.
    ///
    /// # Errors
    /// When `from` is taken.
    pub async fn start(from: SocketAddr, to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(from).await?;
        let kept = Arc::new(Mutex::new(Vec::new()));
        let mut task = JoinSet::new();
        task.spawn(serve(listener, to, Arc::clone(&kept)));
        Ok(Self { kept, _task: task })
    }

    /// How many times `marker` passed, both directions.
    pub fn count(&self, marker: &[u8]) -> usize {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.windows(marker.len()).filter(|window| *window == marker).count()
    }

    /// Bytes that passed.
    pub fn len(&self) -> usize {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether nothing passed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

async fn serve(listener: TcpListener, to: SocketAddr, kept: Arc<Mutex<Vec<u8>>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, peer)) = accepted else { continue };
                let kept = Arc::clone(&kept);
                connections.spawn(async move { relay(stream, peer, to, &kept).await.unwrap_or_default() });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn relay(mut from: TcpStream, peer: SocketAddr, to: SocketAddr, kept: &Mutex<Vec<u8>>) -> Result<()> {
    let socket = TcpSocket::new_v4()?;
    if peer.ip() != Ipv4Addr::LOCALHOST {
        socket.bind(SocketAddr::new(peer.ip(), 0))?;
    }
    let mut to = socket.connect(to).await?;
    let ((mut from_read, mut from_write), (mut to_read, mut to_write)) = (from.split(), to.split());
    tokio::try_join!(copy(&mut from_read, &mut to_write, kept), copy(&mut to_read, &mut from_write, kept))?;
    Ok(())
}

async fn copy(
    read: &mut (impl AsyncRead + Unpin),
    write: &mut (impl AsyncWrite + Unpin),
    kept: &Mutex<Vec<u8>>,
) -> Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let n = read.read(&mut buffer).await?;
        if n == 0 {
            return Ok(write.shutdown().await?);
        }
        {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() < MAX_KEPT {
                kept.extend_from_slice(&buffer[..n]);
            }
        }
        write.write_all(&buffer[..n]).await?;
    }
}
