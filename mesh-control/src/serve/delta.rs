//! The state of one incremental stream: what the client subscribed to, what it holds, what waits to be told.
//! Sans-io: requests in, responses out. A client that is slow or hostile must never make it grow: names are
//! bounded, and a change of a name that already waits is nothing new.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use mesh_common::xds::ResourceType;
use tokio::time::Instant;

use super::cache::{Answer, Key, Resource};
use super::recorder::Version;
use super::subscribed::{Held, Outstanding, TypeState, shorten};
use super::wildcard::{EVERYTHING, has_everything};

/// Bounds of one stream.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Names subscribed to, over all types.
    pub names: usize,
    /// Their bytes.
    pub name_bytes: usize,
    /// Bytes of one of them.
    pub name_length: usize,
    /// Resources and removed names in one response.
    pub response_resources: usize,
    /// Bytes of resources in one response, unless a single one is larger.
    pub response_bytes: usize,
    /// Bytes kept of the text of a NACK.
    pub nack_bytes: usize,
    /// How long what a client has by asking for everything outlives its end, so that all that referred to it
    /// is told before.
    pub removal_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            names: 10_000,
            name_bytes: 1 << 20,
            name_length: 1024,
            response_resources: 1_000,
            response_bytes: 1 << 20,
            nack_bytes: 4096,
            removal_grace: Duration::from_secs(1),
        }
    }
}

impl Limits {
    fn uncut(self) -> Self {
        Self { response_resources: usize::MAX, response_bytes: usize::MAX, ..self }
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
    /// A too long name.
    #[error("a name of {0} bytes is no resource's; names have at most {1} bytes")]
    LongName(usize, usize),
    /// A client that wants everything holds too much that is not there.
    #[error(
        "the client holds more than {0} resources, or names of more than {1} bytes, that do not exist any more; \
         start it without them"
    )]
    HoldsTooMuch(usize, usize),
    /// Everything was asked for.
    #[error(
        "{0} without names, or with the name *, asks for everything, which only an Envoy may, of cds and lds; subscribe to resources by name"
    )]
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
    /// Whether this client may ask for everything.
    everything: bool,
    /// Whether all of a type that can be asked for as everything is in one response.
    whole: bool,
    types: BTreeMap<ResourceType, TypeState>,
    names: usize,
    name_bytes: usize,
    nonces: u64,
}

impl DeltaState {
    /// A stream without subscriptions.
    pub fn new(limits: Limits, everything: bool) -> Self {
        let types = BTreeMap::new();
        Self { limits, everything, whole: false, types, names: 0, name_bytes: 0, nonces: 0 }
    }

    /// Does not cut responses of listeners and clusters.
    pub fn whole(self) -> Self {
        Self { whole: true, ..self }
    }

    /// Takes a request.
    ///
    /// # Errors
    /// When the stream has to end because of it.
    pub fn request(&mut self, kind: ResourceType, request: DeltaRequest) -> Result<Effects, Refusal> {
        let DeltaRequest { mut subscribe, unsubscribe, mut initial_versions, nonce, error } = request;
        let first = !self.types.contains_key(&kind);
        let wildcard_type = has_everything(kind);
        // A first request without names is the old form of asking for everything, for these two types.
        let named = subscribe.len();
        subscribe.retain(|name| name != EVERYTHING);
        let everything = subscribe.len() < named || (first && wildcard_type && named == 0);
        if everything && !(self.everything && wildcard_type) {
            return Err(Refusal::Wildcard(kind.short()));
        }
        if !first {
            initial_versions.clear();
        }
        let verdict = self.verdict(kind, nonce, error);
        let unwatch = self.unsubscribe(kind, unsubscribe);
        match self.subscribe(kind, subscribe, &initial_versions) {
            Ok(mut watch) => {
                watch.extend(everything.then(|| self.everything(kind, initial_versions)).flatten());
                Ok(Effects { watch, unwatch, verdict })
            }
            Err(refusal) => {
                // The stream ends: whoever takes it off the list must still find all that it watches.
                let state = self.types.entry(kind).or_default();
                for (_, name) in unwatch {
                    state.names.insert(name, Held::new(None, true));
                }
                Err(refusal)
            }
        }
    }

    /// A type whose list of all names must be taken again: see [`DeltaState::take_list`].
    pub fn stale_list(&mut self) -> Option<ResourceType> {
        let mut types = self.types.iter_mut();
        types.find_map(|(kind, state)| state.wildcard.take_stale().then_some(*kind))
    }

    /// Takes the list of all names of a type.
    ///
    /// # Errors
    /// When the stream has to end because of what the client holds.
    pub fn take_list(
        &mut self,
        kind: ResourceType,
        names: Vec<Arc<str>>,
        now: Instant,
    ) -> Result<Effects, Refusal> {
        self.types.entry(kind).or_default().take_list(&self.limits, kind, names, now)
    }

    /// Tells all subscribed names of a type again.
    pub fn tell_again(&mut self, kind: ResourceType) {
        if let Some(state) = self.types.get_mut(&kind) {
            state.waiting.extend(state.names.keys().map(|name| (Arc::clone(name), true)));
        }
    }

    /// Takes the response of this type that is on its way as acknowledged.
    pub fn acknowledge(&mut self, kind: ResourceType) {
        if let Some(state) = self.types.get_mut(&kind)
            && let Some(response) = state.outstanding.take()
        {
            state.acknowledged(&response.names);
        }
    }

    /// Whether a response of this type has yet to be acknowledged.
    pub fn awaits(&self, kind: ResourceType) -> bool {
        self.types.get(&kind).is_some_and(|state| state.outstanding.is_some())
    }

    /// Says that a name stands for something else than before.
    pub fn changed(&mut self, (kind, name): &Key) {
        let Some(state) = self.types.get_mut(kind) else { return };
        if **name == *EVERYTHING {
            state.wildcard.changed();
        } else if state.names.contains_key(name) {
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
            let limits = if self.whole && has_everything(kind) { self.limits.uncut() } else { self.limits };
            let (resources, removed) = state.take(&limits, |name| answer(&(kind, Arc::clone(name))));
            if resources.is_empty() && removed.is_empty() {
                continue;
            }
            return Some(self.respond(now, kind, resources, removed));
        }
        self.next_removal(now)
    }

    /// What left everything, once nothing is on its way: what refers to others goes first.
    fn next_removal(&mut self, now: Instant) -> Option<DeltaResponse> {
        if self.types.values().any(|state| state.outstanding.is_some()) {
            return None;
        }
        for kind in ResourceType::ALL.into_iter().rev() {
            let Some(state) = self.types.get_mut(&kind) else { continue };
            let gone = state.take_gone(now, self.limits.removal_grace, self.limits.response_resources);
            if !gone.is_empty() {
                return Some(self.respond(now, kind, Vec::new(), gone));
            }
        }
        None
    }

    fn respond(
        &mut self,
        now: Instant,
        kind: ResourceType,
        resources: Vec<(Arc<str>, Arc<Resource>)>,
        removed: Vec<Arc<str>>,
    ) -> DeltaResponse {
        self.nonces += 1;
        let nonce = format!("{:x}", self.nonces);
        let names = resources.iter().map(|(name, _)| name).chain(&removed).cloned().collect();
        let state = self.types.entry(kind).or_default();
        state.outstanding = Some(Outstanding { nonce: nonce.clone(), sent: now, names });
        DeltaResponse { kind, nonce, resources, removed }
    }

    /// When the oldest response was sent that has yet to be acknowledged.
    pub fn waiting_since(&self) -> Option<Instant> {
        self.types.values().filter_map(|state| Some(state.outstanding.as_ref()?.sent)).min()
    }

    /// Everything that is watched.
    pub fn subscriptions(&self) -> impl Iterator<Item = Key> {
        self.types.iter().flat_map(|(kind, state)| {
            let list = state.wildcard.on.then(|| Arc::from(EVERYTHING));
            state.names.keys().cloned().chain(list).map(|name| (*kind, name))
        })
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
                state.acknowledged(&answered.names);
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
            if name == EVERYTHING && state.wildcard.on {
                unwatch.push((kind, Arc::from(EVERYTHING)));
                for name in state.wildcard.turn_off() {
                    if state.names.get(&name).is_some_and(|held| !held.own) {
                        state.names.remove(&name);
                        state.waiting.remove(&name);
                        unwatch.push((kind, name));
                    }
                }
                continue;
            }
            let Some(held) = state.names.get_mut(name.as_str()).filter(|held| held.own) else { continue };
            self.names -= 1;
            self.name_bytes -= name.len();
            held.own = false;
            if !state.wildcard.lists(&name)
                && let Some((name, _)) = state.names.remove_entry(name.as_str())
            {
                state.waiting.remove(&name);
                unwatch.push((kind, name));
            }
        }
        unwatch
    }

    /// Turns everything on: the list is watched. Asked for again, it is told again.
    fn everything(&mut self, kind: ResourceType, held: HashMap<String, String>) -> Option<Key> {
        let state = self.types.entry(kind).or_default();
        if state.wildcard.on {
            state.waiting.extend(state.wildcard.listed().map(|name| (Arc::clone(name), true)));
            return None;
        }
        state.wildcard.turn_on(held);
        Some((kind, Arc::from(EVERYTHING)))
    }

    fn subscribe(
        &mut self,
        kind: ResourceType,
        names: Vec<String>,
        initial: &HashMap<String, String>,
    ) -> Result<Vec<Key>, Refusal> {
        let limits = self.limits;
        let state = self.types.entry(kind).or_default();
        let mut watch = Vec::new();
        for name in names {
            let known =
                state.names.get_key_value(name.as_str()).map(|(name, held)| (Arc::clone(name), held.own));
            if let Some((name, true)) = known {
                state.waiting.insert(name, true);
                continue;
            }
            if name.len() > limits.name_length {
                return Err(Refusal::LongName(name.len(), limits.name_length));
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
            if let Some((name, _)) = known {
                // Part of everything until now.
                state.names.entry(Arc::clone(&name)).and_modify(|held| held.own = true);
                state.waiting.insert(Arc::clone(&name), true);
                if state.wildcard.stays(&name) {
                    watch.push((kind, name));
                }
                continue;
            }
            let version = initial.get(&name).and_then(|text| text.parse().ok());
            let name: Arc<str> = name.into();
            state.names.insert(Arc::clone(&name), Held::new(version, true));
            state.waiting.insert(Arc::clone(&name), false);
            watch.push((kind, name));
        }
        Ok(watch)
    }
}
