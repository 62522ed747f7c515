//! What the injector counts. Names and labels are here and nowhere else; every label has few values.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use mesh_common::telemetry::admin::SharedRegistry;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    outcome: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Result {
    result: &'static str,
}

/// The injector's metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: SharedRegistry,
    requests: Family<Answered, Counter>,
    duration: Histogram,
    connections: Family<Result, Counter>,
    events: Family<Result, Counter>,
    renewals: Family<Result, Counter>,
    expiry: Gauge,
    settings: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let buckets = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
        let mut registry = Registry::default();
        let new = Self {
            registry: SharedRegistry::default(),
            requests: Family::default(),
            duration: Histogram::new(buckets),
            connections: Family::default(),
            events: Family::default(),
            renewals: Family::default(),
            expiry: Gauge::default(),
            settings: Gauge::default(),
        };
        registry.register(
            "mesh_injector_requests",
            "Pods judged, by outcome and reason",
            new.requests.clone(),
        );
        registry.register(
            "mesh_injector_request_duration_seconds",
            "Time from the end of a request's body to its answer",
            new.duration.clone(),
        );
        registry.register(
            "mesh_injector_connections",
            "Connections to the webhook, by what became of them",
            new.connections.clone(),
        );
        registry.register(
            "mesh_injector_events",
            "Events written about pods, or dropped",
            new.events.clone(),
        );
        registry.register(
            "mesh_injector_certificate_renewals",
            "Attempts to get a certificate",
            new.renewals.clone(),
        );
        registry.register(
            "mesh_injector_certificate_expiry_timestamp_seconds",
            "When the webhook's certificate runs out",
            new.expiry.clone(),
        );
        registry.register(
            "mesh_injector_settings_valid",
            "Whether the settings file as it is now can be used",
            new.settings.clone(),
        );
        Self { registry: Arc::new(Mutex::new(registry)), ..new }
    }

    /// For the admin page.
    pub fn registry(&self) -> SharedRegistry {
        Arc::clone(&self.registry)
    }

    /// A request was answered.
    pub fn answered(&self, outcome: &'static str, reason: &'static str, took: Duration) {
        self.requests.get_or_create(&Answered { outcome, reason }).inc();
        self.duration.observe(took.as_secs_f64());
    }

    /// What became of a connection.
    pub fn connection(&self, result: &'static str) {
        self.connections.get_or_create(&Result { result }).inc();
    }

    /// What became of an event.
    pub fn event(&self, result: &'static str) {
        self.events.get_or_create(&Result { result }).inc();
    }

    /// An attempt to renew the certificate.
    pub fn renewal(&self, result: &'static str) {
        self.renewals.get_or_create(&Result { result }).inc();
    }

    /// The certificate in use ends then.
    pub fn certificate_expiry(&self, not_after: SystemTime) {
        let since = not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.expiry.set(i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    }

    /// Whether the settings file can be used.
    pub fn settings_valid(&self, valid: bool) {
        self.settings.set(i64::from(valid));
    }
}
