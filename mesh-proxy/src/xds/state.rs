//! What outlives a stream: the protocol state, the graph, and who waits for an answer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Weak};

use mesh_common::process::Condition;
use mesh_common::trust::TrustBundle;
use mesh_common::xds::ResourceType;
use mesh_common::xds::names::{ListenerName, TRUST_BUNDLE};
use mesh_common::xds::proto::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh_common::xds::protobuf::Any;
use tokio::sync::oneshot;

use super::decode::{self, Decoded};
use super::delta::{Delta, ProtocolError, Received};
use super::graph::{Graph, Limits, Update};
use super::keep::Keeper;
use super::node::NodeIdentity;
use super::status::XdsStatus;
use crate::config::store::{Demand, LookedUp, LookedUpWorkload, Store};

/// Callers that may wait for one name; the store bounds all of them together only while they queue.
const WAITING_BOUND: usize = 4096;

/// What the rest of the proxy is told.
pub(super) struct Hooks {
    pub(super) on_bundle: Box<dyn Fn(TrustBundle) + Send + Sync>,
    pub(super) on_kept_bundle: Box<dyn Fn(TrustBundle) + Send + Sync>,
    pub(super) inbound_ready: Condition,
    pub(super) outbound_ready: Condition,
}

/// The client's whole state.
pub(super) struct State {
    delta: Delta,
    graph: Graph,
    hooks: Hooks,
    status: XdsStatus,
    store: Weak<Store>,
    connected: bool,
    answered: u64,
    listeners: HashMap<ListenerName, Vec<oneshot::Sender<Arc<LookedUp>>>>,
    workloads: HashMap<IpAddr, Vec<oneshot::Sender<Arc<LookedUpWorkload>>>>,
    /// What the next start finds, where it is kept at all.
    keeper: Option<Arc<Keeper>>,
    /// Types whose names or versions changed since the status was written.
    touched: BTreeSet<ResourceType>,
}

impl State {
    pub(super) fn new(
        node: &NodeIdentity,
        limits: Limits,
        hooks: Hooks,
        status: XdsStatus,
        store: Weak<Store>,
        keeper: Option<Arc<Keeper>>,
    ) -> Self {
        let mut delta = Delta::new(node.node());
        delta.subscribe(ResourceType::Secret, TRUST_BUNDLE);
        let mut state = Self {
            delta,
            graph: Graph::new(node.inbound_listener(), node.network.clone(), limits),
            hooks,
            status,
            store,
            connected: false,
            answered: 0,
            listeners: HashMap::new(),
            workloads: HashMap::new(),
            keeper,
            touched: BTreeSet::from([ResourceType::Secret]),
        };
        state.settle();
        state
    }

    /// Responses taken in so far.
    pub(super) fn answered(&self) -> u64 {
        self.answered
    }

    pub(super) fn stream_opened(&mut self) {
        self.delta.stream_opened();
        self.connected = true;
        self.status.opened();
        tracing::info!("configuration stream open");
    }

    pub(super) fn disconnected(&mut self) {
        self.connected = false;
    }

    pub(super) fn has_request(&self) -> bool {
        self.delta.has_request()
    }

    pub(super) fn is_congested(&self) -> bool {
        self.delta.is_congested()
    }

    pub(super) fn next_request(&mut self) -> Option<DeltaDiscoveryRequest> {
        self.delta.next_request()
    }

    /// A look-up: answered at once when the answer is known, else when it is complete.
    pub(super) fn demand(&mut self, demand: Demand) {
        let now = self.now();
        match demand {
            Demand::Listener(name, reply) => {
                if let Some(known) = self.graph.listener(&name) {
                    known.used.touch(now);
                    answer(&mut vec![reply], known);
                } else if self.graph.want_listener(&name, now, self.connected).is_ok() {
                    wait_for(&mut self.listeners, name, reply);
                }
            }
            Demand::Workload(ip, reply) => {
                if let Some(known) = self.graph.workload(ip) {
                    known.used.touch(now);
                    answer(&mut vec![reply], known);
                } else if self.graph.want_workload(ip, now, self.connected).is_ok() {
                    wait_for(&mut self.workloads, ip, reply);
                }
            }
        }
    }

    /// Takes a response in. Call [`Self::settle`] afterwards.
    pub(super) fn receive(&mut self, response: DeltaDiscoveryResponse) -> Result<(), ProtocolError> {
        let keeps = self.keeper.is_some();
        let received = self.delta.receive(response, |kind, name, any| decoded(kind, name, any, keeps))?;
        self.answered += 1;
        if let Some(reasons) = &received.refusal {
            let kind = received.kind.short();
            tracing::warn!(kind, %reasons, "configuration refused; the last good one stays");
        }
        let count = received.applied.len() + received.removed.len();
        self.status.received(received.kind, count, received.refusal.clone());
        self.take(received);
        Ok(())
    }

    /// Takes in what an earlier run has kept, and puts in force what is complete.
    pub(super) fn restore(&mut self, kept: Vec<DeltaDiscoveryResponse>) {
        let now = self.now();
        let mut by_kind = BTreeMap::<ResourceType, Vec<_>>::new();
        for message in kept {
            let Some(kind) = ResourceType::from_url(&message.type_url) else { continue };
            let resources = message.resources.iter().map(|resource| resource.name.as_str());
            for name in resources.chain(message.removed_resources.iter().map(String::as_str)) {
                self.want_again(kind, name, now);
            }
            by_kind.entry(kind).or_default().push(message);
        }
        for message in by_kind.remove(&ResourceType::Secret).into_iter().flatten() {
            self.restore_bundle(&message);
        }
        self.settle();
        // From the top down: what is named by one is asked for, and so taken, with the next.
        let order = [
            ResourceType::Listener,
            ResourceType::Route,
            ResourceType::Cluster,
            ResourceType::Endpoints,
            ResourceType::Workload,
        ];
        for message in order.into_iter().filter_map(|kind| by_kind.remove(&kind)).flatten() {
            match self.delta.restore(message, |kind, name, any| decoded(kind, name, any, true)) {
                Ok(received) => {
                    if let Some(reasons) = &received.refusal {
                        tracing::warn!(%reasons, "kept configuration refused; it is asked for anew");
                    }
                    self.take(received);
                }
                Err(error) => tracing::warn!(%error, "kept configuration cannot be used"),
            }
            self.settle();
        }
    }

    /// Look-ups of the earlier run are taken up again; all else is asked for because of them.
    fn want_again(&mut self, kind: ResourceType, name: &str, now: u64) {
        let wanted = match kind {
            ResourceType::Listener => {
                name.parse().map(|name| self.graph.want_listener(&name, now, self.connected)).ok()
            }
            ResourceType::Workload => {
                decode::address_of(name).map(|ip| self.graph.want_workload(ip, now, self.connected))
            }
            _ => None,
        };
        if let Some(Err(full)) = wanted {
            tracing::debug!(name, reason = %full, "a kept look-up is left out");
        }
    }

    /// The roots of the earlier run count at once; which ones count in the end is asked for again.
    fn restore_bundle(&self, kept: &DeltaDiscoveryResponse) {
        for resource in &kept.resources {
            let Some(any) = &resource.resource else { continue };
            match decode::decode(ResourceType::Secret, &resource.name, any) {
                Ok(Decoded::Bundle(bundle)) => {
                    (self.hooks.on_kept_bundle)(bundle);
                    if let Some(keeper) = &self.keeper {
                        let name = resource.name.as_str().into();
                        keeper.put(ResourceType::Secret, &name, &resource.version, any.clone());
                    }
                }
                Ok(_) => {}
                Err(reasons) => tracing::warn!(?reasons, "the kept trust bundle is refused"),
            }
        }
    }

    fn take(&mut self, received: Received<(Decoded, Option<Any>)>) {
        let Received { kind, applied, removed, refusal: _ } = received;
        self.touched.insert(kind);
        let now = self.now();
        for (name, (decoded, any)) in applied {
            if let (Some(keeper), Some(any)) = (&self.keeper, any) {
                let version = self.delta.held(kind, &name).and_then(|held| held.version.as_deref());
                keeper.put(kind, &name, version.unwrap_or_default(), any);
            }
            match decoded {
                Decoded::Bundle(bundle) => (self.hooks.on_bundle)(bundle),
                decoded => self.apply(update(&name, decoded), now),
            }
        }
        for name in removed {
            // A bundle that is gone stays in use, and so it is kept.
            if let Some(keeper) = self.keeper.as_ref().filter(|_| kind != ResourceType::Secret) {
                keeper.missing(kind, &name);
            }
            self.apply(removal(kind, &name), now);
        }
    }

    fn apply(&mut self, update: Option<Update>, now: u64) {
        if let Some(update) = update {
            self.graph.apply(update, now);
        }
    }

    /// Puts in force what is complete, asks for what is missing, and answers who waits.
    pub(super) fn settle(&mut self) {
        let now = self.now();
        let settled = self.graph.settle(now);
        for (kind, name) in settled.unsubscribe {
            self.delta.unsubscribe(kind, &name);
            if let Some(keeper) = &self.keeper {
                keeper.forget(kind, &name);
            }
            self.touched.insert(kind);
        }
        for (kind, name) in settled.subscribe {
            self.delta.subscribe(kind, &name);
            self.touched.insert(kind);
        }
        if let (Some(snapshot), Some(store)) = (settled.publish, self.store.upgrade()) {
            let (inbound, outbound) = (snapshot.inbound.is_some(), snapshot.outbound.is_some());
            store.publish(snapshot);
            if inbound {
                self.hooks.inbound_ready.met();
            }
            if outbound {
                self.hooks.outbound_ready.met();
            }
            self.answer_waiting();
        }
        for kind in std::mem::take(&mut self.touched) {
            self.status.set_names(kind, &self.delta);
        }
    }

    /// Drops idle look-ups, and callers that have given up.
    pub(super) fn tick(&mut self) {
        self.listeners.retain(|_, waiting| still_waiting(waiting));
        self.workloads.retain(|_, waiting| still_waiting(waiting));
        if self.connected {
            self.graph.expire(self.now());
        }
    }

    fn answer_waiting(&mut self) {
        let graph = &self.graph;
        self.listeners.retain(|name, waiting| match graph.listener(name) {
            Some(known) => {
                answer(waiting, known);
                false
            }
            None => true,
        });
        self.workloads.retain(|ip, waiting| match graph.workload(*ip) {
            Some(known) => {
                answer(waiting, known);
                false
            }
            None => true,
        });
    }

    fn now(&self) -> u64 {
        self.store.upgrade().map_or(0, |store| store.now())
    }
}

/// A resource that can be used, and as it came if it is to be kept.
fn decoded(
    kind: ResourceType,
    name: &str,
    any: &Any,
    keeps: bool,
) -> Result<(Decoded, Option<Any>), Vec<String>> {
    Ok((decode::decode(kind, name, any)?, keeps.then(|| any.clone())))
}

fn wait_for<K: std::hash::Hash + Eq, T>(
    waiting: &mut HashMap<K, Vec<oneshot::Sender<T>>>,
    name: K,
    reply: oneshot::Sender<T>,
) {
    let waiting = waiting.entry(name).or_default();
    if waiting.len() >= WAITING_BOUND {
        still_waiting(waiting);
    }
    // Beyond the bound the reply is dropped, which tells the caller that too many wait.
    if waiting.len() < WAITING_BOUND {
        waiting.push(reply);
    }
}

fn still_waiting<T>(waiting: &mut Vec<oneshot::Sender<T>>) -> bool {
    waiting.retain(|reply| !reply.is_closed());
    !waiting.is_empty()
}

fn answer<T>(waiting: &mut Vec<oneshot::Sender<Arc<T>>>, with: &Arc<T>) {
    for reply in waiting.drain(..) {
        if reply.send(Arc::clone(with)).is_err() {
            // The caller has given up in the meantime.
        }
    }
}

fn update(name: &str, decoded: Decoded) -> Option<Update> {
    Some(match decoded {
        Decoded::Bundle(_) => return None,
        Decoded::Listener(listener) => Update::Listener(name.parse().ok()?, Some(listener)),
        Decoded::Route(route) => Update::Route(name.to_owned(), Some(route)),
        Decoded::Cluster(cluster) => Update::Cluster(name.to_owned(), Some(cluster)),
        Decoded::Endpoints(endpoints) => Update::Endpoints(name.to_owned(), Some(endpoints)),
        Decoded::Workload(workload) => Update::Workload(decode::address_of(name)?, Some(workload)),
    })
}

fn removal(kind: ResourceType, name: &str) -> Option<Update> {
    Some(match kind {
        // A mesh without roots is not a thing: the last bundle stays.
        ResourceType::Secret => return None,
        ResourceType::Listener => Update::Listener(name.parse().ok()?, None),
        ResourceType::Route => Update::Route(name.to_owned(), None),
        ResourceType::Cluster => Update::Cluster(name.to_owned(), None),
        ResourceType::Endpoints => Update::Endpoints(name.to_owned(), None),
        ResourceType::Workload => Update::Workload(decode::address_of(name)?, None),
    })
}
