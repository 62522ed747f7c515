//! Counters of opaque TCP connections. Recording is an addition to an atomic: no lock, no label.

use std::fmt::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::flags::ResponseFlags;
use super::names::{self, Metric};
use super::slots::{Budget, Slots};
use super::traffic::{Labels, Traffic};

/// The series of connections between two parties; hold it for as long as there are such connections.
#[derive(Debug)]
pub struct TcpSeries {
    traffic: Traffic,
    outcomes: Slots<Cell, 8>,
    budget: Arc<Budget>,
}

/// Numbers of one combination of flags.
#[derive(Debug, Default)]
struct Cell {
    opened: AtomicU64,
    closed: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl TcpSeries {
    pub(super) fn new(traffic: Traffic, budget: Arc<Budget>) -> Self {
        Self { traffic, outcomes: Slots::new(), budget }
    }

    /// Counts an opened connection.
    pub fn opened(&self, flags: ResponseFlags) {
        self.cell(flags).opened.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts bytes of the response: from the server to the client, on both reporters.
    pub fn sent(&self, bytes: u64) {
        self.cell(ResponseFlags::NONE).sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes of the request: from the client to the server, on both reporters.
    pub fn received(&self, bytes: u64) {
        self.cell(ResponseFlags::NONE).received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts a closed connection.
    pub fn closed(&self, flags: ResponseFlags) {
        self.cell(flags).closed.fetch_add(1, Ordering::Relaxed);
    }

    /// A number that grows with every use: tells whether a series is idle.
    pub(super) fn activity(&self) -> u64 {
        let sum = |cell: &Cell| {
            [&cell.opened, &cell.closed, &cell.sent, &cell.received]
                .iter()
                .fold(0_u64, |sum, n| sum.wrapping_add(n.load(Ordering::Relaxed)))
        };
        self.outcomes.iter().fold(0, |total, (_, cell)| total.wrapping_add(sum(cell)))
    }

    pub(super) fn size(&self) -> usize {
        self.outcomes.len()
    }

    fn cell(&self, flags: ResponseFlags) -> &Cell {
        self.outcomes.get(u64::from(flags.bits()), &self.budget)
    }
}

/// Writes every series in the order in which the format wants it: metric by metric.
pub(super) fn encode(series: &[Arc<TcpSeries>], encoder: &mut DescriptorEncoder) -> Result<(), Error> {
    encode_counter(series, encoder, names::TCP_OPENED, |cell| &cell.opened)?;
    encode_counter(series, encoder, names::TCP_CLOSED, |cell| &cell.closed)?;
    encode_counter(series, encoder, names::TCP_SENT, |cell| &cell.sent)?;
    encode_counter(series, encoder, names::TCP_RECEIVED, |cell| &cell.received)
}

fn encode_counter(
    series: &[Arc<TcpSeries>],
    encoder: &mut DescriptorEncoder,
    (name, help): Metric,
    pick: fn(&Cell) -> &AtomicU64,
) -> Result<(), Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for one in series {
        for (key, cell) in one.outcomes.iter() {
            let flags = key.map(|key| ResponseFlags::from_bits((key & 0xffff) as u16));
            let labels = Labels { traffic: &one.traffic, flags, http: None };
            let count = pick(cell).load(Ordering::Relaxed);
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
    }
    Ok(())
}
