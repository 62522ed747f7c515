//! What the proxy says of the traffic it carries: Istio's standard metrics, the access log, and metrics of its
//! own. Handles are resolved once per connection or route; recording takes no lock and looks up no label.

mod access_log;
mod flags;
mod http_series;
mod metrics;
mod names;
mod proxy_metrics;
mod slots;
mod tcp_series;
#[cfg(test)]
mod tests;
mod traffic;
mod xds_metrics;

use std::sync::{Arc, Mutex, PoisonError};

use mesh_common::telemetry::admin::SharedRegistry;
use prometheus_client::registry::Registry;

pub use access_log::{AccessEntry, AccessLogger};
pub use flags::ResponseFlags;
pub use http_series::{HttpSeries, Outcome};
pub use metrics::Limits;
pub use proxy_metrics::ProxyMetrics;
pub use tcp_series::TcpSeries;
pub use traffic::{Reporter, RequestProtocol, Security, Traffic};

use crate::xds::XdsStatus;
use metrics::TrafficMetrics;

/// The shared handle: metrics of traffic, metrics of the proxy itself, and the access log.
#[derive(Debug, Clone)]
pub struct Telemetry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    traffic: Arc<TrafficMetrics>,
    proxy: ProxyMetrics,
    access: AccessLogger,
    registry: SharedRegistry,
}

impl Telemetry {
    /// Makes everything and registers it; access log lines go to `access`.
    pub fn new(limits: Limits, access: AccessLogger) -> Self {
        let mut registry = Registry::default();
        let traffic = Arc::new(TrafficMetrics::new(limits));
        registry.register_collector(Box::new(Arc::clone(&traffic)));
        registry.register_collector(Box::new(access.clone()));
        let proxy = ProxyMetrics::register(&mut registry);
        Self(Arc::new(Inner { traffic, proxy, access, registry: Arc::new(Mutex::new(registry)) }))
    }

    /// For tests: default limits, access log lines go nowhere.
    pub fn detached() -> Self {
        Self::new(Limits::default(), AccessLogger::detached())
    }

    /// The series of requests of this traffic. Hold it: this call takes a lock.
    pub fn http(&self, traffic: &Traffic) -> Arc<HttpSeries> {
        self.0.traffic.http(traffic)
    }

    /// The series of connections of this traffic. Hold it: this call takes a lock.
    pub fn tcp(&self, traffic: &Traffic) -> Arc<TcpSeries> {
        self.0.traffic.tcp(traffic)
    }

    /// Metrics of the proxy itself.
    pub fn proxy(&self) -> &ProxyMetrics {
        &self.0.proxy
    }

    /// The access log. Whether a filter chain writes to it is the chain's own setting.
    pub fn access_log(&self) -> &AccessLogger {
        &self.0.access
    }

    /// What `/metrics` prints.
    pub fn registry(&self) -> SharedRegistry {
        Arc::clone(&self.0.registry)
    }

    /// Prints what the configuration client counts, from now on.
    pub fn follow_xds(&self, status: XdsStatus) {
        let mut registry = self.0.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.register_collector(Box::new(xds_metrics::XdsMetrics(status)));
    }

    /// Lets series go that nobody holds and that were not used for long. Called about once a minute.
    pub fn sweep(&self) {
        self.0.traffic.sweep(tokio::time::Instant::now());
    }
}
