//! The count of one request, made exactly once: at the end of its response, at its failure, or when the client
//! goes away. No label is looked up here but the first time for an endpoint or connection.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, Method, Request, Uri, Version};
use mesh_common::xds::names::parse_route_name;
use tokio::time::Instant;

use super::body::Source;
use super::connection::Conn;
use super::grpc::Messages;
use super::headers;
use crate::cluster::{ClusterState, EndpointState};
use crate::config::cluster::{ServiceLabels, WorkloadLabels};
use crate::config::listener::AccessLog;
use crate::config::route::RouteConfig;
use crate::connection::Direction;
use crate::telemetry::{
    AccessEntry, HttpSeries, Outcome, Reporter, RequestProtocol, ResponseFlags, Security, Traffic,
};

/// What is known of one request so far.
pub(crate) struct Record {
    conn: Rc<Conn>,
    start: Instant,
    grpc: bool,
    /// Status sent to the client; 0 until there is one.
    pub(crate) code: u16,
    grpc_status: Option<u16>,
    /// Why, so far.
    pub(crate) flags: ResponseFlags,
    /// Bytes that the client sent beside the request's body.
    pub(crate) request_bytes: u64,
    /// Bytes of the response's body so far.
    pub(crate) response_bytes: u64,
    response_messages: Messages,
    /// The request's body.
    pub(crate) request: Option<Rc<Source>>,
    /// Where the request goes.
    pub(crate) place: Place,
    /// The endpoint that was tried last.
    pub(crate) endpoint: Option<Rc<EndpointState>>,
    /// For the access log, when it is on.
    pub(crate) line: Option<Box<Line>>,
    done: bool,
}

/// Series by protocol, with the labels of this pod that they were made with.
#[derive(Default)]
pub(crate) struct SeriesCache(RefCell<[Option<Made>; 2]>);

/// The labels, and the series.
type Made = (Arc<WorkloadLabels>, Arc<HttpSeries>);

/// What metrics name as destination.
#[derive(Clone)]
pub(crate) enum Place {
    /// Nothing was chosen.
    Nowhere,
    /// No cluster was chosen, but what chooses them.
    Routes(Arc<RouteConfig>),
    /// A cluster.
    Cluster(Rc<ClusterState>),
}

/// What the access log says of a request beside its outcome.
pub(crate) struct Line {
    format: AccessLog,
    start: SystemTime,
    method: Method,
    path: String,
    version: Version,
    user_agent: String,
    forwarded_for: String,
    /// Set once it is known or made.
    pub(crate) request_id: String,
    /// Host as the client wrote it.
    pub(crate) authority: String,
    /// The route's name.
    pub(crate) route: String,
    /// Why the proxy answered itself.
    pub(crate) reason: String,
}

impl Place {
    /// The service that metrics name.
    pub(super) fn service(&self) -> ServiceLabels {
        match self {
            Self::Nowhere => ServiceLabels::default(),
            Self::Routes(config) => service_of(config),
            Self::Cluster(cluster) => cluster.service.clone(),
        }
    }
}

/// The service that a route configuration belongs to, from its name.
fn service_of(config: &RouteConfig) -> ServiceLabels {
    let Ok((host, _)) = parse_route_name(&config.name) else { return ServiceLabels::default() };
    let mut labels = host.split('.');
    let mut label = || labels.next().unwrap_or_default().to_owned();
    ServiceLabels { host: host.to_owned(), name: label(), namespace: label() }
}

impl Record {
    /// A request has come.
    pub(crate) fn new<B>(conn: &Rc<Conn>, request: &Request<B>) -> Self {
        conn.activity.begin();
        Self {
            conn: Rc::clone(conn),
            start: Instant::now(),
            grpc: headers::is_grpc(request.headers()),
            code: 0,
            grpc_status: None,
            flags: ResponseFlags::NONE,
            request_bytes: 0,
            response_bytes: 0,
            response_messages: Messages::default(),
            request: None,
            place: Place::Nowhere,
            endpoint: None,
            line: None,
            done: false,
        }
    }

    /// When the request came.
    pub(crate) fn start(&self) -> Instant {
        self.start
    }

    /// Whether it is a gRPC request.
    pub(crate) fn is_grpc(&self) -> bool {
        self.grpc
    }

    /// Whether the answer goes to another sidecar of the mesh.
    pub(crate) fn is_to_mesh(&self) -> bool {
        self.conn.is_from_mesh()
    }

    /// The gRPC status, from trailers or from the head of a response without body.
    pub(crate) fn trailers(&mut self, trailers: &HeaderMap) {
        if let Some(status) = trailers.get("grpc-status").filter(|_| self.grpc) {
            self.grpc_status = status.to_str().ok().and_then(|status| status.trim().parse().ok());
        }
    }

    /// Bytes of the response's body pass.
    pub(crate) fn response_data(&mut self, data: &[u8]) {
        self.response_bytes += data.len() as u64;
        if self.grpc {
            self.response_messages.take(data);
        }
    }

    /// Sets the gRPC status of the proxy's own answer.
    pub(crate) fn set_grpc_status(&mut self, status: u16) {
        self.grpc_status = Some(status);
    }

    /// The request is over: counts it.
    pub(crate) fn finish(mut self, flags: ResponseFlags, now: Instant) {
        self.count(flags, now);
    }

    fn count(&mut self, flags: ResponseFlags, now: Instant) {
        if std::mem::replace(&mut self.done, true) {
            return;
        }
        self.flags |= flags;
        let outcome = Outcome {
            code: self.code,
            grpc_status: self.grpc_status,
            flags: self.flags,
            duration: now.duration_since(self.start),
            request_bytes: self.request_bytes + self.request.as_ref().map_or(0, |source| source.bytes()),
            response_bytes: self.response_bytes,
            request_messages: self.request.as_ref().map_or(0, |source| source.messages()),
            response_messages: self.response_messages.count(),
        };
        if let Some(line) = self.line.take() {
            self.log(&line, &outcome);
        }
        match self.conn.direction {
            Direction::Outbound => self.outbound_series().record(&outcome),
            Direction::Inbound => {
                let protocol = protocol(self.grpc);
                self.conn.count_inbound(self.place.clone(), protocol, outcome);
            }
        }
        self.conn.activity.end(now);
    }

    fn outbound_series(&self) -> Arc<HttpSeries> {
        let index = usize::from(self.grpc);
        let me = &self.conn.worker.me.load();
        match (&self.endpoint, &self.place) {
            (Some(endpoint), Place::Cluster(cluster)) => {
                let labels = &endpoint.endpoint.workload;
                endpoint.series.get(index, me, || self.outbound(labels, &cluster.service))
            }
            (_, Place::Cluster(cluster)) => {
                cluster.series.get(index, me, || self.outbound(&Arc::default(), &cluster.service))
            }
            (_, place) => self.outbound(&Arc::default(), &place.service()),
        }
    }

    fn outbound(&self, destination: &Arc<WorkloadLabels>, service: &ServiceLabels) -> Arc<HttpSeries> {
        let worker = &self.conn.worker;
        worker.telemetry.http(&Traffic {
            reporter: Reporter::Source,
            source: worker.me.load_full(),
            destination: Arc::clone(destination),
            service: service.clone(),
            // As Istio: only the server side can say it.
            security: Security::Unknown,
            protocol: protocol(self.grpc),
        })
    }

    /// Keeps what the access log needs of the request's head.
    pub(crate) fn log_request(
        &mut self,
        format: AccessLog,
        method: &Method,
        uri: &Uri,
        version: Version,
        headers: &HeaderMap,
    ) -> &mut Line {
        let text = |name: &str| {
            headers.get(name).map_or(String::new(), |v| String::from_utf8_lossy(v.as_bytes()).into())
        };
        self.line.insert(Box::new(Line {
            format,
            start: SystemTime::now(),
            method: method.clone(),
            path: uri.path_and_query().map_or(String::new(), ToString::to_string),
            version,
            user_agent: text("user-agent"),
            forwarded_for: text("x-forwarded-for"),
            request_id: String::new(),
            authority: String::new(),
            route: String::new(),
            reason: String::new(),
        }))
    }

    fn log(&self, line: &Line, outcome: &Outcome) {
        let cluster = match &self.place {
            Place::Cluster(cluster) => cluster.config().name.as_str(),
            Place::Nowhere | Place::Routes(_) => "",
        };
        let details = if line.reason.is_empty() { "via_upstream" } else { &line.reason };
        self.conn.worker.telemetry.access_log().log(
            line.format,
            &AccessEntry {
                start: line.start,
                method: line.method.as_str(),
                path: &line.path,
                protocol: if line.version == Version::HTTP_2 { "HTTP/2" } else { "HTTP/1.1" },
                code: outcome.code,
                flags: outcome.flags,
                code_details: details,
                bytes_received: outcome.request_bytes,
                bytes_sent: outcome.response_bytes,
                duration: outcome.duration,
                forwarded_for: &line.forwarded_for,
                user_agent: &line.user_agent,
                request_id: &line.request_id,
                authority: &line.authority,
                upstream_host: self.endpoint.as_ref().map(|endpoint| endpoint.endpoint.address),
                upstream_cluster: cluster,
                downstream_local: self.conn.own,
                downstream_remote: Some(self.conn.peer),
                route_name: &line.route,
                ..AccessEntry::default()
            },
        );
    }
}

impl Drop for Record {
    /// A client that goes away drops the whole exchange wherever it is: there is no other place to count it.
    fn drop(&mut self) {
        if !self.done {
            self.count(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION, Instant::now());
        }
    }
}

fn protocol(grpc: bool) -> RequestProtocol {
    if grpc { RequestProtocol::Grpc } else { RequestProtocol::Http }
}

impl SeriesCache {
    /// The series under `index`, made when it is not there or when this pod has got other labels.
    fn get(
        &self,
        index: usize,
        me: &Arc<WorkloadLabels>,
        make: impl FnOnce() -> Arc<HttpSeries>,
    ) -> Arc<HttpSeries> {
        let mut cache = self.0.borrow_mut();
        match &cache[index] {
            Some((then, series)) if Arc::ptr_eq(then, me) => Arc::clone(series),
            _ => Arc::clone(&cache[index].insert((Arc::clone(me), make())).1),
        }
    }
}
