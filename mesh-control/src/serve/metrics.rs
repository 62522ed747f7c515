//! What mesh-control counts. Names and help texts stand here only; label values are from fixed lists.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use mesh_common::xds::ResourceType;

use super::cache::Size;
use crate::model::store::SharedModel;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByType {
    r#type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByKind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    result: &'static str,
}

/// The metrics of the process.
pub struct Metrics {
    /// Streams that are open.
    pub streams: Gauge,
    /// Names that somebody watches.
    pub cache_names: Gauge,
    /// Resources in the cache.
    pub cache_resources: Gauge,
    /// Bytes of them.
    pub cache_bytes: Gauge,
    /// Translations.
    pub translations: Counter,
    /// Translations that failed.
    pub translation_failures: Counter,
    /// Time that a batch of translations took.
    pub translation_seconds: Histogram,
    /// Time from a change of the model until its resources were handed to the streams.
    pub push_seconds: Histogram,
    /// TLS handshakes that failed.
    pub failed_handshakes: Counter,
    /// Requests after which a stream had to wait before its next one was read.
    pub paced_requests: Counter,
    /// Answers to responses that were not the last one.
    pub stale_answers: Counter,
    refused_connections: Family<ByReason, Counter>,
    pushes: Family<ByType, Counter>,
    resources: Family<ByType, Counter>,
    removed: Family<ByType, Counter>,
    push_bytes: Histogram,
    nacks: Family<ByType, Counter>,
    refused: Family<ByReason, Counter>,
    closed: Family<ByReason, Counter>,
    signed: Family<ByResult, Counter>,
    watch_errors: Family<ByKind, Counter>,
}

const SECONDS: [f64; 10] = [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];
const BYTES: [f64; 7] = [256.0, 1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0];

impl Metrics {
    /// Registers all metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let mut made = Self::unregistered();
        made.register(registry);
        made
    }

    fn unregistered() -> Self {
        Self {
            streams: Gauge::default(),
            cache_names: Gauge::default(),
            cache_resources: Gauge::default(),
            cache_bytes: Gauge::default(),
            translations: Counter::default(),
            translation_failures: Counter::default(),
            translation_seconds: Histogram::new(SECONDS),
            push_seconds: Histogram::new(SECONDS),
            failed_handshakes: Counter::default(),
            paced_requests: Counter::default(),
            stale_answers: Counter::default(),
            refused_connections: Family::default(),
            pushes: Family::default(),
            resources: Family::default(),
            removed: Family::default(),
            push_bytes: Histogram::new(BYTES),
            nacks: Family::default(),
            refused: Family::default(),
            closed: Family::default(),
            signed: Family::default(),
            watch_errors: Family::default(),
        }
    }

    fn register(&mut self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("mesh_control");
        registry.register("streams", "Open discovery streams", self.streams.clone());
        registry.register("cache_names", "Resource names that a stream watches", self.cache_names.clone());
        registry.register(
            "cache_resources",
            "Resources in the cache, one per name and view",
            self.cache_resources.clone(),
        );
        registry.register("cache_bytes", "Bytes of the resources in the cache", self.cache_bytes.clone());
        registry.register("translations", "Translations made", self.translations.clone());
        registry.register(
            "translation_failures",
            "Translations that failed",
            self.translation_failures.clone(),
        );
        registry.register(
            "translation_seconds",
            "Time of a batch of translations",
            self.translation_seconds.clone(),
        );
        registry.register(
            "push_seconds",
            "Time from the notice of a change to the streams",
            self.push_seconds.clone(),
        );
        registry.register("failed_handshakes", "TLS handshakes that failed", self.failed_handshakes.clone());
        registry.register(
            "refused_connections",
            "Connections closed unread, by reason",
            self.refused_connections.clone(),
        );
        registry.register(
            "paced_requests",
            "Requests after which a stream was made to wait",
            self.paced_requests.clone(),
        );
        registry.register(
            "stale_answers",
            "Answers to responses that were not the last one",
            self.stale_answers.clone(),
        );
        registry.register("pushes", "Responses sent, by type", self.pushes.clone());
        registry.register("pushed_resources", "Resources sent, by type", self.resources.clone());
        registry.register("removed_resources", "Names answered with nothing, by type", self.removed.clone());
        registry.register("push_bytes", "Bytes of resources in a response", self.push_bytes.clone());
        registry.register("nacks", "Responses that clients refused, by type", self.nacks.clone());
        registry.register("refused_streams", "Streams refused, by reason", self.refused.clone());
        registry.register("closed_streams", "Streams that ended, by reason", self.closed.clone());
        registry.register("signing_requests", "Signing requests, by result", self.signed.clone());
        let help = "Watches of the API server that broke, by kind of object";
        registry.register("watch_errors", help, self.watch_errors.clone());
    }

    /// A response went out.
    pub fn pushed(&self, kind: ResourceType, resources: usize, removed: usize, bytes: usize) {
        let labels = ByType { r#type: kind.short() };
        self.pushes.get_or_create(&labels).inc();
        self.resources.get_or_create(&labels).inc_by(resources as u64);
        self.removed.get_or_create(&labels).inc_by(removed as u64);
        self.push_bytes.observe(bytes as f64);
    }

    /// A client refused a response.
    pub fn nacked(&self, kind: ResourceType) {
        self.nacks.get_or_create(&ByType { r#type: kind.short() }).inc();
    }

    /// A stream was refused.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ByReason { reason }).inc();
    }

    /// A stream ended.
    pub fn closed(&self, reason: &'static str) {
        self.closed.get_or_create(&ByReason { reason }).inc();
    }

    /// A connection was closed before its handshake.
    pub fn refused_connection(&self, reason: &'static str) {
        self.refused_connections.get_or_create(&ByReason { reason }).inc();
    }

    /// A signing request was answered.
    pub fn signed(&self, result: &'static str) {
        self.signed.get_or_create(&ByResult { result }).inc();
    }

    /// A watch of this kind broke.
    pub fn watch_error(&self, kind: &'static str) {
        self.watch_errors.get_or_create(&ByKind { kind }).inc();
    }

    /// The cache has this size now.
    pub fn cache(&self, size: Size) {
        let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.cache_names.set(gauge(size.names));
        self.cache_resources.set(gauge(size.resources));
        self.cache_bytes.set(gauge(size.bytes));
    }
}

impl Default for Metrics {
    /// Metrics that nobody reads.
    fn default() -> Self {
        Self::unregistered()
    }
}

/// Registers what is read from the model itself, when it is asked for.
pub fn register_model(registry: &mut Registry, model: SharedModel) {
    registry.register_collector(Box::new(ModelCollector(model)));
}

struct ModelCollector(SharedModel);

impl std::fmt::Debug for ModelCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ModelCollector")
    }
}

impl Collector for ModelCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let errors = i64::try_from(self.0.config_errors().len()).unwrap_or(i64::MAX);
        let gauge = ConstGauge::new(errors);
        let help = "Parts of the configuration that could not be taken";
        gauge.encode(encoder.encode_descriptor(
            "mesh_control_config_errors",
            help,
            None,
            gauge.metric_type(),
        )?)
    }
}
