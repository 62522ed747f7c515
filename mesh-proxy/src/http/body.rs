//! Bodies in both directions: streamed, counted, never collected. A request's first bytes are kept for the case
//! that an endpoint provably did not process them; no more than a fixed bound.

use std::cell::{Cell, OnceCell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

use super::clock::Clock;
use super::grpc::Messages;
use super::record::Record;
use super::upstream::Lease;
use crate::telemetry::ResponseFlags;

/// Bytes of a request that are kept for another attempt.
const REPLAY: usize = 64 * 1024;

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The other side failed.
    #[error(transparent)]
    Peer(#[from] hyper::Error),
    /// No byte passed for too long.
    #[error("no byte passed either way within the stream's idle limit")]
    Idle,
    /// The route's time is over.
    #[error("the route's timeout is over")]
    Timeout,
    /// Another attempt reads the body now.
    #[error("the request goes to another endpoint")]
    Superseded,
}

/// A request's body as it comes from the client; read by one attempt at a time.
pub(crate) struct Source {
    incoming: RefCell<Incoming>,
    attempt: Cell<u32>,
    bytes: Cell<u64>,
    /// Counted for gRPC only.
    messages: Cell<Option<Messages>>,
    /// Touched by each frame, once there are limits.
    clock: OnceCell<Rc<Clock>>,
    ended: Cell<bool>,
    replay: RefCell<Replay>,
}

/// What was read already.
#[derive(Default)]
struct Replay {
    kept: Vec<Bytes>,
    size: usize,
    /// More was read than is kept, or attempts are over.
    lost: bool,
}

impl Source {
    pub(crate) fn new(incoming: Incoming, grpc: bool) -> Rc<Self> {
        Rc::new(Self {
            incoming: RefCell::new(incoming),
            attempt: Cell::new(0),
            bytes: Cell::new(0),
            messages: Cell::new(grpc.then(Messages::default)),
            clock: OnceCell::new(),
            ended: Cell::new(false),
            replay: RefCell::default(),
        })
    }

    /// The body from its beginning, for the next attempt; none when that is no longer possible.
    pub(crate) fn attempt(self: &Rc<Self>) -> Option<RequestBody> {
        if self.replay.borrow().lost {
            return None;
        }
        self.attempt.set(self.attempt.get() + 1);
        Some(RequestBody { source: Rc::clone(self), attempt: self.attempt.get(), replayed: 0 })
    }

    /// Whether there can be another attempt.
    pub(crate) fn is_repeatable(&self) -> bool {
        !self.replay.borrow().lost
    }

    /// There will be no other attempt: keeps nothing more than what a later attempt may still have to say again.
    pub(crate) fn commit(&self) {
        let mut replay = self.replay.borrow_mut();
        replay.lost = true;
        if self.attempt.get() <= 1 {
            replay.kept = Vec::new();
        }
    }

    /// Whether there is no body at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.get() == 0 && self.incoming.borrow().is_end_stream()
    }

    /// Bytes that the client sent so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// Notes on this clock when bytes come.
    pub(crate) fn keep_time(&self, clock: Rc<Clock>) {
        self.clock.get_or_init(|| clock);
    }

    /// Whether all of it has come.
    pub(crate) fn is_whole(&self) -> bool {
        self.ended.get() || self.incoming.borrow().is_end_stream()
    }

    /// gRPC messages that the client sent so far.
    pub(crate) fn messages(&self) -> u64 {
        self.messages.get().map_or(0, Messages::count)
    }

    fn keep(&self, frame: &Frame<Bytes>) {
        if let Some(clock) = self.clock.get() {
            clock.touch();
        }
        let mut replay = self.replay.borrow_mut();
        if let Some(data) = frame.data_ref() {
            if let Some(mut messages) = self.messages.get() {
                messages.take(data);
                self.messages.set(Some(messages));
            }
            self.bytes.set(self.bytes.get() + data.len() as u64);
            replay.size += data.len();
            if !replay.lost && replay.size <= REPLAY {
                replay.kept.push(data.clone());
                return;
            }
        }
        replay.lost = true;
    }
}

/// One attempt's view of a request's body.
pub(crate) struct RequestBody {
    source: Rc<Source>,
    attempt: u32,
    replayed: usize,
}

impl RequestBody {
    fn is_current(&self) -> bool {
        self.attempt == self.source.attempt.get()
    }

    fn kept(&self) -> Option<Bytes> {
        self.source.replay.borrow().kept.get(self.replayed).cloned()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.is_current() {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if let Some(data) = self.kept() {
            self.replayed += 1;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let frame = ready!(Pin::new(&mut *self.source.incoming.borrow_mut()).poll_frame(cx));
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                self.source.keep(&frame);
                self.replayed += 1;
                Some(Ok(frame))
            }
            Some(Err(error)) => Some(Err(error.into())),
            None => {
                self.source.ended.set(true);
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.kept().is_none() && self.source.incoming.borrow().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // Kept bytes come again, so the hint of what is left is only right before anything was read.
        if self.source.bytes.get() == 0 { self.source.incoming.borrow().size_hint() } else { SizeHint::new() }
    }
}

/// A response's body on its way to the client. At its end, whichever way, the request is counted and the
/// upstream connection given back.
pub struct ResponseBody {
    content: Content,
    tail: Option<Box<Tail>>,
}

enum Content {
    Upstream(Incoming),
    Local(Option<Bytes>),
}

struct Tail {
    record: Record,
    lease: Option<Lease>,
    deadline: Option<Pin<Box<Sleep>>>,
    clock: Option<Rc<Clock>>,
    /// Made when the body rests for the first time: most bodies come at once.
    idle: Option<Pin<Box<Sleep>>>,
}

impl Tail {
    /// Whether no byte has passed for too long. The timer is set anew only when it fires.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(clock) = &self.clock else { return Poll::Pending };
        let Some(at) = clock.idle_at() else { return Poll::Pending };
        let timer = self.idle.get_or_insert_with(|| Box::pin(sleep_until(at)));
        loop {
            ready!(timer.as_mut().poll(cx));
            match clock.idle_at() {
                Some(at) if at > Instant::now() => timer.as_mut().reset(at),
                _ => return Poll::Ready(()),
            }
        }
    }
}

impl ResponseBody {
    /// From an endpoint, until `deadline` if there is one.
    pub(crate) fn upstream(
        incoming: Incoming,
        record: Record,
        lease: Lease,
        deadline: Option<Instant>,
        clock: Rc<Clock>,
    ) -> Self {
        clock.touch();
        let deadline = deadline.map(|at| Box::pin(sleep_until(at)));
        let tail = Tail { record, lease: Some(lease), deadline, clock: Some(clock), idle: None };
        Self { content: Content::Upstream(incoming), tail: Some(Box::new(tail)) }
    }

    /// Of the proxy's own.
    pub(crate) fn local(bytes: Bytes, record: Option<Record>) -> Self {
        let content = Content::Local(Some(bytes).filter(|bytes| !bytes.is_empty()));
        let tail = record
            .map(|record| Box::new(Tail { record, lease: None, deadline: None, clock: None, idle: None }));
        Self { content, tail }
    }

    fn poll_content(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.content {
            Content::Local(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Content::Upstream(incoming) => {
                let deadline = self.tail.as_mut().and_then(|tail| tail.deadline.as_mut());
                if deadline.is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready()) {
                    return Poll::Ready(Some(Err(BodyError::Timeout)));
                }
                let frame = Pin::new(incoming).poll_frame(cx).map_err(BodyError::from);
                let Some(tail) = &mut self.tail else { return frame };
                if frame.is_ready() {
                    if let Some(clock) = &tail.clock {
                        clock.touch();
                    }
                    return frame;
                }
                tail.poll_idle(cx).map(|()| Some(Err(BodyError::Idle)))
            }
        }
    }

    /// Counts the request; gives the connection back when the response has come to its end.
    fn finish(&mut self, flags: ResponseFlags, complete: bool) {
        if let Some(mut tail) = self.tail.take() {
            // One look at the clock for all that a request's end is noted in.
            let now = Instant::now();
            if complete && let Some(lease) = tail.lease.take() {
                lease.give_back(now);
            }
            tail.record.finish(flags, now);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(self.poll_content(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(tail) = &mut self.tail {
                    match (frame.data_ref(), frame.trailers_ref()) {
                        (Some(data), _) => tail.record.response_data(data),
                        (None, Some(trailers)) => tail.record.trailers(trailers),
                        (None, None) => {}
                    }
                }
            }
            Some(Err(BodyError::Timeout)) => self.finish(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT, false),
            Some(Err(error)) => {
                let flags = super::upstream::flags_of_body_error(error);
                self.finish(flags, false);
            }
            None => self.finish(ResponseFlags::NONE, true),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Upstream(incoming) => incoming.is_end_stream(),
            Content::Local(bytes) => bytes.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Upstream(incoming) => incoming.size_hint(),
            Content::Local(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
        }
    }
}

impl Drop for ResponseBody {
    /// hyper does not ask again for a body that says it has ended, and drops the body of a client that went
    /// away: this is the only place that sees both.
    fn drop(&mut self) {
        if self.tail.is_some() {
            // Our own answer to HEAD is never asked for its body.
            let complete = matches!(self.content, Content::Local(_)) || self.is_end_stream();
            let flags =
                if complete { ResponseFlags::NONE } else { ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION };
            self.finish(flags, complete);
        }
    }
}
