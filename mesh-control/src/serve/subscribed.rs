//! What one stream holds of one type: the names, what the client knows of each, what waits to be told. Sans-io.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use mesh_common::xds::ResourceType;
use tokio::time::Instant;

use super::cache::{Answer, Resource};
use super::delta::{Limits, TypeStatus};
use super::recorder::Version;
use super::wildcard::Wildcard;

#[derive(Debug, Default)]
pub(super) struct TypeState {
    pub(super) names: HashMap<Arc<str>, Held>,
    /// Names to look at. True: to be told even if the client holds the same (it subscribed again).
    pub(super) waiting: BTreeMap<Arc<str>, bool>,
    pub(super) wildcard: Wildcard,
    /// The response that has yet to be acknowledged.
    pub(super) outstanding: Option<Outstanding>,
    pub(super) acks: u64,
    pub(super) nacks: u64,
    pub(super) last_nack: Option<String>,
}

#[derive(Debug)]
pub(super) struct Outstanding {
    pub(super) nonce: String,
    pub(super) sent: Instant,
    pub(super) names: Vec<Arc<str>>,
}

/// What the client knows of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) knows: Knows,
    pub(super) acked: bool,
    /// The client named it; else it is part of everything.
    pub(super) own: bool,
}

impl Held {
    /// A name of which the client may hold a version.
    pub(super) fn new(known: Option<Version>, own: bool) -> Self {
        Self { acked: known.is_some(), knows: known.map_or(Knows::Nothing, Knows::Version), own }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Knows {
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

/// Resources, and names that stand for nothing.
pub(super) type Chunk = (Vec<(Arc<str>, Arc<Resource>)>, Vec<Arc<str>>);

impl TypeState {
    pub(super) fn acknowledged(&mut self, names: &[Arc<str>]) {
        for name in names {
            if let Some(held) = self.names.get_mut(name) {
                held.acked = true;
            }
        }
    }

    /// Takes what waits, up to the bounds of one response; the rest waits for the next one.
    pub(super) fn take(
        &mut self,
        limits: &Limits,
        mut answer: impl FnMut(&Arc<str>) -> Option<Answer>,
    ) -> Chunk {
        let (mut resources, mut removed, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(waiting) = self.waiting.first_entry() {
            let (name, again) = (Arc::clone(waiting.key()), *waiting.get());
            let now = answer(&name);
            let (Some(held), Some(now)) = (self.names.get_mut(&name), now) else {
                waiting.remove();
                continue;
            };
            // What is part of everything ends by leaving the list, in its own time.
            let left_to_list = now == Answer::Missing && !held.own;
            if left_to_list || (held.knows == Knows::of(&now) && !again) {
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
            *held = Held { knows: Knows::of(&now), acked: false, own: held.own };
            match now {
                Answer::Found(resource) => resources.push((name, resource)),
                Answer::Missing => removed.push(name),
            }
        }
        (resources, removed)
    }

    pub(super) fn status(&self, kind: ResourceType) -> TypeStatus {
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

pub(super) fn shorten(mut text: String, bytes: usize) -> String {
    if text.len() > bytes {
        let end = (0..=bytes).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}
