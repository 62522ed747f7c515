//! An accepted connection on its way from a listener to a filter, and the byte streams it is made of.
//! Nothing here decides anything; bytes that were read ahead are never lost and never reordered.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use mesh_common::spiffe::SpiffeId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{client, server};

use crate::telemetry::Security;
use crate::tls::ReadAhead;

/// After this time without a request a connection of HTTP/1 rests: HTTP is taken off it.
pub(crate) const REST: Duration = Duration::from_secs(2);

/// Which way a connection goes, seen from the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From another workload to the application of this pod.
    Inbound,
    /// From the application of this pod to somewhere else.
    Outbound,
}

/// Where the client wants to go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// To an address.
    Address(SocketAddr),
    /// To a host by name.
    Host {
        /// As the client wrote it, in lower case; never an IP literal.
        host: String,
        /// The port.
        port: u16,
    },
}

impl Target {
    /// The port that the client dialled.
    pub fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Host { port, .. } => *port,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// An accepted connection, ready for its filter.
#[derive(Debug)]
pub struct Connection {
    /// The bytes, in plaintext; TLS of the mesh is terminated already.
    pub io: Io,
    /// Which way it goes.
    pub direction: Direction,
    /// The other end of the downstream socket.
    pub peer: SocketAddr,
    /// Where the client wants to go.
    pub target: Target,
    /// Standalone inbound: where the application listens.
    pub app: Option<SocketAddr>,
    /// The peer's identity, verified.
    pub identity: Option<SpiffeId>,
    /// How the downstream connection is secured.
    pub security: Security,
}

/// A byte stream: TCP, or TLS over it, preceded by what was read ahead.
pub struct Io(Prefixed<Stream>);

enum Stream {
    Tcp(TcpStream),
    // TLS sessions are large; they are boxed so that plain connections stay small.
    Server(Box<server::TlsStream<ReadAhead<Prefixed<TcpStream>>>>),
    Client(Box<client::TlsStream<ReadAhead<TcpStream>>>),
    #[cfg(test)]
    Memory(tokio::io::DuplexStream),
}

impl Io {
    /// The socket's own address, for streams that have one.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.tcp()?.local_addr().ok()
    }

    /// The address of the socket's other end, for streams that have one.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.tcp()?.peer_addr().ok()
    }

    /// The socket underneath.
    pub fn tcp(&self) -> Option<&TcpStream> {
        match &self.0.inner {
            Stream::Tcp(stream) => Some(stream),
            Stream::Server(tls) => Some(&tls.get_ref().0.get_ref().inner),
            Stream::Client(tls) => Some(tls.get_ref().0.get_ref()),
            #[cfg(test)]
            Stream::Memory(_) => None,
        }
    }

    /// Puts bytes that were read from this stream in front of what it still has to say.
    pub fn unread(&mut self, bytes: Bytes) {
        let prefix = &mut self.0.prefix;
        *prefix = if prefix.is_empty() { bytes } else { [&bytes[..], &prefix[..]].concat().into() };
    }
}

impl fmt::Debug for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.0.inner {
            Stream::Tcp(_) => "tcp",
            Stream::Server(_) => "tls server",
            Stream::Client(_) => "tls client",
            #[cfg(test)]
            Stream::Memory(_) => "memory",
        };
        f.debug_tuple("Io").field(&kind).finish()
    }
}

impl From<TcpStream> for Io {
    fn from(stream: TcpStream) -> Self {
        Prefixed::from(stream).into()
    }
}

impl From<Prefixed<TcpStream>> for Io {
    fn from(stream: Prefixed<TcpStream>) -> Self {
        Self(Prefixed::new(stream.prefix, Stream::Tcp(stream.inner)))
    }
}

impl From<server::TlsStream<ReadAhead<Prefixed<TcpStream>>>> for Io {
    fn from(stream: server::TlsStream<ReadAhead<Prefixed<TcpStream>>>) -> Self {
        Self(Stream::Server(Box::new(stream)).into())
    }
}

impl From<client::TlsStream<ReadAhead<TcpStream>>> for Io {
    fn from(stream: client::TlsStream<ReadAhead<TcpStream>>) -> Self {
        Self(Stream::Client(Box::new(stream)).into())
    }
}

#[cfg(test)]
impl From<tokio::io::DuplexStream> for Io {
    fn from(stream: tokio::io::DuplexStream) -> Self {
        Prefixed::from(stream).into()
    }
}

#[cfg(test)]
impl From<Prefixed<tokio::io::DuplexStream>> for Io {
    fn from(stream: Prefixed<tokio::io::DuplexStream>) -> Self {
        Self(Prefixed::new(stream.prefix, Stream::Memory(stream.inner)))
    }
}

/// Calls the same method on whichever stream there is.
macro_rules! each {
    ($stream:expr, $one:ident => $call:expr) => {
        match $stream {
            Stream::Tcp($one) => $call,
            Stream::Server($one) => $call,
            Stream::Client($one) => $call,
            #[cfg(test)]
            Stream::Memory($one) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), one => Pin::new(one).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), one => Pin::new(one).poll_write(cx, data))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), one => Pin::new(one).poll_write_vectored(cx, data))
    }

    fn is_write_vectored(&self) -> bool {
        each!(self, one => one.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), one => Pin::new(one).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), one => Pin::new(one).poll_shutdown(cx))
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
}

/// A stream of which the first bytes were read ahead: they are read again, then the rest.
#[derive(Debug)]
pub struct Prefixed<S> {
    prefix: Bytes,
    inner: S,
}

impl<S> Prefixed<S> {
    /// Puts `prefix` in front of what `inner` still has to say.
    pub fn new(prefix: Bytes, inner: S) -> Self {
        Self { prefix, inner }
    }

    /// The parts: what has not been read again, and the stream.
    pub fn into_parts(self) -> (Bytes, S) {
        (self.prefix, self.inner)
    }
}

impl<S> From<S> for Prefixed<S> {
    fn from(inner: S) -> Self {
        Self { prefix: Bytes::new(), inner }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.prefix.is_empty() {
            return Pin::new(&mut this.inner).poll_read(cx, buf);
        }
        let length = this.prefix.len().min(buf.remaining());
        buf.put_slice(&this.prefix[..length]);
        this.prefix.advance(length);
        if this.prefix.is_empty() {
            this.prefix = Bytes::new(); // frees what was read ahead
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_was_read_ahead_comes_first() {
        let (mut far, near) = tokio::io::duplex(64);
        let mut io = Io::from(Prefixed::new(Bytes::from_static(b"hello "), near));
        far.write_all(b"world").await.unwrap();
        far.shutdown().await.unwrap();
        let mut small = [0; 4];
        io.read_exact(&mut small).await.unwrap();
        let mut rest = Vec::new();
        io.read_to_end(&mut rest).await.unwrap();
        assert_eq!((&small[..], &rest[..]), (&b"hell"[..], &b"o world"[..]));
        io.write_all(b"back").await.unwrap();
        io.shutdown().await.unwrap();
        let mut back = Vec::new();
        far.read_to_end(&mut back).await.unwrap();
        assert_eq!(back, b"back");
    }

    #[tokio::test]
    async fn what_was_read_can_be_put_back() {
        let (_far, near) = tokio::io::duplex(64);
        let mut io = Io::from(Prefixed::new(Bytes::from_static(b"world"), near));
        io.unread(Bytes::from_static(b"hello "));
        let mut all = [0; 11];
        io.read_exact(&mut all).await.unwrap();
        assert_eq!(&all, b"hello world");
    }

    #[test]
    fn io_is_small() {
        assert!(std::mem::size_of::<Io>() <= 96, "{}", std::mem::size_of::<Io>());
    }
}
