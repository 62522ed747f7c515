//! What is counted of the leader's work. Names and help texts stand here only.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Write {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByKind {
    kind: &'static str,
}

/// The metrics. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct LeadMetrics {
    leader: Gauge,
    writes: Family<Write, Counter>,
    failing: Family<ByKind, Gauge>,
}

impl LeadMetrics {
    /// Registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let made = Self::default();
        let registry = registry.sub_registry_with_prefix("mesh_control");
        registry.register("leader", "1 where this replica writes to the API server", made.leader.clone());
        registry.register(
            "writes",
            "Objects that the leader wrote to the API server or tried to, by kind and outcome",
            made.writes.clone(),
        );
        registry.register(
            "failing_objects",
            "Objects that the leader could not write and tries again, by kind",
            made.failing.clone(),
        );
        made
    }

    pub(super) fn leader(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    pub(super) fn wrote(&self, kind: &'static str, outcome: &'static str) {
        self.writes.get_or_create(&Write { kind, outcome }).inc();
    }

    #[cfg(test)]
    pub(super) fn writes(&self, kind: &'static str, outcome: &'static str) -> u64 {
        self.writes.get_or_create(&Write { kind, outcome }).get()
    }

    pub(super) fn failing(&self, kind: &'static str, objects: usize) {
        self.failing.get_or_create(&ByKind { kind }).set(i64::try_from(objects).unwrap_or(i64::MAX));
    }
}
