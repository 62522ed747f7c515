//! The life of a process: signals, readiness that latches, and drain. Nothing here decides how long a part
//! may take; it only lets every part say that it is not yet done.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Readiness as a set of conditions that have yet to be met. A condition, once met, stays met.
#[derive(Debug, Clone)]
pub struct Readiness {
    pending: Pending,
    took: Arc<Took>,
}

/// How long it took until nothing was missing; 0: something is.
#[derive(Debug)]
struct Took {
    since: Instant,
    nanoseconds: AtomicU64,
}

impl Default for Readiness {
    fn default() -> Self {
        let took = Took { since: Instant::now(), nanoseconds: AtomicU64::new(0) };
        Self { pending: Arc::default(), took: Arc::new(took) }
    }
}

/// What is missing, and why if somebody said.
type Pending = Arc<Mutex<BTreeMap<&'static str, Option<String>>>>;

impl Readiness {
    /// Adds a condition; the process is not ready until the returned token is met.
    pub fn condition(&self, name: &'static str) -> Condition {
        self.lock().insert(name, None);
        Condition { name, readiness: self.clone() }
    }

    /// How long it took from the making of this to the last condition's being met; `None` while one is missing.
    pub fn took(&self) -> Option<Duration> {
        let nanoseconds = self.took.nanoseconds.load(Ordering::Relaxed);
        (nanoseconds > 0 && self.missing().is_empty()).then(|| Duration::from_nanos(nanoseconds))
    }

    /// What is still missing; empty means ready.
    pub fn missing(&self) -> Vec<&'static str> {
        self.lock().keys().copied().collect()
    }

    /// The same, each with the reason where one is known.
    pub fn explained(&self) -> Vec<String> {
        let text = |(name, reason): (&&str, &Option<String>)| match reason {
            Some(reason) => format!("{name} ({reason})"),
            None => (*name).to_owned(),
        };
        self.lock().iter().map(text).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, Option<String>>> {
        self.pending.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// One condition of readiness.
#[derive(Debug)]
pub struct Condition {
    name: &'static str,
    readiness: Readiness,
}

impl Condition {
    /// Says why the condition is not met yet.
    pub fn because(&self, reason: &str) {
        let mut pending = self.readiness.lock();
        if let Some(known) = pending.get_mut(self.name) {
            *known = Some(reason.to_owned());
        }
    }

    /// Says that the condition is met, for good.
    pub fn met(&self) {
        let mut pending = self.readiness.lock();
        if pending.remove(self.name).is_some() && pending.is_empty() {
            let took = &self.readiness.took;
            let nanoseconds = u64::try_from(took.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
            took.nanoseconds.store(nanoseconds.max(1), Ordering::Relaxed);
        }
    }
}

/// The phases of the end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Normal work.
    Serving,
    /// Finish what is under way, take no more work that can go elsewhere. The process stays: others still need it.
    Draining,
    /// The same, and end as soon as nothing is left to do.
    Finishing,
    /// The deadline has passed: stop at once.
    Stopping,
}

/// The side that decides when to drain.
#[derive(Debug)]
pub struct DrainTrigger {
    phase: watch::Sender<Phase>,
    alive: mpsc::Receiver<()>,
}

/// Whoever may begin the drain, but not end the process.
#[derive(Debug, Clone)]
pub struct DrainStarter(watch::Sender<Phase>);

impl DrainStarter {
    /// Begins the drain; `false` when it had begun before.
    pub fn start(&self) -> bool {
        raise(&self.0, Phase::Draining)
    }

    /// The phase at this moment.
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }
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
    /// Tells every guard to drain, without waiting and without ending the process.
    pub fn start(&self) {
        raise(&self.phase, Phase::Draining);
    }

    /// A handle that can do no more than begin the drain.
    pub fn starter(&self) -> DrainStarter {
        DrainStarter(self.phase.clone())
    }

    /// Drains to the end: waits until every guard is dropped, or for `deadline`, then stops what is left.
    /// Returns whether all finished by themselves.
    pub async fn drain(mut self, deadline: Duration) -> bool {
        raise(&self.phase, Phase::Finishing);
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

    /// Resolves when the process is to end (at once if it is).
    pub async fn finishing(&mut self) {
        reached(&mut self.phase, Phase::Finishing).await;
    }

    /// Resolves when the deadline has passed.
    pub async fn stopping(&mut self) {
        reached(&mut self.phase, Phase::Stopping).await;
    }
}

/// Phases only ever rise. Returns whether this one did.
fn raise(now: &watch::Sender<Phase>, phase: Phase) -> bool {
    now.send_if_modified(|now| {
        let rises = *now < phase;
        *now = phase.max(*now);
        rises
    })
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
        a.because("too late");
        assert_eq!(readiness.missing(), ["listener"]);
        assert_eq!(readiness.explained(), ["listener"]);
        b.because("the port is taken");
        assert_eq!(readiness.explained(), ["listener (the port is taken)"]);
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
            assert_eq!(slow.phase(), Phase::Finishing);
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

    #[tokio::test(start_paused = true)]
    async fn a_drain_that_was_begun_ends_nothing_and_is_never_taken_back() {
        let (trigger, guard) = drain();
        let (starter, mut watch) = (trigger.starter(), guard.watch());
        assert!(starter.start() && !starter.start(), "begun once");
        watch.draining().await;
        let finishing = tokio::time::timeout(Duration::from_secs(3600), watch.finishing()).await;
        assert!(finishing.is_err(), "nobody has told the process to end");
        let ending = tokio::spawn(trigger.drain(Duration::from_secs(5)));
        watch.finishing().await;
        assert!(!starter.start());
        assert_eq!(starter.phase(), Phase::Finishing);
        drop(guard);
        assert!(ending.await.unwrap());
    }
}
