//! What the requests of one downstream connection share: who the peer is, when it was last active, whether it is
//! to close. It never waits for the control plane while a request does.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use http::HeaderValue;
use mesh_common::process::{DrainGuard, Phase};
use mesh_common::spiffe::SpiffeId;
use tokio::time::Instant;

use super::downstream::Flow;
use super::record::Place;
use super::{Scope, headers};
use crate::cluster::ClusterState;
use crate::config::cluster::{ServiceLabels, WorkloadLabels};
use crate::config::listener::{HttpManager, Listener, NetworkFilter};
use crate::config::store::LookedUpWorkload;
use crate::connection::{Connection, Direction, Io, REST, Target};
use crate::telemetry::{HttpSeries, Outcome, Reporter, RequestProtocol, Security, Traffic};
use crate::worker::Worker;

/// How long a count waits for the peer's name.
const PEER_WAIT: Duration = Duration::from_secs(1);
/// While draining, a connection at rest is kept for this long: a request may be on its way.
const DRAIN_GRACE: Duration = Duration::from_secs(5);
/// Without an HTTP connection manager (forward proxy), as Envoy's defaults.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(60);
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// One downstream connection.
pub(crate) struct Conn {
    /// Keeps the process from being done while the connection, or an upgrade of it, lives.
    _drain: Option<DrainGuard>,
    pub(crate) worker: Rc<Worker>,
    pub(crate) direction: Direction,
    pub(crate) peer: SocketAddr,
    pub(crate) own: Option<SocketAddr>,
    pub(crate) target: Target,
    pub(crate) app: Option<SocketAddr>,
    pub(crate) scope: Scope,
    /// What `x-forwarded-client-cert` says.
    pub(crate) client_cert: Option<HeaderValue>,
    pub(crate) activity: Activity,
    identity: Option<SpiffeId>,
    security: Security,
    source: RefCell<Source>,
    series: RefCell<Vec<Cached>>,
    order: Cell<Order>,
    rest: Cell<Rest>,
    waker: RefCell<Option<Waker>>,
}

/// Who the peer is, for metrics.
enum Source {
    Known(Arc<WorkloadLabels>),
    /// Being looked up; what is counted meanwhile.
    Asked(Vec<(Place, RequestProtocol, Outcome)>),
}

struct Cached {
    /// This pod's labels, as they were then.
    me: Arc<WorkloadLabels>,
    cluster: Rc<ClusterState>,
    protocol: RequestProtocol,
    series: Arc<HttpSeries>,
}

/// What the worker's watcher wants of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Order {
    /// Go on.
    #[default]
    Serve,
    /// Answer the next request with `connection: close`; HTTP/2 says goodbye.
    Drain,
    /// Finish what is under way, then close.
    Close,
    /// Close at once.
    Abort,
}

/// Whether a connection rests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Rest {
    /// It cannot.
    #[default]
    No,
    /// It would if it were told to.
    Could,
    /// It is told to.
    Asked,
    /// It does.
    Rests,
}

/// When a connection was last active.
pub(crate) struct Activity {
    requests: Cell<u32>,
    /// No request since then.
    idle_since: Cell<Instant>,
    flow: Arc<Flow>,
    born: Instant,
}

impl Activity {
    fn new(flow: Arc<Flow>) -> Self {
        let now = Instant::now();
        Self { requests: Cell::new(0), idle_since: Cell::new(now), flow, born: now }
    }

    pub(crate) fn begin(&self) {
        self.requests.set(self.requests.get() + 1);
        self.flow.head_ended();
    }

    pub(crate) fn end(&self, now: Instant) {
        self.requests.set(self.requests.get().saturating_sub(1));
        if self.requests.get() == 0 {
            self.idle_since.set(now);
            self.flow.head_ended();
        }
    }

    /// Whether there is no request, not even the beginning of one.
    fn is_idle(&self) -> bool {
        self.requests.get() == 0 && self.flow.head_since().is_none()
    }

    /// What the times say should happen.
    fn order(&self, now: Instant, manager: Option<&HttpManager>) -> Order {
        let oldest = manager.and_then(|manager| manager.max_connection_duration);
        let is_old = oldest.is_some_and(|oldest| now.duration_since(self.born) >= oldest);
        if self.requests.get() > 0 {
            return if is_old { Order::Drain } else { Order::Serve };
        }
        let (head, idle) = manager.map_or((HEADERS_TIMEOUT, Some(IDLE_TIMEOUT)), |manager| {
            (manager.request_headers_timeout, manager.idle_timeout)
        });
        let age = now.duration_since(self.born).as_millis() as u64;
        let head_late = self.flow.head_since().is_some_and(|since| age > since + head.as_millis() as u64);
        if head_late && !head.is_zero() {
            return Order::Abort;
        }
        match idle {
            _ if is_old => Order::Close,
            Some(idle) if now.duration_since(self.idle_since.get()) >= idle => Order::Close,
            _ => Order::Serve,
        }
    }
}

impl Conn {
    /// Takes a connection apart: what its requests share, and its bytes.
    pub(super) fn new(
        worker: Rc<Worker>,
        connection: Connection,
        scope: Scope,
        flow: Arc<Flow>,
    ) -> (Rc<Self>, Io) {
        let Connection { io, direction, peer, target, app, identity, security } = connection;
        let client_cert =
            identity.as_ref().and_then(|id| headers::client_cert(&worker.me.load().principal, id.as_str()));
        let conn = Rc::new(Self {
            direction,
            peer,
            own: io.local_addr(),
            target,
            app,
            scope,
            client_cert,
            activity: Activity::new(flow),
            security,
            source: RefCell::new(Source::Asked(Vec::new())),
            identity,
            series: RefCell::default(),
            order: Cell::default(),
            rest: Cell::default(),
            waker: RefCell::default(),
            _drain: worker.drain.guard(),
            worker,
        });
        if conn.direction == Direction::Inbound {
            conn.find_source();
        }
        conn.worker.connections.add(&conn);
        (conn, io)
    }

    /// The connection manager, unless each request finds its own.
    pub(super) fn manager(&self) -> Option<&HttpManager> {
        match &self.scope {
            Scope::Chain { chain, .. } => match &chain.filter {
                NetworkFilter::Http(manager) => Some(manager),
                NetworkFilter::Tcp(_) | NetworkFilter::OnDemand => None,
            },
            Scope::Forward => None,
        }
    }

    /// Whether the client is another sidecar that has proven who it is: it knows what to make of
    /// [`headers::UNPROCESSED`].
    pub(super) fn is_from_mesh(&self) -> bool {
        self.direction == Direction::Inbound && self.identity.is_some()
    }

    /// Whether responses must end the connection.
    pub(super) fn is_draining(&self) -> bool {
        self.order.get() >= Order::Drain
    }

    /// What the watcher wants; remembers whom to wake when that changes.
    pub(super) fn order(&self, waker: &Waker) -> Order {
        let mut known = self.waker.borrow_mut();
        if !known.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *known = Some(waker.clone());
        }
        self.order.get()
    }

    /// From now on the connection could rest if it had nothing to do.
    pub(super) fn may_rest(&self) {
        self.rest.set(Rest::Could);
    }

    /// It rests.
    pub(super) fn rests(&self) {
        self.rest.set(Rest::Rests);
    }

    /// Whether it is to rest now; told once, and only while it has nothing to do.
    pub(super) fn is_to_rest(&self) -> bool {
        let asked = self.rest.get() == Rest::Asked;
        if asked {
            self.rest.set(Rest::Could);
        }
        asked && self.activity.is_idle()
    }

    fn ask_to_rest(&self, now: Instant) {
        let long = now.duration_since(self.activity.idle_since.get()) >= REST;
        if self.rest.get() == Rest::Could && self.activity.is_idle() && long {
            self.rest.set(Rest::Asked);
            self.wake();
        }
    }

    fn raise(&self, order: Order) {
        if order > self.order.get() {
            self.order.set(order);
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    fn find_source(self: &Rc<Self>) {
        let Some(identity) = self.identity.clone() else {
            *self.source.borrow_mut() = Source::Known(Arc::default());
            return;
        };
        let ip: IpAddr = self.peer.ip();
        if let Some(known) = self.worker.store.snapshot().workloads.get(&ip) {
            known.used.touch(self.worker.store.now());
            *self.source.borrow_mut() = Source::Known(labels(&identity, Some(known)));
            return;
        }
        let conn = Rc::clone(self);
        // Ends within the time limit; holds the connection, and with it the worker and its drain guard.
        tokio::task::spawn_local(async move {
            let asked = tokio::time::timeout(PEER_WAIT, conn.worker.store.workload(ip)).await;
            let found = asked.ok().and_then(Result::ok);
            conn.source_found(labels(&identity, found.as_deref()));
        });
    }

    fn source_found(&self, labels: Arc<WorkloadLabels>) {
        let before = self.source.replace(Source::Known(labels));
        if let Source::Asked(waiting) = before {
            for (place, protocol, outcome) in waiting {
                self.count_inbound(place, protocol, outcome);
            }
        }
    }

    /// Counts a request of an inbound connection, once it is known who the peer is.
    pub(super) fn count_inbound(&self, place: Place, protocol: RequestProtocol, outcome: Outcome) {
        let source = match &mut *self.source.borrow_mut() {
            Source::Known(source) => Arc::clone(source),
            Source::Asked(waiting) => {
                waiting.push((place, protocol, outcome));
                return;
            }
        };
        match place {
            Place::Nowhere | Place::Routes(_) => {
                self.inbound(&source, &place.service(), protocol).record(&outcome);
            }
            Place::Cluster(cluster) => {
                let me = self.worker.me.load();
                let mut cache = self.series.borrow_mut();
                let current = |c: &Cached| Rc::ptr_eq(&c.cluster, &cluster) && Arc::ptr_eq(&c.me, &me);
                let known = cache.iter().position(|c| c.protocol == protocol && current(c));
                let at = known.unwrap_or_else(|| {
                    // Another cluster, or other labels, only when configuration has changed.
                    cache.retain(current);
                    let series = self.inbound(&source, &cluster.service, protocol);
                    let (me, cluster) = (Arc::clone(&me), Rc::clone(&cluster));
                    cache.push(Cached { me, cluster, protocol, series });
                    cache.len() - 1
                });
                cache[at].series.record(&outcome);
            }
        }
    }

    fn inbound(
        &self,
        source: &Arc<WorkloadLabels>,
        service: &ServiceLabels,
        protocol: RequestProtocol,
    ) -> Arc<HttpSeries> {
        self.worker.telemetry.http(&Traffic {
            reporter: Reporter::Destination,
            source: Arc::clone(source),
            destination: self.worker.me.load_full(),
            service: service.clone(),
            security: self.security,
            protocol,
        })
    }
}

/// The peer's labels: what the control plane says of its address, if that is who the certificate says.
fn labels(identity: &SpiffeId, found: Option<&LookedUpWorkload>) -> Arc<WorkloadLabels> {
    let workload = found.and_then(|found| found.workload.as_ref());
    match workload.filter(|workload| workload.identity.as_ref() == Some(identity)) {
        Some(workload) if workload.labels.principal == identity.as_str() => Arc::clone(&workload.labels),
        Some(workload) => {
            let labels = WorkloadLabels::clone(&workload.labels);
            Arc::new(WorkloadLabels { principal: identity.to_string(), ..labels })
        }
        None => Arc::new(WorkloadLabels {
            namespace: identity.namespace().to_owned(),
            principal: identity.to_string(),
            ..WorkloadLabels::default()
        }),
    }
}

impl Conn {
    /// Whether an inbound connection goes by a filter chain that is not in force any more, such as one that took
    /// plaintext.
    fn is_outdated(&self, inbound: &Arc<Listener>) -> bool {
        let Scope::Chain { listener, chain } = &self.scope else { return false };
        self.direction == Direction::Inbound
            && !Arc::ptr_eq(listener, inbound)
            && !inbound.chains.iter().chain(&inbound.default_chain).any(|now| now == chain)
    }
}

/// The connections of one worker, for what happens to all: time limits and drain.
#[derive(Default)]
pub(crate) struct Connections {
    all: RefCell<Vec<Weak<Conn>>>,
    draining_since: Cell<Option<Instant>>,
}

impl Connections {
    fn add(&self, conn: &Rc<Conn>) {
        self.all.borrow_mut().push(Rc::downgrade(conn));
    }

    /// How many rest.
    #[cfg(test)]
    pub(crate) fn resting(&self) -> usize {
        let all = self.all.borrow();
        all.iter().filter(|conn| conn.upgrade().is_some_and(|conn| conn.rest.get() == Rest::Rests)).count()
    }

    /// Looks at every connection; called from time to time.
    pub(crate) fn watch(&self, phase: Phase, inbound: Option<&Arc<Listener>>, now: Instant) {
        if phase >= Phase::Draining && self.draining_since.get().is_none() {
            self.draining_since.set(Some(now));
        }
        let grace_over =
            self.draining_since.get().is_some_and(|since| now.duration_since(since) >= DRAIN_GRACE);
        self.all.borrow_mut().retain(|conn| {
            let Some(conn) = conn.upgrade() else { return false };
            conn.raise(conn.activity.order(now, conn.manager()));
            conn.ask_to_rest(now);
            if inbound.is_some_and(|inbound| conn.is_outdated(inbound)) {
                conn.raise(Order::Drain);
            }
            match phase {
                Phase::Serving => {}
                // The application may still need others to finish its own work.
                Phase::Draining | Phase::Finishing if conn.direction == Direction::Outbound => {}
                Phase::Draining | Phase::Finishing if grace_over => conn.raise(Order::Close),
                Phase::Draining | Phase::Finishing => conn.raise(Order::Drain),
                Phase::Stopping => conn.raise(Order::Abort),
            }
            true
        });
    }
}
