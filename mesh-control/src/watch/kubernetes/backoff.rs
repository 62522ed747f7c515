//! How long to wait before the next try: longer each time, never the same as everybody else's.

use std::time::Duration;

use rand::Rng as _;

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(15);

/// Waits that grow until something was whole for a while.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// The next wait.
    pub(super) fn next(&mut self) -> Duration {
        let wait = jittered(self.next);
        self.next = (self.next * 2).min(LONGEST);
        wait
    }

    /// All is well: the next wait is the first again.
    pub(super) fn reset(&mut self) {
        self.next = FIRST;
    }
}

/// Between one half and the whole of it.
pub(super) fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::rng().random_range(0.5..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_a_bound_and_begins_again() {
        let mut backoff = Backoff::default();
        for expected in [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0] {
            let wait = backoff.next().as_secs_f64();
            assert!(wait >= expected / 2.0 && wait <= expected, "{wait} for {expected}");
        }
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
