//! The control plane's client: one incremental ADS stream, on which everything is asked for by name when it
//! is first needed. Only this module knows protos. It must never publish what is not complete, and never
//! take back what is in force because the control plane is away.

pub mod backoff;
pub mod connect;
pub mod decode;
pub mod delta;
pub mod graph;
pub mod keep;
pub mod node;
mod state;
pub mod status;
mod stream;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mesh_common::process::Condition;
use mesh_common::trust::TrustBundle;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

pub use connect::{ControlAddress, ControlTls, Dial, dial_tls};
pub use graph::Limits;
pub use node::{FEATURES, NodeIdentity};
pub use status::XdsStatus;

use crate::config::store::{Demand, Store};
use backoff::Backoff;
use keep::Keeper;
use state::State;
use stream::End;

/// A stream that lived this long and was of use makes the next failure a first one.
const PROVEN_AFTER: Duration = Duration::from_secs(5);

/// What the client needs from the rest of the proxy.
pub struct XdsClient {
    /// Who the proxy is.
    pub node: NodeIdentity,
    /// How the control plane is dialled; see [`dial_tls`].
    pub dial: Dial,
    /// Whether there is a workload certificate. When there is one at last, a stream that was opened with the
    /// token is opened again.
    pub certificate: watch::Receiver<bool>,
    /// Told of each new trust bundle: it alone counts.
    pub on_bundle: Box<dyn Fn(TrustBundle) + Send + Sync>,
    /// Told of the trust bundle of an earlier run: it counts beside the one from the command line, because either
    /// may be the older one, until the control plane has said which it is.
    pub on_kept_bundle: Box<dyn Fn(TrustBundle) + Send + Sync>,
    /// Where the last configuration is kept for the next start, if anywhere.
    pub state_dir: Option<PathBuf>,
    /// Met when the inbound listener is in force.
    pub inbound_ready: Condition,
    /// Met when the outbound listener is in force.
    pub outbound_ready: Condition,
    /// Bounds of look-ups.
    pub limits: Limits,
    /// Where the client says how it is.
    pub status: XdsStatus,
}

/// Runs until the store and its last handle are gone. The caller owns the task and may abort it at any time:
/// what is in force stays in force. What an earlier run has kept is in force before this first waits.
pub async fn run(client: XdsClient, store: Arc<Store>, demands: mpsc::Receiver<Demand>) {
    let XdsClient { node, dial, certificate, on_bundle, on_kept_bundle, .. } = client;
    let hooks = state::Hooks {
        on_bundle,
        on_kept_bundle,
        inbound_ready: client.inbound_ready,
        outbound_ready: client.outbound_ready,
    };
    let keeper = client.state_dir.as_deref().map(|dir| Keeper::new(dir, node.node()));
    let store = Arc::downgrade(&store);
    let mut state = State::new(&node, client.limits, hooks, client.status.clone(), store, keeper.clone());
    if let Some(keeper) = &keeper {
        state.restore(keeper.load());
    }
    let keep = async move {
        match keeper {
            Some(keeper) => keeper.run().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = follow(state, dial, certificate, demands, client.status) => {}
        () = keep => {}
    }
}

/// Stream after stream.
async fn follow(
    mut state: State,
    dial: Dial,
    mut certificate: watch::Receiver<bool>,
    mut demands: mpsc::Receiver<Demand>,
    status: XdsStatus,
) {
    let mut backoff = Backoff::default();
    loop {
        let started = Instant::now();
        let answered = state.answered();
        let end = stream::run(&mut state, &dial, &mut certificate, &mut demands).await;
        state.disconnected();
        let reason = match end {
            End::StoreGone => return,
            End::Certificate => {
                tracing::info!("opening the configuration stream again with the workload certificate");
                status.closed("it is opened again with the workload certificate".to_owned());
                status.connecting_again();
                continue;
            }
            End::Failed(reason) => reason,
        };
        if state.answered() > answered && started.elapsed() >= PROVEN_AFTER {
            backoff.reset();
        }
        let wait = backoff.next_wait(rand::random());
        tracing::warn!(%reason, ?wait, "no configuration stream; what is in force stays");
        status.closed(reason);
        if stream::wait(&mut state, wait, &mut demands).await.is_break() {
            return;
        }
        status.connecting_again();
    }
}
