//! Objects that wait to be written: each once, however often it changed; what failed waits longer each time. Pure:
//! the time is an argument. It must never hold more than its bound, nor forget what it took.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

/// Names an object of a kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    /// Empty for what is cluster-wide.
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => self.name.fmt(f),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// What became of a try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing is left to do.
    Done,
    /// Something that is about to come has not come yet.
    Later,
    /// It failed for a reason that may pass by itself.
    Again(String),
    /// It fails until somebody changes something.
    Blocked(String),
}

/// An object that cannot be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failing {
    pub(super) name: Name,
    pub(super) tries: u32,
    pub(super) error: String,
    /// When it is tried again.
    pub(super) due: Instant,
}

#[derive(Debug, Clone)]
struct Entry {
    due: Instant,
    tries: u32,
    error: Option<String>,
}

/// The objects that wait, and those that are being written.
#[derive(Debug)]
pub(super) struct Queue {
    max: usize,
    waiting: BTreeMap<Name, Entry>,
    by_due: BTreeSet<(Instant, Name)>,
    /// With whether it changed since it was taken.
    running: BTreeMap<Name, (Entry, bool)>,
}

impl Queue {
    /// For at most `max` objects.
    pub(super) fn new(max: usize) -> Self {
        Self { max, waiting: BTreeMap::new(), by_due: BTreeSet::new(), running: BTreeMap::new() }
    }

    /// An object changed: it is looked at now, even if it failed before. Returns false when there is no room; whoever
    /// knows all objects tells of them again now and then.
    pub(super) fn changed(&mut self, name: Name, now: Instant) -> bool {
        if let Some((_, again)) = self.running.get_mut(&name) {
            *again = true;
            return true;
        }
        let error = self.remove(&name).and_then(|entry| entry.error);
        self.insert(name, Entry { due: now, tries: 0, error })
    }

    /// An object may be other than it should be: it is looked at, unless it waits already.
    pub(super) fn look(&mut self, name: Name, now: Instant) -> bool {
        let known = self.running.contains_key(&name) || self.waiting.contains_key(&name);
        known || self.insert(name, Entry { due: now, tries: 0, error: None })
    }

    /// The next object to write.
    pub(super) fn take(&mut self, now: Instant) -> Option<Name> {
        let (_, name) = self.by_due.first().filter(|(due, _)| *due <= now)?.clone();
        let entry = self.remove(&name)?;
        self.running.insert(name.clone(), (entry, false));
        Some(name)
    }

    /// When the next object is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.by_due.first().map(|(due, _)| *due)
    }

    /// What became of an object that was taken. Returns whether this failure is another than the last one of it.
    pub(super) fn done(&mut self, name: &Name, verdict: Verdict, now: Instant) -> bool {
        let Some((entry, again)) = self.running.remove(name) else { return false };
        let tries = entry.tries.saturating_add(1);
        let (pause, error) = match verdict {
            Verdict::Done if again => (Duration::ZERO, None),
            Verdict::Done => return false,
            Verdict::Later => {
                (pause(Duration::from_millis(25), entry.tries, Duration::from_secs(2)), entry.error.clone())
            }
            Verdict::Again(error) => {
                (pause(Duration::from_millis(500), entry.tries, Duration::from_secs(30)), Some(error))
            }
            Verdict::Blocked(error) => {
                (pause(Duration::from_secs(5), entry.tries, Duration::from_secs(300)), Some(error))
            }
        };
        let (due, tries) = if again { (now, 0) } else { (now + pause, tries) };
        let news = error.is_some() && error != entry.error;
        self.insert(name.clone(), Entry { due, tries, error });
        news
    }

    /// Those that failed and wait, or are being tried again.
    pub(super) fn failing(&self) -> Vec<Failing> {
        let running = self.running.iter().map(|(name, (entry, _))| (name, entry));
        let failing = |(name, entry): (&Name, &Entry)| {
            let error = entry.error.clone()?;
            Some(Failing { name: name.clone(), tries: entry.tries, error, due: entry.due })
        };
        self.waiting.iter().chain(running).filter_map(failing).collect()
    }

    /// How many of [`Queue::failing`] there are.
    pub(super) fn failing_count(&self) -> usize {
        let running = self.running.values().map(|(entry, _)| entry);
        self.waiting.values().chain(running).filter(|entry| entry.error.is_some()).count()
    }

    fn insert(&mut self, name: Name, entry: Entry) -> bool {
        if self.waiting.len() >= self.max {
            return false;
        }
        self.by_due.insert((entry.due, name.clone()));
        self.waiting.insert(name, entry);
        true
    }

    fn remove(&mut self, name: &Name) -> Option<Entry> {
        let entry = self.waiting.remove(name)?;
        self.by_due.remove(&(entry.due, name.clone()));
        Some(entry)
    }
}

/// Doubles with each try, up to a bound.
fn pause(first: Duration, tries: u32, longest: Duration) -> Duration {
    first.saturating_mul(1 << tries.min(16)).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Name {
        Name { namespace: "shop".to_owned(), name: name.to_owned() }
    }

    fn after(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[tokio::test(start_paused = true)]
    async fn each_object_waits_once_and_is_written_once_at_a_time() {
        let (mut queue, now) = (Queue::new(10), Instant::now());
        for _ in 0..3 {
            assert!(queue.changed(name("a"), now));
        }
        assert_eq!(queue.take(now), Some(name("a")));
        assert_eq!(queue.take(now), None);
        // It changes while it is being written: again, but not at the same time.
        assert!(queue.changed(name("a"), now) && queue.look(name("a"), now));
        assert_eq!(queue.take(now), None);
        queue.done(&name("a"), Verdict::Done, now);
        assert_eq!(queue.take(now), Some(name("a")));
        queue.done(&name("a"), Verdict::Done, now);
        assert_eq!((queue.take(now), queue.next_due()), (None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_waits_longer_each_time_unless_it_changes() {
        let (mut queue, start) = (Queue::new(10), Instant::now());
        let mut now = start;
        queue.changed(name("a"), now);
        for expected in [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
            assert_eq!(queue.take(now), Some(name("a")));
            queue.done(&name("a"), Verdict::Again("down".to_owned()), now);
            // A look at everything does not shorten the wait.
            assert!(queue.look(name("a"), now));
            assert_eq!(queue.take(after(now, expected - 1)), None, "{expected}");
            assert_eq!(queue.next_due(), Some(after(now, expected)));
            now = after(now, expected);
        }
        queue.changed(name("a"), now);
        assert_eq!(queue.take(now), Some(name("a")));
        queue.done(&name("a"), Verdict::Blocked("no rule".to_owned()), now);
        assert_eq!(queue.next_due(), Some(after(now, 5_000)));
        assert_eq!(queue.failing()[0].error, "no rule");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_news_once() {
        let (mut queue, now) = (Queue::new(10), Instant::now());
        let mut fail = |verdict: Verdict| {
            queue.changed(name("a"), now);
            queue.take(now);
            queue.done(&name("a"), verdict, now)
        };
        assert!(fail(Verdict::Again("down".to_owned())));
        assert!(!fail(Verdict::Again("down".to_owned())));
        assert!(fail(Verdict::Blocked("no rule".to_owned())));
        assert!(!fail(Verdict::Later));
        assert!(!fail(Verdict::Blocked("no rule".to_owned())));
        assert!(!fail(Verdict::Done));
        assert!(queue.failing().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_bounded() {
        let (mut queue, now) = (Queue::new(2), Instant::now());
        assert!(queue.changed(name("a"), now) && queue.look(name("b"), now));
        assert!(!queue.changed(name("c"), now) && !queue.look(name("c"), now));
        assert!(queue.changed(name("a"), now), "it is known");
        queue.take(now);
        assert!(queue.changed(name("c"), now));
    }
}
