//! What the client can say of itself: to the admin pages, to metrics. Written by the xDS task only; the data
//! path never reads it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use mesh_common::xds::ResourceType;

use super::delta::{Delta, Held};

/// The shared handle.
#[derive(Debug, Clone, Default)]
pub struct XdsStatus {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    connected: AtomicBool,
    connection: Mutex<Connection>,
    types: Mutex<BTreeMap<ResourceType, TypeStatus>>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    responses: AtomicU64,
    resources: AtomicU64,
    nacks: AtomicU64,
    reconnects: AtomicU64,
}

/// The connection to the control plane.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Connection {
    /// Whether a stream is open.
    pub connected: bool,
    /// Since when it is as it is; `None` before the first attempt has ended.
    pub since: Option<SystemTime>,
    /// Why the last attempt or stream ended.
    pub last_error: Option<String>,
}

/// One type of resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TypeStatus {
    /// Every name asked for, with what is known of it.
    pub names: BTreeMap<Arc<str>, Held>,
    /// The text of the last refusal; kept when a later version is good.
    pub last_nack: Option<String>,
}

/// Totals since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Responses received.
    pub responses: u64,
    /// Resources and removals in them.
    pub resources: u64,
    /// Responses refused at least in part.
    pub nacks: u64,
    /// Attempts to connect after the first one.
    pub reconnects: u64,
}

impl XdsStatus {
    /// Whether a stream is open: one atomic load.
    pub fn is_connected(&self) -> bool {
        self.inner.connected.load(Ordering::Relaxed)
    }

    /// The connection, in words.
    pub fn connection(&self) -> Connection {
        lock(&self.inner.connection).clone()
    }

    /// Each type, with names, versions and refusals.
    pub fn types(&self) -> BTreeMap<ResourceType, TypeStatus> {
        lock(&self.inner.types).clone()
    }

    /// The counters.
    pub fn totals(&self) -> Totals {
        let Counters { responses, resources, nacks, reconnects } = &self.inner.counters;
        Totals {
            responses: responses.load(Ordering::Relaxed),
            resources: resources.load(Ordering::Relaxed),
            nacks: nacks.load(Ordering::Relaxed),
            reconnects: reconnects.load(Ordering::Relaxed),
        }
    }

    pub(super) fn opened(&self) {
        self.inner.connected.store(true, Ordering::Relaxed);
        let mut connection = lock(&self.inner.connection);
        connection.connected = true;
        connection.since = Some(SystemTime::now());
    }

    pub(super) fn closed(&self, reason: String) {
        let was = self.inner.connected.swap(false, Ordering::Relaxed);
        let mut connection = lock(&self.inner.connection);
        connection.connected = false;
        if was || connection.since.is_none() {
            connection.since = Some(SystemTime::now());
        }
        connection.last_error = Some(reason);
    }

    pub(super) fn connecting_again(&self) {
        self.inner.counters.reconnects.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn received(&self, kind: ResourceType, resources: usize, refusal: Option<String>) {
        let counters = &self.inner.counters;
        counters.responses.fetch_add(1, Ordering::Relaxed);
        counters.resources.fetch_add(resources as u64, Ordering::Relaxed);
        if let Some(refusal) = refusal {
            counters.nacks.fetch_add(1, Ordering::Relaxed);
            lock(&self.inner.types).entry(kind).or_default().last_nack = Some(refusal);
        }
    }

    /// Copies what is known of one type's names.
    pub(super) fn set_names(&self, kind: ResourceType, delta: &Delta) {
        let names = delta.names(kind).map(|(name, held)| (Arc::clone(name), held.clone())).collect();
        lock(&self.inner.types).entry(kind).or_default().names = names;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
