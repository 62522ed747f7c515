//! What a data worker's connections share: the handles that they need and the upstream side with its pools.
//! Single-threaded, held as `Rc<Worker>`; it must never hold a lock that another thread takes.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mesh_common::process::DrainWatch;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cluster::Clusters;
use crate::config::store::Store;
use crate::connect::dns::Resolver;
use crate::connect::own::OwnAddresses;
use crate::connect::{UpstreamError, UpstreamTcp};
use crate::connection::Target;
use crate::http::Connections;
use crate::own_labels::OwnLabels;
use crate::telemetry::Telemetry;
use crate::tls::TlsContext;

/// What a worker is made of; each part is cheap to clone and shared with the other workers.
#[derive(Clone)]
pub struct WorkerParts {
    /// What the control plane decided.
    pub store: Arc<Store>,
    /// Own certificate and trust bundle, live.
    pub tls: TlsContext,
    /// Metrics and access log.
    pub telemetry: Telemetry,
    /// The process's drain. The listener holds a guard for each connection; the worker itself holds nothing up.
    pub drain: DrainWatch,
    /// This pod, as metrics name it.
    pub me: OwnLabels,
    /// Standalone: the address to dial loopback endpoints from, so that the peer can look it up.
    pub source_ip: Option<IpAddr>,
    /// Where the proxy itself must never dial.
    pub own: OwnAddresses,
}

/// One data worker.
pub struct Worker {
    /// What the control plane decided.
    pub store: Arc<Store>,
    /// Own certificate and trust bundle, live.
    pub tls: TlsContext,
    /// Metrics and access log.
    pub telemetry: Telemetry,
    /// The process's drain. The listener holds a guard for each connection; the worker itself holds nothing up.
    pub drain: DrainWatch,
    /// This pod, as metrics name it.
    pub me: OwnLabels,
    /// Standalone: the address to dial loopback endpoints from.
    pub source_ip: Option<IpAddr>,
    /// Where the proxy itself must never dial.
    pub own: OwnAddresses,
    /// Tells connections that another inbound listener is in force.
    pub(crate) inbound_changed: Notify,
    /// Clusters with their endpoints and pools, as this worker uses them.
    pub(crate) clusters: Clusters,
    /// Names to addresses.
    pub(crate) resolver: Resolver,
    /// Downstream HTTP connections, for time limits and drain.
    pub(crate) connections: Connections,
}

impl Worker {
    /// Makes a worker. Call it inside the worker's `LocalSet` (or local runtime): it starts the task that
    /// shrinks the pools, which ends with the worker.
    pub fn new(parts: WorkerParts) -> Rc<Self> {
        let WorkerParts { store, tls, telemetry, drain, me, source_ip, own } = parts;
        let worker = Rc::new(Self {
            store,
            tls,
            telemetry,
            drain,
            me,
            source_ip,
            own,
            inbound_changed: Notify::new(),
            clusters: Clusters::default(),
            resolver: Resolver::default(),
            connections: Connections::default(),
        });
        spawn_watch(&worker);
        worker
    }

    /// Opens a connection for opaque TCP to an endpoint of `cluster`. `target` and `app` say where the client
    /// wanted to go, for clusters whose endpoint is the original destination.
    ///
    /// # Errors
    /// When the cluster is unknown, has no endpoint that may be dialled, or none of up to three answers.
    pub async fn connect_tcp(
        self: &Rc<Self>,
        cluster: &str,
        target: &Target,
        app: Option<SocketAddr>,
    ) -> Result<UpstreamTcp, UpstreamError> {
        crate::connect::tcp::connect(self, cluster, target, app).await
    }
}

/// How often time limits are looked at.
const WATCH: Duration = Duration::from_millis(500);
/// How many of those pass before pools are shrunk.
const SWEEP_EVERY: u32 = 10;

/// Time limits of connections, drain, pools that shrink: one timer for all. Ends with the worker, which it does
/// not keep alive.
fn spawn_watch(worker: &Rc<Worker>) {
    let worker = Rc::downgrade(worker);
    tokio::task::spawn_local(async move {
        let mut known = None;
        for turn in 1_u32.. {
            tokio::time::sleep(WATCH).await;
            let Some(worker) = worker.upgrade() else { return };
            let inbound = worker.store.snapshot().inbound.clone();
            if inbound.as_ref().map(Arc::as_ptr) != known.as_ref().map(Arc::as_ptr) {
                known.clone_from(&inbound);
                worker.inbound_changed.notify_waiters();
            }
            worker.connections.watch(worker.drain.phase(), inbound.as_ref(), Instant::now());
            if turn % SWEEP_EVERY == 0 {
                crate::cluster::sweep(&worker, Instant::now());
            }
        }
    });
}
