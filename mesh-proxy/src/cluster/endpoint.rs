//! One endpoint as one worker uses it: how busy it is, its pools, its series.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::cluster::{Endpoint, EndpointTls, WorkloadLabels};
use crate::connect::{http1, http2};
use crate::http::record::SeriesCache;

/// What makes two endpoints the same: everything but health and weight.
pub(super) type Key = (SocketAddr, EndpointTls, Arc<WorkloadLabels>);

/// The key of an endpoint.
pub(super) fn key(endpoint: &Endpoint) -> Key {
    (endpoint.address, endpoint.tls.clone(), Arc::clone(&endpoint.workload))
}

/// One endpoint.
pub struct EndpointState {
    /// As it was when it was first seen; health and weight may have changed since.
    pub(crate) endpoint: Arc<Endpoint>,
    /// HTTP/1.1 connections.
    pub(crate) http1: http1::Pool,
    /// HTTP/2 connections.
    pub(crate) http2: Rc<http2::Pool>,
    /// Requests that went there, by protocol.
    pub(crate) series: SeriesCache,
    in_flight: Cell<u32>,
    weight: Cell<u32>,
}

/// One request on its way to an endpoint; counted until dropped.
pub(crate) struct InFlight(Rc<EndpointState>);

impl EndpointState {
    /// An endpoint without connections.
    pub fn new(endpoint: Arc<Endpoint>) -> Self {
        Self {
            weight: Cell::new(endpoint.weight.max(1)),
            endpoint,
            http1: http1::Pool::default(),
            http2: Rc::default(),
            series: SeriesCache::default(),
            in_flight: Cell::new(0),
        }
    }

    pub(super) fn key(&self) -> Key {
        key(&self.endpoint)
    }

    /// Requests under way.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    /// Share of requests, at least 1.
    pub(crate) fn weight(&self) -> u32 {
        self.weight.get()
    }

    pub(super) fn set_weight(&self, weight: u32) {
        self.weight.set(weight.max(1));
    }

    /// Counts a request.
    pub(crate) fn enter(self: &Rc<Self>) -> InFlight {
        self.in_flight.set(self.in_flight.get().saturating_add(1));
        InFlight(Rc::clone(self))
    }

    pub(super) fn sweep(&self, now: Instant, max_age: Duration) {
        self.http1.sweep(now, max_age);
        self.http2.sweep(now, max_age);
    }

    pub(super) fn close(&self) {
        self.http1.close();
        self.http2.close();
    }

    pub(super) fn is_unused(&self) -> bool {
        self.in_flight.get() == 0 && self.http1.len() == 0 && self.http2.len() == 0
    }
}

impl InFlight {
    /// The endpoint.
    pub(crate) fn endpoint(&self) -> &Rc<EndpointState> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get().saturating_sub(1));
    }
}
