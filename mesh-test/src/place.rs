//! Where sockets are opened and processes started: in the test's own network, or in a pod's.

use std::io;
use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

use crate::namespace::Namespace;

/// A network.
#[derive(Debug, Clone)]
pub enum Place {
    /// The test's own.
    Here,
    /// A pod's.
    In(Namespace),
}

impl Place {
    /// Connects.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn connect(&self, to: SocketAddr) -> Result<TcpStream> {
        self.connect_from(None, to).await
    }

    /// Connects from an address of the place.
    ///
    /// # Errors
    /// When the place does not have it, or nobody answers.
    pub async fn connect_from(&self, from: Option<SocketAddr>, to: SocketAddr) -> Result<TcpStream> {
        let socket = self.run(move || socket(to, from)).await??;
        let stream = TcpSocket::from_std_stream(socket.into()).connect(to).await;
        let stream = stream.with_context(|| format!("no connection to {to}"))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Listens (port 0: any).
    ///
    /// # Errors
    /// When the address is taken.
    pub async fn listen(&self, at: SocketAddr) -> Result<TcpListener> {
        let listen = move || {
            let socket = socket(at, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&at.into())?;
            socket.listen(1024)?;
            io::Result::Ok(socket)
        };
        let socket = self.run(listen).await?.with_context(|| format!("cannot listen on {at}"))?;
        Ok(TcpListener::from_std(socket.into())?)
    }

    /// A UDP socket.
    ///
    /// # Errors
    /// When the address is taken.
    pub async fn udp(&self, at: SocketAddr) -> Result<UdpSocket> {
        let bind = move || {
            let socket = std::net::UdpSocket::bind(at)?;
            socket.set_nonblocking(true)?;
            io::Result::Ok(socket)
        };
        Ok(UdpSocket::from_std(self.run(bind).await?.with_context(|| format!("cannot bind {at}"))?)?)
    }

    /// Does something there; it may enter the runtime that asks.
    ///
    /// # Errors
    /// When the place has gone.
    pub async fn run<T: Send + 'static>(&self, task: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        match self {
            Self::Here => Ok(task()),
            Self::In(namespace) => {
                let runtime = tokio::runtime::Handle::current();
                namespace
                    .run(move || {
                        let _entered = runtime.enter();
                        task()
                    })
                    .await
            }
        }
    }
}

fn socket(family: SocketAddr, from: Option<SocketAddr>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(family), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    if let Some(from) = from {
        socket.bind(&from.into())?;
    }
    Ok(socket)
}
