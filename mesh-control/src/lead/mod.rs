//! What only one replica does: writes status, trust bundles and the webhook's caBundle to the API server. Whether this
//! replica leads must never matter to serving: configuration and certificates come from each of them.

mod bundle;
mod desk;
mod election;
mod follow;
mod lease;
mod metrics;
mod owner;
mod queue;
mod status;
mod view;
mod webhook;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use mesh_common::process::DrainGuard;
use tokio::sync::watch;
use tokio::time::Instant;

pub use lease::LEASE;
pub use metrics::LeadMetrics;
pub use view::View;

use self::bundle::BundleDesk;
use self::desk::work;
use self::lease::Elector;
use self::owner::Owner;
use self::status::{POLICIES, ROUTES, StatusDesk, Wanted};
use self::webhook::WebhookDesk;
use crate::model::store::SharedModel;

/// What the leader's work needs.
pub struct Lead {
    /// The way to the API server.
    pub client: kube::Client,
    /// Our own namespace.
    pub namespace: String,
    /// Our own pod: who we are in the Lease.
    pub pod: String,
    /// Says what became of objects.
    pub model: SharedModel,
    /// The mesh's roots, PEM.
    pub bundle: Arc<str>,
    /// Counts.
    pub metrics: LeadMetrics,
    /// Shows.
    pub view: View,
}

impl Lead {
    /// Takes part in the election and writes while it leads, until the process drains; then gives the lead back.
    pub async fn run(self, mut guard: DrainGuard) {
        let owner = Owner::default();
        let (mut elector, leads_until) = Elector::new(
            self.client.clone(),
            &self.namespace,
            &self.pod,
            owner.clone(),
            self.metrics.clone(),
            self.view.clone(),
        );
        tokio::select! {
            () = elector.run() => {}
            () = Box::pin(self.write_while_leading(leads_until, &owner)) => {}
            () = guard.draining() => {}
        }
        // No write is under way any more.
        elector.release().await;
    }

    async fn write_while_leading(&self, mut leads_until: watch::Receiver<Option<Instant>>, owner: &Owner) {
        loop {
            let leads = |until: &Option<Instant>| until.is_some_and(|until| Instant::now() < until);
            if leads_until.wait_for(leads).await.is_err() {
                return;
            }
            tokio::select! {
                () = Box::pin(self.write(owner)) => {}
                () = lost(leads_until.clone()) => {}
            }
            self.view.trays(Vec::new());
        }
    }

    /// Writes until it is dropped.
    async fn write(&self, owner: &Owner) {
        let wanted = Arc::new(Wanted::default());
        let status = |kind| StatusDesk::new(self.client.clone(), kind, Arc::clone(&wanted));
        let (routes, policies) = (status(ROUTES), status(POLICIES));
        let bundles = BundleDesk::new(self.client.clone(), Arc::clone(&self.bundle), owner.clone());
        let webhook = WebhookDesk::new(self.client.clone(), Arc::clone(&self.bundle), owner.clone());
        self.view.trays(vec![
            ("HTTPRoute", routes.tray.clone()),
            ("PeerAuthentication", policies.tray.clone()),
            ("ConfigMap", bundles.tray.clone()),
            ("MutatingWebhookConfiguration", webhook.tray.clone()),
        ]);
        let metrics = &self.metrics;
        tokio::join!(
            wanted.follow(&self.model, [&routes, &policies]),
            routes.follow(),
            policies.follow(),
            bundles.follow_namespaces(),
            bundles.follow_maps(),
            webhook.follow(|| bundles.look()),
            work(&routes, &routes.tray, metrics),
            work(&policies, &policies.tray, metrics),
            work(&bundles, &bundles.tray, metrics),
            work(&webhook, &webhook.tray, metrics),
        );
    }
}

/// Resolves once the time until which we lead is over, whatever the renewals do.
async fn lost(mut leads_until: watch::Receiver<Option<Instant>>) {
    loop {
        let until = *leads_until.borrow_and_update();
        let Some(until) = until.filter(|until| Instant::now() < *until) else { return };
        tokio::select! {
            () = tokio::time::sleep_until(until) => {}
            changed = leads_until.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}
