//! How the watches of a source are, for readiness, the admin page and people. Plain data; decides nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::time::Instant;

use crate::api::Kind;

/// The state of every watch, shared. Empty for a source that has none.
#[derive(Debug, Clone, Default)]
pub struct WatchHealth {
    watches: Arc<Mutex<BTreeMap<Kind, Watch>>>,
}

/// What a watch is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum WatchState {
    /// It reads everything.
    Reading,
    /// It follows changes.
    Following,
    /// The server does not have the kind: its definition is not installed.
    Absent,
    /// It broke, and is tried again.
    Broken,
}

#[derive(Debug, Clone)]
struct Watch {
    state: WatchState,
    synced: bool,
    events: u64,
    errors: u64,
    since: Instant,
    last_event: Option<Instant>,
    last_error: Option<(Instant, String)>,
}

/// One watch, as the admin page shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WatchStatus {
    /// Such as `Pod`.
    pub kind: &'static str,
    /// What it is doing.
    pub state: WatchState,
    /// Whether everything was read once.
    pub synced: bool,
    /// For how long it has been in this state.
    pub state_seconds: u64,
    /// Objects that came, changed or went.
    pub events: u64,
    /// How long ago the last one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_event_seconds_ago: Option<u64>,
    /// How often it broke.
    pub errors: u64,
    /// Why it broke last, with what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// How long ago that was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error_seconds_ago: Option<u64>,
}

impl WatchHealth {
    /// An object came, changed or went.
    pub fn event(&self, kind: Kind) {
        self.change(kind, |watch| {
            watch.events += 1;
            watch.last_event = Some(Instant::now());
        });
    }

    /// It does something else now. Returns whether it did not before.
    pub fn state(&self, kind: Kind, state: WatchState) -> bool {
        self.change(kind, |watch| {
            watch.synced |= matches!(state, WatchState::Following | WatchState::Absent);
            let new = watch.state != state;
            if new {
                watch.state = state;
                watch.since = Instant::now();
            }
            new
        })
    }

    /// It broke. Returns whether that is news: it was whole before, or broke for another reason.
    pub fn broke(&self, kind: Kind, reason: String) -> bool {
        let new = self.state(kind, WatchState::Broken);
        self.change(kind, |watch| {
            watch.errors += 1;
            let other = watch.last_error.as_ref().is_none_or(|(_, known)| *known != reason);
            watch.last_error = Some((Instant::now(), reason));
            new || other
        })
    }

    /// All watches.
    pub fn statuses(&self) -> Vec<WatchStatus> {
        self.lock().iter().map(|(kind, watch)| watch.status(*kind)).collect()
    }

    fn change<T>(&self, kind: Kind, change: impl FnOnce(&mut Watch) -> T) -> T {
        change(self.lock().entry(kind).or_insert_with(|| Watch {
            state: WatchState::Reading,
            synced: false,
            events: 0,
            errors: 0,
            since: Instant::now(),
            last_event: None,
            last_error: None,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Kind, Watch>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    fn status(&self, kind: Kind) -> WatchStatus {
        WatchStatus {
            kind: kind.name(),
            state: self.state,
            synced: self.synced,
            state_seconds: self.since.elapsed().as_secs(),
            events: self.events,
            last_event_seconds_ago: self.last_event.map(|at| at.elapsed().as_secs()),
            errors: self.errors,
            last_error: self.last_error.as_ref().map(|(_, reason)| reason.clone()),
            last_error_seconds_ago: self.last_error.as_ref().map(|(at, _)| at.elapsed().as_secs()),
        }
    }
}
