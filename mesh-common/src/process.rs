//! The life of a process: signals, readiness that latches, and drain. Nothing here decides how long a part
//! may take; it only lets every part say that it is not yet done.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

/// Readiness as a set of conditions that have yet to be met. A condition, once met, stays met.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    pending: Arc<Mutex<BTreeSet<&'static str>>>,
}

impl Readiness {
    /// Adds a condition; the process is not ready until the returned token is met.
    pub fn condition(&self, name: &'static str) -> Condition {
        self.lock().insert(name);
        Condition { name, pending: Arc::clone(&self.pending) }
    }

    /// What is still missing; empty means ready.
    pub fn missing(&self) -> Vec<&'static str> {
        self.lock().iter().copied().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<&'static str>> {
        self.pending.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// One condition of readiness.
#[derive(Debug)]
pub struct Condition {
    name: &'static str,
    pending: Arc<Mutex<BTreeSet<&'static str>>>,
}

impl Condition {
    /// Says that the condition is met, for good.
    pub fn met(&self) {
        self.pending.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(self.name);
    }
}

/// The phases of the end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Normal work.
    Serving,
    /// Finish what is under way, take no more work that can go elsewhere.
    Draining,
    /// The deadline has passed: stop at once.
    Stopping,
}

/// The side that decides when to drain.
#[derive(Debug)]
pub struct DrainTrigger {
    phase: watch::Sender<Phase>,
    alive: mpsc::Receiver<()>,
}

/// The side that every long-lived task holds: while one exists, the process is not done.
#[derive(Debug, Clone)]
pub struct DrainGuard {
    phase: watch::Receiver<Phase>,
    alive: mpsc::Sender<()>,
}

/// Sees the phase and makes guards, but does not keep the process from being done: for what lives as long as
/// the process itself.
#[derive(Debug, Clone)]
pub struct DrainWatch {
    phase: watch::Receiver<Phase>,
    alive: mpsc::WeakSender<()>,
}

/// Makes a trigger and its first guard.
pub fn drain() -> (DrainTrigger, DrainGuard) {
    let (sender, receiver) = watch::channel(Phase::Serving);
    let (alive_sender, alive_receiver) = mpsc::channel(1);
    (
        DrainTrigger { phase: sender, alive: alive_receiver },
        DrainGuard { phase: receiver, alive: alive_sender },
    )
}

impl DrainTrigger {
    /// Tells every guard to drain, without waiting.
    pub fn start(&self) {
        self.phase.send_replace(Phase::Draining);
    }

    /// Drains: waits until every guard is dropped, or for `deadline`, then stops what is left.
    /// Returns whether all finished by themselves.
    pub async fn drain(mut self, deadline: Duration) -> bool {
        self.start();
        let finished = tokio::time::timeout(deadline, self.alive.recv()).await.is_ok();
        self.phase.send_replace(Phase::Stopping);
        finished
    }
}

impl DrainGuard {
    /// The phase at this moment.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Resolves when draining has begun (at once if it has).
    pub async fn draining(&mut self) {
        reached(&mut self.phase, Phase::Draining).await;
    }

    /// Resolves when the deadline has passed.
    pub async fn stopping(&mut self) {
        reached(&mut self.phase, Phase::Stopping).await;
    }

    /// The same without keeping the process from being done.
    pub fn watch(&self) -> DrainWatch {
        DrainWatch { phase: self.phase.clone(), alive: self.alive.downgrade() }
    }
}

impl DrainWatch {
    /// A guard for a new piece of work; `None` once all work is done and the process ends.
    pub fn guard(&self) -> Option<DrainGuard> {
        Some(DrainGuard { phase: self.phase.clone(), alive: self.alive.upgrade()? })
    }

    /// The phase at this moment.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Resolves when draining has begun (at once if it has).
    pub async fn draining(&mut self) {
        reached(&mut self.phase, Phase::Draining).await;
    }

    /// Resolves when the deadline has passed.
    pub async fn stopping(&mut self) {
        reached(&mut self.phase, Phase::Stopping).await;
    }
}

async fn reached(now: &mut watch::Receiver<Phase>, phase: Phase) {
    if now.wait_for(|now| *now >= phase).await.is_err() {
        // The trigger is gone without a word: there is nobody left to drain for.
    }
}

/// Resolves at SIGTERM or SIGINT with the signal's name.
///
/// # Errors
/// When the handlers cannot be installed.
pub async fn terminated() -> std::io::Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "SIGINT",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_latches() {
        let readiness = Readiness::default();
        let (a, b) = (readiness.condition("certificate"), readiness.condition("listener"));
        a.met();
        assert_eq!(readiness.missing(), ["listener"]);
        b.met();
        a.met();
        assert!(readiness.missing().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn drain_waits_for_guards_then_stops_them() {
        let (trigger, guard) = drain();
        let mut slow = guard.clone();
        drop(guard);
        let task = tokio::spawn(async move {
            slow.draining().await;
            assert_eq!(slow.phase(), Phase::Draining);
            slow.stopping().await;
        });
        assert!(!trigger.drain(Duration::from_secs(5)).await);
        task.await.unwrap();

        let (trigger, guard) = drain();
        let watch = guard.watch();
        drop(watch.guard());
        drop(guard);
        assert!(trigger.drain(Duration::from_secs(5)).await, "a watch holds nothing up");
        assert!(watch.guard().is_none());
    }
}
