//! What is in force at this moment, and how the data path asks for what is not known yet.
//!
//! The data path loads one pointer ([`Store::snapshot`]) and never waits for a writer. Only the xDS task
//! publishes, and only what is complete: a listener appears together with its routes, clusters and endpoints.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use mesh_common::spiffe::SpiffeId;
use mesh_common::xds::names::ListenerName;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::cluster::{Cluster, Endpoints, WorkloadLabels};
use super::listener::Listener;
use super::route::RouteConfig;

/// Everything in force, as one value.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// `inbound/<namespace>/<pod>`.
    pub inbound: Option<Arc<Listener>>,
    /// `virtualOutbound`.
    pub outbound: Option<Arc<Listener>>,
    /// Looked-up listeners, and names that are known not to exist.
    pub listeners: HashMap<ListenerName, Arc<LookedUp>>,
    /// Route configurations by name.
    pub routes: ByName<Arc<RouteConfig>>,
    /// Clusters by name.
    pub clusters: ByName<Arc<LiveCluster>>,
    /// Who is behind an address, and addresses that are known to be nobody in the mesh.
    pub workloads: HashMap<IpAddr, Arc<LookedUpWorkload>>,
}

/// Resources of the control plane by their names. Each request looks for some, and only those are there that this pod
/// uses: a fast hash will do, which somebody could make collide for nobody but himself.
pub type ByName<T> = HashMap<String, T, rustc_hash::FxBuildHasher>;

/// The answer to a look-up by name.
#[derive(Debug)]
pub struct LookedUp {
    /// `None`: the control plane says that there is no such thing in the mesh.
    pub listener: Option<Arc<Listener>>,
    /// When it was last used, for the task that drops idle ones.
    pub used: LastUsed,
}

/// The answer to a look-up of an address's workload.
#[derive(Debug)]
pub struct LookedUpWorkload {
    /// `None`: the address is nobody in the mesh.
    pub workload: Option<Arc<PeerWorkload>>,
    /// When it was last used.
    pub used: LastUsed,
}

/// Who is behind an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerWorkload {
    /// Its identity; labels are used only for a peer whose certificate says the same.
    pub identity: Option<SpiffeId>,
    /// How metrics name it.
    pub labels: Arc<WorkloadLabels>,
}

/// A cluster whose endpoints change without the snapshot being rebuilt.
#[derive(Debug)]
pub struct LiveCluster {
    /// The cluster.
    pub config: Cluster,
    /// Its endpoints now.
    pub endpoints: ArcSwap<Endpoints>,
}

/// Time of last use, in whole seconds since the store was made. Written by the data path, without a lock.
#[derive(Debug, Default)]
pub struct LastUsed(AtomicU64);

impl LastUsed {
    /// Notes a use at `now` (seconds since the store was made).
    pub fn touch(&self, now: u64) {
        if self.0.load(Ordering::Relaxed) != now {
            self.0.store(now, Ordering::Relaxed);
        }
    }

    /// Seconds since the store was made at the last use.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the data path asks of the xDS task.
#[derive(Debug)]
pub enum Demand {
    /// Look this listener up; answered when it is complete, or known not to exist.
    Listener(ListenerName, oneshot::Sender<Arc<LookedUp>>),
    /// Look this address's workload up.
    Workload(IpAddr, oneshot::Sender<Arc<LookedUpWorkload>>),
}

/// Why a look-up has no answer. The connection must fail with this reason; it is never sent in plaintext
/// because configuration is late.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// No answer from the control plane in time.
    #[error(
        "no configuration for {name} within {waited:?}: the control plane is not connected or does not answer"
    )]
    Timeout {
        /// What was asked for.
        name: String,
        /// How long.
        waited: Duration,
    },
    /// Too many look-ups wait already.
    #[error("too many configuration look-ups are waiting; {0} was not asked for")]
    Overloaded(String),
}

/// The shared handle: read by every data worker, written by the xDS task.
#[derive(Debug)]
pub struct Store {
    snapshot: ArcSwap<Snapshot>,
    demands: mpsc::Sender<Demand>,
    started: Instant,
    lookup_timeout: Duration,
}

/// Look-ups that may wait at the same time.
const DEMAND_BOUND: usize = 1024;

impl Store {
    /// An empty store, and the queue of what the data path asks for.
    pub fn new(lookup_timeout: Duration) -> (Arc<Self>, mpsc::Receiver<Demand>) {
        let (demands, receiver) = mpsc::channel(DEMAND_BOUND);
        let store = Self {
            snapshot: ArcSwap::from_pointee(Snapshot::default()),
            demands,
            started: Instant::now(),
            lookup_timeout,
        };
        (Arc::new(store), receiver)
    }

    /// What is in force now: one pointer load.
    pub fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// Puts another snapshot in force. Called by the xDS task only.
    pub fn publish(&self, snapshot: Snapshot) {
        self.snapshot.store(Arc::new(snapshot));
    }

    /// Seconds since the store was made: the clock of [`LastUsed`].
    pub fn now(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    /// The listener of this name; asks the control plane when it is not known yet, and waits, bounded.
    ///
    /// # Errors
    /// When there is no answer in time or too many wait.
    pub async fn listener(&self, name: &ListenerName) -> Result<Arc<LookedUp>, LookupError> {
        if let Some(known) = self.snapshot().listeners.get(name) {
            known.used.touch(self.now());
            return Ok(Arc::clone(known));
        }
        self.ask(&name.to_string(), |reply| Demand::Listener(name.clone(), reply)).await
    }

    /// The workload behind an address, for metrics.
    ///
    /// # Errors
    /// When there is no answer in time or too many wait.
    pub async fn workload(&self, ip: IpAddr) -> Result<Arc<LookedUpWorkload>, LookupError> {
        if let Some(known) = self.snapshot().workloads.get(&ip) {
            known.used.touch(self.now());
            return Ok(Arc::clone(known));
        }
        self.ask(&ip.to_string(), |reply| Demand::Workload(ip, reply)).await
    }

    async fn ask<T>(
        &self,
        name: &str,
        demand: impl FnOnce(oneshot::Sender<T>) -> Demand,
    ) -> Result<T, LookupError> {
        let (reply, answer) = oneshot::channel();
        let overloaded = || LookupError::Overloaded(name.to_owned());
        self.demands.try_send(demand(reply)).map_err(|_| overloaded())?;
        match tokio::time::timeout(self.lookup_timeout, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(overloaded()),
            Err(_) => Err(LookupError::Timeout { name: name.to_owned(), waited: self.lookup_timeout }),
        }
    }
}
