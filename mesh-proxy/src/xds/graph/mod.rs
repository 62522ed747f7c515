//! Which resources are wanted, and when what has arrived may come into force. A listener is published only
//! together with the routes, clusters and endpoints that it names; until they are there the old one stays.
//! Pure: time is an argument, and what is to be asked for comes out as data. It never forgets anything
//! while the control plane is away.

mod references;
mod settle;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_common::xds::ResourceType;
use mesh_common::xds::names::ListenerName;

use crate::config::cluster::{Cluster, Endpoints};
use crate::config::listener::Listener;
use crate::config::route::RouteConfig;
use crate::config::store::{LiveCluster, LookedUp, LookedUpWorkload, PeerWorkload, Snapshot};

/// What was said of a resource: there it is, or there is none. Nothing said yet is `Option::None` around it.
type Answer<T> = Option<T>;

/// The bounds of look-ups.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Listeners looked up, those that do not exist included.
    pub listeners: usize,
    /// Workloads looked up.
    pub workloads: usize,
    /// Seconds without use after which a look-up is dropped.
    pub idle: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { listeners: 4096, workloads: 8192, idle: 15 * 60 }
    }
}

/// News of one resource.
#[derive(Debug, Clone)]
pub enum Update {
    /// A listener, or that there is none.
    Listener(ListenerName, Option<Arc<Listener>>),
    /// A route configuration.
    Route(String, Option<Arc<RouteConfig>>),
    /// A cluster.
    Cluster(String, Option<Box<Cluster>>),
    /// Endpoints. They take effect at once in a cluster that is in force.
    Endpoints(String, Option<Arc<Endpoints>>),
    /// A workload.
    Workload(IpAddr, Option<Arc<PeerWorkload>>),
}

/// What is to be done after a settlement.
#[derive(Debug, Default)]
pub struct Settled {
    /// A snapshot to put in force, if anything but endpoints changed.
    pub publish: Option<Snapshot>,
    /// Names to ask for.
    pub subscribe: Vec<(ResourceType, String)>,
    /// Names not to ask for any more.
    pub unsubscribe: Vec<(ResourceType, String)>,
}

/// A look-up that cannot be taken on: the bound is reached and nothing may be dropped now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bound of look-ups is reached and the control plane is away")]
pub struct Full;

/// What was said of a resource and is not complete yet, and what is in force meanwhile.
#[derive(Debug)]
struct Slot<C, L> {
    pending: Option<Answer<C>>,
    live: Option<Answer<L>>,
}

impl<C, L> Default for Slot<C, L> {
    fn default() -> Self {
        Self { pending: None, live: None }
    }
}

#[derive(Debug)]
struct ListenerSlot {
    since: u64,
    pending: Option<Answer<Arc<Listener>>>,
    live: Option<Arc<LookedUp>>,
}

#[derive(Debug)]
struct WorkloadSlot {
    since: u64,
    live: Option<Arc<LookedUpWorkload>>,
}

/// All resources, by type.
#[derive(Debug)]
pub struct Graph {
    limits: Limits,
    network: String,
    inbound: ListenerName,
    listeners: HashMap<ListenerName, ListenerSlot>,
    routes: HashMap<String, Slot<Arc<RouteConfig>, Arc<RouteConfig>>>,
    clusters: HashMap<String, Slot<Box<Cluster>, Arc<LiveCluster>>>,
    endpoints: HashMap<String, Option<Answer<Arc<Endpoints>>>>,
    workloads: HashMap<IpAddr, WorkloadSlot>,
    /// What is to be told by the next settlement.
    settled: Settled,
    /// Something was said that may let a resource come into force, or leave one unreferenced.
    changed: bool,
    /// The snapshot in force is not the one that [`Self::snapshot`] would make.
    dirty: bool,
}

impl Graph {
    /// Wants the two listeners of a sidecar and nothing else.
    pub fn new(inbound: ListenerName, network: String, limits: Limits) -> Self {
        let mut graph = Self {
            limits,
            network,
            inbound: inbound.clone(),
            listeners: HashMap::new(),
            routes: HashMap::new(),
            clusters: HashMap::new(),
            endpoints: HashMap::new(),
            workloads: HashMap::new(),
            settled: Settled::default(),
            changed: false,
            dirty: false,
        };
        graph.add_listener(inbound, 0);
        graph.add_listener(ListenerName::VirtualOutbound, 0);
        graph
    }

    /// A look-up of a listener. At the bound the least recently used ones make room.
    ///
    /// # Errors
    /// When the bound is reached while nothing may be dropped.
    pub fn want_listener(&mut self, name: &ListenerName, now: u64, connected: bool) -> Result<(), Full> {
        if self.listeners.contains_key(name) {
            return Ok(());
        }
        // The two fixed ones are beside the bound.
        if self.listeners.len() >= self.limits.listeners + 2 {
            let used = self.looked_up().map(|(name, slot)| (slot.used(), name.clone()));
            for name in oldest(used.collect(), connected)? {
                self.drop_listener(&name);
            }
        }
        self.add_listener(name.clone(), now);
        Ok(())
    }

    /// A look-up of a workload; see [`Self::want_listener`].
    ///
    /// # Errors
    /// When the bound is reached while nothing may be dropped.
    pub fn want_workload(&mut self, ip: IpAddr, now: u64, connected: bool) -> Result<(), Full> {
        if self.workloads.contains_key(&ip) {
            return Ok(());
        }
        if self.workloads.len() >= self.limits.workloads {
            let used = self.workloads.iter().map(|(ip, slot)| (slot.used(), *ip));
            for ip in oldest(used.collect(), connected)? {
                self.drop_workload(ip);
            }
        }
        self.workloads.insert(ip, WorkloadSlot { since: now, live: None });
        self.settled.subscribe.push((ResourceType::Workload, self.workload_name(ip)));
        Ok(())
    }

    /// The listener in force under this name, if the look-up is answered.
    pub fn listener(&self, name: &ListenerName) -> Option<&Arc<LookedUp>> {
        self.listeners.get(name)?.live.as_ref()
    }

    /// The workload behind this address, if the look-up is answered.
    pub fn workload(&self, ip: IpAddr) -> Option<&Arc<LookedUpWorkload>> {
        self.workloads.get(&ip)?.live.as_ref()
    }

    /// Takes news in; [`Self::settle`] says what follows from them.
    pub fn apply(&mut self, update: Update, now: u64) {
        match update {
            Update::Listener(name, listener) => {
                if let Some(slot) = self.listeners.get_mut(&name) {
                    slot.pending = Some(listener);
                    self.changed = true;
                }
            }
            Update::Route(name, route) => {
                if let Some(slot) = self.routes.get_mut(&name) {
                    slot.pending = Some(route);
                    self.changed = true;
                }
            }
            Update::Cluster(name, cluster) => {
                if let Some(slot) = self.clusters.get_mut(&name) {
                    slot.pending = Some(cluster);
                    self.changed = true;
                }
            }
            Update::Endpoints(name, endpoints) => self.apply_endpoints(&name, endpoints),
            Update::Workload(ip, workload) => self.apply_workload(ip, workload, now),
        }
    }

    /// Puts in force what is complete, and says what else is wanted now.
    pub fn settle(&mut self, now: u64) -> Settled {
        if self.changed {
            self.promote_clusters();
            self.promote_routes();
            self.promote_listeners(now);
            self.follow_references();
            self.changed = false;
        }
        if std::mem::take(&mut self.dirty) {
            self.settled.publish = Some(self.snapshot());
        }
        std::mem::take(&mut self.settled)
    }

    /// Drops look-ups that have not been used for long. To be called only while connected.
    pub fn expire(&mut self, now: u64) {
        let idle = self.limits.idle;
        let is_idle = |used: u64| now.saturating_sub(used) >= idle;
        let listeners: Vec<ListenerName> =
            self.looked_up().filter(|(_, slot)| is_idle(slot.used())).map(|(name, _)| name.clone()).collect();
        for name in &listeners {
            self.drop_listener(name);
        }
        let workloads: Vec<IpAddr> =
            self.workloads.iter().filter(|(_, slot)| is_idle(slot.used())).map(|(ip, _)| *ip).collect();
        for ip in workloads {
            self.drop_workload(ip);
        }
    }

    /// All listeners but the two fixed ones.
    fn looked_up(&self) -> impl Iterator<Item = (&ListenerName, &ListenerSlot)> {
        self.listeners.iter().filter(|(name, _)| !self.is_fixed(name))
    }

    fn is_fixed(&self, name: &ListenerName) -> bool {
        *name == self.inbound || *name == ListenerName::VirtualOutbound
    }

    fn workload_name(&self, ip: IpAddr) -> String {
        format!("{}/{ip}", self.network)
    }

    fn add_listener(&mut self, name: ListenerName, now: u64) {
        self.settled.subscribe.push((ResourceType::Listener, name.to_string()));
        self.listeners.insert(name, ListenerSlot { since: now, pending: None, live: None });
    }

    fn drop_listener(&mut self, name: &ListenerName) {
        if self.listeners.remove(name).is_some() {
            self.settled.unsubscribe.push((ResourceType::Listener, name.to_string()));
            self.changed = true;
            self.dirty = true;
        }
    }

    fn drop_workload(&mut self, ip: IpAddr) {
        if self.workloads.remove(&ip).is_some() {
            self.settled.unsubscribe.push((ResourceType::Workload, self.workload_name(ip)));
            self.changed = true;
            self.dirty = true;
        }
    }
}

impl ListenerSlot {
    /// A listener that a connection still goes by is in use, however long ago it was looked up.
    fn used(&self) -> u64 {
        let Some(live) = &self.live else { return self.since };
        match &live.listener {
            Some(listener) if Arc::strong_count(listener) > 1 => u64::MAX,
            _ => live.used.get(),
        }
    }
}

impl WorkloadSlot {
    fn used(&self) -> u64 {
        self.live.as_ref().map_or(self.since, |live| live.used.get())
    }
}

/// The least recently used sixteenth, so that not every look-up at the bound has to search.
fn oldest<K: Ord>(mut used: Vec<(u64, K)>, connected: bool) -> Result<Vec<K>, Full> {
    if !connected {
        return Err(Full);
    }
    used.sort_unstable();
    let number = used.len().div_ceil(16);
    Ok(used.into_iter().take(number).map(|(_, key)| key).collect())
}
