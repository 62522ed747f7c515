//! What all streams share: the model, the cache of translations, the list of streams, and the pump that
//! carries changes of the model to whoever watches. A change goes out as one resource to its watchers, and
//! nobody is ever answered from a model that was not read completely.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_common::process::DrainGuard;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::binding::Binding;
use super::cache::{Answer, Cache, Key, Refreshed, StreamId, Translator};
use super::delta::{Limits, Refusal, TypeStatus};
use super::limit::{Exceeded, Limiter, Permit};
use super::metrics::Metrics;
use super::node::NodeClaims;
use super::protocol::{State, Told};
use super::recorder::Client;
use super::throttle::Throttle;
use super::wildcard::EVERYTHING;
use crate::ca::caller::Authenticator;
use crate::model::WorkloadKey;
use crate::model::store::{Changes, SharedModel};
use crate::translate::everything;

/// At most one change of a resource goes out in this time.
const CHANGE_INTERVAL: Duration = Duration::from_millis(100);
/// Names translated under one hold of the cache's lock.
const BATCH: usize = 64;
/// Streams of one caller at one address that have not sent their first request. Many pods of one service account may
/// be behind one address.
const OPENING_STREAMS: usize = 256;

/// Who opens a stream: the caller, and the address that he is at.
pub(super) type OpeningPermit = Permit<(String, IpAddr)>;

/// What a discovery server is made with.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Bounds of one stream.
    pub limits: Limits,
    /// Streams open at once.
    pub max_streams: usize,
    /// Streams of one pod open at once.
    pub max_streams_per_pod: usize,
    /// A client that does not answer a response for this long is cut.
    pub ack_timeout: Duration,
    /// How long a stream outlives its pod.
    pub pod_grace: Duration,
    /// How often a stream looks whether one of these times is over.
    pub check_interval: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            max_streams: 20_000,
            max_streams_per_pod: 16,
            ack_timeout: Duration::from_secs(60),
            pod_grace: Duration::from_secs(30),
            check_interval: Duration::from_secs(2),
        }
    }
}

/// The shared state.
pub struct Discovery {
    pub(super) model: SharedModel,
    pub(super) authenticator: Authenticator,
    pub(super) metrics: Arc<Metrics>,
    pub(super) options: Options,
    /// Streams that wait for their first request.
    pub(super) opening: Arc<Limiter<(String, IpAddr)>>,
    /// Streams whose pod is known.
    open: Arc<Limiter<WorkloadKey>>,
    cache: Mutex<Cache>,
    streams: Mutex<BTreeMap<StreamId, Arc<Stream>>>,
    ids: AtomicU64,
}

/// One stream, as others see it.
pub struct Stream {
    /// Its id.
    pub id: StreamId,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// When it was opened, in seconds since 1970.
    pub since: jiff::Timestamp,
    /// Who was proven to ask.
    pub caller: String,
    /// What its node said.
    pub claims: NodeClaims,
    /// For whom is translated.
    pub client: Arc<Client>,
    pub(super) wake: Notify,
    state: Mutex<State>,
    _place: Option<Permit<WorkloadKey>>,
}

impl Stream {
    /// Its subscriptions, per type.
    pub fn status(&self) -> Vec<TypeStatus> {
        self.state().status()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Discovery {
    /// A server without streams. It learns of changes from now on only while [`Discovery::pump`] runs.
    pub fn new(
        model: SharedModel,
        translator: Translator,
        authenticator: Authenticator,
        metrics: Arc<Metrics>,
        options: Options,
    ) -> Self {
        Self {
            model,
            authenticator,
            metrics,
            options,
            opening: Limiter::new(OPENING_STREAMS, options.max_streams),
            open: Limiter::new(options.max_streams_per_pod, options.max_streams),
            cache: Mutex::new(Cache::new(translator)),
            streams: Mutex::default(),
            ids: AtomicU64::new(1),
        }
    }

    /// Carries changes to the streams until the process drains. `changes` must have been subscribed before
    /// the first stream was taken.
    pub async fn pump(&self, mut changes: Changes, mut guard: DrainGuard) {
        let mut throttle = Throttle::new(CHANGE_INTERVAL);
        loop {
            let due = throttle.next_due();
            tokio::select! {
                changed = changes.next() => {
                    let affected = self.cache().affected(&changed);
                    throttle.changed(Instant::now(), affected);
                }
                () = sleep_until(due) => {}
                () = guard.draining() => return,
            }
            let begin = Instant::now();
            let mut any = false;
            loop {
                let batch = throttle.due(Instant::now(), BATCH);
                if batch.is_empty() {
                    break;
                }
                any = true;
                let sent = self.refresh(&batch);
                throttle.unsent(batch.iter().filter(|key| !sent.contains(key)));
                tokio::task::yield_now().await;
            }
            if any {
                self.metrics.push_seconds.observe(begin.elapsed().as_secs_f64());
            }
        }
    }

    /// Every open stream.
    pub fn streams(&self) -> Vec<Arc<Stream>> {
        lock(&self.streams).values().cloned().collect()
    }

    /// Opens a stream in the list, if there is a place for it.
    pub(super) fn enlist(
        &self,
        peer: SocketAddr,
        claims: NodeClaims,
        binding: &Binding,
        state: State,
    ) -> Result<Arc<Stream>, Exceeded> {
        let client = Arc::clone(binding.client());
        let place = client.workload.clone().map(|pod| self.open.take(pod)).transpose()?;
        let caller = binding.caller().to_string();
        let id = StreamId(self.ids.fetch_add(1, Ordering::Relaxed));
        let state = Mutex::new(state);
        let (since, wake) = (jiff::Timestamp::now(), Notify::new());
        let stream = Arc::new(Stream { id, peer, since, caller, claims, client, wake, state, _place: place });
        lock(&self.streams).insert(id, Arc::clone(&stream));
        self.metrics.streams.inc();
        Ok(stream)
    }

    /// Takes a stream off the list, with all that only it watched.
    pub(super) async fn delist(&self, stream: &Stream) {
        lock(&self.streams).remove(&stream.id);
        self.metrics.streams.dec();
        let names = stream.state().subscriptions();
        self.unwatch(stream, &names).await;
    }

    /// Watches names for a stream.
    pub(super) async fn watch(&self, stream: &Stream, names: &[Key]) {
        for batch in names.chunks(BATCH) {
            let begin = Instant::now();
            {
                // The model is read under the cache's lock: a change that is committed after this read finds the
                // name in the cache, and one committed before is in what is read.
                let mut cache = self.cache();
                let facts = self.model.read();
                for name in batch {
                    let done = cache.watch(stream.id, name, &stream.client, &facts);
                    self.count(&done);
                }
                self.metrics.cache(cache.size());
            }
            self.metrics.translation_seconds.observe(begin.elapsed().as_secs_f64());
            tokio::task::yield_now().await;
        }
    }

    /// Ends watches of a stream.
    pub(super) async fn unwatch(&self, stream: &Stream, names: &[Key]) {
        for batch in names.chunks(BATCH) {
            {
                let mut cache = self.cache();
                for name in batch {
                    cache.unwatch(stream.id, name);
                }
                self.metrics.cache(cache.size());
            }
            tokio::task::yield_now().await;
        }
    }

    /// Watches what everything is now, where a stream asked for that.
    ///
    /// # Errors
    /// When the stream has to end because of what its client holds.
    pub(super) async fn follow_lists(&self, stream: &Stream) -> Result<(), Refusal> {
        loop {
            let Some(kind) = stream.state().stale_list() else { return Ok(()) };
            let list = self.cache().answer(stream.id, &(kind, EVERYTHING.into()));
            let Some(Answer::Found(list)) = list else { continue };
            let names = everything::names(&list.body).map(Arc::from).collect();
            let effects = stream.state().take_list(kind, names, Instant::now())?;
            self.unwatch(stream, &effects.unwatch).await;
            self.watch(stream, &effects.watch).await;
        }
    }

    /// The next response of a stream, if there is something to say.
    pub(super) fn next_response(&self, stream: &Stream) -> Option<Told> {
        let mut state = stream.state();
        let cache = self.cache();
        let response = state.next_response(Instant::now(), |key| cache.answer(stream.id, key))?;
        let (kind, resources, removed, bytes) = response.size();
        self.metrics.pushed(kind, resources, removed, bytes);
        Some(response)
    }

    /// Translates names again and marks them at the streams that hold something else now. Returns these names.
    fn refresh(&self, names: &[Key]) -> BTreeSet<Key> {
        let begin = Instant::now();
        let done = {
            let mut cache = self.cache();
            let facts = self.model.read();
            let done = cache.refresh(names, &facts);
            self.metrics.cache(cache.size());
            done
        };
        self.metrics.translation_seconds.observe(begin.elapsed().as_secs_f64());
        self.count(&done);
        let streams = lock(&self.streams);
        let mut sent = BTreeSet::new();
        for (id, key) in done.tell {
            if let Some(stream) = streams.get(&id) {
                stream.state().changed(&key);
                stream.wake.notify_one();
                sent.insert(key);
            }
        }
        sent
    }

    fn count(&self, done: &Refreshed) {
        self.metrics.translations.inc_by(done.translations as u64);
        self.metrics.translation_failures.inc_by(done.failures.len() as u64);
        for error in &done.failures {
            tracing::warn!(%error, "a resource cannot be made; its last good form stays");
        }
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        lock(&self.cache)
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
