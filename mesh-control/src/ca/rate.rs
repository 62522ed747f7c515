//! How often one caller may ask. Pure: time is an argument. It must never hold more callers than its bound.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// An allowance: a burst, then one more in each interval.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How many at once.
    pub burst: u32,
    /// After that, one in each of these.
    pub interval: Duration,
}

/// What is left of the allowance of one caller.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    left: u32,
    since: Instant,
}

/// An allowance per caller.
#[derive(Debug)]
pub struct RateLimit {
    pace: Pace,
    /// Callers remembered at most. Beyond that, those with a full allowance are forgotten, then new ones refused.
    max_callers: usize,
    callers: HashMap<String, Bucket>,
}

impl RateLimit {
    /// This for each of at most `max_callers` callers.
    pub fn new(pace: Pace, max_callers: usize) -> Self {
        Self { pace, max_callers, callers: HashMap::new() }
    }

    /// Whether this caller may ask now; counts it if so.
    pub fn allow(&mut self, caller: &str, now: Instant) -> bool {
        let pace = self.pace;
        if !self.callers.contains_key(caller) && self.callers.len() >= self.max_callers {
            self.callers.retain(|_, bucket| bucket.at(now, pace).left < pace.burst);
            if self.callers.len() >= self.max_callers {
                return false;
            }
        }
        self.callers.entry(caller.to_owned()).or_insert(Bucket::full(pace, now)).take(now, pace).is_ok()
    }
}

impl Bucket {
    /// Nothing was asked yet.
    pub fn full(pace: Pace, now: Instant) -> Self {
        Self { left: pace.burst, since: now }
    }

    /// Takes one of the allowance.
    ///
    /// # Errors
    /// When nothing is left: the time from which on there is.
    pub fn take(&mut self, now: Instant, pace: Pace) -> Result<(), Instant> {
        *self = self.at(now, pace);
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(self.since + pace.interval),
        }
    }

    fn at(self, now: Instant, Pace { burst, interval }: Pace) -> Self {
        let earned = now.duration_since(self.since).as_nanos() / interval.as_nanos().max(1);
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        let left = self.left.saturating_add(earned).min(burst);
        let since = if left == burst { now } else { self.since + interval * earned };
        Self { left, since }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_then_one_in_each_interval_per_caller() {
        let mut limit = RateLimit::new(Pace { burst: 3, interval: Duration::from_secs(2) }, 10);
        let start = Instant::now();
        let allowed = |limit: &mut RateLimit, caller: &str, at: u64| {
            (0..10).filter(|_| limit.allow(caller, start + Duration::from_secs(at))).count()
        };
        for (caller, at, expected) in
            [("a", 0, 3), ("b", 0, 3), ("a", 1, 0), ("a", 2, 1), ("a", 3, 0), ("a", 4, 1), ("a", 100, 3)]
        {
            assert_eq!(allowed(&mut limit, caller, at), expected, "{caller} at {at}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn callers_are_bounded_and_forgotten_when_they_calm_down() {
        let mut limit = RateLimit::new(Pace { burst: 2, interval: Duration::from_secs(1) }, 2);
        let start = Instant::now();
        assert!(limit.allow("a", start) && limit.allow("b", start));
        // Nobody makes room for himself by using another name.
        assert!(!limit.allow("c", start));
        assert!(limit.allow("a", start) && !limit.allow("a", start));
        // "b" has its whole allowance again, so nothing is lost by forgetting it.
        assert!(limit.allow("c", start + Duration::from_secs(1)));
        assert_eq!(limit.callers.len(), 2);
        assert!(limit.allow("a", start + Duration::from_secs(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn says_when_to_ask_again() {
        let pace = Pace { burst: 1, interval: Duration::from_secs(2) };
        let start = Instant::now();
        let mut bucket = Bucket::full(pace, start);
        assert_eq!(bucket.take(start, pace), Ok(()));
        let next = bucket.take(start + Duration::from_secs(1), pace).unwrap_err();
        assert_eq!(next, start + Duration::from_secs(2));
        assert_eq!(bucket.take(next, pace), Ok(()));
    }
}
