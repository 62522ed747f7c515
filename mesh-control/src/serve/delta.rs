//! The state of one incremental stream: what the client subscribed to, what it holds, what waits to be told.
//! Sans-io: requests in, responses out. A client that is slow or hostile must never make it grow: names are
//! bounded, and a change of a name that already waits is nothing new.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use mesh_common::xds::ResourceType;
use tokio::time::Instant;

use super::cache::{Answer, Key, Resource};
use super::recorder::Version;

/// Bounds of one stream.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Names subscribed to, over all types.
    pub names: usize,
    /// Their bytes.
    pub name_bytes: usize,
    /// Resources and removed names in one response.
    pub response_resources: usize,
    /// Bytes of resources in one response, unless a single one is larger.
    pub response_bytes: usize,
    /// Bytes kept of the text of a NACK.
    pub nack_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            names: 10_000,
            name_bytes: 1 << 20,
            response_resources: 1_000,
            response_bytes: 1 << 20,
            nack_bytes: 4096,
        }
    }
}

/// A request, as far as this state cares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeltaRequest {
    /// Names to subscribe to.
    pub subscribe: Vec<String>,
    /// Names to forget.
    pub unsubscribe: Vec<String>,
    /// What the client holds from an earlier stream.
    pub initial_versions: HashMap<String, String>,
    /// The nonce of the response that this answers, or empty.
    pub nonce: String,
    /// The text of a NACK.
    pub error: Option<String>,
}

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeltaResponse {
    /// Its type.
    pub kind: ResourceType,
    /// Its nonce.
    pub nonce: String,
    /// New and changed resources.
    pub resources: Vec<(Arc<str>, Arc<Resource>)>,
    /// Names that stand for nothing.
    pub removed: Vec<Arc<str>>,
}

/// What a request asks of the cache.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Names to watch from now on.
    pub watch: Vec<Key>,
    /// Names to watch no more.
    pub unwatch: Vec<Key>,
    /// What the request said of the last response.
    pub verdict: Option<Verdict>,
}

/// What a client said of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It took it.
    Ack,
    /// It refused it, with this text.
    Nack(String),
    /// It spoke of a response that is not the last one.
    Stale,
}

/// Why a request ends the stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Too many names.
    #[error("the stream would subscribe to more than {0} names; unsubscribe from some first")]
    TooManyNames(usize),
    /// Too long names.
    #[error("the names the stream subscribes to would take more than {0} bytes; unsubscribe from some first")]
    TooManyBytes(usize),
    /// Everything was asked for.
    #[error("{0} without names, or with the name *, asks for everything; subscribe to resources by name")]
    Wildcard(&'static str),
}

/// The state of one type for admin pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeStatus {
    /// The type.
    pub kind: ResourceType,
    /// Every subscribed name with the version that was sent last, and whether it was acknowledged.
    pub names: Vec<(Arc<str>, Option<Version>, bool)>,
    /// Names whose change waits to be sent.
    pub waiting: usize,
    /// Responses acknowledged.
    pub acks: u64,
    /// Responses refused.
    pub nacks: u64,
    /// The text of the last NACK, if nothing was acknowledged since.
    pub last_nack: Option<String>,
}

/// The state of one stream.
#[derive(Debug)]
pub struct DeltaState {
    limits: Limits,
    types: BTreeMap<ResourceType, TypeState>,
    names: usize,
    name_bytes: usize,
    nonces: u64,
}

#[derive(Debug, Default)]
struct TypeState {
    names: HashMap<Arc<str>, Held>,
    /// Names to look at. True: to be told even if the client holds the same (it subscribed again).
    waiting: BTreeMap<Arc<str>, bool>,
    /// The response that has yet to be acknowledged.
    outstanding: Option<Outstanding>,
    acks: u64,
    nacks: u64,
    last_nack: Option<String>,
}

#[derive(Debug)]
struct Outstanding {
    nonce: String,
    sent: Instant,
    names: Vec<Arc<str>>,
}

/// What the client knows of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    knows: Knows,
    acked: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Knows {
    Nothing,
    Missing,
    Version(Version),
}

impl Knows {
    fn of(answer: &Answer) -> Self {
        match answer {
            Answer::Found(resource) => Self::Version(resource.version),
            Answer::Missing => Self::Missing,
        }
    }
}

impl DeltaState {
    /// A stream without subscriptions.
    pub fn new(limits: Limits) -> Self {
        Self { limits, types: BTreeMap::new(), names: 0, name_bytes: 0, nonces: 0 }
    }

    /// Takes a request.
    ///
    /// # Errors
    /// When the stream has to end because of it.
    pub fn request(&mut self, kind: ResourceType, request: DeltaRequest) -> Result<Effects, Refusal> {
        let DeltaRequest { subscribe, unsubscribe, initial_versions, nonce, error } = request;
        let first = !self.types.contains_key(&kind);
        let wildcard_type = matches!(kind, ResourceType::Listener | ResourceType::Cluster);
        // A first request without names is the old form of asking for everything, for these two types.
        if subscribe.iter().any(|name| name == "*") || (first && wildcard_type && subscribe.is_empty()) {
            return Err(Refusal::Wildcard(kind.short()));
        }
        let verdict = self.verdict(kind, nonce, error);
        let unwatch = self.unsubscribe(kind, unsubscribe);
        match self.subscribe(kind, subscribe, first.then_some(initial_versions)) {
            Ok(watch) => Ok(Effects { watch, unwatch, verdict }),
            Err(refusal) => {
                // The stream ends: whoever takes it off the list must still find all that it watches.
                let state = self.types.entry(kind).or_default();
                for (_, name) in unwatch {
                    state.names.insert(name, Held { knows: Knows::Nothing, acked: false });
                }
                Err(refusal)
            }
        }
    }

    /// Says that a name stands for something else than before.
    pub fn changed(&mut self, (kind, name): &Key) {
        let Some(state) = self.types.get_mut(kind) else { return };
        if state.names.contains_key(name) {
            state.waiting.entry(Arc::clone(name)).or_insert(false);
        }
    }

    /// The next response, of the first type that has something to say and whose last response was answered.
    pub fn next_response(
        &mut self,
        now: Instant,
        mut answer: impl FnMut(&Key) -> Option<Answer>,
    ) -> Option<DeltaResponse> {
        for kind in ResourceType::ALL {
            let Some(state) = self.types.get_mut(&kind) else { continue };
            if state.outstanding.is_some() {
                continue;
            }
            let (resources, removed) = state.take(&self.limits, |name| answer(&(kind, Arc::clone(name))));
            if resources.is_empty() && removed.is_empty() {
                continue;
            }
            self.nonces += 1;
            let nonce = format!("{:x}", self.nonces);
            let names = resources.iter().map(|(name, _)| name).chain(&removed).cloned().collect();
            state.outstanding = Some(Outstanding { nonce: nonce.clone(), sent: now, names });
            return Some(DeltaResponse { kind, nonce, resources, removed });
        }
        None
    }

    /// When the oldest response was sent that has yet to be acknowledged.
    pub fn waiting_since(&self) -> Option<Instant> {
        self.types.values().filter_map(|state| Some(state.outstanding.as_ref()?.sent)).min()
    }

    /// Every subscribed name.
    pub fn subscriptions(&self) -> impl Iterator<Item = Key> {
        self.types.iter().flat_map(|(kind, state)| state.names.keys().map(|name| (*kind, Arc::clone(name))))
    }

    /// For admin pages.
    pub fn status(&self) -> Vec<TypeStatus> {
        self.types.iter().map(|(kind, state)| state.status(*kind)).collect()
    }

    fn verdict(&mut self, kind: ResourceType, nonce: String, error: Option<String>) -> Option<Verdict> {
        let state = self.types.entry(kind).or_default();
        if nonce.is_empty() && error.is_none() {
            return None;
        }
        let Some(answered) = state.outstanding.take_if(|response| response.nonce == nonce) else {
            return Some(Verdict::Stale);
        };
        match error {
            None => {
                state.acks += 1;
                state.last_nack = None;
                for name in answered.names {
                    if let Some(held) = state.names.get_mut(&name) {
                        held.acked = true;
                    }
                }
                Some(Verdict::Ack)
            }
            Some(text) => {
                let text = shorten(text, self.limits.nack_bytes);
                state.nacks += 1;
                state.last_nack = Some(text.clone());
                Some(Verdict::Nack(text))
            }
        }
    }

    fn unsubscribe(&mut self, kind: ResourceType, names: Vec<String>) -> Vec<Key> {
        let state = self.types.entry(kind).or_default();
        let mut unwatch = Vec::new();
        for name in names {
            if let Some((name, _)) = state.names.remove_entry(name.as_str()) {
                state.waiting.remove(&name);
                self.names -= 1;
                self.name_bytes -= name.len();
                unwatch.push((kind, name));
            }
        }
        unwatch
    }

    fn subscribe(
        &mut self,
        kind: ResourceType,
        names: Vec<String>,
        initial: Option<HashMap<String, String>>,
    ) -> Result<Vec<Key>, Refusal> {
        let limits = self.limits;
        let state = self.types.entry(kind).or_default();
        let mut watch = Vec::new();
        for name in names {
            if let Some((name, _)) = state.names.get_key_value(name.as_str()) {
                state.waiting.insert(Arc::clone(name), true);
                continue;
            }
            if self.names == limits.names {
                return Err(Refusal::TooManyNames(limits.names));
            }
            if self.name_bytes + name.len() > limits.name_bytes {
                return Err(Refusal::TooManyBytes(limits.name_bytes));
            }
            self.names += 1;
            self.name_bytes += name.len();
            // A version that is not ours cannot be what we have: the client is told, as if it held nothing.
            let known = initial.as_ref().and_then(|held| held.get(&name)).and_then(|text| text.parse().ok());
            let knows = known.map_or(Knows::Nothing, Knows::Version);
            let name: Arc<str> = name.into();
            state.names.insert(Arc::clone(&name), Held { acked: known.is_some(), knows });
            state.waiting.insert(Arc::clone(&name), false);
            watch.push((kind, name));
        }
        Ok(watch)
    }
}

type Chunk = (Vec<(Arc<str>, Arc<Resource>)>, Vec<Arc<str>>);

impl TypeState {
    /// Takes what waits, up to the bounds of one response; the rest waits for the next one.
    fn take(&mut self, limits: &Limits, mut answer: impl FnMut(&Arc<str>) -> Option<Answer>) -> Chunk {
        let (mut resources, mut removed, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(waiting) = self.waiting.first_entry() {
            let (name, again) = (Arc::clone(waiting.key()), *waiting.get());
            let now = answer(&name);
            let (Some(held), Some(now)) = (self.names.get_mut(&name), now) else {
                waiting.remove();
                continue;
            };
            if held.knows == Knows::of(&now) && !again {
                waiting.remove();
                continue;
            }
            let size = name.len() + if let Answer::Found(resource) = &now { resource.body.len() } else { 0 };
            let count = resources.len() + removed.len();
            if count > 0 && (count == limits.response_resources || bytes + size > limits.response_bytes) {
                break;
            }
            waiting.remove();
            bytes += size;
            *held = Held { knows: Knows::of(&now), acked: false };
            match now {
                Answer::Found(resource) => resources.push((name, resource)),
                Answer::Missing => removed.push(name),
            }
        }
        (resources, removed)
    }

    fn status(&self, kind: ResourceType) -> TypeStatus {
        let mut names: Vec<_> = self
            .names
            .iter()
            .map(|(name, held)| {
                let version = if let Knows::Version(version) = held.knows { Some(version) } else { None };
                (Arc::clone(name), version, held.acked)
            })
            .collect();
        names.sort();
        TypeStatus {
            kind,
            names,
            waiting: self.waiting.len(),
            acks: self.acks,
            nacks: self.nacks,
            last_nack: self.last_nack.clone(),
        }
    }
}

fn shorten(mut text: String, bytes: usize) -> String {
    if text.len() > bytes {
        let end = (0..=bytes).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}
