//! How long a request may rest: the stream idle limit, and the limit for the whole request to come. Bytes that pass
//! only note the time; one timer waits for both. It must never end a request on which bytes have just passed.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};

use super::reply::Reply;
use crate::telemetry::ResponseFlags;

/// The limits of one request, and when bytes of it passed last, either way.
#[derive(Debug)]
pub(crate) struct Clock {
    idle: Option<Duration>,
    last: Cell<Instant>,
    /// The request must have come whole by then, unless it is being answered.
    whole_by: Option<Instant>,
}

/// Which limit was passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Late {
    /// No byte either way for this long.
    Idle(Duration),
    /// The request has not come whole.
    Request,
}

impl Clock {
    /// Starts it, for a request that came at `start`.
    pub(super) fn new(start: Instant, idle: Option<Duration>, whole: Option<Duration>) -> Rc<Self> {
        let whole_by = whole.map(|limit| start + limit);
        Rc::new(Self { idle, last: Cell::new(start), whole_by })
    }

    /// Bytes pass.
    pub(crate) fn touch(&self) {
        if self.idle.is_some() {
            self.last.set(Instant::now());
        }
    }

    /// When the idle limit is passed, if nothing happens until then.
    pub(super) fn idle_at(&self) -> Option<Instant> {
        self.idle.map(|limit| self.last.get() + limit)
    }

    fn next(&self, whole: bool) -> Option<(Instant, Late)> {
        let idle = self.idle.map(|limit| (self.last.get() + limit, Late::Idle(limit)));
        let request = self.whole_by.filter(|_| !whole).map(|at| (at, Late::Request));
        [idle, request].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Resolves when no byte has passed for too long.
    pub(super) async fn idle(&self) {
        while let Some(at) = self.idle_at() {
            if at <= Instant::now() {
                return;
            }
            sleep_until(at).await;
        }
        std::future::pending().await
    }
}

/// `work`, unless a limit is passed first. `is_whole` says whether all of the request has come.
pub(super) async fn within<T>(
    clock: &Clock,
    is_whole: impl Fn() -> bool,
    mut work: Pin<&mut impl Future<Output = T>>,
) -> Result<T, Late> {
    while let Some((at, _)) = clock.next(is_whole()) {
        tokio::select! {
            biased;
            done = &mut work => return Ok(done),
            () = sleep_until(at) => {}
        }
        if let Some((at, late)) = clock.next(is_whole())
            && at <= Instant::now()
        {
            return Err(late);
        }
    }
    Ok(work.await)
}

impl Late {
    /// As Envoy answers: 408 to a client that has not sent its whole request, else 504.
    pub(super) fn reply(self, whole: bool) -> Reply {
        let status = if whole { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::REQUEST_TIMEOUT };
        match self {
            Self::Idle(limit) => {
                let reason = format!("no byte passed either way for {limit:?}");
                Reply::failure(status, ResponseFlags::STREAM_IDLE_TIMEOUT, reason)
            }
            Self::Request => {
                let reason = "the request did not come whole in time";
                Reply::failure(status, ResponseFlags::NONE, reason)
            }
        }
    }
}

/// A stream whose bytes touch the clock.
pub(super) struct Touching<S> {
    pub(super) io: S,
    pub(super) clock: Rc<Clock>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Touching<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            this.clock.touch();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Touching<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use tokio::time::sleep;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn bytes_that_pass_put_the_idle_limit_off() {
        let clock = Clock::new(Instant::now(), Some(3 * SECOND), None);
        let busy = async {
            for _ in 0..5 {
                sleep(2 * SECOND).await;
                clock.touch();
            }
        };
        assert_eq!(within(&clock, || true, pin!(busy)).await, Ok(()));
        let started = Instant::now();
        let late = within(&clock, || true, pin!(sleep(60 * SECOND))).await;
        assert_eq!((late, started.elapsed().as_secs()), (Err(Late::Idle(3 * SECOND)), 3));
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_for_the_whole_request_ends_with_the_request() {
        let start = Instant::now();
        let slow = || sleep(60 * SECOND);
        let clock = Clock::new(start, None, Some(3 * SECOND));
        assert_eq!(within(&clock, || false, pin!(slow())).await, Err(Late::Request));
        assert_eq!(within(&clock, || true, pin!(slow())).await, Ok(()));
        let clock = Clock::new(Instant::now(), None, Some(3 * SECOND));
        let whole = || start.elapsed() > 64 * SECOND;
        assert_eq!(within(&clock, whole, pin!(slow())).await, Ok(()), "it came after two seconds");
    }
}
