//! Reads much at once from a socket that has much to say. rustls asks for 4 KiB at a time; a connection that fills that
//! is read in larger pieces until it has no more. A connection at rest holds no buffer.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// Two whole TLS records.
const AHEAD: usize = 32 * 1024;

/// A stream below TLS.
#[derive(Debug)]
pub struct ReadAhead<S> {
    inner: S,
    /// What was read ahead; empty, and without memory, when there is nothing.
    buffer: BytesMut,
    /// The last read was filled: there may be more.
    filled: bool,
}

impl<S> ReadAhead<S> {
    /// Nothing is read ahead yet.
    pub fn new(inner: S) -> Self {
        Self { inner, buffer: BytesMut::new(), filled: false }
    }

    /// The stream.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.buffer.is_empty() {
            if !this.filled {
                let before = buf.filled().len();
                ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
                this.filled = buf.remaining() == 0 && buf.filled().len() > before;
                return Poll::Ready(Ok(()));
            }
            this.buffer.reserve(AHEAD);
            let room = this.buffer.capacity();
            let read = poll_read_buf(Pin::new(&mut this.inner), cx, &mut this.buffer);
            this.filled = matches!(read, Poll::Ready(Ok(length)) if length == room);
            if this.buffer.is_empty() {
                this.buffer = BytesMut::new();
            }
            ready!(read)?;
        }
        let length = buf.remaining().min(this.buffer.len());
        buf.put_slice(&this.buffer[..length]);
        this.buffer.advance(length);
        if this.buffer.is_empty() && !this.filled {
            this.buffer = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    /// Counts how often it is read.
    struct Counted<S>(S, usize);

    impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let read = Pin::new(&mut self.0).poll_read(cx, buf);
            self.1 += usize::from(read.is_ready());
            read
        }
    }

    #[tokio::test]
    async fn much_is_read_in_large_pieces_and_in_order() {
        let (near, mut far) = duplex(1 << 20);
        let sent: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
        far.write_all(&sent).await.unwrap();
        far.shutdown().await.unwrap();
        let mut ahead = ReadAhead::new(Counted(near, 0));
        let (mut seen, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            let read = ahead.read(&mut piece).await.unwrap();
            if read == 0 {
                break;
            }
            seen.extend_from_slice(&piece[..read]);
        }
        assert!(seen == sent);
        // 4 KiB, 32 KiB six times, the last time in part, and the end.
        assert_eq!(ahead.get_ref().1, 8);
        assert_eq!(ahead.buffer.capacity(), 0);
    }

    #[tokio::test]
    async fn little_is_read_as_it_comes_without_a_buffer() {
        let (near, mut far) = duplex(1 << 20);
        let mut ahead = ReadAhead::new(Counted(near, 0));
        let mut piece = [0; 4096];
        for _ in 0..3 {
            far.write_all(b"little").await.unwrap();
            assert_eq!(ahead.read(&mut piece).await.unwrap(), 6);
            assert_eq!(ahead.buffer.capacity(), 0);
        }
        // Exactly what was asked for, and then nothing for a while: no buffer waits for it.
        far.write_all(&[1; 4096]).await.unwrap();
        assert_eq!(ahead.read(&mut piece).await.unwrap(), 4096);
        let mut nothing = polled_once(&mut ahead, &mut piece);
        assert!(nothing.is_none() && ahead.buffer.capacity() == 0, "{nothing:?}");
        far.write_all(b"more").await.unwrap();
        nothing = polled_once(&mut ahead, &mut piece);
        assert_eq!((nothing, ahead.buffer.capacity()), (Some(4), 0));
    }

    /// One poll: bytes that were there.
    fn polled_once(stream: &mut (impl AsyncRead + Unpin), piece: &mut [u8]) -> Option<usize> {
        let mut buf = ReadBuf::new(piece);
        let polled = Pin::new(stream).poll_read(&mut Context::from_waker(std::task::Waker::noop()), &mut buf);
        polled.is_ready().then(|| buf.filled().len())
    }
}
