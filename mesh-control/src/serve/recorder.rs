//! The recorder stands between a translation and what it reads, and notes every fact and every attribute of
//! the client. From its notes come the version of a resource, its place in the cache and the set of changes
//! that concern it. It must never let a read through without a note.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_common::spiffe::SpiffeId;
use mesh_common::xds::ResourceType;
use twox_hash::XxHash3_128;

use crate::model::facts::{Destination, FactKey, Facts};
use crate::model::route::PortRoutes;
use crate::model::service::{PortEndpoints, Service};
use crate::model::workload::{Inbound, Workload};
use crate::model::{ServiceKey, Settings, WorkloadKey};
use crate::translate::ClientView;
use crate::translate::client::ClientKind;

/// Raised by hand when the same inputs are translated to something else, so that clients of an older
/// mesh-control get the new form.
const ENCODER_VERSION: u32 = 2;

/// The client of a stream, as its node and its pod describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Its namespace.
    pub namespace: String,
    /// Its pod.
    pub workload: Option<WorkloadKey>,
    /// Its node.
    pub node: String,
    /// Its zone.
    pub zone: String,
    /// What it is.
    pub kind: ClientKind,
}

/// What a translation read of the client: `None` was not read. Two clients that agree in all that was read
/// get the same resource.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct View {
    kind: ClientKind,
    namespace: Option<String>,
    workload: Option<Option<WorkloadKey>>,
    node: Option<String>,
    zone: Option<String>,
}

impl View {
    /// Whether a translation for `client` would have read the same values.
    pub fn fits(&self, client: &Client) -> bool {
        let Self { kind, namespace, workload, node, zone } = self;
        *kind == client.kind
            && namespace.as_ref().is_none_or(|read| *read == client.namespace)
            && workload.as_ref().is_none_or(|read| *read == client.workload)
            && node.as_ref().is_none_or(|read| *read == client.node)
            && zone.as_ref().is_none_or(|read| *read == client.zone)
    }
}

/// The version of a resource: equal inputs give equal versions, in every process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(u128);

impl Version {
    /// The version of a set of resources.
    pub fn of_all<'a>(resources: impl Iterator<Item = (&'a str, Self)>) -> Self {
        let mut hasher = StableHasher::default();
        for resource in resources {
            resource.hash(&mut hasher);
        }
        Self(hasher.0.finish_128())
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl std::fmt::Debug for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl std::str::FromStr for Version {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).map(Self)
    }
}

/// What was read, at the end of a translation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notes {
    /// Every fact, with the hash of its value.
    pub facts: BTreeMap<FactKey, u128>,
    /// Every attribute of the client.
    pub view: View,
}

impl Notes {
    /// The version of what was made from these reads.
    pub fn version(&self, kind: ResourceType, name: &str) -> Version {
        let mut hasher = StableHasher::default();
        (ENCODER_VERSION, kind.url(), name).hash(&mut hasher);
        for (key, value) in &self.facts {
            (key, value).hash(&mut hasher);
        }
        self.view.hash(&mut hasher);
        Version(hasher.0.finish_128())
    }
}

/// Reads on behalf of one translation.
pub struct Recorder<'a> {
    facts: &'a dyn Facts,
    client: &'a Client,
    seen: RefCell<BTreeMap<FactKey, u128>>,
    read: Cell<Read>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Read {
    namespace: bool,
    workload: bool,
    node: bool,
    zone: bool,
}

impl<'a> Recorder<'a> {
    /// A recorder without notes.
    pub fn new(facts: &'a dyn Facts, client: &'a Client) -> Self {
        Self { facts, client, seen: RefCell::default(), read: Cell::default() }
    }

    /// What was read.
    pub fn notes(self) -> Notes {
        let (read, client) = (self.read.get(), self.client);
        Notes {
            facts: self.seen.into_inner(),
            view: View {
                kind: client.kind.clone(),
                namespace: read.namespace.then(|| client.namespace.clone()),
                workload: read.workload.then(|| client.workload.clone()),
                node: read.node.then(|| client.node.clone()),
                zone: read.zone.then(|| client.zone.clone()),
            },
        }
    }

    fn note<T: Hash>(&self, key: FactKey, value: T) -> T {
        self.seen.borrow_mut().entry(key).or_insert_with(|| stable_hash(&value));
        value
    }

    fn mark(&self, change: impl FnOnce(&mut Read)) {
        let mut read = self.read.get();
        change(&mut read);
        self.read.set(read);
    }
}

impl Facts for Recorder<'_> {
    fn settings(&self) -> Arc<Settings> {
        self.note(FactKey::Settings, self.facts.settings())
    }

    fn ranges(&self) -> Arc<Vec<IpNet>> {
        self.note(FactKey::Ranges, self.facts.ranges())
    }

    fn service(&self, key: &ServiceKey) -> Option<Arc<Service>> {
        self.note(FactKey::Service(key.clone()), self.facts.service(key))
    }

    fn services(&self) -> Arc<BTreeSet<ServiceKey>> {
        self.note(FactKey::Services, self.facts.services())
    }

    fn identities(&self, key: &ServiceKey, port: u16) -> Option<Arc<BTreeSet<SpiffeId>>> {
        self.note(FactKey::Identities(key.clone(), port), self.facts.identities(key, port))
    }

    fn endpoints(&self, key: &ServiceKey, port: u16) -> Option<Arc<PortEndpoints>> {
        self.note(FactKey::Endpoints(key.clone(), port), self.facts.endpoints(key, port))
    }

    fn routes(&self, key: &ServiceKey, port: u16) -> Option<Arc<PortRoutes>> {
        self.note(FactKey::Routes(key.clone(), port), self.facts.routes(key, port))
    }

    fn workload(&self, key: &WorkloadKey) -> Option<Arc<Workload>> {
        self.note(FactKey::Workload(key.clone()), self.facts.workload(key))
    }

    fn inbound(&self, key: &WorkloadKey) -> Option<Arc<Inbound>> {
        self.note(FactKey::Inbound(key.clone()), self.facts.inbound(key))
    }

    fn destination(&self, ip: IpAddr, port: u16) -> Option<Arc<Destination>> {
        self.note(FactKey::Destination(ip, port), self.facts.destination(ip, port))
    }

    fn owner(&self, ip: IpAddr) -> Option<Arc<Workload>> {
        self.note(FactKey::Owner(ip), self.facts.owner(ip))
    }

    fn trust_bundle(&self) -> Arc<String> {
        self.note(FactKey::TrustBundle, self.facts.trust_bundle())
    }
}

impl ClientView for Recorder<'_> {
    fn kind(&self) -> &ClientKind {
        &self.client.kind
    }

    fn namespace(&self) -> &str {
        self.mark(|read| read.namespace = true);
        &self.client.namespace
    }

    fn workload(&self) -> Option<&WorkloadKey> {
        self.mark(|read| read.workload = true);
        self.client.workload.as_ref()
    }

    fn node(&self) -> &str {
        self.mark(|read| read.node = true);
        &self.client.node
    }

    fn zone(&self) -> &str {
        self.mark(|read| read.zone = true);
        &self.client.zone
    }
}

fn stable_hash(value: &impl Hash) -> u128 {
    let mut hasher = StableHasher::default();
    value.hash(&mut hasher);
    hasher.0.finish_128()
}

/// `std`'s hasher is seeded by chance; this one gives the same in every process.
struct StableHasher(XxHash3_128);

impl Default for StableHasher {
    fn default() -> Self {
        Self(XxHash3_128::with_seed(0))
    }
}

impl Hasher for StableHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    fn finish(&self) -> u64 {
        // Only `finish_128` is used; the trait wants this one too.
        self.0.finish_128() as u64
    }
}
