//! "Everything", for one type of one stream: a list of names that the model gives, in place of names that the
//! client gives. What leaves the list is told last, when all else is acknowledged, so that nothing that is still
//! in use is ever taken away first.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use mesh_common::xds::ResourceType;
use tokio::time::Instant;

use super::cache::Key;
use super::delta::{Effects, Limits, Refusal};
use super::subscribed::{Held, Knows, TypeState};

/// The name that means everything. As a key of the cache it stands for the list of all names of its type.
pub const EVERYTHING: &str = "*";

/// Whether a client may ask for everything of this type.
pub(super) fn has_everything(kind: ResourceType) -> bool {
    matches!(kind, ResourceType::Listener | ResourceType::Cluster)
}

/// What of a type the client has by asking for everything.
#[derive(Debug, Default)]
pub(super) struct Wildcard {
    pub(super) on: bool,
    /// The list may be another one than the one that was taken last.
    stale: bool,
    listed: HashSet<Arc<str>>,
    /// What the client holds from an earlier stream, until there is a first list.
    held: HashMap<String, String>,
    /// Names that are no longer watched, and since when; yet to be told.
    leaving: BTreeMap<Arc<str>, Instant>,
}

/// The versions that an earlier stream had, by name.
type HeldVersions = HashMap<String, String>;

impl Wildcard {
    pub(super) fn turn_on(&mut self, held: HashMap<String, String>) {
        (self.on, self.stale, self.held) = (true, true, held);
    }

    pub(super) fn changed(&mut self) {
        self.stale = self.on;
    }

    /// Whether a new list must be taken; it counts as taken then.
    pub(super) fn take_stale(&mut self) -> bool {
        std::mem::take(&mut self.stale)
    }

    pub(super) fn lists(&self, name: &str) -> bool {
        self.listed.contains(name)
    }

    pub(super) fn listed(&self) -> impl Iterator<Item = &Arc<str>> {
        self.listed.iter()
    }

    /// Somebody asks for a name again before it was told that it is gone.
    pub(super) fn stays(&mut self, name: &str) -> bool {
        self.leaving.remove(name).is_some()
    }

    /// Ends it: the names that only it had.
    pub(super) fn turn_off(&mut self) -> Vec<Arc<str>> {
        let old = std::mem::take(self);
        old.listed.into_iter().chain(old.leaving.into_keys()).collect()
    }

    /// Names that left the list `grace` ago, up to `limit`.
    fn due(&mut self, now: Instant, grace: Duration, limit: usize) -> Vec<Arc<str>> {
        let due = self.leaving.iter().filter(|(_, since)| now.duration_since(**since) >= grace);
        let due: Vec<Arc<str>> = due.map(|(name, _)| Arc::clone(name)).take(limit).collect();
        for name in &due {
            self.leaving.remove(name);
        }
        due
    }
}

impl TypeState {
    /// Takes the list of all names.
    ///
    /// # Errors
    /// When the client holds more from an earlier stream than it may have told as gone.
    pub(super) fn take_list(
        &mut self,
        limits: &Limits,
        kind: ResourceType,
        list: Vec<Arc<str>>,
        now: Instant,
    ) -> Result<Effects, Refusal> {
        let mut effects = Effects::default();
        let new: HashSet<Arc<str>> = list.into_iter().collect();
        let (held, gone) = self.take_held(&new, limits)?;
        let old = std::mem::replace(&mut self.wildcard.listed, new.clone());
        let key = |name: &Arc<str>| -> Key { (kind, Arc::clone(name)) };
        for name in old.difference(&new).filter(|name| self.names.get(*name).is_some_and(|held| !held.own)) {
            self.waiting.remove(name);
            self.wildcard.leaving.insert(Arc::clone(name), now);
            effects.unwatch.push(key(name));
        }
        for name in new.difference(&old) {
            let stays = self.wildcard.stays(name);
            if stays || !self.names.contains_key(name) {
                let known = held.get(&**name).and_then(|text| text.parse().ok());
                self.names.entry(Arc::clone(name)).or_insert_with(|| Held::new(known, false));
                self.waiting.insert(Arc::clone(name), false);
                effects.watch.push(key(name));
            }
        }
        for name in gone {
            self.names.insert(Arc::clone(&name), Held { knows: Knows::Missing, acked: false, own: false });
            self.wildcard.leaving.insert(name, now);
        }
        Ok(effects)
    }

    /// What an earlier stream had, and what of it the list has not.
    fn take_held(
        &mut self,
        list: &HashSet<Arc<str>>,
        limits: &Limits,
    ) -> Result<(HeldVersions, Vec<Arc<str>>), Refusal> {
        let held = std::mem::take(&mut self.wildcard.held);
        let gone = held.keys().filter(|name| !list.contains(&***name) && !self.names.contains_key(&***name));
        let (mut names, mut bytes) = (Vec::new(), 0);
        for name in gone {
            bytes += name.len();
            if names.len() == limits.names || bytes > limits.name_bytes {
                return Err(Refusal::HoldsTooMuch(limits.names, limits.name_bytes));
            }
            names.push(Arc::from(name.as_str()));
        }
        Ok((held, names))
    }

    /// Names to be told as gone now.
    pub(super) fn take_gone(&mut self, now: Instant, grace: Duration, limit: usize) -> Vec<Arc<str>> {
        let gone = self.wildcard.due(now, grace, limit);
        for name in &gone {
            self.names.remove(name);
        }
        gone
    }
}
