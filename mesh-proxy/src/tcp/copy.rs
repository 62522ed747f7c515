//! Bytes in both directions, each with its own half-close. An idle connection holds two small buffers; they grow
//! while reads fill them and shrink again after a quiet while.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::meter::Progress;
use crate::telemetry::ResponseFlags;

/// Buffer sizes: when idle, after a full read, after another one.
const SIZES: [usize; 3] = [1024, 16 * 1024, 64 * 1024];
/// How often a busy connection reports its bytes; after as long without any, its buffers shrink.
const TICK: Duration = Duration::from_secs(5);
/// As good as never, and a timer can still hold it.
const NEVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// How a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// Both sides were done.
    Done,
    /// No byte either way for this long.
    Idle(Duration),
    /// The port does not take plaintext any more.
    Refused,
    /// The client's side broke.
    Downstream(io::Error),
    /// The server's side broke.
    Upstream(io::Error),
}

impl End {
    /// In Envoy's terms.
    pub(super) fn flags(&self) -> ResponseFlags {
        match self {
            Self::Done => ResponseFlags::NONE,
            Self::Idle(_) => ResponseFlags::STREAM_IDLE_TIMEOUT,
            Self::Refused => ResponseFlags::LOCAL_RESET,
            Self::Downstream(_) => ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION,
            Self::Upstream(_) => ResponseFlags::UPSTREAM_CONNECTION_TERMINATION,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => Ok(()),
            Self::Idle(limit) => write!(f, "idle for {limit:?}"),
            Self::Refused => f.write_str("the port does not take plaintext any more"),
            Self::Downstream(error) => write!(f, "the client's connection broke: {error}"),
            Self::Upstream(error) => write!(f, "the server's connection broke: {error}"),
        }
    }
}

/// Copies until both sides are done, one breaks, or neither has sent anything for `idle`.
pub(super) async fn copy<A, B>(
    downstream: &mut A,
    upstream: &mut B,
    idle: Option<Duration>,
    progress: &Progress,
) -> End
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut request, mut response) = (Half::default(), Half::default());
    let mut quiet = Quiet::new(idle);
    let mut timer = pin!(sleep_until(quiet.idle_deadline()));
    poll_fn(|cx| {
        let to_server = request.poll(cx, downstream, upstream, |bytes| progress.add_received(bytes));
        if let Poll::Ready(Err(broken)) = to_server {
            return Poll::Ready(broken.end(End::Downstream, End::Upstream));
        }
        let to_client = response.poll(cx, upstream, downstream, |bytes| progress.add_sent(bytes));
        if let Poll::Ready(Err(broken)) = to_client {
            return Poll::Ready(broken.end(End::Upstream, End::Downstream));
        }
        if to_server.is_ready() && to_client.is_ready() {
            return Poll::Ready(End::Done);
        }
        match quiet.poll(cx, progress, timer.as_mut()) {
            Poll::Ready(Event::Idle(limit)) => Poll::Ready(End::Idle(limit)),
            Poll::Ready(Event::Shrink) => {
                request.shrink();
                response.shrink();
                Poll::Pending
            }
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Watches for quiet with one timer that never fires more often than [`TICK`], and not at all while nothing
/// happens but for the idle timeout.
struct Quiet {
    idle: Option<Duration>,
    seen: u64,
    last: Instant,
    ticking: bool,
}

enum Event {
    Idle(Duration),
    Shrink,
}

impl Quiet {
    fn new(idle: Option<Duration>) -> Self {
        Self { idle, seen: 0, last: Instant::now(), ticking: false }
    }

    fn idle_deadline(&self) -> Instant {
        self.last + self.idle.unwrap_or(NEVER).min(NEVER)
    }

    /// Whenever the timer was set anew it is polled again, or nobody would wake this connection.
    fn poll(&mut self, cx: &mut Context<'_>, progress: &Progress, mut timer: Pin<&mut Sleep>) -> Poll<Event> {
        let (now, total) = (Instant::now(), progress.total());
        if total != self.seen {
            (self.seen, self.last) = (total, now);
            if !self.ticking {
                self.ticking = true;
                timer.as_mut().reset(self.idle_deadline().min(now + TICK));
            }
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            progress.report();
            if let Some(idle) = self.idle
                && now >= self.idle_deadline()
            {
                return Poll::Ready(Event::Idle(idle));
            }
            if now < self.last + TICK {
                timer.as_mut().reset(self.idle_deadline().min(self.last + TICK));
                continue;
            }
            self.ticking = false;
            timer.as_mut().reset(self.idle_deadline());
            // Registers the new deadline, which lies in the future.
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Ready(Event::Shrink);
            }
        }
    }
}

/// One direction.
#[derive(Default)]
struct Half {
    /// Its length is the current size; empty until the first read.
    buffer: Vec<u8>,
    /// What was read and not yet written.
    pending: std::ops::Range<usize>,
    /// Why the reader broke, told once what came before it is written.
    broken: Option<io::Error>,
    unflushed: bool,
    ended: bool,
    done: bool,
}

/// Which end of a direction broke.
enum Broken {
    Reading(io::Error),
    Writing(io::Error),
}

impl Broken {
    fn end(self, reader: fn(io::Error) -> End, writer: fn(io::Error) -> End) -> End {
        match self {
            Self::Reading(error) => reader(error),
            Self::Writing(error) => writer(error),
        }
    }
}

impl Half {
    /// Moves what can be moved; ready when the reader has ended and the writer knows it.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut (impl AsyncRead + Unpin),
        writer: &mut (impl AsyncWrite + Unpin),
        moved: impl Fn(u64),
    ) -> Poll<Result<(), Broken>> {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        loop {
            if self.pending.is_empty() && !self.ended {
                match self.fill(cx, reader) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::Reading(error))),
                    Poll::Pending => {
                        if self.unflushed {
                            ready!(Pin::new(writer).poll_flush(cx)).map_err(Broken::Writing)?;
                            self.unflushed = false;
                        }
                        return Poll::Pending;
                    }
                }
            }
            while !self.pending.is_empty() {
                let data = &self.buffer[self.pending.clone()];
                let written = ready!(Pin::new(&mut *writer).poll_write(cx, data)).map_err(Broken::Writing)?;
                if written == 0 {
                    return Poll::Ready(Err(Broken::Writing(io::ErrorKind::WriteZero.into())));
                }
                self.pending.start += written.min(data.len());
                self.unflushed = true;
                moved(written as u64);
            }
            if self.ended {
                ready!(Pin::new(&mut *writer).poll_shutdown(cx)).map_err(Broken::Writing)?;
                self.done = true;
                self.buffer = Vec::new();
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Reads what is there, up to a buffer full: TLS gives a record at a time, and what was read together is written
    /// together. Ready when something was read or the reader has ended.
    fn fill(&mut self, cx: &mut Context<'_>, reader: &mut (impl AsyncRead + Unpin)) -> Poll<io::Result<()>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Err(error));
        }
        let was_full = self.pending.end == self.buffer.len();
        self.pending = 0..0;
        if was_full {
            let bigger = SIZES.into_iter().find(|&size| size > self.buffer.len());
            self.buffer.resize(bigger.unwrap_or(self.buffer.len()), 0);
        }
        while self.pending.end < self.buffer.len() && !self.ended {
            let mut rest = ReadBuf::new(&mut self.buffer[self.pending.end..]);
            match Pin::new(&mut *reader).poll_read(cx, &mut rest) {
                Poll::Ready(Ok(())) => {}
                Poll::Pending if !self.pending.is_empty() => break,
                Poll::Ready(Err(error)) if !self.pending.is_empty() => {
                    self.broken = Some(error);
                    break;
                }
                other => return other,
            }
            let read = rest.filled().len();
            self.ended = read == 0;
            self.pending.end += read;
        }
        Poll::Ready(Ok(()))
    }

    fn shrink(&mut self) {
        if self.pending.is_empty() && self.buffer.len() > SIZES[0] {
            self.buffer = vec![0; SIZES[0]];
            self.pending = 0..0;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// Far ends of a copy between two pipes.
    async fn between<T>(
        idle: Option<Duration>,
        story: impl AsyncFnOnce(DuplexStream, DuplexStream) -> T,
    ) -> (End, T, (u64, u64)) {
        let ((client, mut downstream), (mut upstream, server)) = (duplex(4096), duplex(4096));
        let progress = Progress::default();
        let copy = async {
            let end = copy(&mut downstream, &mut upstream, idle, &progress).await;
            drop((downstream, upstream));
            end
        };
        let (end, told) = tokio::join!(copy, story(client, server));
        (end, told, progress.bytes())
    }

    #[tokio::test]
    async fn each_side_closes_for_itself() {
        let (end, answer, bytes) = between(None, async |mut client, mut server| {
            client.write_all(b"question").await.unwrap();
            client.shutdown().await.unwrap();
            let mut question = String::new();
            server.read_to_string(&mut question).await.unwrap();
            server.write_all(question.to_uppercase().as_bytes()).await.unwrap();
            server.write_all(b"!").await.unwrap();
            drop(server);
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        })
        .await;
        assert!(matches!(end, End::Done), "{end:?}");
        assert_eq!((answer.as_str(), bytes), ("QUESTION!", (8, 9)));
    }

    #[tokio::test]
    async fn much_goes_both_ways_at_once() {
        const MUCH: usize = 1 << 20;
        let (end, (), bytes) = between(None, async |client, server| {
            let story = async |stream: DuplexStream, byte: u8| {
                let (mut read, mut write) = tokio::io::split(stream);
                let send = async {
                    write.write_all(&vec![byte; MUCH]).await.unwrap();
                    write.shutdown().await.unwrap();
                };
                let mut all = Vec::new();
                let ((), read) = tokio::join!(send, read.read_to_end(&mut all));
                assert_eq!(read.unwrap(), MUCH);
                assert!(all.iter().all(|&b| b == byte ^ 1));
            };
            tokio::join!(story(client, 0), story(server, 1));
        })
        .await;
        assert!(matches!(end, End::Done), "{end:?}");
        assert_eq!(bytes, (MUCH as u64, MUCH as u64));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_connection_and_a_byte_prolongs_it() {
        let started = Instant::now();
        let idle = Duration::from_secs(60);
        let (end, _, _) = between(Some(idle), async |mut client, server| {
            tokio::time::sleep(Duration::from_secs(50)).await;
            client.write_all(b"x").await.unwrap();
            (client, server)
        })
        .await;
        assert!(matches!(end, End::Idle(limit) if limit == idle), "{end:?}");
        let lasted = started.elapsed();
        assert!((110..=111).contains(&lasted.as_secs()), "{lasted:?}");
    }

    #[tokio::test]
    async fn a_broken_side_is_named() {
        let (end, (), _) = between(None, async |mut client, server| {
            drop(server);
            // The copy may first see the end of the server, then that nobody reads.
            while client.write_all(&[0; 512]).await.is_ok() {}
        })
        .await;
        assert_eq!(end.flags(), ResponseFlags::UPSTREAM_CONNECTION_TERMINATION, "{end:?}");
    }

    /// A reader with a story: each step is one read.
    struct Told(Vec<io::Result<&'static [u8]>>);

    impl AsyncRead for Told {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.0.is_empty() {
                return Poll::Pending;
            }
            self.0.remove(0).map(|bytes| buf.put_slice(bytes)).into()
        }
    }

    #[tokio::test]
    async fn what_is_read_together_is_written_together() {
        let (mut near, mut far) = duplex(4096);
        let broken = || io::Error::from(io::ErrorKind::ConnectionReset);
        let mut reader = Told(vec![Ok(b"one "), Ok(b"two "), Err(broken()), Ok(b"never")]);
        let mut half = Half::default();
        let writes = std::cell::Cell::new(0);
        let moved = poll_fn(|cx| half.poll(cx, &mut reader, &mut near, |_| writes.set(writes.get() + 1)));
        // A reset is told once by the kernel: it is not forgotten while what came before is passed on.
        assert!(matches!(moved.await, Err(Broken::Reading(error)) if error.kind() == broken().kind()));
        drop(near);
        let mut seen = String::new();
        far.read_to_string(&mut seen).await.unwrap();
        assert_eq!((seen.as_str(), writes.get()), ("one two ", 1));
    }

    #[test]
    fn buffers_grow_with_full_reads_and_shrink() {
        let mut half = Half::default();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut sizes = Vec::new();
        let mut zeros = tokio::io::repeat(0);
        for _ in 0..4 {
            assert!(half.fill(&mut cx, &mut zeros).is_ready());
            sizes.push(half.buffer.len());
            half.pending.start = half.pending.end; // all written
        }
        assert_eq!(sizes, [SIZES[0], SIZES[1], SIZES[2], SIZES[2]]);
        half.shrink();
        assert_eq!(half.buffer.len(), SIZES[0]);
    }
}
