//! The traffic: requests at a steady rate whatever the answers do (an open loop), each timed from the moment
//! it was due, so that a stall is seen in the figures.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::histogram::Histogram;

/// More than this many at once means that nothing is answered; then those due are counted as failed.
const MAX_IN_FLIGHT: usize = 2_000;
const URL: &str = "http://frontend.shop/";

/// What happened to the requests of some time.
#[derive(Debug, Clone, Default)]
pub(super) struct Window {
    pub(super) requests: u64,
    pub(super) failures: u64,
    pub(super) versions: BTreeMap<String, u64>,
    pub(super) latency: Histogram,
}

/// The running traffic.
#[derive(Debug)]
pub(super) struct Load {
    stats: Arc<Stats>,
    stop: CancellationToken,
    task: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Stats {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    window: Window,
    total: Window,
    first_failure: Option<String>,
}

impl Load {
    /// Starts sending `rate` requests a second.
    pub(super) fn start(client: Client, rate: u32) -> Self {
        let stats = Arc::new(Stats::default());
        let stop = CancellationToken::new();
        let task = tokio::spawn(send(client, rate, Arc::clone(&stats), stop.clone()));
        Self { stats, stop, task: Mutex::new(Some(task)) }
    }

    /// What happened since the last call.
    pub(super) fn window(&self) -> Window {
        std::mem::take(&mut self.stats.lock().window)
    }

    /// What happened since the start.
    pub(super) fn total(&self) -> Window {
        self.stats.lock().total.clone()
    }

    /// Why the first failed request failed.
    pub(super) fn first_failure(&self) -> Option<String> {
        self.stats.lock().first_failure.clone()
    }

    /// Sends no more, and waits for the answers that are due.
    pub(super) async fn stop(&self) {
        self.stop.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            self.stats.record(Duration::ZERO, Err(format!("the load generator failed: {error}")));
        }
    }
}

async fn send(client: Client, rate: u32, stats: Arc<Stats>, stop: CancellationToken) {
    let mut requests = JoinSet::new();
    let mut due = tokio::time::interval(Duration::from_secs(1) / rate);
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        let due = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            due = due.tick() => due,
        };
        while requests.try_join_next().is_some() {}
        if requests.len() >= MAX_IN_FLIGHT {
            stats.record(Duration::ZERO, Err(format!("{MAX_IN_FLIGHT} requests are without an answer")));
            continue;
        }
        requests.spawn(one(client.clone(), due, Arc::clone(&stats)));
    }
    requests.join_all().await;
}

async fn one(client: Client, due: Instant, stats: Arc<Stats>) {
    let answer = match client.get(URL).await {
        Ok(body) => version(&body),
        Err(error) => Err(error.to_string()),
    };
    stats.record(due.elapsed(), answer);
}

/// The version of reviews that answered.
fn version(body: &[u8]) -> Result<String, String> {
    let page: Value = serde_json::from_slice(body).map_err(|error| format!("the page is broken: {error}"))?;
    match &page["reviews"]["version"] {
        Value::String(version) => Ok(version.clone()),
        _ => Err(format!("the page has no reviews: {page}")),
    }
}

impl Stats {
    fn record(&self, latency: Duration, answer: Result<String, String>) {
        let mut inner = self.lock();
        let Inner { window, total, first_failure } = &mut *inner;
        for window in [window, total] {
            window.requests += 1;
            match &answer {
                Ok(version) => {
                    *window.versions.entry(version.clone()).or_default() += 1;
                    window.latency.record(latency);
                }
                Err(_) => window.failures += 1,
            }
        }
        if let Err(error) = answer {
            first_failure.get_or_insert(error);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    /// The share of the answered requests that each version answered.
    pub(super) fn shares(&self) -> BTreeMap<String, f64> {
        let answered: u64 = self.versions.values().sum();
        self.versions.iter().map(|(version, n)| (version.clone(), *n as f64 / answered as f64)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_shares() {
        let stats = Stats::default();
        for answer in [Ok("v1"), Ok("v1"), Ok("v1"), Ok("v2"), Err("lost"), Err("late")] {
            let answer = answer.map(str::to_owned).map_err(str::to_owned);
            stats.record(Duration::from_millis(1), answer);
        }
        let inner = stats.lock();
        assert_eq!((inner.total.requests, inner.total.failures), (6, 2));
        assert_eq!(inner.total.shares(), BTreeMap::from([("v1".to_owned(), 0.75), ("v2".to_owned(), 0.25)]));
        assert_eq!(inner.first_failure.as_deref(), Some("lost"));
        assert!(Window::default().shares().is_empty());
    }

    #[test]
    fn the_version_is_read_from_the_page() {
        assert_eq!(version(br#"{"reviews":{"version":"v2"}}"#).unwrap(), "v2");
        assert!(version(b"{}").is_err());
        assert!(version(b"x").is_err());
    }
}
