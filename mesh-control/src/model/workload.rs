//! Workloads: the pods, as far as the mesh cares.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;

use mesh_common::capture::PortRange;
use mesh_common::spiffe::SpiffeId;

use super::WorkloadKey;
use super::policy::MtlsMode;
use super::service::Protocol;

/// A pod. Its hash, and so the version of what is translated from it, leaves out the labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Its key.
    pub key: WorkloadKey,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// It shares its node's addresses: an address alone does not tell it.
    pub host_network: bool,
    /// Its identity; `None` when its service account is not a valid name.
    pub identity: Option<SpiffeId>,
    /// Its service account.
    pub service_account: String,
    /// The label `security.istio.io/tlsMode: istio`.
    pub meshed: bool,
    /// Ports at which its proxy does not stand before the application.
    pub uncaptured: Vec<PortRange>,
    /// Name of the deployment (or other owner) for metrics.
    pub workload_name: String,
    /// Kind of the owner.
    pub workload_kind: WorkloadKind,
    /// For metrics.
    pub canonical_service: String,
    /// For metrics.
    pub canonical_revision: String,
    /// Label `app`, for metrics; empty when absent.
    pub app: String,
    /// Label `version`, for metrics; empty when absent.
    pub version: String,
    /// Its node.
    pub node: String,
    /// Its node's zone.
    pub zone: String,
    /// Its node's region.
    pub region: String,
    /// Labels, for selectors of policies, inside of the model only. Translation must not read them: a resource would
    /// change without its version.
    pub labels: BTreeMap<String, String>,
    /// It is neither finished nor being replaced: it may hold a stream and get a certificate.
    pub live: bool,
    /// It is being deleted: its address may be another's before its object is gone. Inside of the model only, as labels.
    pub leaving: bool,
}

impl Hash for Workload {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let Self {
            key,
            addresses,
            host_network,
            identity,
            service_account,
            meshed,
            uncaptured,
            workload_name,
            workload_kind,
            canonical_service,
            canonical_revision,
            app,
            version,
            node,
            zone,
            region,
            labels: _,
            live,
            leaving: _,
        } = self;
        (key, addresses, host_network, identity, service_account, meshed, uncaptured).hash(hasher);
        (workload_name, workload_kind, canonical_service, canonical_revision).hash(hasher);
        (app, version, node, zone, region, live).hash(hasher);
    }
}

/// Kind of a pod's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WorkloadKind {
    /// Deployment (through its ReplicaSet), StatefulSet, DaemonSet.
    Deployment,
    /// CronJob.
    CronJob,
    /// Job.
    Job,
    /// No owner.
    Pod,
}

/// What a pod's own proxy must do with connections that arrive.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Inbound {
    /// The pod.
    pub key: WorkloadKey,
    /// Ports with something of their own to say: those behind a service's port, those with a mode of their
    /// own. Sorted by port.
    pub ports: Vec<InboundPort>,
    /// For every other port; protocol is detected there.
    pub default_mode: MtlsMode,
}

/// One port of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InboundPort {
    /// The port the application listens on.
    pub port: u16,
    /// What is spoken on it; plaintext only, meshed traffic says so itself.
    pub protocol: Protocol,
    /// Whether it takes mutual TLS, plaintext or both.
    pub mode: MtlsMode,
    /// The service whose port this is, for metrics: (full name, name, namespace). The oldest, if several.
    pub service: Option<(String, String, String)>,
}
