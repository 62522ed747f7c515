//! The state of one state-of-the-world stream, on top of the incremental one. The wire says less: a request
//! names everything that is wanted, a response of listeners and clusters holds everything that exists, and what
//! is not in it is gone. It must never leave out what still exists.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_common::xds::ResourceType;
use tokio::time::Instant;

use super::cache::{Answer, Key, Resource};
use super::delta::{DeltaRequest, DeltaState, Effects, Limits, Refusal, TypeStatus, Verdict};
use super::recorder::Version;
// A response holds all resources of these types: absence is removal.
use super::wildcard::{EVERYTHING, has_everything as is_whole};

/// A request, as far as this state cares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SotwRequest {
    /// Every name that is wanted.
    pub names: Vec<String>,
    /// The version that the client took last.
    pub version: String,
    /// The nonce of the response that this answers, or empty.
    pub nonce: String,
    /// The text of a NACK.
    pub error: Option<String>,
}

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SotwResponse {
    /// Its type.
    pub kind: ResourceType,
    /// The version of all that the client holds then.
    pub version: Version,
    /// Its nonce.
    pub nonce: String,
    /// All resources (listeners, clusters), or those that are new or changed.
    pub resources: Vec<Arc<Resource>>,
}

/// The state of one stream.
#[derive(Debug)]
pub struct SotwState {
    limits: Limits,
    inner: DeltaState,
    types: BTreeMap<ResourceType, TypeState>,
}

#[derive(Debug, Default)]
struct TypeState {
    /// What the client named.
    names: BTreeSet<String>,
    /// It named something once: no names mean nothing then, and not everything.
    named: bool,
    /// What the client holds.
    world: BTreeMap<Arc<str>, Arc<Resource>>,
    /// Of the last response.
    nonce: String,
    /// What the client had from an earlier stream, until the first response.
    earlier: Option<Version>,
    /// What refers to resources of this type was sent: the client waits for them again.
    referred: bool,
}

impl SotwState {
    /// A stream without subscriptions; `everything`: whether the client may ask for everything.
    pub fn new(limits: Limits, everything: bool) -> Self {
        // The other half of a response that was cut would be taken for removed.
        let inner = DeltaState::new(limits, everything).whole();
        Self { limits, inner, types: BTreeMap::new() }
    }

    /// Takes a request.
    ///
    /// # Errors
    /// When the stream has to end because of it.
    pub fn request(&mut self, kind: ResourceType, request: SotwRequest) -> Result<Effects, Refusal> {
        let SotwRequest { names, version, nonce, error } = request;
        // Before they are sorted: a name that is said twice is too much, too.
        if names.len() > self.limits.names {
            return Err(Refusal::TooManyNames(self.limits.names));
        }
        let first = !self.types.contains_key(&kind);
        let answers = !first && self.inner.awaits(kind);
        let state = self.types.entry(kind).or_default();
        if first {
            // A version that is not ours is nothing to remember.
            state.earlier = version.parse().ok();
        } else if nonce != state.nonce {
            // It has not seen the last response yet, and will say again what it wants when it has.
            return Ok(Effects { verdict: Some(Verdict::Stale), ..Effects::default() });
        }
        let mut wanted: BTreeSet<String> = names.into_iter().collect();
        if is_whole(kind) && wanted.is_empty() && !state.named {
            wanted.insert(EVERYTHING.to_owned());
        } else {
            state.named |= !wanted.is_empty();
        }
        let subscribe: Vec<String> = wanted.difference(&state.names).cloned().collect();
        let unsubscribe: Vec<String> = state.names.difference(&wanted).cloned().collect();
        let unchanged = subscribe.is_empty() && unsubscribe.is_empty();
        // A request that answers nothing and changes nothing asks for the same once more: Envoy does so for a
        // cluster or listener that it builds anew.
        let again = !first && error.is_none() && (state.referred || (unchanged && !answers));
        state.referred &= !again;
        state.names = wanted;
        for name in &unsubscribe {
            state.world.remove(name.as_str());
        }
        let nonce = if answers { nonce } else { String::new() };
        let request = DeltaRequest { subscribe, unsubscribe, nonce, error, ..DeltaRequest::default() };
        let effects = self.inner.request(kind, request)?;
        if again {
            self.inner.tell_again(kind);
        }
        Ok(effects)
    }

    /// Says that a name stands for something else than before.
    pub fn changed(&mut self, key: &Key) {
        self.inner.changed(key);
    }

    /// See [`DeltaState::stale_list`].
    pub fn stale_list(&mut self) -> Option<ResourceType> {
        self.inner.stale_list()
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
        self.inner.take_list(kind, names, now)
    }

    /// The next response, of the first type that has something to say and whose last response was answered.
    pub fn next_response(
        &mut self,
        now: Instant,
        mut answer: impl FnMut(&Key) -> Option<Answer>,
    ) -> Option<SotwResponse> {
        loop {
            let response = self.inner.next_response(now, &mut answer)?;
            let kind = response.kind;
            let state = self.types.entry(kind).or_default();
            for name in &response.removed {
                state.world.remove(name);
            }
            state.world.extend(response.resources.iter().cloned());
            let held = state.world.iter().map(|(name, resource)| (&**name, resource.version));
            let version = Version::of_all(held);
            let same = state.earlier.take().is_some_and(|earlier| earlier == version);
            let resources: Vec<_> = match is_whole(kind) {
                true => state.world.values().cloned().collect(),
                false => response.resources.into_iter().map(|(_, resource)| resource).collect(),
            };
            // There is no way to say that a name of these types stands for nothing: whoever refers to it says so.
            if same || (resources.is_empty() && !is_whole(kind)) {
                self.inner.acknowledge(kind);
                continue;
            }
            state.nonce.clone_from(&response.nonce);
            let refers_to = match kind {
                ResourceType::Cluster => Some(ResourceType::Endpoints),
                ResourceType::Listener => Some(ResourceType::Route),
                _ => None,
            };
            if let Some(referred) = refers_to.and_then(|kind| self.types.get_mut(&kind)) {
                referred.referred = true;
            }
            return Some(SotwResponse { kind, version, nonce: response.nonce, resources });
        }
    }

    /// See [`DeltaState::waiting_since`].
    pub fn waiting_since(&self) -> Option<Instant> {
        self.inner.waiting_since()
    }

    /// See [`DeltaState::subscriptions`].
    pub fn subscriptions(&self) -> impl Iterator<Item = Key> {
        self.inner.subscriptions()
    }

    /// For admin pages.
    pub fn status(&self) -> Vec<TypeStatus> {
        self.inner.status()
    }
}
