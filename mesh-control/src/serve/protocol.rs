//! The two forms of the protocol behind one face: incremental, and state of the world. Only here does the rest
//! of the server see that there are two.

use std::sync::Arc;

use mesh_common::xds::ResourceType;
use mesh_common::xds::proto::config::core::v3::Node;
use mesh_common::xds::proto::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::cache::{Answer, Key};
use super::delta::{DeltaRequest, DeltaResponse, DeltaState, Effects, Limits, Refusal, TypeStatus};
use super::sotw::{SotwRequest, SotwResponse, SotwState};
use super::wire;

/// The requests of a stream, as they come in.
pub enum Incoming {
    /// Incremental.
    Delta(Streaming<DeltaDiscoveryRequest>),
    /// State of the world.
    Sotw(Streaming<DiscoveryRequest>),
}

impl Incoming {
    /// The next request; `None` at the end. Cancel-safe.
    ///
    /// # Errors
    /// As the stream gives them.
    pub async fn message(&mut self) -> Result<Option<Message>, Status> {
        Ok(match self {
            Self::Delta(stream) => stream.message().await?.map(|request| Message::Delta(Box::new(request))),
            Self::Sotw(stream) => stream.message().await?.map(|request| Message::Sotw(Box::new(request))),
        })
    }
}

/// A request as it came.
#[derive(Debug)]
pub enum Message {
    /// Incremental.
    Delta(Box<DeltaDiscoveryRequest>),
    /// State of the world.
    Sotw(Box<DiscoveryRequest>),
}

impl Message {
    /// Takes the node out of it.
    pub fn take_node(&mut self) -> Option<Node> {
        match self {
            Self::Delta(request) => request.node.take(),
            Self::Sotw(request) => request.node.take(),
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// When it has a type that is not served, or a field that is not.
    pub fn decode(self) -> Result<(ResourceType, Ask), Status> {
        match self {
            Self::Delta(request) => wire::decode(*request).map(|(kind, ask)| (kind, Ask::Delta(ask))),
            Self::Sotw(request) => wire::decode_sotw(*request).map(|(kind, ask)| (kind, Ask::Sotw(ask))),
        }
    }
}

/// A request, read.
#[derive(Debug)]
pub enum Ask {
    /// Incremental.
    Delta(DeltaRequest),
    /// State of the world.
    Sotw(SotwRequest),
}

/// A response.
#[derive(Debug)]
pub enum Told {
    /// Incremental.
    Delta(DeltaResponse),
    /// State of the world.
    Sotw(SotwResponse),
}

impl Told {
    /// Its type, its resources, names that it says are gone, bytes of the resources.
    pub fn size(&self) -> (ResourceType, usize, usize, usize) {
        match self {
            Self::Delta(response) => {
                let bytes = response.resources.iter().map(|(_, resource)| resource.body.len()).sum();
                (response.kind, response.resources.len(), response.removed.len(), bytes)
            }
            Self::Sotw(response) => {
                let bytes = response.resources.iter().map(|resource| resource.body.len()).sum();
                (response.kind, response.resources.len(), 0, bytes)
            }
        }
    }
}

/// The state of a stream.
#[derive(Debug)]
pub enum State {
    /// Incremental.
    Delta(DeltaState),
    /// State of the world.
    Sotw(SotwState),
}

/// The same call of both.
macro_rules! both {
    ($self:ident, $state:ident => $call:expr) => {
        match $self {
            Self::Delta($state) => $call,
            Self::Sotw($state) => $call,
        }
    };
}

impl State {
    /// The state of a stream whose first request is `first`; `everything`: whether its client may ask for
    /// everything.
    pub fn new(first: &Message, limits: Limits, everything: bool) -> Self {
        match first {
            Message::Delta(_) => Self::Delta(DeltaState::new(limits, everything)),
            Message::Sotw(_) => Self::Sotw(SotwState::new(limits, everything)),
        }
    }

    /// Takes a request, of the stream's own form.
    ///
    /// # Errors
    /// When the stream has to end because of it.
    pub fn request(&mut self, kind: ResourceType, ask: Ask) -> Result<Effects, Refusal> {
        match (self, ask) {
            (Self::Delta(state), Ask::Delta(request)) => state.request(kind, request),
            (Self::Sotw(state), Ask::Sotw(request)) => state.request(kind, request),
            // One stream has one form, from its first message on.
            (Self::Delta(_), Ask::Sotw(_)) | (Self::Sotw(_), Ask::Delta(_)) => Ok(Effects::default()),
        }
    }

    /// Says that a name stands for something else than before.
    pub fn changed(&mut self, key: &Key) {
        both!(self, state => state.changed(key));
    }

    /// See [`DeltaState::stale_list`].
    pub fn stale_list(&mut self) -> Option<ResourceType> {
        both!(self, state => state.stale_list())
    }

    /// See [`DeltaState::take_list`].
    ///
    /// # Errors
    /// As that.
    pub fn take_list(
        &mut self,
        kind: ResourceType,
        names: Vec<Arc<str>>,
        now: Instant,
    ) -> Result<Effects, Refusal> {
        both!(self, state => state.take_list(kind, names, now))
    }

    /// The next response.
    pub fn next_response(
        &mut self,
        now: Instant,
        answer: impl FnMut(&Key) -> Option<Answer>,
    ) -> Option<Told> {
        match self {
            Self::Delta(state) => state.next_response(now, answer).map(Told::Delta),
            Self::Sotw(state) => state.next_response(now, answer).map(Told::Sotw),
        }
    }

    /// See [`DeltaState::waiting_since`].
    pub fn waiting_since(&self) -> Option<Instant> {
        both!(self, state => state.waiting_since())
    }

    /// See [`DeltaState::subscriptions`].
    pub fn subscriptions(&self) -> Vec<Key> {
        both!(self, state => state.subscriptions().collect())
    }

    /// For admin pages.
    pub fn status(&self) -> Vec<TypeStatus> {
        both!(self, state => state.status())
    }
}
