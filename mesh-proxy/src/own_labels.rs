//! How metrics name this pod. The control plane knows it best; until it says so, what the flags tell is used.
//! Labels of another identity must never be taken for ours.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use mesh_common::spiffe::SpiffeId;

use crate::config::cluster::WorkloadLabels;
use crate::config::store::Store;
use crate::options::RunOptions;

/// The labels, live; read by the data path with one pointer load.
pub type OwnLabels = Arc<ArcSwap<WorkloadLabels>>;

/// How often they are compared once they are known, and asked for while they are not.
const AGAIN: Duration = Duration::from_secs(15);
const RETRY: Duration = Duration::from_secs(1);

/// What the flags tell.
pub fn from_flags(options: &RunOptions, id: &SpiffeId) -> WorkloadLabels {
    let workload = if options.workload.is_empty() { &options.pod } else { &options.workload };
    WorkloadLabels {
        workload: workload.clone(),
        namespace: options.namespace.clone(),
        canonical_service: options.canonical_name.clone(),
        canonical_revision: options.canonical_revision.clone(),
        app: options.app.clone(),
        version: options.app_version.clone(),
        cluster: options.cluster.clone(),
        principal: id.as_str().to_owned(),
    }
}

/// Keeps them as the control plane says, for ever. The caller owns the task.
pub async fn keep(me: OwnLabels, store: Arc<Store>, own: IpAddr, id: SpiffeId) {
    loop {
        let found = store.workload(own).await.ok().and_then(|found| found.workload.clone());
        let wait = match found.filter(|found| found.identity.as_ref() == Some(&id)) {
            Some(found) => {
                if *me.load_full() != *found.labels {
                    me.store(Arc::clone(&found.labels));
                }
                AGAIN
            }
            None => RETRY,
        };
        tokio::time::sleep(wait).await;
    }
}
