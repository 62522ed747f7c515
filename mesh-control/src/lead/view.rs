//! What people see of the leader: who leads, since when, and what could not be written and why. It must never change
//! anything.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::desk::Tray;

#[derive(Default)]
struct Seen {
    leads: bool,
    holder: String,
    /// Since when this replica leads or does not.
    since: Option<Timestamp>,
    error: Option<String>,
    trays: Vec<(&'static str, Tray)>,
}

/// The page. Cheap to clone.
#[derive(Clone, Default)]
pub struct View(Arc<Mutex<Seen>>);

impl View {
    /// `/debug/leader`.
    pub fn page(&self) -> Router {
        Router::new().route("/debug/leader", get(page)).with_state(self.clone())
    }

    /// How the election stands. Returns whether we lead, when that is news.
    pub(super) fn election(&self, leads: bool, holder: String, error: Option<String>) -> Option<bool> {
        let mut seen = self.lock();
        let news = seen.leads != leads;
        if news || seen.since.is_none() {
            seen.since = Some(Timestamp::now());
        }
        (seen.leads, seen.holder, seen.error) = (leads, holder, error);
        news.then_some(leads)
    }

    /// What the leader has to write now.
    pub(super) fn trays(&self, trays: Vec<(&'static str, Tray)>) {
        self.lock().trays = trays;
    }

    #[cfg(test)]
    pub(super) fn leads(&self) -> bool {
        self.lock().leads
    }

    /// `shop/mesh-root-cert: why`.
    #[cfg(test)]
    pub(super) fn failing(&self) -> Vec<String> {
        let seen = self.lock();
        let failing = seen.trays.iter().flat_map(|(_, tray)| tray.failing());
        failing.map(|failing| format!("{}: {}", failing.name, failing.error)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn page(State(view): State<View>) -> Json<Value> {
    let seen = view.lock();
    let failing = seen.trays.iter().flat_map(|(kind, tray)| {
        let row = move |failing: super::queue::Failing| {
            json!({
                "kind": kind,
                "object": failing.name.to_string(),
                "error": failing.error,
                "tries": failing.tries,
                "triedAgainInSeconds": failing.due.saturating_duration_since(Instant::now()).as_secs(),
            })
        };
        tray.failing().into_iter().map(row)
    });
    Json(json!({
        "leads": seen.leads,
        "holder": seen.holder,
        "since": seen.since,
        "error": seen.error,
        "failing": failing.collect::<Value>(),
    }))
}
