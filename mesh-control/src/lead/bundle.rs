//! The trust bundle in every namespace, as a ConfigMap that pods mount. What is not ours is never overwritten, and
//! namespaces of Kubernetes itself get none.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::json;
use tokio::time::Instant;

use super::desk::{REQUEST, Settle, Settled, Tray};
use super::follow::follow;
use super::owner::Owner;
use super::queue::Name;
use crate::fault::{Asked, Fault, ask};

/// The ConfigMap.
pub(super) const CONFIG_MAP: &str = "mesh-root-cert";
/// Its key.
const KEY: &str = "root-cert.pem";
const EXCLUDED: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];
/// By this label we know our own.
const OURS: (&str, &str) = ("app.kubernetes.io/managed-by", "mesh-control");
const PART: (&str, &str) = ("app.kubernetes.io/part-of", "mesh");

/// How long to wait for the owner: pods need the bundle, whoever owns it.
const OWNER_PATIENCE: Duration = Duration::from_secs(5);

/// A ConfigMap as it was seen last: no more of it than is needed.
#[derive(Debug, Clone)]
struct Observed {
    version: String,
    ours: bool,
    /// It holds our bundle.
    current: bool,
    owners: Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference>,
}

#[derive(Default)]
struct Known {
    /// `None` until they were read completely.
    namespaces: Option<BTreeMap<String, bool>>,
    maps: Option<BTreeMap<String, Observed>>,
}

/// Keeps the ConfigMaps.
pub(super) struct BundleDesk {
    client: kube::Client,
    bundle: Arc<str>,
    owner: Owner,
    known: Mutex<Known>,
    since: Instant,
    pub(super) tray: Tray,
}

impl BundleDesk {
    pub(super) fn new(client: kube::Client, bundle: Arc<str>, owner: Owner) -> Self {
        let (known, since) = (Mutex::default(), Instant::now());
        Self { client, bundle, owner, known, since, tray: Tray::default() }
    }

    /// Everything has to be looked at.
    pub(super) fn look(&self) {
        self.tray.changed(self.names());
    }

    /// Follows the namespaces.
    pub(super) async fn follow_namespaces(&self) {
        let api: Api<PartialObjectMeta<Namespace>> = Api::all(self.client.clone());
        let mut found = BTreeMap::new();
        follow("Namespace", watcher(api, watcher::Config::default()), |event| {
            let entry = |metadata: &ObjectMeta| {
                (metadata.name.clone().unwrap_or_default(), metadata.deletion_timestamp.is_some())
            };
            match event {
                Event::Init => found.clear(),
                Event::InitApply(object) => found.extend([entry(&object.metadata)]),
                Event::InitDone => {
                    self.lock().namespaces = Some(std::mem::take(&mut found));
                    self.look();
                }
                Event::Apply(object) => {
                    let (name, terminates) = entry(&object.metadata);
                    self.lock().namespaces.get_or_insert_default().insert(name.clone(), terminates);
                    self.tray.changed([key(name)]);
                }
                Event::Delete(object) => {
                    self.lock().namespaces.get_or_insert_default().remove(&entry(&object.metadata).0);
                }
            }
        })
        .await;
    }

    /// Follows the ConfigMaps of this name.
    pub(super) async fn follow_maps(&self) {
        let api: Api<ConfigMap> = Api::all(self.client.clone());
        let config = watcher::Config::default().fields(&format!("metadata.name={CONFIG_MAP}"));
        let mut found = BTreeMap::new();
        follow("ConfigMap mesh-root-cert", watcher(api, config), |event| match event {
            Event::Init => found.clear(),
            Event::InitApply(map) => found.extend([self.observe(map)]),
            Event::InitDone => {
                self.lock().maps = Some(std::mem::take(&mut found));
                self.look();
            }
            Event::Apply(map) => {
                let (namespace, observed) = self.observe(map);
                self.lock().maps.get_or_insert_default().insert(namespace.clone(), observed);
                self.tray.changed([key(namespace)]);
            }
            Event::Delete(map) => {
                let (namespace, _) = self.observe(map);
                self.lock().maps.get_or_insert_default().remove(&namespace);
                self.tray.changed([key(namespace)]);
            }
        })
        .await;
    }

    fn observe(&self, map: ConfigMap) -> (String, Observed) {
        let ConfigMap { metadata, data, .. } = map;
        let text = data.as_ref().and_then(|data| data.get(KEY));
        let label = metadata.labels.as_ref().and_then(|labels| labels.get(OURS.0));
        let observed = Observed {
            version: metadata.resource_version.unwrap_or_default(),
            ours: label.is_some_and(|label| label == OURS.1),
            current: text.is_some_and(|text| **text == *self.bundle),
            owners: metadata.owner_references.unwrap_or_default(),
        };
        (metadata.namespace.unwrap_or_default(), observed)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn create(&self, namespace: &str) -> Result<Settled, Fault> {
        let labels = [OURS, PART].map(|(key, value)| (key.to_owned(), value.to_owned()));
        let metadata = ObjectMeta {
            name: Some(CONFIG_MAP.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some(labels.into_iter().collect()),
            ..ObjectMeta::default()
        };
        let map = ConfigMap {
            metadata: self.owner.put_into(metadata),
            data: Some([(KEY.to_owned(), self.bundle.to_string())].into()),
            ..ConfigMap::default()
        };
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        match ask(asked("create", namespace), REQUEST, api.create(&PostParams::default(), &map)).await {
            Ok(_) => Ok(Settled::Created),
            // The watch tells whose it is, and that the namespace is gone.
            Err(Fault::Exists) => Ok(Settled::Later),
            Err(Fault::NotFound(_)) => Ok(Settled::Same),
            Err(fault) => Err(fault),
        }
    }

    async fn mend(&self, namespace: &str, observed: &Observed) -> Result<Settled, Fault> {
        let patch = json!({
            "metadata": {
                "resourceVersion": observed.version,
                "ownerReferences": self.owner.references(&observed.owners),
            },
            "data": { KEY: &*self.bundle },
            // A key may be in one of them only.
            "binaryData": { KEY: null },
        });
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
        match ask(asked("patch", namespace), REQUEST, api.patch(CONFIG_MAP, &params, &patch)).await {
            Ok(_) => Ok(Settled::Updated),
            Err(Fault::Conflict | Fault::NotFound(_)) => Ok(Settled::Later),
            Err(fault) => Err(fault),
        }
    }
}

fn asked<'a>(verb: &'static str, namespace: &'a str) -> Asked<'a> {
    Asked { verb, group: "", resource: "configmaps", namespace, name: CONFIG_MAP }
}

fn key(namespace: String) -> Name {
    Name { namespace, name: CONFIG_MAP.to_owned() }
}

impl Settle for BundleDesk {
    fn kind(&self) -> &'static str {
        "ConfigMap"
    }

    async fn settle(&self, name: &Name) -> Result<Settled, Fault> {
        let namespace = name.namespace.as_str();
        let map = {
            let known = self.lock();
            let (Some(namespaces), Some(maps)) = (&known.namespaces, &known.maps) else {
                return Ok(Settled::Later);
            };
            let wanted = namespaces.get(namespace).is_some_and(|terminates| !terminates);
            if !wanted || EXCLUDED.contains(&namespace) {
                return Ok(Settled::Same);
            }
            maps.get(namespace).cloned()
        };
        if !self.owner.is_known() && self.since.elapsed() < OWNER_PATIENCE {
            return Ok(Settled::Later);
        }
        match map {
            None if !self.owner.allows(Instant::now()) => Ok(Settled::Same),
            None => self.create(namespace).await,
            Some(map) if !map.ours => Ok(Settled::Foreign(format!(
                "a ConfigMap of this name is there and has not the label {}={}; it is left alone: delete or rename \
                 it, or give it the label",
                OURS.0, OURS.1
            ))),
            Some(map) if map.current && self.owner.references(&map.owners) == map.owners => Ok(Settled::Same),
            Some(map) => self.mend(namespace, &map).await,
        }
    }

    fn names(&self) -> Vec<Name> {
        self.lock().namespaces.iter().flatten().map(|(name, _)| key(name.clone())).collect()
    }
}
