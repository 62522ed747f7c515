//! What came of a load: counted only while it is measured.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

/// Counts while the load runs.
#[derive(Debug, Default)]
pub struct Tally {
    recording: Cell<bool>,
    latencies: RefCell<Vec<u64>>,
    errors: Cell<u64>,
    bytes: Cell<u64>,
    first_error: RefCell<Option<String>>,
}

/// What is printed at the end, as JSON.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Good answers.
    pub ok: u64,
    /// Failures.
    pub errors: u64,
    /// The first failure.
    pub error: Option<String>,
    /// Bytes that came, where bytes are counted.
    pub bytes: u64,
    /// How long was measured.
    pub seconds: f64,
    /// Microseconds from the moment at which a request was due to its whole answer.
    pub latency_us: Latency,
}

/// Percentiles, in microseconds.
#[derive(Debug, Serialize)]
pub struct Latency {
    p50: f64,
    p99: f64,
    p999: f64,
}

impl Tally {
    /// An answer has come to a request that was due at `due`.
    pub fn answered(&self, due: Instant) {
        if self.recording.get() {
            let nanos = due.elapsed().as_nanos();
            self.latencies.borrow_mut().push(u64::try_from(nanos).unwrap_or(u64::MAX));
        }
    }

    /// Bytes have come.
    pub fn received(&self, bytes: usize) {
        if self.recording.get() {
            self.bytes.set(self.bytes.get() + bytes as u64);
        }
    }

    /// Something failed; the first failure is told even when it came before anything was measured.
    pub fn failed(&self, error: &anyhow::Error) {
        if self.recording.get() {
            self.errors.set(self.errors.get() + 1);
        }
        self.first_error.borrow_mut().get_or_insert_with(|| format!("{error:#}"));
    }

    /// Measures for so long.
    pub async fn measure(&self, time: Duration) -> Report {
        self.recording.set(true);
        let started = Instant::now();
        tokio::time::sleep(time).await;
        self.recording.set(false);
        let seconds = started.elapsed().as_secs_f64();
        let mut latencies = self.latencies.take();
        latencies.sort_unstable();
        Report {
            ok: latencies.len() as u64,
            errors: self.errors.get(),
            error: self.first_error.take(),
            bytes: self.bytes.get(),
            seconds,
            latency_us: Latency {
                p50: percentile(&latencies, 0.5),
                p99: percentile(&latencies, 0.99),
                p999: percentile(&latencies, 0.999),
            },
        }
    }
}

/// In microseconds; 0 of nothing.
fn percentile(sorted: &[u64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).map_or(0.0, |nanos| *nanos as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_seen() {
        let all: Vec<u64> = (1..=1000).map(|n| n * 1000).collect();
        assert_eq!(percentile(&all, 0.5), 500.0);
        assert_eq!(percentile(&all, 0.99), 990.0);
        assert_eq!(percentile(&all, 0.999), 999.0);
        assert_eq!(percentile(&[], 0.5), 0.0);
        assert_eq!(percentile(&[7000], 0.999), 7.0);
    }
}
