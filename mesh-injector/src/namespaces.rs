//! The labels of namespaces: followed by a watch, and asked for where the watch may be behind. A pod must never stay
//! without its proxy because its namespace was labelled a moment before.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use k8s_openapi::api::core::v1::Namespace as Object;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use mesh_common::process::Condition;

use crate::decide::Namespace;
use crate::refusal::Refusal;

/// The API server waits for us meanwhile, and somebody for it.
const LIVE_TIMEOUT: Duration = Duration::from_secs(2);

type Meta = PartialObjectMeta<Object>;
type Known = HashMap<String, Arc<Namespace>>;

/// What is known of all namespaces.
#[derive(Clone)]
pub struct Namespaces {
    api: Api<Meta>,
    known: Arc<ArcSwap<Known>>,
}

impl Namespaces {
    /// Nothing is known before [`Self::follow`] runs.
    pub fn new(client: Client) -> Self {
        Self { api: Api::all(client), known: Arc::default() }
    }

    /// Follows all namespaces, for ever. `synced` is met once all are known.
    pub async fn follow(self, synced: Condition) {
        let mut events: BoxStream<'_, _> =
            watcher(self.api.clone(), watcher::Config::default()).default_backoff().boxed();
        let mut fresh = Known::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => fresh = Known::new(),
                Ok(Event::InitApply(meta)) => _ = insert(&mut fresh, meta),
                Ok(Event::InitDone) => {
                    self.known.store(Arc::new(std::mem::take(&mut fresh)));
                    synced.met();
                }
                Ok(Event::Apply(meta)) => self.change(|known| insert(known, meta.clone())),
                Ok(Event::Delete(meta)) => {
                    self.change(|known| meta.metadata.name.as_ref().map(|it| known.remove(it)))
                }
                Err(error) => {
                    tracing::warn!(%error, "namespaces cannot be followed; what is known stays in use")
                }
            }
        }
    }

    /// A namespace as it was lately; asked for when it is not known.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn get(&self, name: &str) -> Result<Arc<Namespace>, Refusal> {
        match self.known.load().get(name) {
            Some(known) => Ok(Arc::clone(known)),
            None => self.live(name).await,
        }
    }

    /// A namespace as it is now.
    ///
    /// # Errors
    /// When it cannot be read, within two seconds.
    pub async fn live(&self, name: &str) -> Result<Arc<Namespace>, Refusal> {
        let later = |why: String| {
            tracing::warn!(namespace = name, error = why, "a namespace cannot be read");
            let message = format!(
                "the namespace {name} cannot be read, so nobody knows whether its pods are injected: {why}"
            );
            Refusal::later("namespace", message)
        };
        let found = tokio::time::timeout(LIVE_TIMEOUT, self.api.get_opt(name)).await;
        let found = found.map_err(|_| later(format!("no answer within {LIVE_TIMEOUT:?}")))?;
        match found.map_err(|error| later(error.to_string()))? {
            // Not kept: the watch alone writes, so that what is old never replaces what is new.
            Some(meta) => Ok(Arc::new(namespace(meta))),
            None => Err(later("there is none of this name".to_owned())),
        }
    }

    fn change<T>(&self, change: impl Fn(&mut Known) -> T) {
        self.known.rcu(|known| {
            let mut known = Known::clone(known);
            change(&mut known);
            known
        });
    }
}

fn insert(known: &mut Known, meta: Meta) -> Option<Arc<Namespace>> {
    let namespace = namespace(meta);
    known.insert(namespace.name.clone(), Arc::new(namespace))
}

fn namespace(meta: Meta) -> Namespace {
    Namespace {
        name: meta.metadata.name.unwrap_or_default(),
        labels: meta.metadata.labels.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use mesh_common::process::Readiness;
    use mesh_test::kube_api::KubeApi;
    use serde_json::{Value, json};

    use super::*;

    fn labelled(name: &str, value: &str) -> Value {
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": { "mesh/inject": value } } })
    }

    async fn until(what: &str, holds: impl Fn() -> bool) {
        // A watch that broke waits for up to a minute before it tries again, and once more before it reads everything.
        for _ in 0..6_000 {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("never: {what}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_watch_tells_is_known() {
        let api = KubeApi::default();
        api.put(labelled("shop", "enabled"));
        let (namespaces, readiness) = (Namespaces::new(api.client()), Readiness::default());
        let following = tokio::spawn(namespaces.clone().follow(readiness.condition("namespaces")));
        let label = |name: &str| namespaces.known.load().get(name)?.labels.get("mesh/inject").cloned();
        until("the list", || readiness.missing().is_empty()).await;
        assert_eq!(label("shop").as_deref(), Some("enabled"));
        api.put(labelled("shop", "disabled"));
        until("a change", || label("shop").as_deref() == Some("disabled")).await;
        api.put(labelled("new", "enabled"));
        until("a new one", || label("new").as_deref() == Some("enabled")).await;
        api.remove("namespaces", "", "new");
        until("a deletion", || label("new").is_none()).await;
        assert_eq!(namespaces.get("new").await.unwrap_err().code, 503);
        // What vanishes while nobody looks is told by the next list; an outage alone changes nothing.
        api.set_unreachable(true);
        api.hang_up();
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(label("shop").as_deref(), Some("disabled"));
        api.remove("namespaces", "", "shop");
        api.forget_history();
        api.set_unreachable(false);
        until("the next list", || label("shop").is_none()).await;
        following.abort();
    }
}
