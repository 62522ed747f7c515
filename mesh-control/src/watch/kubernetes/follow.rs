//! One kind, followed: everything that is there, then every change, for ever. What vanished while nobody looked is told
//! by the next complete reading and by nothing else. (kube's own watcher does not tell when it begins to stream a
//! list anew, so that an object deleted in between would stay.)

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use kube::api::{Api, DynamicObject, ListParams, WatchEvent, WatchParams};
use mesh_common::process::Condition;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::Client;
use super::backoff::{Backoff, jittered};
use super::failure::Failure;
use super::read;
use super::resource::Resource;
use crate::api::ObjectId;
use crate::ingest::Event;
use crate::serve::metrics::Metrics;
use crate::watch::health::{WatchHealth, WatchState};

/// The server ends a watch after this, which is then taken up where it was: a connection that died in silence is noticed.
const WATCH_SECONDS: u32 = 60;
/// Silence for longer than this is death.
const SILENCE: Duration = Duration::from_secs(70);
/// Objects per page of a list.
const PAGE: u32 = 250;
/// How often a kind is looked for that the server does not have.
const ABSENT: Duration = Duration::from_secs(10);
/// A kind that was there has to be away for this long: a server that starts may not know its kinds yet.
const GONE: Duration = Duration::from_secs(30);
/// A watch that lived for this long was whole.
const WHOLE: Duration = Duration::from_secs(20);
/// What the server says with the last of all objects that are there.
const END_OF_LIST: &str = "k8s.io/initial-events-end";

/// Follows one kind.
pub(super) struct Follower {
    pub(super) client: Client,
    pub(super) resource: Resource,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) health: WatchHealth,
    pub(super) metrics: Arc<Metrics>,
    pub(super) condition: Arc<Condition>,
}

/// Where a watch is.
#[derive(Debug, Default)]
struct Position {
    /// Which of the kind's versions is asked for.
    version: usize,
    /// Everything up to here was told; `None`: everything has to be read.
    at: Option<String>,
    /// The server does not stream lists.
    pages: bool,
    /// Objects of the kind were told, or could have been.
    known: bool,
    /// Since when the server does not have the kind.
    absent: Option<Instant>,
}

impl Follower {
    /// Follows until nobody takes the events any more.
    pub(super) async fn run(self) {
        self.health.state(self.resource.kind, WatchState::Reading);
        let mut position = Position::default();
        let mut backoff = Backoff::default();
        loop {
            let begun = Instant::now();
            let ended = self.step(&mut position).await;
            if begun.elapsed() >= WHOLE {
                backoff.reset();
            }
            match ended {
                // As the server does each minute; one that does it at once must not be asked without pause.
                Ok(()) if begun.elapsed() >= WHOLE => {}
                Ok(()) => sleep(backoff.next()).await,
                Err(Failure::Stopped) => return,
                Err(failure) if failure.is_absence() && self.resource.optional => {
                    match self.absent(&mut position, &failure).await {
                        Some(wait) => sleep(wait).await,
                        None => return,
                    }
                }
                Err(failure) => {
                    if failure.forgets() {
                        position.at = None;
                    }
                    let wait = backoff.next();
                    self.broke(&failure, wait);
                    sleep(wait).await;
                }
            }
        }
    }

    /// Reads everything if that has to be, then follows changes until the server ends the watch.
    async fn step(&self, position: &mut Position) -> Result<(), Failure> {
        let api = self.resource.api(self.client.clone(), position.version);
        if position.at.is_none() && !position.pages && position.absent.is_none() {
            match self.watch(&api, position, true).await {
                // A list says more clearly why there is nothing, and may be all that the server can do.
                Err(failure) if position.at.is_none() && !matches!(failure, Failure::Stopped) => {
                    position.pages = failure.is_about_streaming();
                }
                ended => return ended,
            }
        }
        if position.at.is_none() {
            self.list(&api, position).await?;
        }
        self.watch(&api, position, false).await
    }

    async fn list(&self, api: &Api<DynamicObject>, position: &mut Position) -> Result<(), Failure> {
        let mut params = ListParams { limit: Some(PAGE), ..ListParams::default() };
        params.field_selector.clone_from(&self.resource.fields);
        let mut names = BTreeSet::new();
        let at = loop {
            let page = timeout(SILENCE, api.list(&params)).await??;
            for object in page.items {
                names.extend(self.apply(object).await?);
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => break page.metadata.resource_version.filter(|at| !at.is_empty()),
            }
        };
        self.complete(position, names, at.ok_or(Failure::Endless)?).await
    }

    /// Follows changes from where the watch is; with `all`, the server tells everything that is there first.
    async fn watch(
        &self,
        api: &Api<DynamicObject>,
        position: &mut Position,
        all: bool,
    ) -> Result<(), Failure> {
        let params = WatchParams {
            timeout: Some(WATCH_SECONDS),
            field_selector: self.resource.fields.clone(),
            send_initial_events: all,
            ..WatchParams::default()
        };
        let at = position.at.clone().unwrap_or_default();
        let mut stream = pin!(timeout(SILENCE, api.watch(&params, &at)).await??);
        let mut names = all.then(BTreeSet::new);
        while let Some(event) = timeout(SILENCE, stream.next()).await? {
            let at = match event? {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    let at = object.metadata.resource_version.clone();
                    let name = self.apply(object).await?;
                    if let Some(names) = &mut names {
                        names.extend(name);
                    }
                    at
                }
                WatchEvent::Deleted(object) => {
                    let id = read::id(self.resource.kind, &object.metadata);
                    if let Some(names) = &mut names {
                        names.remove(&id);
                    }
                    self.tell(Event::Delete(id)).await?;
                    object.metadata.resource_version
                }
                WatchEvent::Bookmark(mark) => {
                    let at = mark.metadata.resource_version;
                    if mark.metadata.annotations.contains_key(END_OF_LIST)
                        && let Some(names) = names.take()
                    {
                        self.complete(position, names, at.clone()).await?;
                    }
                    Some(at)
                }
                WatchEvent::Error(status) => return Err(Failure::Refused(status)),
            };
            if names.is_none() {
                self.whole();
                position.at = at.filter(|at| !at.is_empty()).or(position.at.take());
            }
        }
        if names.is_some() { Err(Failure::Endless) } else { Ok(()) }
    }

    /// The object is there. Returns its name, if it is one to read.
    async fn apply(&self, object: DynamicObject) -> Result<Option<ObjectId>, Failure> {
        let id = read::id(self.resource.kind, &object.metadata);
        let Some(event) = read::applied(self.resource.kind, object) else { return Ok(None) };
        self.tell(event).await?;
        Ok(Some(id))
    }

    /// Everything that is there was told.
    async fn complete(
        &self,
        position: &mut Position,
        names: BTreeSet<ObjectId>,
        at: String,
    ) -> Result<(), Failure> {
        let objects = names.len();
        self.send(Event::Retain(self.resource.kind, names)).await?;
        let version = self.resource.versions()[position.version % self.resource.versions().len()];
        tracing::debug!(kind = self.resource.kind.name(), version, objects, "read everything");
        *position = Position { at: Some(at), known: true, absent: None, ..std::mem::take(position) };
        self.whole();
        Ok(())
    }

    /// Tries the next version; when there is none left, the kind has no objects. Returns how long to wait, `None` when
    /// the process ends.
    async fn absent(&self, position: &mut Position, failure: &Failure) -> Option<Duration> {
        position.at = None;
        position.version += 1;
        if position.version < self.resource.versions().len() {
            return Some(Duration::ZERO);
        }
        position.version = 0;
        let since = *position.absent.get_or_insert_with(Instant::now);
        if position.known && since.elapsed() < GONE {
            let wait = jittered(GONE / 10);
            self.broke(failure, wait);
            return Some(wait);
        }
        let kind = self.resource.kind;
        if self.health.state(kind, WatchState::Absent) {
            tracing::info!(
                kind = kind.name(),
                "the API server does not have this kind; it is picked up when it does"
            );
            self.send(Event::Retain(kind, BTreeSet::new())).await.ok()?;
        }
        position.known = false;
        Some(jittered(ABSENT))
    }

    fn whole(&self) {
        let kind = self.resource.kind;
        if self.health.state(kind, WatchState::Following) {
            tracing::info!(kind = kind.name(), "following");
        }
    }

    fn broke(&self, failure: &Failure, wait: Duration) {
        let kind = self.resource.kind;
        self.metrics.watch_error(kind.name());
        let reason = failure.sentence(&self.resource);
        self.condition.because(&reason);
        let retry_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let news = self.health.broke(kind, reason.clone());
        if failure.is_ordinary() {
            tracing::info!(kind = kind.name(), reason, "a watch begins anew; what is known stays");
        } else if news {
            tracing::warn!(kind = kind.name(), reason, retry_ms, "a watch broke; what is known stays");
        } else {
            tracing::debug!(kind = kind.name(), reason, retry_ms, "a watch broke again");
        }
    }

    async fn tell(&self, event: Event) -> Result<(), Failure> {
        self.health.event(self.resource.kind);
        self.send(event).await
    }

    async fn send(&self, event: Event) -> Result<(), Failure> {
        self.events.send(event).await.map_err(|_| Failure::Stopped)
    }
}
