//! The settlement of a graph: from the bottom up, what is complete comes into force; then what nothing names
//! any more is dropped. A cluster whose configuration did not change must stay the same object, because the
//! connection pools hang on it.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use mesh_common::xds::ResourceType;
use mesh_common::xds::names::{ClusterName, ListenerName};

use super::{Answer, Graph, Slot, references};
use crate::config::cluster::{Cluster, Discovery, Endpoints};
use crate::config::listener::Listener;
use crate::config::store::{
    ByName, LastUsed, LiveCluster, LookedUp, LookedUpWorkload, PeerWorkload, Snapshot,
};

/// Names of the resources that something in the graph names.
#[derive(Default)]
struct Wanted {
    routes: HashSet<String>,
    clusters: HashSet<String>,
    endpoints: HashSet<String>,
}

impl Graph {
    /// Endpoints take effect at once where they are in force already; else they may complete a cluster.
    pub(super) fn apply_endpoints(&mut self, name: &str, endpoints: Answer<Arc<Endpoints>>) {
        let Some(known) = self.endpoints.get_mut(name) else { return };
        let first = known.is_none();
        *known = Some(endpoints.clone());
        self.changed |= first;
        let endpoints = endpoints.unwrap_or_default();
        for live in self.clusters.values().filter_map(|slot| slot.live.as_ref()?.as_ref()) {
            if references::of_cluster(&live.config) == Some(name) {
                live.endpoints.store(Arc::clone(&endpoints));
            }
        }
    }

    pub(super) fn apply_workload(&mut self, ip: IpAddr, workload: Answer<Arc<PeerWorkload>>, now: u64) {
        let Some(slot) = self.workloads.get_mut(&ip) else { return };
        if slot.live.as_ref().is_some_and(|live| live.workload == workload) {
            return;
        }
        let used = carried(slot.live.as_ref().map(|live| &live.used), now);
        slot.live = Some(Arc::new(LookedUpWorkload { workload, used }));
        self.dirty = true;
    }

    pub(super) fn promote_clusters(&mut self) {
        for (name, slot) in &mut self.clusters {
            let next = match &slot.pending {
                None => continue,
                Some(None) if is_own(name) && matches!(slot.live, Some(Some(_))) => {
                    slot.pending = None;
                    continue;
                }
                Some(None) => None,
                Some(Some(config)) if matches!(&slot.live, Some(Some(live)) if live.config == **config) => {
                    slot.pending = None;
                    continue;
                }
                Some(Some(config)) => {
                    let Some(endpoints) = endpoints_of(config, &self.endpoints) else { continue };
                    let config = Cluster::clone(config);
                    Some(Arc::new(LiveCluster { config, endpoints: ArcSwap::new(endpoints) }))
                }
            };
            slot.pending = None;
            slot.live = Some(next);
            self.dirty = true;
        }
    }

    pub(super) fn promote_routes(&mut self) {
        for slot in self.routes.values_mut() {
            let mut complete = true;
            match &slot.pending {
                None => continue,
                Some(None) => {}
                Some(Some(config)) => {
                    references::of_route(config, |name| complete &= is_answered(&self.clusters, name));
                }
            }
            if complete {
                let pending = slot.pending.take();
                self.dirty |= slot.live != pending;
                slot.live = pending;
            }
        }
    }

    pub(super) fn promote_listeners(&mut self, now: u64) {
        let fixed = [self.inbound.clone(), ListenerName::VirtualOutbound];
        for (name, slot) in &mut self.listeners {
            let Some(pending) = slot.pending.take_if(|pending| {
                pending.as_ref().is_none_or(|listener| is_complete(listener, &self.routes, &self.clusters))
            }) else {
                continue;
            };
            // The model may forget a pod before its proxy has drained: the last good ones stay.
            let keep = pending.is_none() && fixed.contains(name);
            if keep || slot.live.as_ref().is_some_and(|live| live.listener == pending) {
                continue;
            }
            let used = carried(slot.live.as_ref().map(|live| &live.used), now);
            slot.live = Some(Arc::new(LookedUp { listener: pending, used }));
            self.dirty = true;
        }
    }

    /// Asks for what is named and not asked for, and drops what is not named any more. What is in force and
    /// what is to come into force both count.
    pub(super) fn follow_references(&mut self) {
        let wanted = self.wanted();
        self.dirty |= follow(&mut self.clusters, &wanted.clusters, ResourceType::Cluster, &mut self.settled);
        self.dirty |= follow(&mut self.routes, &wanted.routes, ResourceType::Route, &mut self.settled);
        follow(&mut self.endpoints, &wanted.endpoints, ResourceType::Endpoints, &mut self.settled);
    }

    fn wanted(&self) -> Wanted {
        let mut wanted = Wanted::default();
        wanted.clusters.extend(self.clusters.keys().filter(|name| is_own(name)).cloned());
        for slot in self.listeners.values() {
            let live = slot.live.as_ref().and_then(|live| live.listener.as_ref());
            for listener in live.into_iter().chain(slot.pending.iter().flatten()) {
                wanted.add_listener(listener);
            }
        }
        for slot in wanted.routes.iter().filter_map(|name| self.routes.get(name)) {
            for config in slot.live.iter().flatten().chain(slot.pending.iter().flatten()) {
                references::of_route(config, |name| insert(&mut wanted.clusters, name));
            }
        }
        for slot in wanted.clusters.iter().filter_map(|name| self.clusters.get(name)) {
            let live = slot.live.iter().flatten().map(|live| &live.config);
            for config in live.chain(slot.pending.iter().flatten().map(AsRef::as_ref)) {
                references::of_cluster(config)
                    .into_iter()
                    .for_each(|name| insert(&mut wanted.endpoints, name));
            }
        }
        wanted
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let listener = |name: &ListenerName| {
            self.listeners.get(name).and_then(|slot| slot.live.as_ref()?.listener.clone())
        };
        let mut snapshot = Snapshot {
            inbound: listener(&self.inbound),
            outbound: listener(&ListenerName::VirtualOutbound),
            ..Snapshot::default()
        };
        for (name, slot) in self.looked_up() {
            if let Some(live) = &slot.live {
                snapshot.listeners.insert(name.clone(), Arc::clone(live));
            }
        }
        snapshot.routes = in_force(&self.routes);
        snapshot.clusters = in_force(&self.clusters);
        for (ip, slot) in &self.workloads {
            if let Some(live) = &slot.live {
                snapshot.workloads.insert(*ip, Arc::clone(live));
            }
        }
        snapshot
    }
}

impl Wanted {
    fn add_listener(&mut self, listener: &Listener) {
        references::of_listener(
            listener,
            |name| insert(&mut self.routes, name),
            |name| insert(&mut self.clusters, name),
        );
    }
}

/// A port of the own application. A port that left the services still has connections, and requests on them, so
/// its cluster stays for as long as the proxy lives; there are as many as the pod has ports.
fn is_own(cluster: &str) -> bool {
    matches!(cluster.parse(), Ok(ClusterName::Inbound { .. }))
}

fn insert(set: &mut HashSet<String>, name: &str) {
    if !set.contains(name) {
        set.insert(name.to_owned());
    }
}

/// The endpoints that a cluster starts with; `None` while nothing was said of them.
fn endpoints_of(
    cluster: &Cluster,
    endpoints: &HashMap<String, Option<Answer<Arc<Endpoints>>>>,
) -> Option<Arc<Endpoints>> {
    match &cluster.discovery {
        Discovery::Eds(name) => {
            endpoints.get(name)?.as_ref().map(|answer| answer.clone().unwrap_or_default())
        }
        Discovery::Static(all) => Some(Arc::clone(all)),
        Discovery::Dns { .. } | Discovery::OriginalDestination | Discovery::None => Some(Arc::default()),
    }
}

/// Whether everything that a listener names is in force, or known not to exist.
fn is_complete<A, B, C, D>(
    listener: &Listener,
    routes: &HashMap<String, Slot<A, B>>,
    clusters: &HashMap<String, Slot<C, D>>,
) -> bool {
    let (mut all_routes, mut all_clusters) = (true, true);
    references::of_listener(
        listener,
        |name| all_routes &= is_answered(routes, name),
        |name| all_clusters &= is_answered(clusters, name),
    );
    all_routes && all_clusters
}

/// Whether a resource is in force, or known not to exist.
fn is_answered<C, L>(slots: &HashMap<String, Slot<C, L>>, name: &str) -> bool {
    slots.get(name).is_some_and(|slot| slot.live.is_some())
}

fn in_force<C, L: Clone>(slots: &HashMap<String, Slot<C, L>>) -> ByName<L> {
    slots.iter().filter_map(|(name, slot)| Some((name.clone(), slot.live.as_ref()?.clone()?))).collect()
}

/// Makes a map's keys the wanted ones. Returns whether something that may be in force was dropped.
fn follow<V: Default>(
    slots: &mut HashMap<String, V>,
    wanted: &HashSet<String>,
    kind: ResourceType,
    settled: &mut super::Settled,
) -> bool {
    let gone: Vec<String> = slots.keys().filter(|name| !wanted.contains(*name)).cloned().collect();
    for name in &gone {
        slots.remove(name);
        settled.unsubscribe.push((kind, name.clone()));
    }
    for name in wanted {
        if !slots.contains_key(name) {
            slots.insert(name.clone(), V::default());
            settled.subscribe.push((kind, name.clone()));
        }
    }
    !gone.is_empty()
}

/// A new answer was used when the old one was; the first one is used now.
fn carried(old: Option<&LastUsed>, now: u64) -> LastUsed {
    let used = LastUsed::default();
    used.touch(old.map_or(now, LastUsed::get));
    used
}
