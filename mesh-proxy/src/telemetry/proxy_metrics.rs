//! Metrics of the proxy itself, `mesh_proxy_*`: its certificate, and what it refused. Label values are constants of the code, never text from the network.

use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};

use super::names;

/// Counters by one label.
type ByLabel = Family<[(&'static str, &'static str); 1], Counter>;

/// Metrics of the proxy itself.
#[derive(Debug, Clone, Default)]
pub struct ProxyMetrics {
    certificate_expiry: Gauge<u64, AtomicU64>,
    certificate_renewals: ByLabel,
    inbound_refused: ByLabel,
    outbound_refused: ByLabel,
    app_scrape_failures: Counter,
}

impl ProxyMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        register(registry, names::CERTIFICATE_EXPIRY, metrics.certificate_expiry.clone());
        register(registry, names::CERTIFICATE_RENEWALS, metrics.certificate_renewals.clone());
        register(registry, names::INBOUND_REFUSED, metrics.inbound_refused.clone());
        register(registry, names::OUTBOUND_REFUSED, metrics.outbound_refused.clone());
        register(registry, names::APP_SCRAPE_FAILURES, metrics.app_scrape_failures.clone());
        register(registry, names::BUILD_INFO, Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        metrics
    }

    /// A certificate was asked for; `result` is `success` or `failure`.
    pub fn certificate_renewal(&self, result: &'static str) {
        self.certificate_renewals.get_or_create(&[("result", result)]).inc();
    }

    /// Another workload certificate is in use.
    pub fn certificate_expiry(&self, not_after: SystemTime) {
        let unix = not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.certificate_expiry.set(unix.as_secs());
    }

    /// An inbound connection was closed for a reason of the mesh's own.
    pub fn inbound_refused(&self, reason: &'static str) {
        self.inbound_refused.get_or_create(&[("reason", reason)]).inc();
    }

    /// A connection of the application was refused before anything was dialled.
    pub fn outbound_refused(&self, reason: &'static str) {
        self.outbound_refused.get_or_create(&[("reason", reason)]).inc();
    }

    /// The application's own metrics could not be had, or not all of them.
    pub fn app_scrape_failed(&self) {
        self.app_scrape_failures.inc();
    }
}

fn register(registry: &mut Registry, (name, help): names::Metric, metric: impl Metric) {
    // The encoder ends the help text with a full stop of its own.
    registry.register(name, help.trim_end_matches('.'), metric);
}
