//! The application of the tests on a cluster: what `mesh-test-app` prints, as types, so that those who run it in a pod
//! read what they asked for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::client::Reply;
use crate::load::{End, Report};
use crate::server::Echo;

/// Where the program is in its image.
pub const PATH: &str = "/mesh-test-app";

/// The first line of what runs until its standard input ends: from now on it does its work.
pub const BEGUN: &str = "begun";

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers; the last of several of one name.
    pub headers: BTreeMap<String, String>,
    /// Its body, as text.
    pub body: String,
}

impl Answer {
    /// What the application says of the request, if it answered.
    ///
    /// # Errors
    /// When somebody else did.
    pub fn echo(&self) -> anyhow::Result<Echo> {
        anyhow::ensure!(self.status == 200, "{self}");
        Ok(serde_json::from_str(&self.body)?)
    }

    /// The reason that the mesh gives for an answer of its own.
    pub fn reason(&self) -> &str {
        self.headers.get("x-mesh-reason").map_or("", String::as_str)
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "status {} [{}] {}", self.status, self.reason(), self.body.trim())
    }
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        Self {
            status: reply.status.as_u16(),
            headers: reply.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
            body: String::from_utf8_lossy(&reply.body).into_owned(),
        }
    }
}

/// What came of many requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Requests sent.
    pub sent: u64,
    /// Good answers by version of the application.
    pub by_version: BTreeMap<String, u64>,
    /// Good answers by pod.
    pub by_pod: BTreeMap<String, u64>,
    /// How many failed, those left out that an application took with it when it ended.
    pub failed: u64,
    /// How many an application took with it when it ended.
    pub inside: u64,
    /// How many applications have told that they end.
    pub ends: usize,
    /// Why, for the first of them.
    pub failures: Vec<String>,
    /// Good answers in the order in which they came: milliseconds since the start, and the version.
    pub answers: Vec<(u64, String)>,
    /// The slowest good answer, in milliseconds.
    pub slowest_ms: u64,
}

/// Failures that are told with their reason.
const TOLD: usize = 10;

impl Tally {
    /// Fails when a request failed.
    ///
    /// # Errors
    /// With the first reasons.
    pub fn no_failure(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.failed == 0, "{} of {} failed: {:#?}", self.failed, self.sent, self.failures);
        anyhow::ensure!(self.sent > 0, "nothing was sent");
        Ok(())
    }

    /// The share of good answers that came from `version`.
    pub fn share(&self, version: &str) -> f64 {
        let all: u64 = self.by_version.values().sum();
        self.by_version.get(version).copied().unwrap_or_default() as f64 / all as f64
    }
}

impl From<Report> for Tally {
    fn from(report: Report) -> Self {
        Self::with_ends(report, &[])
    }
}

impl Tally {
    /// What came of requests while applications ended.
    pub fn with_ends(report: Report, ends: &[End]) -> Self {
        let (inside, lost) = report.lost(ends);
        let mut tally = Self {
            sent: report.sent,
            failed: lost.len() as u64,
            inside: inside as u64,
            ends: ends.len(),
            failures: lost.iter().take(TOLD).map(ToString::to_string).collect(),
            slowest_ms: millis(report.slowest),
            ..Self::default()
        };
        for (at, name) in report.answers {
            let (version, pod) = name.split_once('/').unwrap_or((&name, &name));
            *tally.by_pod.entry(pod.to_owned()).or_default() += 1;
            *tally.by_version.entry(version.to_owned()).or_default() += 1;
            tally.answers.push((millis(at), version.to_owned()));
        }
        tally
    }
}

/// What was heard on a TCP connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// What the server said first.
    pub greeting: String,
    /// What came back for what was sent.
    pub echo: String,
    /// From the dial to the first byte, in milliseconds.
    pub first_byte_ms: u64,
}

/// What passed on the interfaces of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// How often each marker passed.
    pub markers: BTreeMap<String, usize>,
    /// Bytes in all.
    pub bytes: usize,
}

/// A duration in whole milliseconds.
pub fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
