//! Refused connections: counted always, logged within a budget, so that a flood of them floods no log.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

use crate::telemetry::Telemetry;

/// Why an inbound connection is closed.
#[derive(Debug)]
pub(super) struct Refusal {
    /// As the label of `mesh_inbound_refused_total`.
    pub(super) label: &'static str,
    /// For people.
    pub(super) reason: String,
}

impl Refusal {
    pub(super) fn new(label: &'static str, reason: impl Into<String>) -> Self {
        Self { label, reason: reason.into() }
    }

    /// Counts and logs an inbound refusal.
    pub(super) fn inbound(&self, telemetry: &Telemetry, peer: SocketAddr, listener: SocketAddr) {
        telemetry.proxy().inbound_refused(self.label);
        if LOG.allow() {
            let reason = self.reason.as_str();
            tracing::info!(%peer, %listener, reason, "inbound connection refused");
        }
    }
}

static LOG: LogBudget = LogBudget::new();

/// Lines a second, for events that a stranger can cause at will.
#[derive(Debug)]
pub(super) struct LogBudget {
    /// The second, in the upper half; lines in it, in the lower.
    state: AtomicU64,
}

const LINES_A_SECOND: u64 = 10;

impl LogBudget {
    pub(super) const fn new() -> Self {
        Self { state: AtomicU64::new(0) }
    }

    /// Whether there is room for one more line.
    pub(super) fn allow(&self) -> bool {
        static START: OnceLock<Instant> = OnceLock::new();
        // Beside its own second a line may slip in uncounted when threads race: harmless.
        self.allow_at(START.get_or_init(Instant::now).elapsed().as_secs())
    }

    fn allow_at(&self, second: u64) -> bool {
        let second = second & u64::from(u32::MAX);
        let state = self.state.load(Ordering::Relaxed);
        let lines = if state >> 32 == second { state & u64::from(u32::MAX) } else { 0 };
        if lines >= LINES_A_SECOND {
            return false;
        }
        self.state.store(second << 32 | (lines + 1), Ordering::Relaxed);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_renews_every_second() {
        let budget = LogBudget::new();
        let allowed = |second| (0..100).filter(|_| budget.allow_at(second)).count();
        assert_eq!([allowed(0), allowed(0), allowed(7), allowed(8)], [10, 0, 10, 10]);
    }
}
