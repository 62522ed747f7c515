//! What the configuration client says of itself, as metrics: read when they are printed, never pushed.

use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::names;
use crate::xds::XdsStatus;

/// Reads the status at each scrape.
#[derive(Debug)]
pub(super) struct XdsMetrics(pub(super) XdsStatus);

impl Collector for XdsMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), Error> {
        let (name, help) = names::XDS_CONNECTED;
        let connected = ConstGauge::new(i64::from(self.0.is_connected()));
        connected.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        let totals = self.0.totals();
        for ((name, help), total) in [
            (names::XDS_RESPONSES, totals.responses),
            (names::XDS_RESOURCES, totals.resources),
            (names::XDS_NACKS, totals.nacks),
            (names::XDS_RECONNECTS, totals.reconnects),
        ] {
            let total = ConstCounter::new(total);
            total.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        let (name, help) = names::XDS_NAMES;
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (kind, status) in self.0.types() {
            metric.encode_family(&[("type", kind.short())])?.encode_gauge(&status.names.len())?;
        }
        Ok(())
    }
}
