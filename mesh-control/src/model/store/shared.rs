//! The model as several tasks share it: one writer, many readers, and a bounded notice of what changed. A
//! subscriber never loses a change: whoever falls behind is told that everything changed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, Weak};

use ipnet::IpNet;
use mesh_common::spiffe::SpiffeId;
use tokio::sync::{Notify, watch};

use super::Mesh;
use crate::model::facts::{Destination, FactKey, Facts};
use crate::model::route::PortRoutes;
use crate::model::service::{PortEndpoints, Service};
use crate::model::workload::{Inbound, Workload};
use crate::model::{ServiceKey, Settings, WorkloadKey};

/// How many changed facts a subscriber may have waiting before it is told "everything".
const MAX_PENDING: usize = 8192;

/// A file, or a part of it, that the model could not take.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigError {
    /// The file, as the user would name it.
    pub file: String,
    /// The line, from 1; 0 when the error is about the whole file.
    pub line: usize,
    /// What is wrong, and what stays in force.
    pub reason: String,
}

/// The model, shared. Cheap to clone.
#[derive(Clone)]
pub struct SharedModel {
    inner: Arc<Inner>,
}

struct Inner {
    mesh: RwLock<Mesh>,
    subscribers: Mutex<Vec<Weak<Subscriber>>>,
    errors: Mutex<Vec<ConfigError>>,
    synced: watch::Sender<bool>,
    revision: watch::Sender<u64>,
}

#[derive(Default)]
struct Subscriber {
    pending: Mutex<Option<Changed>>,
    wake: Notify,
}

impl SharedModel {
    /// Shares a model. It is not yet [`SharedModel::is_synced`].
    pub fn new(mesh: Mesh) -> Self {
        let inner = Inner {
            mesh: RwLock::new(mesh),
            subscribers: Mutex::default(),
            errors: Mutex::default(),
            synced: watch::Sender::new(false),
            revision: watch::Sender::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Reads the model. Hold it briefly, never across an `await`: the writer waits for it.
    pub fn read(&self) -> ModelReader<'_> {
        ModelReader(self.inner.mesh.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the model, commits, and tells the subscribers which facts have another value now.
    pub fn update(&self, change: impl FnOnce(&mut Mesh)) -> BTreeSet<FactKey> {
        let mut mesh = self.inner.mesh.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut mesh);
        let changed = mesh.commit();
        drop(mesh);
        self.inner.revision.send_modify(|revision| *revision = revision.wrapping_add(1));
        if !changed.is_empty() {
            self.notify(&changed);
        }
        changed
    }

    /// Learns of every change that is committed from now on.
    pub fn subscribe(&self) -> Changes {
        let subscriber = Arc::new(Subscriber::default());
        let mut subscribers = lock(&self.inner.subscribers);
        subscribers.retain(|known| known.strong_count() > 0);
        subscribers.push(Arc::downgrade(&subscriber));
        Changes { subscriber }
    }

    /// Wakes at every update, also where no fact has another value: what became of an object
    /// ([`SharedModel::statuses`]) may have changed then.
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.inner.revision.subscribe()
    }

    /// Sets [`FactKey::TrustBundle`].
    pub fn set_trust_bundle(&self, pem: String) {
        self.update(|mesh| mesh.set_trust_bundle(pem));
    }

    /// The pod of this name, if it may hold a stream and get a certificate.
    pub fn live_pod(&self, namespace: &str, name: &str) -> Option<Arc<Workload>> {
        let reader = self.read();
        let cluster = reader.settings().cluster.clone();
        let key = WorkloadKey { cluster, namespace: namespace.to_owned(), name: name.to_owned() };
        reader.workload(&key).filter(|workload| workload.live)
    }

    /// The uid of a pod, if its manifest has one.
    pub fn pod_uid(&self, key: &WorkloadKey) -> Option<String> {
        self.read().0.pod_uid(key)
    }

    /// Whether the source was read completely once. Before that, an absent fact means nothing: nobody may be
    /// answered from this model.
    pub fn is_synced(&self) -> bool {
        *self.inner.synced.borrow()
    }

    /// Waits until [`SharedModel::is_synced`].
    pub async fn synced(&self) {
        // The sender lives as long as `self`, so this ends only when the condition holds.
        if self.inner.synced.subscribe().wait_for(|synced| *synced).await.is_err() {
            tracing::debug!("the model is gone");
        }
    }

    /// Says that the source was read completely once.
    pub fn set_synced(&self) {
        self.inner.synced.send_replace(true);
    }

    /// What the source holds that could not be taken, sorted by file and line.
    pub fn config_errors(&self) -> Vec<ConfigError> {
        lock(&self.inner.errors).clone()
    }

    /// Replaces the list of [`SharedModel::config_errors`].
    pub fn set_config_errors(&self, mut errors: Vec<ConfigError>) {
        errors.sort();
        *lock(&self.inner.errors) = errors;
    }

    fn notify(&self, changed: &BTreeSet<FactKey>) {
        let subscribers: Vec<_> = lock(&self.inner.subscribers).iter().filter_map(Weak::upgrade).collect();
        for subscriber in subscribers {
            let mut pending = lock(&subscriber.pending);
            pending.get_or_insert_with(Changed::default).add(changed);
            drop(pending);
            subscriber.wake.notify_one();
        }
    }
}

/// A read of the shared model, consistent until it is dropped.
pub struct ModelReader<'a>(RwLockReadGuard<'a, Mesh>);

impl ModelReader<'_> {
    /// The model itself.
    pub fn mesh(&self) -> &Mesh {
        &self.0
    }
}

/// Facts that have another value than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// These. `Destination(ip, 0)` stands for every port of the address that is not named itself.
    Facts(BTreeSet<FactKey>),
    /// Too many to count: any fact may have changed.
    Everything,
}

impl Default for Changed {
    fn default() -> Self {
        Self::Facts(BTreeSet::new())
    }
}

impl Changed {
    /// Whether a fact may have another value now.
    pub fn touches(&self, key: &FactKey) -> bool {
        match self {
            Self::Everything => true,
            Self::Facts(keys) => {
                keys.contains(key)
                    || matches!(key, FactKey::Destination(ip, _) if keys.contains(&FactKey::Destination(*ip, 0)))
            }
        }
    }

    fn add(&mut self, keys: &BTreeSet<FactKey>) {
        if let Self::Facts(known) = self {
            known.extend(keys.iter().cloned());
            if known.len() > MAX_PENDING {
                *self = Self::Everything;
            }
        }
    }
}

/// A subscription. What happens between two calls of [`Changes::next`] is put together.
pub struct Changes {
    subscriber: Arc<Subscriber>,
}

impl Changes {
    /// The facts that changed since the last call; waits until there is one. Cancel-safe.
    pub async fn next(&mut self) -> Changed {
        loop {
            if let Some(changed) = self.try_next() {
                return changed;
            }
            self.subscriber.wake.notified().await;
        }
    }

    /// As [`Changes::next`], without waiting.
    pub fn try_next(&mut self) -> Option<Changed> {
        lock(&self.subscriber.pending).take()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Facts for ModelReader<'_> {
    fn settings(&self) -> Arc<Settings> {
        self.0.settings()
    }
    fn ranges(&self) -> Arc<Vec<IpNet>> {
        self.0.ranges()
    }
    fn service(&self, key: &ServiceKey) -> Option<Arc<Service>> {
        self.0.service(key)
    }
    fn services(&self) -> Arc<BTreeSet<ServiceKey>> {
        self.0.services()
    }
    fn identities(&self, key: &ServiceKey, port: u16) -> Option<Arc<BTreeSet<SpiffeId>>> {
        self.0.identities(key, port)
    }
    fn endpoints(&self, key: &ServiceKey, port: u16) -> Option<Arc<PortEndpoints>> {
        self.0.endpoints(key, port)
    }
    fn routes(&self, key: &ServiceKey, port: u16) -> Option<Arc<PortRoutes>> {
        self.0.routes(key, port)
    }
    fn workload(&self, key: &WorkloadKey) -> Option<Arc<Workload>> {
        self.0.workload(key)
    }
    fn inbound(&self, key: &WorkloadKey) -> Option<Arc<Inbound>> {
        self.0.inbound(key)
    }
    fn destination(&self, ip: IpAddr, port: u16) -> Option<Arc<Destination>> {
        self.0.destination(ip, port)
    }
    fn owner(&self, ip: IpAddr) -> Option<Arc<Workload>> {
        self.0.owner(ip)
    }
    fn trust_bundle(&self) -> Arc<String> {
        self.0.trust_bundle()
    }
}
