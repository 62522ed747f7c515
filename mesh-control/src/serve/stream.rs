//! One stream: proves who asks, then turns requests into watches and changes into responses until somebody
//! ends it. It holds one bounded channel, which a client that answers what it gets can never fill.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_common::process::DrainGuard;
use mesh_common::spiffe::SpiffeId;
use mesh_common::xds::ResourceType;
use mesh_common::xds::proto::service::discovery::v3::DeltaDiscoveryRequest;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{Request, Status, Streaming};

use super::delta::{DeltaRequest, Verdict};
use super::discovery::{Discovery, Stream};
use super::node::{self, NodeError};
use super::tls::PeerInfo;
use super::wire::{self, DeltaHandler, Outgoing, WireResponse};
use crate::ca::caller::{Caller, CallerError};
use crate::model::facts::Facts as _;

/// One response per type may be on its way, and the reason of the end.
const CHANNEL: usize = ResourceType::ALL.len() + 1;
/// How long a stream waits for the model to be read, and for its own first request.
const OPENING: Duration = Duration::from_secs(15);

type Sender = mpsc::Sender<Result<WireResponse, Status>>;

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum End {
    /// The client closed it or went away.
    #[error("the client closed the stream")]
    Client,
    /// We stop.
    #[error("mesh-control is shutting down")]
    Draining,
    /// The model is still being read.
    #[error("the configuration has not been read yet; ask again")]
    NotSynced,
    /// Nothing came.
    #[error("no request came within {} s", OPENING.as_secs())]
    Silent,
    /// The caller is nobody.
    #[error(transparent)]
    Caller(#[from] CallerError),
    /// The caller is not who the node says.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A request that cannot be served.
    #[error("{}", .0.message())]
    Request(Status),
    /// A request that asks for too much.
    #[error(transparent)]
    Refusal(#[from] super::delta::Refusal),
    /// The pod is gone.
    #[error("{0}; its stream is closed")]
    PodGone(NodeError),
    /// The pod's node or zone is another.
    #[error("the pod's node or zone changed; connect again")]
    Moved,
    /// It does not read or answer.
    #[error("the client did not answer a response in time; it is cut so that it cannot hold memory")]
    Slow,
}

impl End {
    fn label(&self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Draining => "draining",
            Self::NotSynced => "not_synced",
            Self::Silent => "silent",
            Self::Caller(_) => "caller",
            Self::Node(error) => error.label(),
            Self::Request(_) => "bad_request",
            Self::Refusal(_) => "limits",
            Self::PodGone(_) => "pod_gone",
            Self::Moved => "moved",
            Self::Slow => "slow",
        }
    }

    fn status(&self) -> Option<Status> {
        let text = self.to_string();
        Some(match self {
            Self::Client => return None,
            Self::Draining | Self::NotSynced | Self::Moved => Status::unavailable(text),
            Self::Silent | Self::Slow => Status::deadline_exceeded(text),
            Self::Caller(_) => Status::unauthenticated(text),
            Self::Node(
                NodeError::Absent | NodeError::Id(_) | NodeError::Metadata(_) | NodeError::Disagrees(_),
            ) => Status::invalid_argument(text),
            Self::Node(NodeError::ClientKind(_)) => Status::unimplemented(text),
            Self::Node(_) | Self::PodGone(_) => Status::permission_denied(text),
            Self::Request(status) => status.clone(),
            Self::Refusal(super::delta::Refusal::Wildcard(_)) => Status::invalid_argument(text),
            Self::Refusal(_) => Status::resource_exhausted(text),
        })
    }
}

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
}

impl DeltaHandler for Handler {
    fn open(&self, request: Request<Streaming<DeltaDiscoveryRequest>>) -> Result<Outgoing, Status> {
        let Ok(slot) = Arc::clone(&self.discovery.slots).try_acquire_owned() else {
            self.discovery.metrics.refused("too_many");
            return Err(Status::resource_exhausted(
                "mesh-control has as many streams as it takes; ask again later",
            ));
        };
        let Some(peer) = request.extensions().get::<PeerInfo>().cloned() else {
            return Err(Status::internal("the connection has no peer"));
        };
        let (sender, receiver) = mpsc::channel(CHANNEL);
        let discovery = Arc::clone(&self.discovery);
        let (metadata, _, incoming) = request.into_parts();
        let headers = metadata.into_headers();
        let guard = self.guard.clone();
        self.tasks.spawn(async move {
            let call = Call { discovery: &discovery, incoming, sender: &sender, peer, guard };
            Box::pin(call.run(headers)).await;
            drop(slot);
        });
        Ok(ReceiverStream::new(receiver))
    }
}

/// A stream from its first byte to its last.
struct Call<'a> {
    discovery: &'a Discovery,
    incoming: Streaming<DeltaDiscoveryRequest>,
    sender: &'a Sender,
    peer: PeerInfo,
    guard: DrainGuard,
}

impl Call<'_> {
    async fn run(mut self, headers: http::HeaderMap) {
        let PeerInfo { address, identity } = self.peer.clone();
        let end = match self.admit(&headers, address, identity).await {
            Err(end) => {
                self.discovery.metrics.refused(end.label());
                tracing::warn!(peer = %address, reason = %end, "refused a stream");
                end
            }
            Ok((stream, caller, first)) => {
                tracing::info!(node = stream.claims.id, peer = %address, "a stream opened");
                let end = self.follow(&stream, &caller, first).await;
                self.discovery.delist(&stream).await;
                self.discovery.metrics.closed(end.label());
                tracing::info!(node = stream.claims.id, reason = %end, "a stream ended");
                end
            }
        };
        if let Some(status) = end.status()
            && self.sender.try_send(Err(status)).is_err()
        {
            tracing::debug!("the client was gone before it could be told");
        }
    }

    /// Waits for the model and the first request, and proves who asks.
    async fn admit(
        &mut self,
        headers: &http::HeaderMap,
        address: SocketAddr,
        identity: Option<SpiffeId>,
    ) -> Result<(Arc<Stream>, Caller, DeltaDiscoveryRequest), End> {
        let (discovery, mut guard) = (self.discovery, self.guard.clone());
        let opening = async {
            discovery.model.synced().await;
            let caller = discovery.authenticator.stream(headers, identity)?;
            match self.incoming.message().await {
                Ok(Some(first)) => Ok((caller, first)),
                Ok(None) => Err(End::Client),
                Err(status) => Err(End::Request(status)),
            }
        };
        let (caller, mut first) = tokio::select! {
            opened = tokio::time::timeout(OPENING, opening) => match opened {
                Ok(opened) => opened?,
                Err(_) if !discovery.model.is_synced() => return Err(End::NotSynced),
                Err(_) => return Err(End::Silent),
            },
            () = guard.draining() => return Err(End::Draining),
        };
        let claims = node::parse(first.node.take())?;
        let pod = discovery.model.live_pod(&claims.namespace, &claims.pod);
        let settings = discovery.model.read().settings();
        let client = node::check(&claims, &caller, pod.as_deref(), &settings)?;
        Ok((discovery.enlist(address, caller.to_string(), claims, client), caller, first))
    }

    async fn follow(&mut self, stream: &Stream, caller: &Caller, first: DeltaDiscoveryRequest) -> End {
        if let Err(end) = self.request(stream, first).await {
            return end;
        }
        let mut guard = self.guard.clone();
        let mut tick = tokio::time::interval(self.discovery.options.check_interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut gone = None;
        loop {
            while let Some(response) = self.discovery.next_response(stream) {
                if self.sender.try_send(Ok(response.into())).is_err() {
                    return if self.sender.is_closed() { End::Client } else { End::Slow };
                }
            }
            tokio::select! {
                request = self.incoming.message() => {
                    let end = match request {
                        Ok(Some(request)) => self.request(stream, request).await.err(),
                        Ok(None) => Some(End::Client),
                        // The connection broke: there is nobody left to be told.
                        Err(status) if status.code() == tonic::Code::Unknown => Some(End::Client),
                        Err(status) => Some(End::Request(status)),
                    };
                    if let Some(end) = end {
                        return end;
                    }
                }
                () = stream.wake.notified() => {}
                _ = tick.tick() => {
                    if let Some(end) = self.overdue(stream, caller, &mut gone) {
                        return end;
                    }
                }
                () = self.sender.closed() => return End::Client,
                () = guard.draining() => return End::Draining,
            }
        }
    }

    async fn request(&self, stream: &Stream, request: DeltaDiscoveryRequest) -> Result<(), End> {
        let (kind, request): (ResourceType, DeltaRequest) = wire::decode(request).map_err(End::Request)?;
        let effects = stream.state().request(kind, request)?;
        if let Some(Verdict::Nack(text)) = &effects.verdict {
            self.discovery.metrics.nacked(kind);
            tracing::warn!(node = stream.claims.id, kind = kind.short(), text, "a client refused a response");
        }
        self.discovery.unwatch(stream, &effects.unwatch).await;
        self.discovery.watch(stream, &effects.watch).await;
        Ok(())
    }

    /// Whether the client is too slow, or its pod is gone for too long.
    fn overdue(&self, stream: &Stream, caller: &Caller, gone: &mut Option<Instant>) -> Option<End> {
        let (options, now) = (self.discovery.options, Instant::now());
        if stream.state().waiting_since().is_some_and(|since| now - since > options.ack_timeout) {
            return Some(End::Slow);
        }
        let pod = self.discovery.model.live_pod(&stream.claims.namespace, &stream.claims.pod);
        let settings = self.discovery.model.read().settings();
        match node::check(&stream.claims, caller, pod.as_deref(), &settings) {
            Ok(client) if client == stream.client => {
                *gone = None;
                None
            }
            Ok(_) => Some(End::Moved),
            Err(error) if now - *gone.get_or_insert(now) >= options.pod_grace => Some(End::PodGone(error)),
            Err(_) => None,
        }
    }
}
