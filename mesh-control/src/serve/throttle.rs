//! How often a resource may change on the wire: the first change goes out at once, then at most one in each
//! interval, the latest. Pure: time is an argument. It must never forget a change.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use super::cache::Key;

/// Names that changed lately, and names whose change has to wait.
#[derive(Debug)]
pub struct Throttle {
    interval: Duration,
    last: HashMap<Key, Instant>,
    waiting: BTreeSet<(Instant, Key)>,
    queued: HashMap<Key, Instant>,
}

impl Throttle {
    /// At most one change of a name in each `interval`.
    pub fn new(interval: Duration) -> Self {
        Self { interval, last: HashMap::new(), waiting: BTreeSet::new(), queued: HashMap::new() }
    }

    /// Takes names that changed.
    pub fn changed(&mut self, now: Instant, keys: impl IntoIterator<Item = Key>) {
        for key in keys {
            if self.queued.contains_key(&key) {
                continue;
            }
            let due = self.last.get(&key).map_or(now, |last| now.max(*last + self.interval));
            self.queued.insert(key.clone(), due);
            self.waiting.insert((due, key));
        }
    }

    /// When the next name is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.waiting.first().map(|(due, _)| *due)
    }

    /// Up to `limit` names that are due; they count as sent now.
    pub fn due(&mut self, now: Instant, limit: usize) -> Vec<Key> {
        let interval = self.interval;
        self.last.retain(|_, last| *last + interval > now);
        let mut due = Vec::new();
        while due.len() < limit && self.next_due().is_some_and(|at| at <= now) {
            let Some((_, key)) = self.waiting.pop_first() else { break };
            self.queued.remove(&key);
            self.last.insert(key.clone(), now);
            due.push(key);
        }
        due
    }

    /// These names were translated to what they were before: nothing was sent, so they need not wait.
    pub fn unsent<'a>(&mut self, keys: impl IntoIterator<Item = &'a Key>) {
        for key in keys {
            self.last.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_common::xds::ResourceType;

    use super::*;

    fn key(name: &str) -> Key {
        (ResourceType::Endpoints, name.into())
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_change_is_due_at_once_then_one_in_each_interval() {
        let interval = Duration::from_millis(100);
        let mut throttle = Throttle::new(interval);
        let start = Instant::now();
        throttle.changed(start, [key("a"), key("b")]);
        assert_eq!(throttle.due(start, 1), [key("a")]);
        assert_eq!(throttle.due(start, 10), [key("b")]);

        let mut sent = 0;
        for ms in 1..=1000 {
            let now = start + Duration::from_millis(ms);
            throttle.changed(now, [key("a")]);
            sent += throttle.due(now, 10).len();
        }
        assert_eq!(sent, 10);
        let later = start + Duration::from_secs(5);
        throttle.changed(later, [key("a")]);
        // The change that came within the last interval was never forgotten, and is one with the new one.
        assert_eq!(throttle.due(later, 10), [key("a")]);
        assert!(throttle.next_due().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_sent_does_not_wait() {
        let mut throttle = Throttle::new(Duration::from_millis(100));
        let now = Instant::now();
        throttle.changed(now, [key("a")]);
        assert_eq!(throttle.due(now, 10), [key("a")]);
        throttle.unsent(&[key("a")]);
        throttle.changed(now, [key("a")]);
        assert_eq!(throttle.due(now, 10), [key("a")]);
    }
}
