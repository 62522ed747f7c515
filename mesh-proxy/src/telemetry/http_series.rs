//! Counters of HTTP and gRPC requests. Recording is a few additions to atomics: no lock, no label.

use std::fmt::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::flags::ResponseFlags;
use super::names::{self, Metric};
use super::slots::{Budget, Slots};
use super::traffic::{HttpResult, Labels, RequestProtocol, Traffic};

/// How one request ended.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    /// The status that the client got; 0 when it got none.
    pub code: u16,
    /// The gRPC status, for gRPC.
    pub grpc_status: Option<u16>,
    /// Why, if there is something to explain.
    pub flags: ResponseFlags,
    /// From the first byte of the request to the end of the response.
    pub duration: Duration,
    /// Bytes of the request's body.
    pub request_bytes: u64,
    /// Bytes of the response's body.
    pub response_bytes: u64,
    /// Messages that the client sent, for gRPC.
    pub request_messages: u64,
    /// Messages that it was answered, for gRPC.
    pub response_messages: u64,
}

/// The series of requests between two parties; hold it for as long as there are such requests.
#[derive(Debug)]
pub struct HttpSeries {
    traffic: Traffic,
    outcomes: Slots<Box<Cell>, 24>,
    budget: Arc<Budget>,
}

/// Numbers of one outcome.
#[derive(Debug, Default)]
struct Cell {
    requests: AtomicU64,
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
    request_messages: AtomicU64,
    response_messages: AtomicU64,
}

/// Upper bounds of Istio's histograms, for milliseconds and bytes alike (Envoy's default buckets).
const BOUNDS: [f64; 19] = [
    0.5, 1., 5., 10., 25., 50., 100., 250., 500., 1_000., 2_500., 5_000., 10_000., 30_000., 60_000.,
    300_000., 600_000., 1_800_000., 3_600_000.,
];

/// Durations are kept in microseconds, so that the sum is exact enough without floating point.
const MICROS_PER_MILLI: f64 = 1_000.;

#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum: AtomicU64,
}

impl HttpSeries {
    pub(super) fn new(traffic: Traffic, budget: Arc<Budget>) -> Self {
        Self { traffic, outcomes: Slots::new(), budget }
    }

    /// Counts one request.
    pub fn record(&self, outcome: &Outcome) {
        let cell = self.outcomes.get(pack(outcome), &self.budget);
        let micros = u64::try_from(outcome.duration.as_micros()).unwrap_or(u64::MAX);
        cell.requests.fetch_add(1, Ordering::Relaxed);
        cell.duration.add(micros as f64 / MICROS_PER_MILLI, micros);
        cell.request_bytes.add(outcome.request_bytes as f64, outcome.request_bytes);
        cell.response_bytes.add(outcome.response_bytes as f64, outcome.response_bytes);
        if self.traffic.protocol == RequestProtocol::Grpc {
            cell.request_messages.fetch_add(outcome.request_messages, Ordering::Relaxed);
            cell.response_messages.fetch_add(outcome.response_messages, Ordering::Relaxed);
        }
    }

    /// A number that grows with every use: tells whether a series is idle.
    pub(super) fn activity(&self) -> u64 {
        self.outcomes.iter().map(|(_, cell)| cell.requests.load(Ordering::Relaxed)).sum()
    }

    pub(super) fn size(&self) -> usize {
        self.outcomes.len()
    }
}

impl Histogram {
    fn add(&self, value: f64, sum: u64) {
        let bucket = BOUNDS.iter().position(|bound| value <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(sum, Ordering::Relaxed);
    }

    fn read(&self) -> Vec<(f64, u64)> {
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        bounds.zip(&self.buckets).map(|(bound, n)| (bound, n.load(Ordering::Relaxed))).collect()
    }
}

/// Writes every series in the order in which the format wants it: metric by metric.
pub(super) fn encode(series: &[Arc<HttpSeries>], encoder: &mut DescriptorEncoder) -> Result<(), Error> {
    encode_counter(series, encoder, names::REQUESTS, |cell| &cell.requests)?;
    encode_histogram(series, encoder, names::REQUEST_DURATION, MICROS_PER_MILLI, |cell| &cell.duration)?;
    encode_histogram(series, encoder, names::REQUEST_BYTES, 1., |cell| &cell.request_bytes)?;
    encode_histogram(series, encoder, names::RESPONSE_BYTES, 1., |cell| &cell.response_bytes)?;
    let grpc: Vec<_> =
        series.iter().filter(|one| one.traffic.protocol == RequestProtocol::Grpc).cloned().collect();
    encode_counter(&grpc, encoder, names::REQUEST_MESSAGES, |cell| &cell.request_messages)?;
    encode_counter(&grpc, encoder, names::RESPONSE_MESSAGES, |cell| &cell.response_messages)
}

fn encode_counter(
    series: &[Arc<HttpSeries>],
    encoder: &mut DescriptorEncoder,
    (name, help): Metric,
    pick: fn(&Cell) -> &AtomicU64,
) -> Result<(), Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for_each(series, |labels, cell| {
        let count = pick(cell).load(Ordering::Relaxed);
        metric.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)
    })
}

fn encode_histogram(
    series: &[Arc<HttpSeries>],
    encoder: &mut DescriptorEncoder,
    (name, help): Metric,
    unit: f64,
    pick: fn(&Cell) -> &Histogram,
) -> Result<(), Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for_each(series, |labels, cell| {
        let histogram = pick(cell);
        let buckets = histogram.read();
        // From the buckets, so that count and +Inf agree while requests go on.
        let count = buckets.iter().map(|(_, n)| n).sum();
        let sum = histogram.sum.load(Ordering::Relaxed) as f64 / unit;
        metric.encode_family(labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    })
}

fn for_each(
    series: &[Arc<HttpSeries>],
    mut each: impl FnMut(&Labels<'_>, &Cell) -> Result<(), Error>,
) -> Result<(), Error> {
    for one in series {
        for (key, cell) in one.outcomes.iter() {
            each(&labels(&one.traffic, key), cell)?;
        }
    }
    Ok(())
}

/// No request has this as its gRPC status: the packed form of "not gRPC".
const NOT_GRPC: u16 = u16::MAX;

fn pack(outcome: &Outcome) -> u64 {
    let grpc = outcome.grpc_status.unwrap_or(NOT_GRPC);
    u64::from(outcome.code) << 32 | u64::from(grpc) << 16 | u64::from(outcome.flags.bits())
}

fn labels(traffic: &Traffic, key: Option<u64>) -> Labels<'_> {
    let part = |shift: u32| key.map(|key| (key >> shift & 0xffff) as u16);
    Labels {
        traffic,
        flags: part(0).map(ResponseFlags::from_bits),
        http: Some(HttpResult { code: part(32), grpc: part(16).filter(|grpc| *grpc != NOT_GRPC) }),
    }
}
