//! Load: a fixed number of requests, or a steady rate until stopped. Every failure is kept with its reason.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use http::Request;
use http_body_util::Full;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::client::{HttpClient, Reply};

/// What came of the requests.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Requests sent.
    pub sent: u64,
    /// Good answers by pod.
    pub by_pod: BTreeMap<String, u64>,
    /// Good answers: when they came (since the start of the load) and the pod.
    pub answers: Vec<(Duration, String)>,
    /// Requests that failed.
    pub failures: Vec<Failure>,
    /// The slowest good answer.
    pub slowest: Duration,
}

/// A request that failed; times are since the start of the load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// When it was sent.
    pub from: Duration,
    /// When it had failed.
    pub to: Duration,
    /// What came instead of an answer.
    pub why: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sent at {:?}, failed at {:?}: {}", self.from, self.to, self.why)
    }
}

/// When an application ended: not before the first, not after the second; since the start of the load.
pub type End = (Duration, Duration);

impl Failure {
    /// Whether it may have been inside one of the applications that ended: their proxy saw the application break off,
    /// and the request was on its way at that time. What was sent later must not be lost.
    pub fn was_inside(&self, ends: &[End]) -> bool {
        let broken_off = self.why.contains("[UC;");
        broken_off && ends.iter().any(|(earliest, latest)| self.from <= *latest && self.to >= *earliest)
    }
}

impl Report {
    /// How many requests applications took with them when they ended, and the failures that this does not explain.
    pub fn lost(&self, ends: &[End]) -> (usize, Vec<&Failure>) {
        let lost: Vec<&Failure> = self.failures.iter().filter(|failure| !failure.was_inside(ends)).collect();
        (self.failures.len() - lost.len(), lost)
    }

    /// The share of good answers that `pod` gave.
    pub fn share(&self, pod: &str) -> f64 {
        let all: u64 = self.by_pod.values().sum();
        self.by_pod.get(pod).copied().unwrap_or_default() as f64 / all as f64
    }

    /// Fails when a request failed.
    ///
    /// # Errors
    /// With the first reasons.
    pub fn no_failure(&self) -> Result<()> {
        let first: Vec<String> = self.failures.iter().take(5).map(ToString::to_string).collect();
        ensure!(self.failures.is_empty(), "{} of {} failed: {first:#?}", self.failures.len(), self.sent);
        Ok(())
    }

    fn record(&mut self, from: Duration, to: Duration, answer: Result<String>) {
        self.sent += 1;
        match answer {
            Ok(pod) => {
                *self.by_pod.entry(pod.clone()).or_default() += 1;
                self.answers.push((to, pod));
                self.slowest = self.slowest.max(to.saturating_sub(from));
            }
            Err(error) => self.failures.push(Failure { from, to, why: format!("{error:#}") }),
        }
    }
}

/// Sends `count` requests, `concurrency` at a time.
pub async fn send(client: &HttpClient, url: &str, count: u64, concurrency: u64) -> Report {
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for worker in 0..concurrency {
        let share = count / concurrency + u64::from(worker < count % concurrency);
        let (client, url) = (client.clone(), url.to_owned());
        tasks.spawn(async move {
            let mut report = Report::default();
            for _ in 0..share {
                let from = started.elapsed();
                let answer = one(client.get(&url)).await;
                report.record(from, started.elapsed(), answer);
            }
            report
        });
    }
    let mut all = Report::default();
    for report in tasks.join_all().await {
        all.sent += report.sent;
        all.failures.extend(report.failures);
        all.answers.extend(report.answers);
        all.slowest = all.slowest.max(report.slowest);
        for (pod, n) in report.by_pod {
            *all.by_pod.entry(pod).or_default() += n;
        }
    }
    all
}

/// Requests at a steady rate, until stopped; not idempotent, so that no retry hides a loss.
#[derive(Debug)]
pub struct Load {
    started: Instant,
    report: Arc<Mutex<Report>>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Load {
    /// Starts `rate` requests a second.
    pub fn start(client: &HttpClient, url: &str, rate: u32) -> Self {
        let (started, report, stop) = (Instant::now(), Arc::default(), CancellationToken::new());
        let task = tokio::spawn(steady(
            client.clone(),
            url.into(),
            rate,
            Arc::clone(&report),
            stop.clone(),
            started,
        ));
        Self { started, report, stop, task }
    }

    /// The time since the start: what [`Report::answers`] counts in.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// What came of it so far.
    pub fn report(&self) -> Report {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops, waits for the answers that are due, and reports.
    ///
    /// # Errors
    /// When the generator itself failed.
    pub async fn stop(self) -> Result<Report> {
        self.stop.cancel();
        self.task.await?;
        let report = self.report.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(report)
    }
}

async fn steady(
    client: HttpClient,
    url: Arc<str>,
    rate: u32,
    report: Arc<Mutex<Report>>,
    stop: CancellationToken,
    started: Instant,
) {
    let mut requests = JoinSet::new();
    let mut due = tokio::time::interval(Duration::from_secs(1) / rate);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            _ = due.tick() => {}
        }
        while requests.try_join_next().is_some() {}
        let (client, url, report) = (client.clone(), Arc::clone(&url), Arc::clone(&report));
        requests.spawn(async move {
            let from = started.elapsed();
            let answer = one(post(&client, &url)).await;
            let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
            report.record(from, started.elapsed(), answer);
        });
    }
    requests.join_all().await;
}

/// A request that nobody on the way may send a second time: whatever loses one is seen.
async fn post(client: &HttpClient, url: &str) -> Result<Reply> {
    client.send(Request::post(url).body(Full::from("once"))?).await
}

async fn one(reply: impl Future<Output = Result<Reply>>) -> Result<String> {
    Ok(reply.await?.echo()?.pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_on_its_way_to_an_application_that_broke_off_is_explained() {
        let at = Duration::from_millis;
        let failure = |from, to, why: &str| Failure { from: at(from), to: at(to), why: why.to_owned() };
        let ends = [(at(100), at(110)), (at(500), at(510))];
        for (failure, inside) in [
            (failure(90, 120, "503 [UC; reset]"), true),
            (failure(105, 106, "503 [UC; reset]"), true),
            (failure(80, 99, "503 [UC; reset]"), false),
            (failure(111, 130, "503 [UC; reset]"), false),
            (failure(505, 520, "503 [UC; reset]"), true),
            (failure(90, 120, "503 [UF; refused]"), false),
        ] {
            assert_eq!(failure.was_inside(&ends), inside, "{failure}");
            assert!(!failure.was_inside(&[]), "{failure}");
        }
    }
}
