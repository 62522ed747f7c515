//! Status of what users wrote: what the model says became of it, into the objects. Only the status is written, from
//! the version that was looked at, so that nothing is lost that another wrote meanwhile.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::desk::{REQUEST, Settle, Settled, Tray};
use super::follow::follow;
use super::queue::Name;
use crate::fault::{Asked, Fault, ask};
use crate::model::store::SharedModel;
use crate::status::ObjectStatus;
use crate::status::diff::{self, Change, Observed};

/// After a change of the model, until the statuses are made again: many changes come together.
const TOGETHER: Duration = Duration::from_millis(50);
/// Tries before others are let in between.
const TRIES: usize = 3;

/// A kind with a status of ours.
#[derive(Debug)]
pub(super) struct Kind {
    name: &'static str,
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    /// In RBAC's words.
    door: &'static str,
    /// `parents` or `conditions`.
    field: &'static str,
}

/// HTTPRoute.
pub(super) const ROUTES: Kind = Kind {
    name: "HTTPRoute",
    group: "gateway.networking.k8s.io",
    version: "v1",
    plural: "httproutes",
    door: "httproutes/status",
    field: "parents",
};

/// PeerAuthentication.
pub(super) const POLICIES: Kind = Kind {
    name: "PeerAuthentication",
    group: "security.istio.io",
    version: "v1",
    plural: "peerauthentications",
    door: "peerauthentications/status",
    field: "conditions",
};

impl Kind {
    fn resource(&self) -> ApiResource {
        let Self { name, group, version, plural, .. } = self;
        ApiResource {
            group: (*group).to_owned(),
            version: (*version).to_owned(),
            api_version: format!("{group}/{version}"),
            kind: (*name).to_owned(),
            plural: (*plural).to_owned(),
        }
    }
}

/// What the model says, by kind and name.
#[derive(Default)]
pub(super) struct Wanted(Mutex<Arc<BTreeMap<(String, Name), ObjectStatus>>>);

impl Wanted {
    fn of(&self, kind: &str, name: &Name) -> Option<ObjectStatus> {
        let all = Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner));
        all.get(&(kind.to_owned(), name.clone())).cloned()
    }

    /// Asks the model; returns what is other than before, by kind.
    fn refresh(&self, model: &SharedModel) -> Vec<(String, Name)> {
        let key = |status: ObjectStatus| {
            let name = Name { namespace: status.namespace.clone(), name: status.name.clone() };
            ((status.kind.clone(), name), status)
        };
        let new: BTreeMap<_, _> = model.statuses().into_iter().map(key).collect();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = known.keys().filter(|key| !new.contains_key(*key));
        let other = new.iter().filter(|(key, status)| known.get(*key) != Some(*status)).map(|(key, _)| key);
        let changed = gone.chain(other).cloned().collect();
        *known = Arc::new(new);
        changed
    }

    /// Follows the model, and tells the desks what changed.
    pub(super) async fn follow(&self, model: &SharedModel, desks: [&StatusDesk; 2]) {
        let mut revisions = model.revisions();
        loop {
            revisions.mark_unchanged();
            let begin = Instant::now();
            let changed = self.refresh(model);
            // A large mesh that changes all the time must not keep us busy with this alone.
            let pause = TOGETHER.max(begin.elapsed() * 20);
            for desk in desks {
                let of_kind = changed.iter().filter(|(kind, _)| kind == desk.kind.name);
                desk.tray.changed(of_kind.map(|(_, name)| name.clone()));
            }
            if revisions.changed().await.is_err() {
                return;
            }
            tokio::time::sleep(pause).await;
        }
    }
}

/// Keeps the status of the objects of one kind.
pub(super) struct StatusDesk {
    client: kube::Client,
    kind: Kind,
    wanted: Arc<Wanted>,
    objects: Mutex<BTreeMap<Name, Observed>>,
    /// The kind is defined without a status that can be written.
    doorless: AtomicBool,
    pub(super) tray: Tray,
}

impl StatusDesk {
    pub(super) fn new(client: kube::Client, kind: Kind, wanted: Arc<Wanted>) -> Self {
        let (objects, doorless) = (Mutex::default(), AtomicBool::new(false));
        Self { client, kind, wanted, objects, doorless, tray: Tray::default() }
    }

    /// Follows the objects.
    pub(super) async fn follow(&self) {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &self.kind.resource());
        let mut found = BTreeMap::new();
        follow(self.kind.name, watcher(api, watcher::Config::default()), |event| match event {
            Event::Init => found.clear(),
            Event::InitApply(object) => found.extend([observe(&object)]),
            Event::InitDone => {
                self.doorless.store(false, Ordering::Relaxed);
                *self.lock() = std::mem::take(&mut found);
                self.tray.changed(self.names());
            }
            Event::Apply(object) => {
                let (name, observed) = observe(&object);
                self.lock().insert(name.clone(), observed);
                self.tray.changed([name]);
            }
            Event::Delete(object) => _ = self.lock().remove(&observe(&object).0),
        })
        .await;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Name, Observed>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn api(&self, name: &Name) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &name.namespace, &self.kind.resource())
    }

    fn asked<'a>(&self, verb: &'static str, resource: &'static str, name: &'a Name) -> Asked<'a> {
        Asked { verb, group: self.kind.group, resource, namespace: &name.namespace, name: &name.name }
    }

    fn change(&self, name: &Name, observed: &Observed) -> Change {
        let (wanted, now) = (self.wanted.of(self.kind.name, name), now());
        match self.kind.field {
            "parents" => diff::route(observed, &name.namespace, wanted.as_ref(), &now),
            _ => diff::policy(observed, wanted.as_ref(), &now),
        }
    }

    /// As it is now; `None` when it is gone.
    async fn read(&self, name: &Name) -> Result<Option<Observed>, Fault> {
        let asked = self.asked("get", self.kind.plural, name);
        let found = ask(asked, REQUEST, self.api(name).get_opt(&name.name)).await?;
        Ok(found.map(|object| observe(&object).1))
    }

    async fn write(&self, name: &Name, observed: &Observed, value: Value) -> Result<Observed, Fault> {
        let patch = json!({
            "metadata": { "resourceVersion": observed.version },
            "status": { self.kind.field: value },
        });
        let (api, params, patch) = (self.api(name), PatchParams::default(), Patch::Merge(&patch));
        let call = api.patch_status(&name.name, &params, &patch);
        let asked = self.asked("patch", self.kind.door, name);
        ask(asked, REQUEST, call).await.map(|object| observe(&object).1)
    }
}

impl Settle for StatusDesk {
    fn kind(&self) -> &'static str {
        self.kind.name
    }

    async fn settle(&self, name: &Name) -> Result<Settled, Fault> {
        let Some(mut observed) = self.lock().get(name).cloned() else { return Ok(Settled::Same) };
        for _ in 0..TRIES {
            let value = match self.change(name, &observed) {
                _ if self.doorless.load(Ordering::Relaxed) => return Ok(Settled::Same),
                Change::None => return Ok(Settled::Same),
                Change::NotYet => return Ok(Settled::Later),
                Change::Write(value) => value,
            };
            match self.write(name, &observed, value).await {
                // What the watch has not told yet is not written again meanwhile.
                Ok(written) => {
                    if let Some(known) = self.lock().get_mut(name).filter(|known| known.uid == written.uid) {
                        *known = written;
                    }
                    return Ok(Settled::Updated);
                }
                Err(fault @ (Fault::Conflict | Fault::NotFound(_))) => {
                    let found = self.read(name).await?.filter(|found| found.uid == observed.uid);
                    // Gone, or another of the same name, which the watch tells of.
                    let Some(found) = found else { return Ok(Settled::Same) };
                    if matches!(fault, Fault::NotFound(_)) {
                        tracing::info!(
                            kind = self.kind.name,
                            "the definition of this kind has no status; none is written"
                        );
                        self.doorless.store(true, Ordering::Relaxed);
                        return Ok(Settled::Same);
                    }
                    observed = found;
                }
                Err(fault) => return Err(fault),
            }
        }
        Err(Fault::Conflict)
    }

    fn names(&self) -> Vec<Name> {
        self.lock().keys().cloned().collect()
    }
}

fn observe(object: &DynamicObject) -> (Name, Observed) {
    let DynamicObject { metadata, data, types: _ } = object;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let name = Name { namespace: text(&metadata.namespace), name: text(&metadata.name) };
    let observed = Observed {
        uid: text(&metadata.uid),
        version: text(&metadata.resource_version),
        generation: metadata.generation.unwrap_or_default(),
        parent_refs: list(&data["spec"]["parentRefs"]),
        parents: list(&data["status"]["parents"]),
        conditions: list(&data["status"]["conditions"]),
    };
    (name, observed)
}

/// As Kubernetes writes times: to the second.
fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
