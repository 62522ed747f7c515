//! A source that follows a fake API server, and what tests ask of it.

use std::sync::Arc;
use std::time::Duration;

use mesh_common::process::{DrainTrigger, Readiness, drain};
use mesh_test::kube_api::KubeApi;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::api::Kind;
use crate::ingest::tests::settings;
use crate::model::Settings;
use crate::model::facts::Facts as _;
use crate::model::store::{Mesh, SharedModel};
use crate::serve::metrics::Metrics;
use crate::watch::health::{WatchHealth, WatchState, WatchStatus};
use crate::watch::kubernetes::Source;

/// The source, running.
pub(super) struct Cluster {
    pub(super) model: SharedModel,
    pub(super) readiness: Readiness,
    pub(super) health: WatchHealth,
    registry: Registry,
    _trigger: DrainTrigger,
    task: JoinHandle<()>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Cluster {
    /// Begins to follow.
    pub(super) fn begin(api: &KubeApi) -> Self {
        let model = SharedModel::new(Mesh::new(Settings { standalone: false, ..settings() }));
        let (readiness, health) = (Readiness::default(), WatchHealth::default());
        let mut registry = Registry::default();
        let metrics = Arc::new(Metrics::new(&mut registry));
        let source = Source {
            client: api.client(),
            namespace: "mesh-system".to_owned(),
            model: model.clone(),
            health: health.clone(),
            metrics,
        };
        let (trigger, guard) = drain();
        let conditions = readiness.clone();
        let task = tokio::spawn(async move { source.follow(&conditions, guard).await });
        Self { model, readiness, health, registry, _trigger: trigger, task }
    }

    /// Follows, and has read everything.
    pub(super) async fn start(api: &KubeApi) -> Self {
        let cluster = Self::begin(api);
        cluster.until("it is synced", |cluster| cluster.model.is_synced()).await;
        assert_eq!(cluster.readiness.missing(), [""; 0]);
        cluster
    }

    /// Waits for two minutes of virtual time at most.
    pub(super) async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) -> Duration {
        let begun = Instant::now();
        while !holds(self) {
            let (waiting, watches) = (self.readiness.explained(), self.health.statuses());
            assert!(begun.elapsed() < Duration::from_secs(120), "never: {what}; {waiting:?} {watches:?}");
            sleep(Duration::from_millis(5)).await;
        }
        begun.elapsed()
    }

    pub(super) fn services(&self) -> Vec<String> {
        let keys = self.model.read().mesh().service_keys();
        keys.iter().map(|key| key.hostname.split('.').next().unwrap_or_default().to_owned()).collect()
    }

    pub(super) fn pods(&self) -> Vec<String> {
        self.model.read().mesh().pod_keys().into_iter().map(|key| key.name).collect()
    }

    pub(super) fn routes(&self) -> Vec<String> {
        self.model.read().mesh().route_refs().into_iter().map(|source| source.name).collect()
    }

    pub(super) fn policies(&self) -> Vec<String> {
        self.model.read().mesh().policy_refs().into_iter().map(|source| source.name).collect()
    }

    pub(super) fn ranges(&self) -> Vec<String> {
        self.model.read().ranges().iter().map(ToString::to_string).collect()
    }

    pub(super) fn errors(&self) -> Vec<String> {
        let errors = self.model.config_errors();
        errors.into_iter().map(|error| format!("{}: {}", error.file, error.reason)).collect()
    }

    pub(super) fn watch(&self, kind: Kind) -> WatchStatus {
        let mut all = self.health.statuses().into_iter();
        all.find(|status| status.kind == kind.name()).expect("it is watched")
    }

    pub(super) fn is(&self, kind: Kind, state: WatchState) -> bool {
        self.watch(kind).state == state
    }

    /// As `/metrics` shows it.
    pub(super) fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }
}

pub(super) fn service(name: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "shop" },
        "spec": { "clusterIP": ip, "ports": [{ "port": 80 }] },
    })
}

pub(super) fn pod(name: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "shop", "labels": { "app": name } },
        "spec": { "containers": [{ "name": "app", "image": "app" }] }, "status": { "podIP": ip },
    })
}

pub(super) fn policy(name: &str, mode: &str) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": { "name": name, "namespace": "shop" }, "spec": { "mtls": { "mode": mode } },
    })
}

pub(super) fn route(name: &str, rule: Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": { "name": name, "namespace": "shop" },
        "spec": { "parentRefs": [{ "group": "", "kind": "Service", "name": "web" }], "rules": [rule] },
    })
}

pub(super) fn settings_map(mesh: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "mesh-config", "namespace": "mesh-system" }, "data": { "mesh": mesh },
    })
}

/// Every resource that may be absent.
pub(super) const DEFINED: [&str; 4] =
    ["servicecidrs", "referencegrants", "httproutes", "peerauthentications"];
