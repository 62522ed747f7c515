//! Upstream connections of HTTP/1 without HTTP. hyper takes 26 KiB for each, used or not: one that rests is taken back from
//! it, watched for its end, and given to it again with the next request.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::connection::Io;

/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// Lends a connection to hyper: what hyper gets, what its owner holds, and what is to be done when hyper has ended.
pub(super) fn lend(io: Io) -> (Lent, Handle, Keeper) {
    let (recalled, held) = (Arc::<AtomicBool>::default(), Rc::<Held>::default());
    let (sender, back) = oneshot::channel();
    let lent = Lent { io: Some(io), back: Some(sender), recalled: Arc::clone(&recalled) };
    (lent, Handle { recalled, held: Rc::clone(&held) }, Keeper { held, back })
}

/// A connection as hyper has it.
pub(super) struct Lent {
    /// There until this is dropped.
    io: Option<Io>,
    back: Option<oneshot::Sender<Io>>,
    recalled: Arc<AtomicBool>,
}

/// A connection's owner. When it is dropped, the connection ends.
pub(super) struct Handle {
    recalled: Arc<AtomicBool>,
    held: Rc<Held>,
}

impl Handle {
    /// Wants the connection back: when hyper has ended, it does not end with it.
    pub(super) fn recall(&self) {
        self.recalled.store(true, Ordering::Relaxed);
    }

    /// The connection, if it has come back and its peer has not ended it.
    pub(super) fn take(self) -> Option<Io> {
        self.held.io.borrow_mut().take()
    }

    #[cfg(test)]
    pub(super) fn is_held(&self) -> bool {
        self.held.io.borrow().is_some()
    }

    /// Whether there is nothing to be had any more.
    pub(super) fn is_gone(&self) -> bool {
        self.held.gone.get()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.held.dropped.set(true);
        self.held.wake();
    }
}

/// What the task does with a connection that it drove for hyper.
pub(super) struct Keeper {
    held: Rc<Held>,
    back: oneshot::Receiver<Io>,
}

impl Keeper {
    /// Holds it, if it was recalled, until its owner takes or drops it, or its peer ends it.
    pub(super) async fn keep(mut self) {
        if let Ok(io) = self.back.try_recv()
            && let Some(mut unwanted) = self.held.watch(io).await
        {
            // Whether heard or not.
            timeout(GOODBYE, unwanted.shutdown()).await.ok();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.held.gone.set(true);
    }
}

/// A connection at rest.
#[derive(Default)]
struct Held {
    io: RefCell<Option<Io>>,
    /// Nobody wants it.
    dropped: Cell<bool>,
    /// It has ended, or was taken.
    gone: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Held {
    /// Returns it when nobody wants it.
    async fn watch(&self, io: Io) -> Option<Io> {
        *self.io.borrow_mut() = Some(io);
        std::future::poll_fn(|cx| {
            let mut held = self.io.borrow_mut();
            if self.dropped.get() {
                return Poll::Ready(held.take());
            }
            let Some(io) = held.as_mut() else { return Poll::Ready(None) };
            // Nothing is due: whatever comes, an end or bytes, there will be no request on it.
            if Pin::new(io).poll_read(cx, &mut ReadBuf::new(&mut [0])).is_ready() {
                *held = None;
                return Poll::Ready(None);
            }
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl Lent {
    fn io(&mut self) -> io::Result<Pin<&mut Io>> {
        self.io.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if self.recalled.load(Ordering::Relaxed)
            && let (Some(io), Some(back)) = (self.io.take(), self.back.take())
        {
            // If nobody waits for it, it ends.
            back.send(io).ok();
        }
    }
}

impl AsyncRead for Lent {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.io()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Lent {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.io()?.poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.io()?.poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.recalled.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        self.io()?.poll_shutdown(cx)
    }
}
