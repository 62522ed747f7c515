//! The caBundle of the injector's webhooks: the mesh's roots, always. Nothing else of the configuration is touched,
//! and no other webhook.

use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::desk::{REQUEST, Settle, Settled, Tray};
use super::follow::follow;
use super::owner::Owner;
use super::queue::Name;
use crate::fault::{Asked, Fault, ask};

/// The configuration.
pub(super) const WEBHOOK: &str = "mesh-injector";

/// The configuration as it was seen last.
#[derive(Debug, Clone, Default)]
struct Observed {
    version: String,
    /// Webhooks whose bundle is another.
    stale: Vec<String>,
}

/// Keeps the bundle.
pub(super) struct WebhookDesk {
    api: Api<MutatingWebhookConfiguration>,
    bundle: Arc<str>,
    owner: Owner,
    observed: Mutex<Option<Observed>>,
    pub(super) tray: Tray,
}

impl WebhookDesk {
    pub(super) fn new(client: kube::Client, bundle: Arc<str>, owner: Owner) -> Self {
        let observed = Mutex::default();
        Self { api: Api::all(client), bundle, owner, observed, tray: Tray::default() }
    }

    /// Follows the configuration; `news` is called when its owner is another.
    pub(super) async fn follow(&self, news: impl Fn() + Send + Sync) {
        let config = watcher::Config::default().fields(&format!("metadata.name={WEBHOOK}"));
        let mut found = None;
        follow("MutatingWebhookConfiguration mesh-injector", watcher(self.api.clone(), config), |event| {
            match event {
                Event::Init => {
                    found = None;
                    return;
                }
                Event::InitApply(object) => {
                    found = Some(object);
                    return;
                }
                Event::InitDone => {}
                Event::Apply(object) => found = Some(object),
                Event::Delete(_) => found = None,
            }
            if self.take(found.take()) {
                news();
            }
        })
        .await;
    }

    fn take(&self, object: Option<MutatingWebhookConfiguration>) -> bool {
        let uid = object.as_ref().and_then(|object| object.metadata.uid.clone());
        let known = object.map(|object| self.observe(object));
        *self.observed.lock().unwrap_or_else(PoisonError::into_inner) = known;
        self.tray.changed(self.names());
        self.owner.set(uid, Instant::now())
    }

    fn observe(&self, object: MutatingWebhookConfiguration) -> Observed {
        let webhooks = object.webhooks.unwrap_or_default();
        let is_stale = |bundle: Option<&[u8]>| bundle != Some(self.bundle.as_bytes());
        let stale = webhooks
            .into_iter()
            .filter(|webhook| is_stale(webhook.client_config.ca_bundle.as_ref().map(|it| it.0.as_slice())))
            .map(|webhook| webhook.name);
        Observed { version: object.metadata.resource_version.unwrap_or_default(), stale: stale.collect() }
    }
}

impl Settle for WebhookDesk {
    fn kind(&self) -> &'static str {
        "MutatingWebhookConfiguration"
    }

    async fn settle(&self, _: &Name) -> Result<Settled, Fault> {
        let observed = self.observed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(Observed { version, stale }) = observed.filter(|observed| !observed.stale.is_empty()) else {
            return Ok(Settled::Same);
        };
        let bundle = base64::engine::general_purpose::STANDARD.encode(self.bundle.as_bytes());
        let webhook = |name: &String| json!({ "name": name, "clientConfig": { "caBundle": bundle } });
        let patch = json!({
            "metadata": { "resourceVersion": version },
            "webhooks": stale.iter().map(webhook).collect::<Value>(),
        });
        let asked = Asked {
            verb: "patch",
            group: "admissionregistration.k8s.io",
            resource: "mutatingwebhookconfigurations",
            namespace: "",
            name: WEBHOOK,
        };
        let (params, patch) = (PatchParams::default(), Patch::Strategic(&patch));
        match ask(asked, REQUEST, self.api.patch(WEBHOOK, &params, &patch)).await {
            Ok(patched) => {
                // The watch will say the same, later.
                let observed = self.observe(patched);
                *self.observed.lock().unwrap_or_else(PoisonError::into_inner) = Some(observed);
                Ok(Settled::Updated)
            }
            // The watch tells what it is now, and that it is gone.
            Err(Fault::Conflict) => Ok(Settled::Later),
            Err(Fault::NotFound(_)) => Ok(Settled::Same),
            Err(fault) => Err(fault),
        }
    }

    fn names(&self) -> Vec<Name> {
        vec![Name { namespace: String::new(), name: WEBHOOK.to_owned() }]
    }
}
