//! mesh-control's side of incremental xDS against a client that does as it likes: bounded, never two responses of a
//! type on their way, and nothing is told that is not subscribed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use mesh_common::xds::ResourceType;
use mesh_control::serve::cache::{Answer, Key};
use mesh_control::serve::delta::{DeltaRequest, DeltaState, Effects, Limits};
use tokio::time::Instant;

use crate::{kind, name};

/// Names that a stream may have: fewer than there are.
pub(crate) const NAMES: usize = 5;

#[derive(Debug, Arbitrary)]
enum Step {
    Request(Request),
    Changed(u8, u8),
    List(Vec<u8>),
    Respond,
}

#[derive(Debug, Arbitrary)]
struct Request {
    kind: u8,
    subscribe: Vec<u8>,
    unsubscribe: Vec<u8>,
    initial: Vec<(u8, String)>,
    nonce: Nonce,
    refused: bool,
}

/// Of which response a request speaks.
#[derive(Debug, Arbitrary)]
pub(crate) enum Nonce {
    None,
    Last,
    Any(String),
}

impl Nonce {
    pub(crate) fn text(self, kind: ResourceType, last: &HashMap<ResourceType, String>) -> String {
        match self {
            Self::None => String::new(),
            Self::Last => last.get(&kind).cloned().unwrap_or_default(),
            Self::Any(text) => text,
        }
    }
}

/// What is watched for a stream. Whatever it does, it watches nothing that it is not subscribed to. Watching again, or
/// giving back what is not watched, does no harm.
#[derive(Debug, Default)]
pub(crate) struct Watched(HashSet<Key>);

impl Watched {
    pub(crate) fn apply(&mut self, effects: Effects) {
        for key in effects.unwatch {
            self.0.remove(&key);
        }
        for key in effects.watch {
            self.0.insert(key);
        }
    }

    /// A name that left the list of all is watched no more, and is told to be gone later.
    pub(crate) fn is(&self, subscriptions: impl Iterator<Item = Key>) {
        let all: HashSet<Key> = subscriptions.collect();
        let beyond: Vec<_> = self.0.difference(&all).collect();
        assert!(beyond.is_empty(), "watched, and not subscribed: {beyond:?}");
    }
}

/// The bytes are steps.
pub fn run(bytes: &[u8]) {
    let Ok((everything, steps)) = <(bool, Vec<Step>)>::arbitrary_take_rest(Unstructured::new(bytes)) else {
        return;
    };
    let mut state = DeltaState::new(Limits { names: NAMES, ..Limits::default() }, everything);
    let mut last: HashMap<ResourceType, String> = HashMap::new();
    let mut watched = Watched::default();
    let now = Instant::now();
    for step in steps {
        match step {
            Step::Request(request) => {
                let kind = kind(request.kind);
                let Ok(effects) = state.request(kind, request.into_request(kind, &last)) else {
                    return; // the stream ends
                };
                watched.apply(effects);
            }
            Step::Changed(k, n) => state.changed(&(kind(k), Arc::from(name(n)))),
            Step::List(names) => {
                let Some(kind) = state.stale_list() else { continue };
                let Ok(effects) = state.take_list(kind, list(names), now) else { return };
                watched.apply(effects);
            }
            Step::Respond => {
                let waiting: Vec<_> =
                    ResourceType::ALL.into_iter().filter(|&kind| state.awaits(kind)).collect();
                let Some(response) = state.next_response(now, |_| Some(Answer::Missing)) else { continue };
                assert!(!waiting.contains(&response.kind), "two responses of a type are on their way");
                assert!(state.awaits(response.kind));
                last.insert(response.kind, response.nonce);
            }
        }
        watched.is(state.subscriptions());
    }
}

/// A list of all names, as the translation makes it: none twice, none special.
pub(crate) fn list(names: Vec<u8>) -> Vec<Arc<str>> {
    let names: std::collections::BTreeSet<String> = names.into_iter().map(name).collect();
    names.into_iter().filter(|name| !name.is_empty() && name != "*").map(Arc::from).collect()
}

impl Request {
    fn into_request(self, kind: ResourceType, last: &HashMap<ResourceType, String>) -> DeltaRequest {
        let Self { kind: _, subscribe, unsubscribe, initial, nonce, refused } = self;
        DeltaRequest {
            subscribe: subscribe.into_iter().map(name).collect(),
            unsubscribe: unsubscribe.into_iter().map(name).collect(),
            initial_versions: initial.into_iter().map(|(number, version)| (name(number), version)).collect(),
            nonce: nonce.text(kind, last),
            error: refused.then(|| "no good".to_owned()),
        }
    }
}
