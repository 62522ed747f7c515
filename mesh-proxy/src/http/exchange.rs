//! One request: checked, routed, sent, answered. The steps stand here in their order; each of them lives in a
//! module of its own.

use std::borrow::Cow;
use std::convert::Infallible;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{CONNECTION, HOST, TE, UPGRADE};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use rand::Rng;

use super::body::{ResponseBody, Source};
use super::clock::{self, Clock};
use super::connection::Conn;
use super::forward::{Plan, plan};
use super::record::{Place, Record};
use super::reply::Reply;
use super::route::{self, Head};
use super::upgrade::{self, Tunnel};
use super::upstream::{self, Answer, Outgoing};
use super::{headers, path, rewrite};
use crate::cluster::{ClusterState, Destination};
use crate::config::cluster::UpstreamHttp;
use crate::config::listener::HttpManager;
use crate::config::route::{Forward, Redirect, Route, RouteAction, RouteConfig, WeightedCluster};
use crate::connection::{Direction, Target};
use crate::telemetry::ResponseFlags;

/// Serves one request. It never fails: what cannot be served is answered with the reason.
pub(super) fn handle(
    conn: Rc<Conn>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<ResponseBody>, Infallible>> {
    let mut record = Record::new(&conn, &request);
    let http1 = request.version() < Version::HTTP_2;
    // Before there is a future, which would have room for the request twice.
    let checked = check(&conn, &mut record, request);
    async move {
        let served = match checked {
            Ok(checked) => run(&conn, &mut record, checked).await,
            Err(reply) => Err(reply),
        };
        let mut response = match served {
            Ok(served) => deliver(&conn, record, served),
            Err(reply) => reply.into_response(record),
        };
        if http1 && conn.is_draining() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}

/// An endpoint's answer, and the client's side of an upgrade if there is one.
struct Served {
    answer: Answer,
    upgrade: Option<OnUpgrade>,
    clock: Rc<Clock>,
}

/// A request after its head was checked.
struct Checked {
    parts: Parts,
    body: Rc<Source>,
    authority: Authority,
    upgrade: Option<(HeaderValue, OnUpgrade)>,
}

/// A request that knows its way.
struct Routed<'a> {
    cluster: Rc<ClusterState>,
    outgoing: Outgoing,
    upgrade: Option<OnUpgrade>,
    clock: Rc<Clock>,
    changes: Changes<'a>,
}

/// Who changes a request.
#[derive(Clone, Copy)]
struct Changes<'a> {
    forward: &'a Forward,
    route: &'a Route,
    weighted: &'a WeightedCluster,
}

async fn run(conn: &Rc<Conn>, record: &mut Record, checked: Box<Checked>) -> Result<Served, Reply> {
    let plan = plan(conn, &checked.authority, checked.parts.uri.scheme_str()).await?;
    if let Some(format) = plan.access_log() {
        let Parts { method, uri, version, headers, .. } = &checked.parts;
        let line = record.log_request(format, method, uri, *version, headers);
        line.authority = checked.authority.to_string();
        line.request_id = headers::id_of(headers).into_owned();
    }
    match plan {
        Plan::Routes { routes, target } => {
            let config = routes.current(conn).await?;
            record.place = Place::Routes(Arc::clone(&config));
            let mut routed = routed(conn, record, *checked, &config, routes.manager())?;
            let answer = send(conn, record, &mut routed, target.as_ref().unwrap_or(&conn.target)).await?;
            Ok(Served { answer, upgrade: routed.upgrade, clock: routed.clock })
        }
        Plan::Cluster { name, target, .. } => {
            let cluster = cluster(conn, record, &name, StatusCode::SERVICE_UNAVAILABLE)?;
            let path = original(&checked.parts.uri)?;
            let (mut outgoing, upgrade) = outgoing(record, *checked, &cluster, path, None)?;
            let destination = Destination { target: &target, app: conn.app };
            let answer = upstream::send(&conn.worker, &cluster, destination, &mut outgoing, record).await?;
            Ok(Served { answer, upgrade, clock: Clock::new(record.start(), None, None) })
        }
    }
}

/// Sends it within its time limits, and changes the answer as its route says.
async fn send(
    conn: &Rc<Conn>,
    record: &mut Record,
    routed: &mut Routed<'_>,
    target: &Target,
) -> Result<Answer, Reply> {
    let Routed { cluster, outgoing, clock, changes, .. } = routed;
    let body = Rc::clone(&outgoing.body);
    let destination = Destination { target, app: conn.app };
    let sending = pin!(upstream::send(&conn.worker, cluster, destination, outgoing, record));
    let sent = clock::within(clock, || body.is_whole(), sending).await;
    let mut answer = sent.map_err(|late| late.reply(body.is_whole()))??;
    rewrite::headers(&changes.weighted.response_headers, answer.response.headers_mut());
    rewrite::headers(&changes.route.response_headers, answer.response.headers_mut());
    Ok(answer)
}

fn check(conn: &Conn, record: &mut Record, mut request: Request<Incoming>) -> Result<Box<Checked>, Reply> {
    let authority = headers::check(&request).map_err(|refused| {
        Reply::failure(refused.status(), ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR, refused.to_string())
    })?;
    let upgrade = headers::upgrade(&request).map(|to| (to, hyper::upgrade::on(&mut request)));
    let (mut parts, incoming) = request.into_parts();
    let body = Source::new(incoming, record.is_grpc());
    record.request = Some(Rc::clone(&body));
    headers::strip_hop_by_hop(&mut parts.headers, true);
    if conn.direction == Direction::Inbound {
        headers::trust_inbound(&mut parts.headers, conn.client_cert.as_ref());
    }
    headers::complete(&mut parts.headers);
    Ok(Box::new(Checked { parts, body, authority, upgrade }))
}

fn routed<'a>(
    conn: &Conn,
    record: &mut Record,
    checked: Checked,
    config: &'a RouteConfig,
    manager: Option<&HttpManager>,
) -> Result<Routed<'a>, Reply> {
    let uri = &checked.parts.uri;
    // `OPTIONS *` asks about the server as a whole (RFC 9110 9.3.7): it goes where its root does.
    let asterisk = uri.path() == "*" && checked.parts.method == Method::OPTIONS;
    let canonical =
        if asterisk { Cow::Borrowed("/") } else { path::canonical(uri.path()).map_err(bad_path)? };
    let head = Head {
        authority: checked.authority.as_str(),
        path: &canonical,
        query: uri.query(),
        method: &checked.parts.method,
        headers: &checked.parts.headers,
    };
    let route = route::choose(config, &head).ok_or_else(|| no_route(config, &head))?;
    if let Some(line) = &mut record.line {
        line.route.clone_from(&route.name);
    }
    let forward = match &route.action {
        RouteAction::Forward(forward) => forward,
        RouteAction::Redirect(redirect) => return Err(redirected(redirect, route, &head)),
        RouteAction::Respond { status, body } => {
            return Err(Reply::direct(*status, body.clone(), route.response_headers.clone()));
        }
    };
    let weighted = pick(forward)?;
    let cluster = cluster(conn, record, &weighted.name, forward.cluster_not_found)?;
    let new_path = if asterisk { original(uri)? } else { new_path(uri, canonical, forward, route)? };
    if checked.upgrade.is_some() && !forward.upgrades {
        let reason = "the route does not allow upgrades";
        return Err(Reply::failure(StatusCode::FORBIDDEN, ResponseFlags::NONE, reason));
    }
    let changes = Changes { forward, route, weighted };
    let (outgoing, upgrade) = outgoing(record, checked, &cluster, new_path, Some(changes))?;
    let idle = forward.idle_timeout.or(manager.and_then(|manager| manager.stream_idle_timeout));
    let whole = manager.and_then(|manager| manager.request_timeout);
    let clock = Clock::new(record.start(), idle.filter(|limit| !limit.is_zero()), whole);
    outgoing.body.keep_time(Rc::clone(&clock));
    Ok(Routed { cluster, outgoing, upgrade, clock, changes })
}

fn pick(forward: &Forward) -> Result<&WeightedCluster, Reply> {
    let total = route::total_weight(forward);
    let point = if forward.clusters.len() < 2 || total == 0 { 0 } else { rand::rng().random_range(0..total) };
    route::pick(forward, point).ok_or_else(|| {
        Reply::failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            ResponseFlags::NO_CLUSTER,
            "the route has no backend",
        )
    })
}

fn cluster(
    conn: &Conn,
    record: &mut Record,
    name: &str,
    not_found: StatusCode,
) -> Result<Rc<ClusterState>, Reply> {
    let cluster = conn.worker.cluster(name).ok_or_else(|| {
        Reply::failure(
            not_found,
            ResponseFlags::NO_CLUSTER,
            format!("the route's backend {name} does not exist; `meshctl routes` says what is wrong with it"),
        )
    })?;
    record.place = Place::Cluster(Rc::clone(&cluster));
    Ok(cluster)
}

fn new_path(
    uri: &Uri,
    canonical: Cow<'_, str>,
    forward: &Forward,
    route: &Route,
) -> Result<PathAndQuery, Reply> {
    let rewritten = match &forward.path_rewrite {
        Some(rewrite) => rewrite::path(rewrite, &route.matches.path, &canonical),
        None => match canonical {
            Cow::Borrowed(_) => return original(uri),
            Cow::Owned(ref path) => Cow::Borrowed(path.as_str()),
        },
    };
    let slash = if rewritten.starts_with('/') { rewritten } else { Cow::Owned(format!("/{rewritten}")) };
    rewrite::path_and_query(&slash, uri.query()).ok_or_else(|| {
        let reason = format!("route {} rewrites the path to {slash:?}, which is not a path", route.name);
        Reply::failure(StatusCode::INTERNAL_SERVER_ERROR, ResponseFlags::NONE, reason)
    })
}

fn original(uri: &Uri) -> Result<PathAndQuery, Reply> {
    let path = uri.path_and_query().cloned();
    path.ok_or_else(|| bad_path(path::InvalidPath::NotAbsolute))
}

/// The request as it goes out, and the client's side of an upgrade.
fn outgoing(
    record: &Record,
    checked: Checked,
    cluster: &ClusterState,
    path: PathAndQuery,
    changes: Option<Changes<'_>>,
) -> Result<(Outgoing, Option<OnUpgrade>), Reply> {
    let Checked { parts, body, mut authority, upgrade } = checked;
    let Parts { method, version, mut headers, .. } = parts;
    let http2 = match cluster.config().http {
        UpstreamHttp::Http2 => true,
        UpstreamHttp::Http1 => false,
        UpstreamHttp::AsDownstream => version == Version::HTTP_2,
    } && upgrade.is_none();
    let (mut timeout, mut per_try) = (None, None);
    if let Some(Changes { forward, route, weighted }) = changes {
        rewrite::headers(&route.request_headers, &mut headers);
        rewrite::headers(&weighted.request_headers, &mut headers);
        if let Some(host) = &forward.host_rewrite {
            authority = host.clone();
        }
        (timeout, per_try) = (forward.timeout, forward.per_try_timeout);
    }
    if http2 {
        headers.remove(HOST);
    } else {
        headers.remove(TE);
        headers::set_host(&mut headers, &authority).map_err(|_| {
            let reason = "the request's Host is not a header value";
            Reply::failure(StatusCode::BAD_REQUEST, ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR, reason)
        })?;
    }
    let on_upgrade = upgrade.map(|(protocol, on)| {
        switching(&mut headers, protocol);
        on
    });
    let deadline = timeout.map(|timeout| record.start() + timeout);
    let outgoing = Outgoing { method, headers, authority, path, http2, body, deadline, per_try };
    Ok((outgoing, on_upgrade))
}

fn switching(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(UPGRADE, protocol);
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
}

fn deliver(conn: &Rc<Conn>, mut record: Record, served: Served) -> Response<ResponseBody> {
    let Served { answer, upgrade, clock } = served;
    let Answer { mut response, lease, deadline } = answer;
    record.code = response.status().as_u16();
    *response.version_mut() = Version::HTTP_11;
    let protocol = response.headers().get(UPGRADE).cloned();
    headers::strip_hop_by_hop(response.headers_mut(), false);
    response.headers_mut().remove(headers::UNPROCESSED);
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        record.trailers(response.headers());
        return response.map(|body| ResponseBody::upstream(body, record, lease, deadline, clock));
    }
    let Some(downstream) = upgrade else {
        let reason = "the upstream switched protocols without being asked";
        let flags = ResponseFlags::UPSTREAM_CONNECTION_TERMINATION;
        return Reply::failure(StatusCode::BAD_GATEWAY, flags, reason).into_response(record);
    };
    if let Some(protocol) = protocol {
        switching(response.headers_mut(), protocol);
    }
    let upstream = hyper::upgrade::on(&mut response);
    upgrade::spawn(Rc::clone(conn), Tunnel { downstream, upstream, lease, clock, record });
    response.map(|_| ResponseBody::local(bytes::Bytes::new(), None))
}

fn redirected(redirect: &Redirect, route: &Route, head: &Head<'_>) -> Reply {
    match rewrite::location(redirect, &route.matches.path, head, "http") {
        Some(location) => Reply::redirect(redirect.status, location, route.response_headers.clone()),
        None => Reply::failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            ResponseFlags::NONE,
            format!("route {} redirects to what is not a URL", route.name),
        ),
    }
}

fn no_route(config: &RouteConfig, head: &Head<'_>) -> Reply {
    let reason = format!("no route of {} matches {} {}", config.name, head.method, head.path);
    Reply::failure(StatusCode::NOT_FOUND, ResponseFlags::NO_ROUTE, reason)
}

fn bad_path(error: path::InvalidPath) -> Reply {
    Reply::failure(StatusCode::BAD_REQUEST, ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_request_carries_is_small() {
        fn size<A, B, F: Future>(_: impl FnOnce(A, B) -> F) -> usize {
            size_of::<F>()
        }
        // Each HTTP/1.1 connection holds the room for one, and HTTP/2 moves one about for each request.
        let size = size(handle);
        assert!(size <= 2048, "{size}");
    }
}
