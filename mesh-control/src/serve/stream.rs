//! One stream: proves who asks, then turns requests into watches and changes into responses until somebody
//! ends it. It holds one bounded channel, which a client that answers what it gets can never fill.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_common::process::DrainGuard;
use mesh_common::xds::ResourceType;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{Request, Status};

use super::binding::{Binding, Present};
use super::delta::Verdict;
use super::discovery::{Discovery, OpeningPermit, Stream};
use super::end::{End, MAX_STALE, OPENING};
use super::limit::Exceeded;
use super::metrics::Metrics;
use super::node::{self, NodeClaims};
use super::protocol::{Incoming, Message, State, Told};
use super::tls::PeerInfo;
use super::wire::{Outgoing, StreamHandler};
use crate::ca::caller::Caller;
use crate::ca::rate::{Bucket, Pace};
use crate::model::facts::Facts as _;
use crate::translate::client::ClientKind;

/// One response per type may be on its way, and the reason of the end.
const CHANNEL: usize = ResourceType::ALL.len() + 1;
/// Requests of a stream are read as fast as this, and no faster: a proxy that looks up hundreds of destinations in
/// a second stays below it.
const REQUESTS: Pace = Pace { burst: 4_000, interval: Duration::from_millis(2) };

type Sender = mpsc::Sender<Result<Told, Status>>;

/// Takes the streams of the service.
pub struct Handler {
    discovery: Arc<Discovery>,
    tasks: TaskTracker,
    guard: DrainGuard,
}

impl Handler {
    /// Streams run as tasks of this tracker, until the process drains.
    pub fn new(discovery: Arc<Discovery>, tasks: TaskTracker, guard: DrainGuard) -> Self {
        Self { discovery, tasks, guard }
    }

    /// Proves who asks before anything that was sent is read, and takes one of the caller's places.
    async fn open_for(
        &self,
        headers: &http::HeaderMap,
        peer: &PeerInfo,
    ) -> Result<(Caller, OpeningPermit), End> {
        if !self.discovery.model.is_synced() {
            return Err(End::NotSynced);
        }
        let from = peer.address.ip();
        let caller = self.discovery.authenticator.stream(headers, from, peer.certificate.clone()).await?;
        let key = (caller.to_string(), from);
        match self.discovery.opening.take(key) {
            Ok(permit) => Ok((caller, permit)),
            Err(Exceeded::Each(bound)) => Err(End::Opening(bound, caller.to_string())),
            Err(Exceeded::Total(bound)) => Err(End::Streams(bound)),
        }
    }
}

impl StreamHandler for Handler {
    async fn open(&self, request: Request<Incoming>) -> Result<Outgoing, Status> {
        let Some(peer) = request.extensions().get::<PeerInfo>().cloned() else {
            return Err(Status::internal("the connection has no peer"));
        };
        let (metadata, _, incoming) = request.into_parts();
        let (caller, opening) = self.open_for(metadata.as_ref(), &peer).await.map_err(|end| {
            refused(&self.discovery, peer.address, &end);
            end.status().unwrap_or_else(|| Status::internal("nobody asks"))
        })?;
        let (sender, receiver) = mpsc::channel(CHANNEL);
        let discovery = Arc::clone(&self.discovery);
        let guard = self.guard.clone();
        self.tasks.spawn(async move {
            let call = Call { discovery: &discovery, incoming, sender: &sender, peer: peer.address, guard };
            Box::pin(call.run(caller, opening)).await;
        });
        Ok(ReceiverStream::new(receiver))
    }
}

fn refused(discovery: &Discovery, peer: SocketAddr, end: &End) {
    discovery.metrics.refused(end.label());
    tracing::warn!(%peer, reason = end.reason(), "refused a stream");
}

/// A stream from its first request to its last byte.
struct Call<'a> {
    discovery: &'a Discovery,
    incoming: Incoming,
    sender: &'a Sender,
    peer: SocketAddr,
    guard: DrainGuard,
}

/// How the client behaves.
struct Conduct {
    requests: Bucket,
    /// The next request is paid for: it may be read.
    may_read: bool,
    /// When to try to pay for it again.
    read_from: Instant,
    /// Answers in a row to responses that are not the last one.
    stale: u32,
}

impl Conduct {
    /// Pays for the next request, or says when that will be possible.
    fn pay(&mut self, metrics: &Metrics) {
        let now = Instant::now();
        if self.may_read || now < self.read_from {
            return;
        }
        match self.requests.take(now, REQUESTS) {
            Ok(()) => self.may_read = true,
            Err(next) => {
                metrics.paced_requests.inc();
                self.read_from = next;
            }
        }
    }
}

impl Call<'_> {
    async fn run(mut self, caller: Caller, opening: OpeningPermit) {
        let end = match self.admit(caller).await {
            Err(end) => {
                refused(self.discovery, self.peer, &end);
                end
            }
            Ok((stream, binding, first)) => {
                drop(opening);
                tracing::info!(node = stream.claims.id, peer = %self.peer, "a stream opened");
                let end = self.follow(&stream, binding, first).await;
                self.discovery.delist(&stream).await;
                self.discovery.metrics.closed(end.label());
                tracing::info!(node = stream.claims.id, reason = end.reason(), "a stream ended");
                end
            }
        };
        if let Some(status) = end.status()
            && self.sender.try_send(Err(status)).is_err()
        {
            tracing::debug!("the client was gone before it could be told");
        }
    }

    /// Waits for the first request, and checks what it says of the caller.
    async fn admit(&mut self, caller: Caller) -> Result<(Arc<Stream>, Binding, Message), End> {
        let mut guard = self.guard.clone();
        let mut first = tokio::select! {
            first = tokio::time::timeout(OPENING, self.incoming.message()) => match first {
                Ok(Ok(Some(first))) => first,
                Ok(Ok(None)) => return Err(End::Client),
                Ok(Err(status)) => return Err(End::Request(status)),
                Err(_) => return Err(End::Silent),
            },
            () = guard.draining() => return Err(End::Draining),
        };
        let claims = node::parse(first.take_node())?;
        let binding = present(self.discovery, &claims, |now| Binding::new(caller, &claims, now))?;
        let pod = format!("{}/{}", claims.namespace, claims.pod);
        let everything = matches!(binding.client().kind, ClientKind::Envoy(_));
        let state = State::new(&first, self.discovery.options.limits, everything);
        let stream =
            self.discovery.enlist(self.peer, claims, &binding, state).map_err(|exceeded| match exceeded {
                Exceeded::Each(bound) => End::PodStreams(bound, pod),
                Exceeded::Total(bound) => End::Streams(bound),
            })?;
        Ok((stream, binding, first))
    }

    async fn follow(&mut self, stream: &Stream, mut binding: Binding, first: Message) -> End {
        let now = Instant::now();
        let mut conduct =
            Conduct { requests: Bucket::full(REQUESTS, now), may_read: true, read_from: now, stale: 0 };
        if let Err(end) = self.request(stream, first, &mut conduct).await {
            return end;
        }
        let mut guard = self.guard.clone();
        let mut tick = tokio::time::interval(self.discovery.options.check_interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Err(refusal) = self.discovery.follow_lists(stream).await {
                return refusal.into();
            }
            while let Some(response) = self.discovery.next_response(stream) {
                if self.sender.try_send(Ok(response)).is_err() {
                    return if self.sender.is_closed() { End::Client } else { End::Slow };
                }
            }
            conduct.pay(&self.discovery.metrics);
            tokio::select! {
                request = self.incoming.message(), if conduct.may_read => {
                    conduct.may_read = false;
                    let end = match request {
                        Ok(Some(request)) => self.request(stream, request, &mut conduct).await.err(),
                        Ok(None) => Some(End::Client),
                        // The connection broke: there is nobody left to be told.
                        Err(status) if status.code() == tonic::Code::Unknown => Some(End::Client),
                        Err(status) => Some(End::Request(status)),
                    };
                    if let Some(end) = end {
                        return end;
                    }
                }
                () = sleep_until(conduct.read_from), if !conduct.may_read => {}
                () = stream.wake.notified() => {}
                _ = tick.tick() => {
                    if let Err(end) = self.still_stands(stream, &mut binding) {
                        return end;
                    }
                }
                () = self.sender.closed() => return End::Client,
                () = guard.draining() => return End::Draining,
            }
        }
    }

    async fn request(&self, stream: &Stream, request: Message, conduct: &mut Conduct) -> Result<(), End> {
        let metrics = &self.discovery.metrics;
        let (kind, request) = request.decode().map_err(End::Request)?;
        let effects = stream.state().request(kind, request)?;
        match &effects.verdict {
            Some(Verdict::Ack) => conduct.stale = 0,
            Some(Verdict::Nack(text)) => {
                conduct.stale = 0;
                metrics.nacked(kind);
                tracing::warn!(
                    node = stream.claims.id,
                    kind = kind.short(),
                    text,
                    "a client refused a response"
                );
            }
            Some(Verdict::Stale) => {
                metrics.stale_answers.inc();
                conduct.stale += 1;
                if conduct.stale >= MAX_STALE {
                    return Err(End::Stale);
                }
            }
            None => {}
        }
        self.discovery.unwatch(stream, &effects.unwatch).await;
        self.discovery.watch(stream, &effects.watch).await;
        Ok(())
    }

    /// Whether the client is quick enough, and what the stream was opened on still holds.
    fn still_stands(&self, stream: &Stream, binding: &mut Binding) -> Result<(), End> {
        let options = self.discovery.options;
        let waiting = stream.state().waiting_since();
        if waiting.is_some_and(|since| since.elapsed() > options.ack_timeout) {
            return Err(End::Slow);
        }
        let check = |now: Present<'_>| binding.check(&stream.claims, now, options.pod_grace);
        Ok(present(self.discovery, &stream.claims, check)?)
    }
}

/// Calls with what is true of the pod of a node now.
fn present<T>(discovery: &Discovery, claims: &NodeClaims, check: impl FnOnce(Present<'_>) -> T) -> T {
    let pod = discovery.model.live_pod(&claims.namespace, &claims.pod);
    let uid = pod.as_ref().and_then(|pod| discovery.model.pod_uid(&pod.key));
    let settings = discovery.model.read().settings();
    let (wall, now) = (SystemTime::now(), Instant::now());
    check(Present { wall, now, pod: pod.as_deref(), uid: uid.as_deref(), settings: &settings })
}
