//! The bytes of a downstream connection: what was read ahead, then the rest. Whoever speaks HTTP over them keeps them to
//! itself; what is to be known of them meanwhile stands in [`Flow`].

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::connection::Io;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What is read of a request before there is anybody to read the rest.
const FIRST: usize = 64;

/// What is known of the bytes from outside.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// When the first byte of a request's head came, in milliseconds since the connection's birth; 0: none has. So that
    /// one that never ends can be given up without a timer for each request.
    head_since: AtomicU64,
    /// The last write waits for the client.
    blocked: AtomicBool,
    /// HTTP may end without the connection.
    kept: AtomicBool,
}

impl Flow {
    /// When the head of a request that has not come whole began.
    pub(super) fn head_since(&self) -> Option<u64> {
        Some(self.head_since.load(Ordering::Relaxed)).filter(|since| *since > 0)
    }

    /// A head has come whole.
    pub(super) fn head_ended(&self) {
        self.head_since.store(0, Ordering::Relaxed);
    }

    /// Whether something waits to be written.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    /// Whether shutting down is to be left out.
    pub(super) fn keep(&self, kept: bool) {
        self.kept.store(kept, Ordering::Relaxed);
    }
}

/// The bytes.
pub(super) struct Downstream {
    io: Io,
    ahead: Bytes,
    flow: Arc<Flow>,
    /// On HTTP/2 bytes also come while there is no request.
    http2: bool,
    born: Instant,
}

impl Downstream {
    pub(super) fn new(io: Io, flow: Arc<Flow>) -> Self {
        Self { io, ahead: Bytes::new(), flow, http2: false, born: Instant::now() }
    }

    pub(super) fn flow(&self) -> &Arc<Flow> {
        &self.flow
    }

    /// Reads until it is sure whether this is HTTP/2.
    pub(super) async fn is_http2(&mut self) -> io::Result<bool> {
        let mut seen = BytesMut::with_capacity(PREFACE.len());
        while seen.len() < PREFACE.len() && PREFACE.starts_with(&seen) {
            let mut rest = (&mut self.io).take((PREFACE.len() - seen.len()) as u64);
            if rest.read_buf(&mut seen).await? == 0 {
                break;
            }
        }
        self.http2 = &seen[..] == PREFACE;
        self.note();
        self.ahead = seen.freeze();
        Ok(self.http2)
    }

    /// Takes back what HTTP has read and not used.
    pub(super) fn unread(&mut self, bytes: Bytes) {
        self.flow.keep(false);
        if !bytes.is_empty() {
            self.note();
        }
        self.ahead = bytes;
    }

    /// Waits for the first bytes of a request; whether there are any.
    pub(super) async fn wait(&mut self) -> io::Result<bool> {
        if self.ahead.is_empty() {
            let mut first = [0; FIRST];
            let length = self.io.read(&mut first).await?;
            self.ahead = Bytes::copy_from_slice(&first[..length]);
            if length > 0 {
                self.note();
            }
        }
        Ok(!self.ahead.is_empty())
    }

    fn note(&self) {
        if !self.http2 && self.flow.head_since().is_none() {
            let since = self.born.elapsed().as_millis() as u64;
            self.flow.head_since.store(since.max(1), Ordering::Relaxed);
        }
    }

    fn wrote<T>(&self, written: Poll<T>) -> Poll<T> {
        self.flow.blocked.store(written.is_pending(), Ordering::Relaxed);
        written
    }
}

impl AsyncRead for Downstream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let ahead = this.ahead.len().min(buf.remaining());
        buf.put_slice(&this.ahead.split_to(ahead));
        if ahead > 0 && buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        // What follows at once is read with it: hyper doubles its buffer when it has to read twice for one head.
        let before = buf.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            this.note();
        }
        // If this failed, so will the next.
        if ahead > 0 { Poll::Ready(Ok(())) } else { read }
    }
}

impl AsyncWrite for Downstream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, data);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, data);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let written = Pin::new(&mut self.io).poll_flush(cx);
        self.wrote(written)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.flow.kept.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
