//! A histogram of latencies of fixed size: 32 buckets for each doubling, so that a percentile is wrong by
//! at most three percent however long the demo runs.

use std::time::Duration;

const SUB_BITS: u32 = 5;
const SUB: u64 = 1 << SUB_BITS;
const BUCKETS: usize = (36 * SUB) as usize;

/// Counts of latencies.
#[derive(Debug, Clone)]
pub(super) struct Histogram {
    buckets: Vec<u32>,
    count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0 }
    }
}

impl Histogram {
    /// Counts one.
    pub(super) fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let bucket = &mut self.buckets[index(micros).min(BUCKETS - 1)];
        *bucket = bucket.saturating_add(1);
        self.count += 1;
    }

    /// The latency in milliseconds that `share` (0 to 1) of all are not above.
    pub(super) fn percentile_ms(&self, share: f64) -> f64 {
        let rank = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= rank {
                return upper(index) as f64 / 1000.0;
            }
        }
        0.0
    }
}

fn index(micros: u64) -> usize {
    let exponent = micros.max(1).ilog2().saturating_sub(SUB_BITS);
    (u64::from(exponent) * SUB + (micros >> exponent)) as usize
}

fn upper(index: usize) -> u64 {
    let index = index as u64;
    let exponent = (index / SUB).saturating_sub(1);
    (index - exponent * SUB + 1) << exponent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_close() {
        let mut histogram = Histogram::default();
        for micros in 1..=100_000 {
            histogram.record(Duration::from_micros(micros));
        }
        for (share, ms) in [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (0.0001, 0.01)] {
            let found = histogram.percentile_ms(share);
            assert!((found - ms).abs() <= ms * 0.04 + 0.001, "{share}: {found}");
        }
        histogram.record(Duration::MAX);
        assert_eq!(Histogram::default().percentile_ms(0.5), 0.0);
    }
}
