//! The API server as a source of events. It must never take an outage for a deletion: what is not known to be gone
//! stays.

mod backoff;
mod connect;
mod failure;
mod follow;
mod read;
mod resource;
mod take;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use futures_util::future::join_all;
use mesh_common::process::{Condition, DrainGuard, Readiness};
use tokio::sync::mpsc;

pub use connect::{Client, ConnectError, connect};

use self::follow::Follower;
use self::resource::Resource;
use self::take::Taker;
use super::health::WatchHealth;
use crate::api::Kind;
use crate::model::store::SharedModel;
use crate::serve::metrics::Metrics;

/// Events on their way into the model; a watch waits when it is full.
const QUEUE: usize = 1024;

/// What is needed to follow an API server.
pub struct Source {
    /// The API server.
    pub client: Client,
    /// Our own namespace, where the mesh's settings are.
    pub namespace: String,
    /// Where everything goes.
    pub model: SharedModel,
    /// How the watches are.
    pub health: WatchHealth,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

impl Source {
    /// Watches every kind, and says that the model is synced once each was read completely once. Returns at the drain.
    pub async fn follow(self, readiness: &Readiness, mut guard: DrainGuard) {
        let conditions = Kind::ALL.map(|kind| (kind, readiness.condition(condition(kind))));
        let (sender, events) = mpsc::channel(QUEUE);
        let conditions: Vec<(Kind, Arc<Condition>)> =
            conditions.into_iter().map(|(kind, condition)| (kind, Arc::new(condition))).collect();
        let follower = |(kind, condition): &(Kind, Arc<Condition>)| {
            let follower = Follower {
                client: self.client.clone(),
                resource: Resource::of(*kind, &self.namespace),
                events: sender.clone(),
                health: self.health.clone(),
                metrics: Arc::clone(&self.metrics),
                condition: Arc::clone(condition),
            };
            Box::pin(follower.run())
        };
        let watches = join_all(conditions.iter().map(follower));
        drop(sender);
        let taker = Taker::new(self.model, &self.namespace, conditions);
        tokio::select! {
            _ = watches => {}
            () = Box::pin(taker.run(events)) => {}
            () = guard.draining() => {}
        }
    }
}

/// What `/readyz` calls it.
fn condition(kind: Kind) -> &'static str {
    match kind {
        Kind::MeshConfig => "the watch of MeshConfig",
        Kind::Namespace => "the watch of Namespace",
        Kind::Node => "the watch of Node",
        Kind::ServiceCidr => "the watch of ServiceCIDR",
        Kind::Pod => "the watch of Pod",
        Kind::Service => "the watch of Service",
        Kind::EndpointSlice => "the watch of EndpointSlice",
        Kind::ReferenceGrant => "the watch of ReferenceGrant",
        Kind::HttpRoute => "the watch of HTTPRoute",
        Kind::PeerAuthentication => "the watch of PeerAuthentication",
    }
}
