//! One request to an endpoint of its cluster, and to another one when the first provably did not process it. A
//! request that an endpoint may have seen is never sent twice, unless it is one that may be (RFC 9110 9.2.2).

use std::error::Error;
use std::io::ErrorKind;
use std::pin::pin;
use std::rc::Rc;

use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, Method, Request, Response};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::body::{BodyError, RequestBody, Source};
use super::headers::UNPROCESSED;
use super::record::Record;
use super::rewrite;
use crate::cluster::{ClusterState, Destination, EndpointState, InFlight, Usable, pick};
use crate::connect::dial::{dial, is_mutual};
use crate::connect::{UpstreamError, http1, http2};
use crate::telemetry::ResponseFlags;
use crate::worker::Worker;
use mesh_common::xds::names::{ALPN_HTTP1, ALPN_HTTP2, BLACK_HOLE_CLUSTER};

/// Endpoints that are tried for one request.
const MAX_ATTEMPTS: u32 = 3;
/// Times a request may find that others were faster to take the places of a new HTTP/2 connection.
const MAX_CROWDED: u32 = 64;

/// A request, ready to be sent.
pub(crate) struct Outgoing {
    pub(crate) method: Method,
    pub(crate) headers: HeaderMap,
    pub(crate) authority: Authority,
    pub(crate) path: PathAndQuery,
    pub(crate) http2: bool,
    pub(crate) body: Rc<Source>,
    /// The whole request must be over then.
    pub(crate) deadline: Option<Instant>,
    /// Limit of one attempt.
    pub(crate) per_try: Option<std::time::Duration>,
}

/// A response's head, what must live until its body has ended, and until when that must be.
pub(crate) struct Answer {
    pub(crate) response: Response<Incoming>,
    pub(crate) lease: Lease,
    pub(crate) deadline: Option<Instant>,
}

/// A connection in use by one request, and its place in the count of its endpoint.
pub(crate) struct Lease {
    in_flight: InFlight,
    connection: Leased,
}

enum Leased {
    Http1(http1::Http1),
    // Held for its drop alone.
    Http2(#[allow(dead_code)] http2::Stream),
}

impl Lease {
    /// The response has ended: the connection may serve the next request.
    pub(crate) fn give_back(self, now: Instant) {
        let Self { in_flight, connection } = self;
        if let Leased::Http1(connection) = connection {
            in_flight.endpoint().http1.checkin(connection, now);
        }
    }
}

/// Why an attempt failed.
struct Failure {
    error: UpstreamError,
    kind: FailureKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum FailureKind {
    /// There was no connection: another endpoint.
    Connect,
    /// The endpoint said, or the connection shows, that it was not processed: another one, or a new connection.
    Unprocessed,
    /// It may have been processed.
    Final,
}

/// Sends `outgoing` to an endpoint of `cluster`.
pub(crate) async fn send(
    worker: &Rc<Worker>,
    cluster: &Rc<ClusterState>,
    destination: Destination<'_>,
    outgoing: &mut Outgoing,
    record: &mut Record,
) -> Result<Answer, UpstreamError> {
    let mut failed = Vec::new();
    let mut unprocessed = Vec::new();
    let mut last: Option<UpstreamError> = None;
    for attempts_left in (0..MAX_ATTEMPTS).rev() {
        let usable = cluster.usable(worker, destination).await?;
        let Some(endpoint) = choose(&usable, &failed, &unprocessed) else {
            return Err(last.unwrap_or_else(|| no_endpoint(cluster, &usable)).unprocessed());
        };
        record.endpoint = Some(Rc::clone(&endpoint));
        let Some(body) = outgoing.body.attempt() else { break };
        let deadline = earliest(outgoing.deadline, outgoing.per_try.map(|limit| Instant::now() + limit));
        let fresh = !unprocessed.is_empty();
        let result = {
            // Pinned where it is: each move of it would be one more copy of its state within this one's.
            let mut sending = pin!(attempt(worker, cluster, &endpoint, outgoing, body, fresh));
            match deadline {
                None => sending.await,
                Some(deadline) => match tokio::time::timeout_at(deadline, sending.as_mut()).await {
                    Ok(result) => result,
                    Err(_) => return Err(timeout()),
                },
            }
        };
        match result {
            Ok((response, lease)) => {
                if attempts_left > 0
                    && outgoing.body.is_repeatable()
                    && let Some(refused) = refused_by_sidecar(cluster, &endpoint, &response)
                {
                    failed.push(Rc::clone(&endpoint));
                    if choose(&usable, &failed, &unprocessed).is_some() {
                        tracing::debug!(reason = %refused, "trying another endpoint");
                        last = Some(refused);
                        continue;
                    }
                }
                outgoing.body.commit();
                return Ok(Answer { response, lease, deadline });
            }
            Err(Failure { error, kind }) => {
                match kind {
                    FailureKind::Final => return Err(error),
                    FailureKind::Connect => failed.push(endpoint),
                    FailureKind::Unprocessed => unprocessed.push(endpoint),
                }
                tracing::debug!(reason = %error, "trying another endpoint");
                last = Some(error);
            }
        }
    }
    Err(last.unwrap_or_else(timeout).unprocessed())
}

/// What the endpoint's sidecar says when its application has not seen the request. Nobody else is believed.
fn refused_by_sidecar(
    cluster: &ClusterState,
    endpoint: &EndpointState,
    response: &Response<Incoming>,
) -> Option<UpstreamError> {
    let is_said = response.headers().contains_key(UNPROCESSED);
    (is_said && is_mutual(cluster.config(), &endpoint.endpoint)).then(|| {
        let address = endpoint.endpoint.address;
        let reason = format!("the application of endpoint {address} is not there, its proxy says");
        UpstreamError::new(ResponseFlags::UPSTREAM_CONNECTION_FAILURE, reason)
    })
}

/// One that was not tried; else one that refused the request but can be reached.
fn choose(
    usable: &Usable,
    failed: &[Rc<EndpointState>],
    unprocessed: &[Rc<EndpointState>],
) -> Option<Rc<EndpointState>> {
    let random = &mut rand::rng();
    if failed.is_empty() && unprocessed.is_empty() {
        return pick(&usable.endpoints, &[], random);
    }
    let tried: Vec<_> = failed.iter().chain(unprocessed).cloned().collect();
    pick(&usable.endpoints, &tried, random).or_else(|| pick(&usable.endpoints, failed, random))
}

fn no_endpoint(cluster: &ClusterState, usable: &Usable) -> UpstreamError {
    let name = &cluster.config().name;
    let reason = match &usable.refused {
        _ if name == BLACK_HOLE_CLUSTER => {
            "nothing may be sent there: the service has no such port, or the host is \
                                            not in the mesh and the outbound traffic policy is REGISTRY_ONLY"
                .to_owned()
        }
        Some(reason) => format!("cluster {name} has no usable endpoint: {reason}"),
        None => format!("cluster {name} has no healthy endpoint"),
    };
    UpstreamError::new(ResponseFlags::NO_HEALTHY_UPSTREAM, reason)
}

fn timeout() -> UpstreamError {
    UpstreamError::new(
        ResponseFlags::UPSTREAM_REQUEST_TIMEOUT,
        "the upstream did not answer within the route's timeout",
    )
}

fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

async fn attempt(
    worker: &Rc<Worker>,
    cluster: &Rc<ClusterState>,
    endpoint: &Rc<EndpointState>,
    outgoing: &mut Outgoing,
    body: RequestBody,
    fresh: bool,
) -> Result<(Response<Incoming>, Lease), Failure> {
    let in_flight = endpoint.enter();
    let opened = if outgoing.http2 {
        open_http2(worker, cluster, endpoint).await.map(Leased::Http2)
    } else {
        open_http1(worker, cluster, endpoint, fresh).await.map(Leased::Http1)
    };
    let mut connection = opened.map_err(|error| Failure { error, kind: FailureKind::Connect })?;
    let response = match &mut connection {
        Leased::Http1(connection) => {
            let refusable = is_mutual(cluster.config(), &endpoint.endpoint);
            send_http1(connection, outgoing, body, refusable).await?
        }
        Leased::Http2(stream) => send_http2(stream, outgoing, body).await?,
    };
    Ok((response, Lease { in_flight, connection }))
}

async fn open_http1(
    worker: &Rc<Worker>,
    cluster: &Rc<ClusterState>,
    endpoint: &Rc<EndpointState>,
    fresh: bool,
) -> Result<http1::Http1, UpstreamError> {
    if !fresh && let Some(connection) = endpoint.http1.checkout() {
        return Ok(connection);
    }
    // Boxed: most requests find a connection, and none of those is to carry the room for opening one.
    Box::pin(async {
        let io = dial(worker, cluster.config(), &endpoint.endpoint, ALPN_HTTP1).await?;
        http1::handshake(io).await
    })
    .await
}

async fn open_http2(
    worker: &Rc<Worker>,
    cluster: &Rc<ClusterState>,
    endpoint: &Rc<EndpointState>,
) -> Result<http2::Stream, UpstreamError> {
    if let Some(stream) = endpoint.http2.checkout() {
        return Ok(stream);
    }
    // Boxed, as for HTTP/1.1.
    Box::pin(wait_for_http2(worker, cluster, endpoint)).await
}

async fn wait_for_http2(
    worker: &Rc<Worker>,
    cluster: &Rc<ClusterState>,
    endpoint: &Rc<EndpointState>,
) -> Result<http2::Stream, UpstreamError> {
    for _ in 0..MAX_CROWDED {
        let connect = || {
            let (worker, live) = (Rc::clone(worker), std::sync::Arc::clone(cluster.live()));
            let endpoint = std::sync::Arc::clone(&endpoint.endpoint);
            async move { http2::handshake(dial(&worker, &live.config, &endpoint, ALPN_HTTP2).await?).await }
        };
        endpoint.http2.opened(connect).await?;
        if let Some(stream) = endpoint.http2.checkout() {
            return Ok(stream);
        }
    }
    let address = endpoint.endpoint.address;
    Err(UpstreamError::new(
        ResponseFlags::UPSTREAM_CONNECTION_FAILURE,
        format!("endpoint {address} takes no more requests on its HTTP/2 connections"),
    ))
}

async fn send_http1(
    connection: &mut http1::Http1,
    outgoing: &mut Outgoing,
    body: RequestBody,
    refusable: bool,
) -> Result<Response<Incoming>, Failure> {
    // A connection that rested may be closed by the peer at the moment it is used. What may be sent again is kept.
    let repeatable = outgoing.body.is_empty() && is_idempotent(&outgoing.method);
    // A sidecar may answer that the request can go elsewhere.
    let sending = connection.sender.try_send_request(build(outgoing, body, repeatable || refusable)?);
    let mut error = match sending.await {
        Ok(response) => return Ok(response),
        Err(error) => error,
    };
    if let Some(request) = error.take_message() {
        outgoing.headers = request.into_parts().0.headers;
        return Err(failure(&error.into_error(), FailureKind::Unprocessed));
    }
    let error = error.into_error();
    // Whoever ends after it has read a request closes the connection; a reset is of one that did not read it all.
    let again = repeatable && (connection.reused || is_reset(&error));
    Err(failure(&error, if again { FailureKind::Unprocessed } else { FailureKind::Final }))
}

fn is_reset(error: &hyper::Error) -> bool {
    let kind = find::<std::io::Error>(error).map(std::io::Error::kind);
    matches!(kind, Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe))
}

async fn send_http2(
    stream: &http2::Stream,
    outgoing: &mut Outgoing,
    body: RequestBody,
) -> Result<Response<Incoming>, Failure> {
    let sending = stream.sender().try_send_request(build(outgoing, body, true)?);
    let mut error = match sending.await {
        Ok(response) => return Ok(response),
        Err(error) => error,
    };
    let unsent = error.take_message().is_some();
    let error = error.into_error();
    let kind = if unsent || is_unprocessed(&error) { FailureKind::Unprocessed } else { FailureKind::Final };
    Err(failure(&error, kind))
}

/// The request as hyper takes it. `again` keeps the headers for another attempt.
fn build(outgoing: &mut Outgoing, body: RequestBody, again: bool) -> Result<Request<RequestBody>, Failure> {
    let target = rewrite::target(outgoing.http2, &outgoing.authority, outgoing.path.clone());
    let Some(target) = target else {
        let reason = format!("{} and {} make no URI", outgoing.authority, outgoing.path);
        let error = UpstreamError::new(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR, reason);
        return Err(Failure { error, kind: FailureKind::Final });
    };
    let mut request = Request::new(body);
    *request.method_mut() = outgoing.method.clone();
    *request.uri_mut() = target;
    *request.headers_mut() =
        if again { outgoing.headers.clone() } else { std::mem::take(&mut outgoing.headers) };
    if outgoing.http2 {
        *request.version_mut() = http::Version::HTTP_2;
    }
    Ok(request)
}

fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

/// Whether the peer said that it did not look at the request.
fn is_unprocessed(error: &hyper::Error) -> bool {
    if error.is_canceled() {
        return true;
    }
    find::<h2::Error>(error).is_some_and(|error| {
        error.reason() == Some(h2::Reason::REFUSED_STREAM) || (error.is_go_away() && error.is_remote())
    })
}

fn failure(error: &hyper::Error, kind: FailureKind) -> Failure {
    let flags = flags_of(error);
    let whose = if flags == ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION {
        "the client's request broke off or is malformed"
    } else {
        "the upstream connection failed"
    };
    let reason = match error.source() {
        Some(source) => format!("{whose}: {error}: {source}"),
        None => format!("{whose}: {error}"),
    };
    Failure { error: UpstreamError::new(flags, reason), kind }
}

fn flags_of(error: &hyper::Error) -> ResponseFlags {
    if find::<BodyError>(error).is_some() {
        return ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION;
    }
    match find::<h2::Error>(error) {
        Some(error) if error.is_reset() => ResponseFlags::UPSTREAM_REMOTE_RESET,
        _ => ResponseFlags::UPSTREAM_CONNECTION_TERMINATION,
    }
}

/// What a response body that broke says of the upstream.
pub(super) fn flags_of_body_error(error: &BodyError) -> ResponseFlags {
    match error {
        BodyError::Peer(error) => flags_of(error),
        BodyError::Timeout => ResponseFlags::UPSTREAM_REQUEST_TIMEOUT,
        BodyError::Idle => ResponseFlags::STREAM_IDLE_TIMEOUT,
        BodyError::Superseded => ResponseFlags::LOCAL_RESET,
    }
}

fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}
