//! Clusters as one worker uses them: their endpoints at this moment, who is how busy, and pools. An endpoint
//! change never touches a request that is under way.

mod balance;
mod endpoint;

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mesh_common::xds::names::{BLACK_HOLE_CLUSTER, PASSTHROUGH_CLUSTER};
use tokio::time::Instant;

use crate::config::cluster::{Cluster, Discovery, Endpoint, EndpointTls, Endpoints, Health, ServiceLabels};
use crate::config::store::{ByName, LiveCluster};
use crate::connect::UpstreamError;
use crate::connection::Target;
use crate::http::record::SeriesCache;
use crate::telemetry::ResponseFlags;
use crate::worker::Worker;

pub use balance::pick;
pub use endpoint::EndpointState;
pub(crate) use endpoint::InFlight;

/// Connections under mutual TLS are replaced after this time, so that each follows a renewed certificate.
const MAX_AGE: Duration = Duration::from_secs(3600);
/// Addresses of an original-destination cluster that are remembered.
const MAX_DYNAMIC: usize = 1024;

/// The clusters that this worker has used.
#[derive(Default)]
pub(crate) struct Clusters(RefCell<ByName<Rc<ClusterState>>>);

/// One cluster.
pub(crate) struct ClusterState {
    live: Arc<LiveCluster>,
    /// The service, for metrics.
    pub(crate) service: ServiceLabels,
    /// Requests that reached no endpoint, by protocol.
    pub(crate) series: SeriesCache,
    current: RefCell<Current>,
    dynamic: RefCell<HashMap<SocketAddr, Rc<EndpointState>>>,
}

/// Endpoints, as they were when last looked at.
struct Current {
    from: Arc<Endpoints>,
    all: Vec<Rc<EndpointState>>,
    usable: Rc<Usable>,
}

/// Endpoints that a new request may go to.
#[derive(Default)]
pub(crate) struct Usable {
    /// The endpoints.
    pub(crate) endpoints: Vec<Rc<EndpointState>>,
    /// Why there are none, when there is more to say than that.
    pub(crate) refused: Option<String>,
}

/// Where the client wanted to go, for clusters whose endpoint that is.
#[derive(Clone, Copy)]
pub(crate) struct Destination<'a> {
    pub(crate) target: &'a Target,
    pub(crate) app: Option<SocketAddr>,
}

impl Worker {
    /// The cluster of this name, as it is now.
    pub(crate) fn cluster(&self, name: &str) -> Option<Rc<ClusterState>> {
        let snapshot = self.store.snapshot();
        let live = snapshot.clusters.get(name)?;
        let mut clusters = self.clusters.0.borrow_mut();
        let known = clusters.get(name);
        if let Some(known) = known.filter(|known| Arc::ptr_eq(&known.live, live)) {
            return Some(Rc::clone(known));
        }
        let state = Rc::new(ClusterState::new(Arc::clone(live), known.map(Rc::as_ref)));
        if let Some(old) = clusters.insert(name.to_owned(), Rc::clone(&state)) {
            old.close_except(&state);
        }
        Some(state)
    }
}

impl ClusterState {
    fn new(live: Arc<LiveCluster>, old: Option<&Self>) -> Self {
        let keep = old.filter(|old| dials_alike(&old.live.config, &live.config));
        let from = live.endpoints.load_full();
        let current =
            Current::new(from, keep.map(|old| old.current.borrow().all.clone()).unwrap_or_default());
        let dynamic = keep.map(|old| old.dynamic.borrow().clone()).unwrap_or_default();
        Self {
            service: service_of(&live.config),
            series: SeriesCache::default(),
            current: RefCell::new(current),
            dynamic: RefCell::new(dynamic),
            live,
        }
    }

    /// The cluster's configuration.
    pub(crate) fn config(&self) -> &Cluster {
        &self.live.config
    }

    /// The cluster itself, to be held by what outlives a request.
    pub(crate) fn live(&self) -> &Arc<LiveCluster> {
        &self.live
    }

    /// Endpoints that a new request may go to now.
    pub(crate) async fn usable(
        &self,
        worker: &Worker,
        destination: Destination<'_>,
    ) -> Result<Rc<Usable>, UpstreamError> {
        match &self.live.config.discovery {
            Discovery::Eds(_) | Discovery::Static(_) => Ok(self.listed()),
            Discovery::OriginalDestination => match (destination.app, destination.target) {
                (Some(app), _) => Ok(self.addresses(&[app.ip()], app.port())),
                (None, Target::Address(address)) => Ok(self.addresses(&[address.ip()], address.port())),
                (None, Target::Host { host, port }) => self.resolved(worker, host, *port).await,
            },
            Discovery::Dns { host, port } => self.resolved(worker, host, *port).await,
            Discovery::None => Ok(Rc::default()),
        }
    }

    fn listed(&self) -> Rc<Usable> {
        let now = self.live.endpoints.load();
        let mut current = self.current.borrow_mut();
        if !Arc::ptr_eq(&current.from, &now) {
            let old = std::mem::take(&mut current.all);
            *current = Current::new(Arc::clone(&now), old);
        }
        Rc::clone(&current.usable)
    }

    async fn resolved(&self, worker: &Worker, host: &str, port: u16) -> Result<Rc<Usable>, UpstreamError> {
        let ips =
            worker.resolver.resolve(host).await.map_err(|reason| {
                UpstreamError::new(ResponseFlags::NO_HEALTHY_UPSTREAM, reason.to_string())
            })?;
        Ok(self.addresses(&ips, port))
    }

    /// Endpoints that are known by nothing but their address.
    fn addresses(&self, ips: &[IpAddr], port: u16) -> Rc<Usable> {
        let mut dynamic = self.dynamic.borrow_mut();
        if dynamic.len() >= MAX_DYNAMIC {
            dynamic.retain(|_, endpoint| endpoint.in_flight() > 0);
        }
        let endpoints = ips.iter().map(|ip| {
            let address = SocketAddr::new(*ip, port);
            Rc::clone(dynamic.entry(address).or_insert_with(|| Rc::new(EndpointState::new(plain(address)))))
        });
        Rc::new(Usable { endpoints: endpoints.collect(), refused: None })
    }

    fn sweep(&self, now: Instant) {
        self.listed();
        for endpoint in &self.current.borrow().all {
            endpoint.sweep(now, MAX_AGE);
        }
        self.dynamic.borrow_mut().retain(|_, endpoint| {
            endpoint.sweep(now, MAX_AGE);
            !endpoint.is_unused()
        });
    }

    /// Closes the pools of endpoints that `other` has not taken over.
    fn close_except(&self, other: &Self) {
        let kept = other.current.borrow();
        for endpoint in &self.current.borrow().all {
            if !kept.all.iter().any(|kept| Rc::ptr_eq(kept, endpoint)) {
                endpoint.close();
            }
        }
        let kept = other.dynamic.borrow();
        for (address, endpoint) in self.dynamic.borrow().iter() {
            if !kept.contains_key(address) {
                endpoint.close();
            }
        }
    }

    fn close(&self) {
        self.current.borrow().all.iter().for_each(|endpoint| endpoint.close());
        self.dynamic.borrow().values().for_each(|endpoint| endpoint.close());
    }
}

impl Current {
    /// Takes over from `old` what is still there; pools of what is gone are closed.
    fn new(from: Arc<Endpoints>, old: Vec<Rc<EndpointState>>) -> Self {
        let mut old: HashMap<_, _> = old.into_iter().map(|state| (state.key(), state)).collect();
        let mut all = Vec::new();
        // (priority, health) -> states
        let (mut healthy, mut draining) = (HashMap::<u32, Vec<_>>::new(), Vec::new());
        let mut refused = None;
        for (priority, endpoint) in
            from.localities.iter().flat_map(|l| l.endpoints.iter().map(move |e| (l.priority, e)))
        {
            let state = match old.remove(&endpoint::key(endpoint)) {
                Some(state) => state,
                None => Rc::new(EndpointState::new(Arc::clone(endpoint))),
            };
            state.set_weight(endpoint.weight);
            all.push(Rc::clone(&state));
            match (&endpoint.tls, endpoint.health) {
                (EndpointTls::Refused(reason), _) => {
                    refused.get_or_insert_with(|| format!("endpoint {}: {reason}", endpoint.address));
                }
                (_, Health::Healthy) => healthy.entry(priority).or_default().push(state),
                (_, Health::Draining) => draining.push(state),
                (_, Health::Unhealthy) => {}
            }
        }
        old.into_values().for_each(|gone| gone.close());
        let endpoints =
            healthy.into_iter().min_by_key(|(priority, _)| *priority).map_or(draining, |(_, e)| e);
        Self { from, all, usable: Rc::new(Usable { endpoints, refused }) }
    }
}

/// Whether connections made for one configuration serve the other.
fn dials_alike(a: &Cluster, b: &Cluster) -> bool {
    a.tls == b.tls && a.bind == b.bind
}

/// The service that metrics name; the clusters that belong to none have Istio's names.
fn service_of(cluster: &Cluster) -> ServiceLabels {
    let special = [PASSTHROUGH_CLUSTER, BLACK_HOLE_CLUSTER, "InboundPassthroughCluster"];
    if cluster.service.host.is_empty() && special.contains(&cluster.name.as_str()) {
        let (host, name) = (cluster.name.clone(), cluster.name.clone());
        return ServiceLabels { host, name, namespace: String::new() };
    }
    cluster.service.clone()
}

fn plain(address: SocketAddr) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        address,
        tls: EndpointTls::Plaintext,
        health: Health::Healthy,
        weight: 1,
        workload: Arc::default(),
    })
}

/// Upstream connections at rest.
#[cfg(test)]
pub(crate) fn resting(worker: &Worker) -> usize {
    let clusters = worker.clusters.0.borrow();
    let count = |cluster: &Rc<ClusterState>| -> usize {
        cluster.current.borrow().all.iter().map(|endpoint| endpoint.http1.resting()).sum()
    };
    clusters.values().map(count).sum()
}

/// Shrinks pools and drops clusters that are gone.
pub(crate) fn sweep(worker: &Worker, now: Instant) {
    let snapshot = worker.store.snapshot();
    worker.clusters.0.borrow_mut().retain(|name, cluster| {
        let live = snapshot.clusters.get(name);
        if live.is_none() {
            cluster.close();
        }
        live.is_some()
    });
    let clusters: Vec<_> = worker.clusters.0.borrow().values().cloned().collect();
    clusters.iter().for_each(|cluster| cluster.sweep(now));
}
