//! Metrics of one TCP connection, on either side. The connection never waits for them: the peer's labels are
//! looked up while bytes already flow. A connection is opened once and closed once, whatever happens.

use std::cell::{Cell, OnceCell};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mesh_common::spiffe::SpiffeId;

use super::Dialled;
use super::copy::End;
use crate::config::cluster::WorkloadLabels;
use crate::connection::Direction;
use crate::telemetry::{Reporter, RequestProtocol, ResponseFlags, Security, TcpSeries, Traffic};
use crate::worker::Worker;

/// How long a count waits for the peer's labels.
const PEER_PATIENCE: Duration = Duration::from_secs(1);

/// Bytes so far, and how many of them the metrics know.
#[derive(Debug, Default)]
pub(super) struct Progress {
    received: Cell<u64>,
    sent: Cell<u64>,
    reported: Cell<(u64, u64)>,
    series: OnceCell<Arc<TcpSeries>>,
}

impl Progress {
    pub(super) fn add_received(&self, bytes: u64) {
        self.received.set(self.received.get().wrapping_add(bytes));
    }

    pub(super) fn add_sent(&self, bytes: u64) {
        self.sent.set(self.sent.get().wrapping_add(bytes));
    }

    /// From the client, to the client.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.received.get(), self.sent.get())
    }

    pub(super) fn total(&self) -> u64 {
        self.received.get().wrapping_add(self.sent.get())
    }

    /// Adds what is new to the metrics, once it is known which.
    pub(super) fn report(&self) {
        let Some(series) = self.series.get() else { return };
        let ((received, sent), (old_received, old_sent)) = (self.bytes(), self.reported.get());
        series.received(received.wrapping_sub(old_received));
        series.sent(sent.wrapping_sub(old_sent));
        self.reported.set((received, sent));
    }
}

/// The downstream side of a connection.
#[derive(Debug)]
pub(super) struct Parties {
    pub(super) direction: Direction,
    pub(super) peer: SocketAddr,
    pub(super) identity: Option<SpiffeId>,
    pub(super) security: Security,
}

/// Counts one connection.
pub(super) struct Meter {
    worker: Rc<Worker>,
    /// The source of an inbound connection is filled in when it is known.
    traffic: Traffic,
    parties: Parties,
    progress: Progress,
}

impl Meter {
    pub(super) fn new(worker: &Rc<Worker>, parties: Parties, dialled: &Dialled) -> Self {
        let (service, far) = match &dialled.result {
            Ok(upstream) => (upstream.service.clone(), Arc::clone(&upstream.destination)),
            Err(_) => {
                let service = worker.cluster(&dialled.cluster).map(|cluster| cluster.service.clone());
                (service.unwrap_or_default(), Arc::default())
            }
        };
        let (reporter, source, destination, security) = match parties.direction {
            // As with Istio, the server is the one who tells.
            Direction::Outbound => (Reporter::Source, worker.me.load_full(), far, Security::Unknown),
            Direction::Inbound => {
                (Reporter::Destination, Arc::default(), worker.me.load_full(), parties.security)
            }
        };
        let protocol = RequestProtocol::Tcp;
        let traffic = Traffic { reporter, source, destination, service, security, protocol };
        Self { worker: Rc::clone(worker), traffic, parties, progress: Progress::default() }
    }

    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Counts a connection that lasts as long as `copy`.
    pub(super) async fn run(&self, copy: impl Future<Output = End>) -> End {
        let (mut copy, mut open) = (pin!(copy), pin!(self.open()));
        let end = tokio::select! {
            biased;
            () = &mut open => copy.await,
            end = &mut copy => {
                open.await;
                end
            }
        };
        self.close(end.flags());
        end
    }

    /// Counts a connection for which there was no upstream.
    pub(super) async fn failed(&self, flags: ResponseFlags) {
        self.open().await;
        self.close(flags);
    }

    async fn open(&self) {
        let traffic = match self.parties.direction {
            Direction::Outbound => self.traffic.clone(),
            Direction::Inbound => Traffic { source: self.source().await, ..self.traffic.clone() },
        };
        let series = self.worker.telemetry.tcp(&traffic);
        self.progress.series.get_or_init(|| series).opened(ResponseFlags::NONE);
    }

    fn close(&self, flags: ResponseFlags) {
        self.progress.report();
        if let Some(series) = self.progress.series.get() {
            series.closed(flags);
        }
    }

    /// Who dialled: the workload at the peer's address if it has the certificate's identity, else what the
    /// certificate says.
    async fn source(&self) -> Arc<WorkloadLabels> {
        let Some(identity) = &self.parties.identity else { return Arc::default() };
        let ip = self.parties.peer.ip().to_canonical();
        let known = tokio::time::timeout(PEER_PATIENCE, self.worker.store.workload(ip)).await;
        let workload = known.ok().and_then(Result::ok).and_then(|known| known.workload.clone());
        let labels = workload.filter(|workload| workload.identity.as_ref() == Some(identity));
        let mut labels = labels.map_or_else(
            || Arc::new(WorkloadLabels { namespace: identity.namespace().to_owned(), ..Default::default() }),
            |workload| Arc::clone(&workload.labels),
        );
        if labels.principal != identity.as_str() {
            Arc::make_mut(&mut labels).principal = identity.as_str().to_owned();
        }
        labels
    }
}
