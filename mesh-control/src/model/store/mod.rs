//! The store of the model: what was put into it, the facts made from that, and which of them changed. A commit
//! looks only at what a change can reach, never at the whole mesh, and compares before it stores.

mod addresses;
mod commit;
mod endpoints;
pub mod input;
mod outcome;
mod ranges;
mod routes;
mod shared;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_common::spiffe::SpiffeId;

pub use outcome::{ParentOutcome, PolicyOutcome, RouteOutcome};
pub use shared::{Changed, Changes, ConfigError, ModelReader, SharedModel};

use super::facts::{Destination, FactKey, Facts};
use super::policy::{Policies, Policy};
use super::route::PortRoutes;
use super::service::{PortEndpoints, Service};
use super::workload::{Inbound, Workload};
use super::{ObjectRef, ServiceKey, Settings, WorkloadKey};
use addresses::AddressEntry;
use input::{NodeInput, PodInput, Problem, RouteInput, SliceInput};
use ranges::Ranges;

/// (namespace, name).
type Name = (String, String);

/// The mesh.
pub struct Mesh {
    base: Arc<Settings>,
    settings: Arc<Settings>,
    trust_bundle: Arc<String>,
    input: Input,
    index: Index,
    made: Made,
    dirty: Dirty,
}

/// What was put.
#[derive(Default)]
struct Input {
    nodes: BTreeMap<String, NodeInput>,
    pods: BTreeMap<WorkloadKey, PodInput>,
    services: BTreeMap<ServiceKey, Arc<Service>>,
    slices: BTreeMap<Name, Arc<SliceInput>>,
    routes: BTreeMap<ObjectRef, Arc<RouteInput>>,
    policies: Policies,
    /// Policies whose object cannot be used as it is written: its generation, and why.
    refused: BTreeMap<ObjectRef, (i64, Problem)>,
    /// Ranges of services' addresses, by the name of who declares them.
    ranges: BTreeMap<String, Vec<IpNet>>,
}

/// Who refers to whom.
#[derive(Default)]
struct Index {
    slices_of_service: Relation<ServiceKey, Name>,
    slices_of_pod: Relation<Name, Name>,
    slices_of_ip: Relation<IpAddr, Name>,
    routes_of_parent: Relation<ServiceKey, ObjectRef>,
    routes_of_backend: Relation<ServiceKey, ObjectRef>,
    services_at: Relation<IpAddr, ServiceKey>,
    pods_at: Relation<IpAddr, WorkloadKey>,
    /// Pod -> service -> (the pod's port, the service's port).
    ports_of_pod: BTreeMap<WorkloadKey, BTreeMap<ServiceKey, BTreeSet<(u16, u16)>>>,
    pods_of_service: Relation<ServiceKey, WorkloadKey>,
}

/// The facts.
#[derive(Default)]
struct Made {
    workloads: BTreeMap<WorkloadKey, Arc<Workload>>,
    services: BTreeMap<ServiceKey, Arc<Service>>,
    service_keys: Arc<BTreeSet<ServiceKey>>,
    endpoints: BTreeMap<ServiceKey, BTreeMap<u16, Arc<PortEndpoints>>>,
    identities: BTreeMap<ServiceKey, BTreeMap<u16, Arc<BTreeSet<SpiffeId>>>>,
    routes: BTreeMap<ServiceKey, BTreeMap<u16, Arc<PortRoutes>>>,
    inbound: BTreeMap<WorkloadKey, Arc<Inbound>>,
    addresses: BTreeMap<IpAddr, AddressEntry>,
    blocks: Ranges,
    ranges: Arc<Vec<IpNet>>,
}

/// What the next commit has to make again. A step of it may add to the later ones.
#[derive(Default)]
struct Dirty {
    changed: BTreeSet<FactKey>,
    pods: BTreeSet<WorkloadKey>,
    routes: BTreeSet<ServiceKey>,
    services: BTreeSet<ServiceKey>,
    endpoints: BTreeSet<ServiceKey>,
    inbound: BTreeSet<WorkloadKey>,
    addresses: BTreeSet<IpAddr>,
    ranges: bool,
}

impl Mesh {
    /// An empty mesh.
    pub fn new(settings: Settings) -> Self {
        let made = Made { blocks: Ranges::new(settings.standalone), ..Made::default() };
        let settings = Arc::new(settings);
        Self {
            base: settings.clone(),
            settings,
            trust_bundle: Arc::default(),
            input: Input::default(),
            index: Index::default(),
            made,
            dirty: Dirty::default(),
        }
    }

    /// The settings that hold where nobody says otherwise.
    pub fn base_settings(&self) -> &Settings {
        &self.base
    }

    /// Sets [`FactKey::Settings`].
    pub fn put_settings(&mut self, settings: Settings) {
        if *self.settings == settings {
            return;
        }
        self.settings = Arc::new(settings);
        self.dirty.changed.insert(FactKey::Settings);
        self.dirty.pods.extend(self.input.pods.keys().cloned());
        self.dirty.inbound.extend(self.input.pods.keys().cloned());
        self.dirty.endpoints.extend(self.input.services.keys().cloned());
    }

    /// Sets [`FactKey::TrustBundle`].
    pub fn set_trust_bundle(&mut self, pem: String) {
        if *self.trust_bundle != pem {
            self.trust_bundle = Arc::new(pem);
            self.dirty.changed.insert(FactKey::TrustBundle);
        }
    }

    /// Puts a node, or takes it away.
    pub fn put_node(&mut self, name: &str, node: Option<NodeInput>) {
        if replace(&mut self.input.nodes, name.to_owned(), node) {
            let on_node =
                |(key, pod): (&WorkloadKey, &PodInput)| (pod.workload.node == name).then(|| key.clone());
            self.dirty.pods.extend(self.input.pods.iter().filter_map(on_node));
            self.dirty.endpoints.extend(self.input.slices.values().map(|slice| slice.service.clone()));
        }
    }

    /// Puts a pod, or takes it away.
    pub fn put_pod(&mut self, key: &WorkloadKey, pod: Option<PodInput>) {
        if replace(&mut self.input.pods, key.clone(), pod) {
            self.dirty.pods.insert(key.clone());
        }
    }

    /// Puts a service, or takes it away. Its ports' protocols are the declared ones.
    pub fn put_service(&mut self, key: &ServiceKey, service: Option<Service>) {
        if replace(&mut self.input.services, key.clone(), service.map(Arc::new)) {
            self.dirty.services.insert(key.clone());
            self.dirty.routes.insert(key.clone());
            let routes = self.index.routes_of_backend.of(key);
            let parents = routes.filter_map(|route| self.input.routes.get(route)).flat_map(|r| &r.parents);
            self.dirty.routes.extend(parents.map(|parent| parent.service.clone()));
        }
    }

    /// Puts an EndpointSlice, or takes it away.
    pub fn put_slice(&mut self, namespace: &str, name: &str, slice: Option<SliceInput>) {
        let key = (namespace.to_owned(), name.to_owned());
        let old = self.input.slices.get(&key).cloned();
        if !replace(&mut self.input.slices, key.clone(), slice.map(Arc::new)) {
            return;
        }
        let new = self.input.slices.get(&key).cloned();
        for (slice, indexed) in [(old, false), (new, true)] {
            let Some(slice) = slice else { continue };
            self.dirty.endpoints.insert(slice.service.clone());
            self.index.slices_of_service.set(&slice.service, &key, indexed);
            for endpoint in &slice.endpoints {
                if let Some(pod) = &endpoint.pod {
                    self.index.slices_of_pod.set(pod, &key, indexed);
                }
                for ip in endpoint.addresses.iter().filter(|_| endpoint.pod.is_none()) {
                    self.index.slices_of_ip.set(ip, &key, indexed);
                }
            }
        }
    }

    /// Puts a route, or takes it away.
    pub fn put_route(&mut self, source: &ObjectRef, route: Option<RouteInput>) {
        let old = self.input.routes.get(source).cloned();
        if !replace(&mut self.input.routes, source.clone(), route.map(Arc::new)) {
            return;
        }
        let new = self.input.routes.get(source).cloned();
        for (route, indexed) in [(old, false), (new, true)] {
            let Some(route) = route else { continue };
            for parent in &route.parents {
                self.index.routes_of_parent.set(&parent.service, source, indexed);
                self.dirty.routes.insert(parent.service.clone());
            }
            for (service, _) in route.backends.iter().filter_map(|backend| backend.target.as_ref().ok()) {
                self.index.routes_of_backend.set(service, source, indexed);
            }
        }
    }

    /// Puts a PeerAuthentication, or takes it away.
    pub fn put_policy(&mut self, source: &ObjectRef, policy: Option<Policy>) {
        self.input.refused.remove(source);
        if self.input.policies.get(source).map(|known| &**known) == policy.as_ref() {
            return;
        }
        match policy {
            Some(policy) => self.input.policies.put(policy),
            None => self.input.policies.remove(source),
        }
        let all = source.namespace == self.settings.root_namespace;
        for key in self.input.pods.keys().filter(|key| all || key.namespace == source.namespace) {
            self.dirty.inbound.insert(key.clone());
            let services = self.index.ports_of_pod.get(key).into_iter().flat_map(BTreeMap::keys);
            self.dirty.endpoints.extend(services.cloned());
        }
    }

    /// Notes that the object of a policy cannot be used. Its last good form stays; if there is none, this one is put.
    pub fn refuse_policy(&mut self, closed: Policy, problem: Problem) {
        let (source, generation) = (closed.source.clone(), closed.generation);
        if self.input.policies.get(&source).is_none() {
            self.put_policy(&source, Some(closed));
        }
        self.input.refused.insert(source, (generation, problem));
    }

    /// Puts ranges that services' addresses are taken from, by the name of who declares them.
    pub fn put_ranges(&mut self, name: &str, ranges: Vec<IpNet>) {
        let old = self.input.ranges.remove(name).unwrap_or_default();
        for net in &ranges {
            self.dirty.ranges |= self.made.blocks.add_net(*net);
        }
        for net in old {
            self.dirty.ranges |= self.made.blocks.remove_net(net);
        }
        if !ranges.is_empty() {
            self.input.ranges.insert(name.to_owned(), ranges);
        }
    }

    /// Names of all who declare ranges.
    pub fn range_names(&self) -> Vec<String> {
        self.input.ranges.keys().cloned().collect()
    }

    /// The uid of a pod, if its manifest has one.
    pub fn pod_uid(&self, key: &WorkloadKey) -> Option<String> {
        self.input.pods.get(key)?.uid.clone()
    }

    /// Keys of all nodes.
    pub fn node_names(&self) -> Vec<String> {
        self.input.nodes.keys().cloned().collect()
    }

    /// Keys of all pods.
    pub fn pod_keys(&self) -> Vec<WorkloadKey> {
        self.input.pods.keys().cloned().collect()
    }

    /// Keys of all services.
    pub fn service_keys(&self) -> Vec<ServiceKey> {
        self.input.services.keys().cloned().collect()
    }

    /// (namespace, name) of all EndpointSlices.
    pub fn slice_names(&self) -> Vec<(String, String)> {
        self.input.slices.keys().cloned().collect()
    }

    /// All routes.
    pub fn route_refs(&self) -> Vec<ObjectRef> {
        self.input.routes.keys().cloned().collect()
    }

    /// All policies.
    pub fn policy_refs(&self) -> Vec<ObjectRef> {
        self.input.policies.iter().map(|policy| policy.source.clone()).collect()
    }
}

impl Facts for Mesh {
    fn settings(&self) -> Arc<Settings> {
        self.settings.clone()
    }
    fn ranges(&self) -> Arc<Vec<IpNet>> {
        self.made.ranges.clone()
    }
    fn service(&self, key: &ServiceKey) -> Option<Arc<Service>> {
        self.made.services.get(key).cloned()
    }
    fn services(&self) -> Arc<BTreeSet<ServiceKey>> {
        self.made.service_keys.clone()
    }
    fn identities(&self, key: &ServiceKey, port: u16) -> Option<Arc<BTreeSet<SpiffeId>>> {
        self.made.identities.get(key)?.get(&port).cloned()
    }
    fn endpoints(&self, key: &ServiceKey, port: u16) -> Option<Arc<PortEndpoints>> {
        self.made.endpoints.get(key)?.get(&port).cloned()
    }
    fn routes(&self, key: &ServiceKey, port: u16) -> Option<Arc<PortRoutes>> {
        self.made.routes.get(key)?.get(&port).cloned()
    }
    fn workload(&self, key: &WorkloadKey) -> Option<Arc<Workload>> {
        self.made.workloads.get(key).cloned()
    }
    fn inbound(&self, key: &WorkloadKey) -> Option<Arc<Inbound>> {
        self.made.inbound.get(key).cloned()
    }
    fn destination(&self, ip: IpAddr, port: u16) -> Option<Arc<Destination>> {
        self.made.addresses.get(&ip)?.destination(port)
    }
    fn owner(&self, ip: IpAddr) -> Option<Arc<Workload>> {
        self.made.addresses.get(&ip)?.owner()
    }
    fn trust_bundle(&self) -> Arc<String> {
        self.trust_bundle.clone()
    }
}

/// Puts or removes a value; returns whether that changed anything.
fn replace<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> bool {
    if map.get(&key) == value.as_ref() {
        return false;
    }
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
    true
}

/// Pairs, found by their first half.
struct Relation<A, B>(BTreeMap<A, BTreeSet<B>>);

impl<A, B> Default for Relation<A, B> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<A: Ord + Clone, B: Ord + Clone> Relation<A, B> {
    fn add(&mut self, a: &A, b: &B) {
        self.0.entry(a.clone()).or_default().insert(b.clone());
    }

    fn remove(&mut self, a: &A, b: &B) {
        if let Some(set) = self.0.get_mut(a) {
            set.remove(b);
            if set.is_empty() {
                self.0.remove(a);
            }
        }
    }

    fn set(&mut self, a: &A, b: &B, present: bool) {
        if present { self.add(a, b) } else { self.remove(a, b) }
    }

    fn of(&self, a: &A) -> impl Iterator<Item = &B> {
        self.0.get(a).into_iter().flatten()
    }
}
