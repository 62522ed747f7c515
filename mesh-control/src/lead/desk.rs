//! One kind of object that the leader keeps as it should be: takes what waits, some at once, and says what became of
//! it. It must never write what is as it should be already.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::metrics::LeadMetrics;
use super::queue::{Failing, Name, Queue, Verdict};
use crate::fault::Fault;

/// Objects of a kind that wait at once.
const MAX_WAITING: usize = 50_000;
/// Objects of a kind that are written at once.
const AT_ONCE: usize = 8;
/// One request of a writer. With this, what was sent by one who leads is over before another may begin.
pub(super) const REQUEST: Duration = Duration::from_secs(4);
/// Everything is looked at again this often; nothing is written that is as it should be.
const SWEEP: Duration = Duration::from_secs(30);

/// What became of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Settled {
    /// It is as it should be, or gone.
    Same,
    /// It was made.
    Created,
    /// It was changed.
    Updated,
    /// What it depends on is not known yet.
    Later,
    /// It is somebody else's; why, in a sentence.
    Foreign(String),
}

/// Writes the objects of a kind.
pub(super) trait Settle: Send + Sync {
    /// The kind, for logs and metrics.
    fn kind(&self) -> &'static str;

    /// Makes an object what it should be, if it is not.
    fn settle(&self, name: &Name) -> impl Future<Output = Result<Settled, Fault>> + Send;

    /// All objects that are known.
    fn names(&self) -> Vec<Name>;
}

/// What waits of a kind. Cheap to clone.
#[derive(Clone)]
pub(super) struct Tray {
    inner: Arc<(Mutex<Queue>, Notify)>,
}

impl Default for Tray {
    fn default() -> Self {
        Self { inner: Arc::new((Mutex::new(Queue::new(MAX_WAITING)), Notify::new())) }
    }
}

impl Tray {
    /// These objects changed, or what should be in them.
    pub(super) fn changed(&self, names: impl IntoIterator<Item = Name>) {
        self.add(names, Queue::changed);
    }

    /// These objects may be other than they should be.
    pub(super) fn look(&self, names: impl IntoIterator<Item = Name>) {
        self.add(names, Queue::look);
    }

    pub(super) fn failing(&self) -> Vec<Failing> {
        self.queue().failing()
    }

    fn add(&self, names: impl IntoIterator<Item = Name>, add: fn(&mut Queue, Name, Instant) -> bool) {
        let now = Instant::now();
        let mut queue = self.queue();
        let refused = names.into_iter().filter(|name| !add(&mut queue, name.clone(), now)).count();
        drop(queue);
        if refused > 0 {
            tracing::warn!(refused, "too many objects wait to be written; they come later");
        }
        self.inner.1.notify_one();
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.inner.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Name> {
        self.queue().take(Instant::now())
    }

    /// Waits until an object is due, or something was added.
    async fn due(&self) {
        let due = self.queue().next_due();
        tokio::select! {
            () = self.inner.1.notified() => {}
            () = sleep_until(due) => {}
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Writes what waits until it is dropped.
pub(super) async fn work(desk: &impl Settle, tray: &Tray, metrics: &LeadMetrics) {
    let mut running = FuturesUnordered::new();
    let mut sweep = tokio::time::interval(SWEEP);
    loop {
        while running.len() < AT_ONCE
            && let Some(name) = tray.take()
        {
            running.push(async move {
                let outcome = desk.settle(&name).await;
                (name, outcome)
            });
        }
        let room = running.len() < AT_ONCE;
        tokio::select! {
            Some((name, outcome)) = running.next(), if !running.is_empty() => {
                finish(desk.kind(), tray, metrics, &name, outcome);
            }
            () = tray.due(), if room => {}
            _ = sweep.tick() => tray.look(desk.names()),
        }
    }
}

fn finish(
    kind: &'static str,
    tray: &Tray,
    metrics: &LeadMetrics,
    name: &Name,
    outcome: Result<Settled, Fault>,
) {
    let (label, verdict) = match outcome {
        Ok(Settled::Same) => (None, Verdict::Done),
        Ok(Settled::Later) => (None, Verdict::Later),
        Ok(Settled::Created) => (Some("created"), Verdict::Done),
        Ok(Settled::Updated) => (Some("updated"), Verdict::Done),
        Ok(Settled::Foreign(why)) => (Some("foreign"), Verdict::Blocked(why)),
        Err(Fault::Terminating) => (None, Verdict::Done),
        Err(fault) if fault.passes() => (Some(fault.label()), Verdict::Again(fault.to_string())),
        Err(fault) => (Some(fault.label()), Verdict::Blocked(fault.to_string())),
    };
    if let Some(label) = label {
        metrics.wrote(kind, label);
    }
    let error = match &verdict {
        Verdict::Again(error) | Verdict::Blocked(error) => Some(error.clone()),
        _ => None,
    };
    let (news, failing) = {
        let mut queue = tray.queue();
        (queue.done(name, verdict, Instant::now()), queue.failing_count())
    };
    metrics.failing(kind, failing);
    match (error, label) {
        (Some(error), Some(outcome)) if news => {
            tracing::warn!(kind, object = %name, outcome, error, "an object is not as it should be and cannot be written; trying again");
        }
        (Some(error), _) => tracing::debug!(kind, object = %name, error, "still not written"),
        (None, Some(outcome)) => tracing::info!(kind, object = %name, outcome, "wrote an object"),
        (None, None) => {}
    }
}
