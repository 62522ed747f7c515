//! How often one caller may ask. Pure: time is an argument. It must never hold more callers than its bound.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// Callers remembered at most. Beyond that, those with a full allowance are forgotten, then new ones refused.
const MAX_CALLERS: usize = 100_000;

/// An allowance per caller: a burst, then one more in each interval.
#[derive(Debug)]
pub struct RateLimit {
    burst: u32,
    interval: Duration,
    callers: HashMap<String, Allowance>,
}

#[derive(Debug, Clone, Copy)]
struct Allowance {
    left: u32,
    since: Instant,
}

impl RateLimit {
    /// `burst` at once, then one in each `interval`.
    pub fn new(burst: u32, interval: Duration) -> Self {
        Self { burst, interval, callers: HashMap::new() }
    }

    /// Whether this caller may ask now; counts it if so.
    pub fn allow(&mut self, caller: &str, now: Instant) -> bool {
        if !self.callers.contains_key(caller) && self.callers.len() >= MAX_CALLERS {
            let (burst, interval) = (self.burst, self.interval);
            self.callers.retain(|_, allowance| allowance.at(now, burst, interval).left < burst);
            if self.callers.len() >= MAX_CALLERS {
                return false;
            }
        }
        let full = Allowance { left: self.burst, since: now };
        let entry = self.callers.entry(caller.to_owned()).or_insert(full);
        *entry = entry.at(now, self.burst, self.interval);
        if entry.left == 0 {
            return false;
        }
        entry.left -= 1;
        true
    }
}

impl Allowance {
    fn at(self, now: Instant, burst: u32, interval: Duration) -> Self {
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
        let mut limit = RateLimit::new(3, Duration::from_secs(2));
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
}
