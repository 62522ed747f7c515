//! The mesh's roots, from the ConfigMap in our own namespace: for our way to mesh-control, and for the pods' first
//! contact. Roots that were good stay until better ones come.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::watch_object;
use kube::{Api, Client};
use mesh_common::process::Condition;
use mesh_common::trust::TrustBundle;
use tokio::sync::watch;

use crate::names::{ROOT_CONFIG_MAP, ROOT_KEY};

/// The roots at this moment.
#[derive(Clone)]
pub struct Roots {
    bundle: Arc<ArcSwapOption<TrustBundle>>,
    present: watch::Sender<bool>,
}

impl Default for Roots {
    fn default() -> Self {
        Self { bundle: Arc::default(), present: watch::Sender::new(false) }
    }
}

impl Roots {
    /// The roots, once there are any.
    pub fn bundle(&self) -> Option<Arc<TrustBundle>> {
        self.bundle.load_full()
    }

    /// Other roots from now on.
    pub fn set(&self, bundle: TrustBundle) {
        self.bundle.store(Some(Arc::new(bundle)));
        self.present.send_replace(true);
    }

    /// Resolves when there are roots.
    pub async fn present(&self) {
        // The sender lives in this very handle: it cannot be gone.
        self.present.subscribe().wait_for(|present| *present).await.ok();
    }

    /// Follows the ConfigMap, for ever. `known` is met once there are roots.
    pub async fn follow(self, client: Client, namespace: String, known: Condition) {
        let api: Api<ConfigMap> = Api::namespaced(client, &namespace);
        let mut changes = watch_object(api, ROOT_CONFIG_MAP).default_backoff().boxed();
        while let Some(change) = changes.next().await {
            match change {
                Ok(Some(map)) => match read(&map) {
                    Ok(bundle) => {
                        if self.bundle().as_deref() != Some(&bundle) {
                            tracing::info!(roots = bundle.roots().len(), "roots of the mesh are in use");
                            self.set(bundle);
                        }
                        known.met();
                    }
                    Err(error) => tracing::error!(%error, name = ROOT_CONFIG_MAP, "the roots cannot be used"),
                },
                Ok(None) => {
                    tracing::warn!(
                        name = ROOT_CONFIG_MAP,
                        "there is no ConfigMap with the roots; mesh-control makes it"
                    );
                }
                Err(error) => tracing::warn!(%error, "the roots cannot be followed; those in use stay"),
            }
        }
    }
}

fn read(map: &ConfigMap) -> Result<TrustBundle, String> {
    let pem = map.data.as_ref().and_then(|data| data.get(ROOT_KEY));
    TrustBundle::from_pem(pem.ok_or(format!("the key {ROOT_KEY} is missing"))?)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mesh_common::process::Readiness;
    use mesh_test::certs::Authority;
    use mesh_test::kube_api::KubeApi;
    use serde_json::{Value, json};

    use super::*;

    fn map(pem: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": ROOT_CONFIG_MAP, "namespace": "mesh-system" }, "data": { ROOT_KEY: pem },
        })
    }

    #[tokio::test(start_paused = true)]
    async fn good_roots_stay_until_better_ones_come() {
        let (api, readiness, roots) = (KubeApi::default(), Readiness::default(), Roots::default());
        let known = readiness.condition("trust bundle");
        let following = tokio::spawn(roots.clone().follow(api.client(), "mesh-system".to_owned(), known));
        let pause = || tokio::time::sleep(Duration::from_secs(60));
        api.put(map("nonsense"));
        pause().await;
        assert!(roots.bundle().is_none() && readiness.missing() == ["trust bundle"]);
        let (first, second) = (Authority::new("first").unwrap(), Authority::new("second").unwrap());
        api.put(map(first.root_pem()));
        tokio::time::timeout(Duration::from_secs(60), roots.present()).await.unwrap();
        let is = |authority: &Authority| {
            roots.bundle().as_deref() == Some(&TrustBundle::from_pem(authority.root_pem()).unwrap())
        };
        assert!(is(&first));
        pause().await;
        assert!(readiness.missing().is_empty());
        api.put(map("nonsense"));
        pause().await;
        assert!(is(&first), "what cannot be used");
        api.remove("configmaps", "mesh-system", ROOT_CONFIG_MAP);
        pause().await;
        assert!(is(&first), "what is gone");
        api.put(map(second.root_pem()));
        pause().await;
        assert!(is(&second));
        following.abort();
    }
}
