//! All series of traffic, bounded: idle ones go away, and beyond the limit one overflow series takes the rest.
//! The lock here is taken when a handle is resolved and when metrics are printed, never per request.

use std::collections::HashMap;
use std::fmt::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::time::Instant;

use super::http_series::{self, HttpSeries};
use super::names;
use super::slots::Budget;
use super::tcp_series::{self, TcpSeries};
use super::traffic::Traffic;

/// What keeps the number of series bounded.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Series in all; a series is one combination of label values.
    pub series: usize,
    /// A series that nobody holds goes away when it was not used for this long.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { series: 10_000, idle: Duration::from_secs(30 * 60) }
    }
}

/// All series of traffic.
#[derive(Debug)]
pub(super) struct TrafficMetrics {
    http: Mutex<HashMap<Traffic, Entry<HttpSeries>>>,
    tcp: Mutex<HashMap<Traffic, Entry<TcpSeries>>>,
    budget: Arc<Budget>,
    idle: Duration,
}

#[derive(Debug)]
struct Entry<S> {
    series: Arc<S>,
    /// What [`Series::activity`] was when it last changed, and when that was seen.
    activity: u64,
    active: Instant,
}

/// What the two kinds of series have in common.
trait Series {
    fn make(traffic: Traffic, budget: Arc<Budget>) -> Self;
    fn activity(&self) -> u64;
    fn size(&self) -> usize;
}

impl TrafficMetrics {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            http: Mutex::default(),
            tcp: Mutex::default(),
            budget: Arc::new(Budget::new(limits.series)),
            idle: limits.idle,
        }
    }

    pub(super) fn http(&self, traffic: &Traffic) -> Arc<HttpSeries> {
        resolve(&self.http, traffic, &self.budget)
    }

    pub(super) fn tcp(&self, traffic: &Traffic) -> Arc<TcpSeries> {
        resolve(&self.tcp, traffic, &self.budget)
    }

    /// Lets go of series that nobody holds and that were not used for long.
    pub(super) fn sweep(&self, now: Instant) {
        sweep(&self.http, now, self.idle, &self.budget);
        sweep(&self.tcp, now, self.idle, &self.budget);
    }
}

fn resolve<S: Series>(
    series: &Mutex<HashMap<Traffic, Entry<S>>>,
    traffic: &Traffic,
    budget: &Arc<Budget>,
) -> Arc<S> {
    let mut series = series.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = series.get(traffic) {
        return Arc::clone(&known.series);
    }
    let traffic = if budget.has_room() { traffic.clone() } else { traffic.overflow() };
    let entry = series.entry(traffic).or_insert_with_key(|traffic| Entry {
        series: Arc::new(S::make(traffic.clone(), Arc::clone(budget))),
        activity: 0,
        active: Instant::now(),
    });
    Arc::clone(&entry.series)
}

fn sweep<S: Series>(
    series: &Mutex<HashMap<Traffic, Entry<S>>>,
    now: Instant,
    idle: Duration,
    budget: &Budget,
) {
    let mut series = series.lock().unwrap_or_else(PoisonError::into_inner);
    series.retain(|_, entry| {
        let activity = entry.series.activity();
        if activity != entry.activity {
            (entry.activity, entry.active) = (activity, now);
        }
        // The count cannot rise from one in between: handles are given out under the lock held here.
        let held = Arc::strong_count(&entry.series) > 1;
        let stays = held || now.saturating_duration_since(entry.active) < idle;
        if !stays {
            budget.give_back(entry.series.size());
        }
        stays
    });
}

fn all<S>(series: &Mutex<HashMap<Traffic, Entry<S>>>) -> Vec<Arc<S>> {
    let series = series.lock().unwrap_or_else(PoisonError::into_inner);
    series.values().map(|entry| Arc::clone(&entry.series)).collect()
}

impl Collector for TrafficMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), Error> {
        http_series::encode(&all(&self.http), &mut encoder)?;
        tcp_series::encode(&all(&self.tcp), &mut encoder)?;
        let (name, help) = names::SERIES;
        let used = ConstGauge::new(self.budget.used() as u64);
        used.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        let (name, help) = names::SERIES_OVERFLOW;
        let refused = ConstCounter::new(self.budget.refused());
        refused.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
    }
}

impl Series for HttpSeries {
    fn make(traffic: Traffic, budget: Arc<Budget>) -> Self {
        Self::new(traffic, budget)
    }

    fn activity(&self) -> u64 {
        self.activity()
    }

    fn size(&self) -> usize {
        self.size()
    }
}

impl Series for TcpSeries {
    fn make(traffic: Traffic, budget: Arc<Budget>) -> Self {
        Self::new(traffic, budget)
    }

    fn activity(&self) -> u64 {
        self.activity()
    }

    fn size(&self) -> usize {
        self.size()
    }
}
