//! HTTP: HTTP/1.1 and HTTP/2 with prior knowledge on one port, gRPC, upgrades. Every answer says what
//! arrived. Paths with a meaning: `/status/503`, `/delay/100` (milliseconds), `/large/64` (megabytes).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

use super::{Name, Seen};

type Body = BoxBody<Bytes, std::convert::Infallible>;

/// What the application says of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Echo {
    /// The pod that answers.
    pub pod: String,
    /// Its version.
    pub version: String,
    /// The request's method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Host or authority.
    pub host: String,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub protocol: String,
    /// Headers; the last of several of one name.
    pub headers: BTreeMap<String, String>,
    /// The number of the connection.
    pub connection: u64,
    /// Bytes of the request's body.
    pub body_bytes: usize,
}

pub(super) async fn serve(stream: TcpStream, number: u64, name: Arc<Name>, seen: Arc<Seen>) -> Result<()> {
    let mut start = [0; 4];
    let http2 = stream.peek(&mut start).await? > 0 && start[..3] == *b"PRI";
    let service = service_fn(move |request| {
        seen.requests.fetch_add(1, Ordering::Relaxed);
        answer(request, number, Arc::clone(&name), Arc::clone(&seen))
    });
    let io = TokioIo::new(stream);
    if http2 {
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder.serve_connection(io, service).await?;
    } else {
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.timer(TokioTimer::new()).serve_connection(io, service).with_upgrades().await?;
    }
    Ok(())
}

async fn answer(
    request: Request<Incoming>,
    number: u64,
    name: Arc<Name>,
    seen: Arc<Seen>,
) -> Result<Response<Body>> {
    if request.headers().contains_key(UPGRADE) {
        return upgrade(request, &name);
    }
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    if parts.headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        return grpc(body, &name);
    }
    let mut segments = parts.uri.path().trim_start_matches('/').split('/');
    let (verb, number_in_path) = (segments.next(), segments.next().and_then(|text| text.parse::<u16>().ok()));
    let status = match (verb, number_in_path) {
        (Some("status"), Some(status)) => StatusCode::from_u16(status)?,
        (Some("delay"), Some(millis)) => {
            tokio::time::sleep(Duration::from_millis(millis.into())).await;
            StatusCode::OK
        }
        (Some("large"), Some(megabytes)) => return large(megabytes.into(), &name, seen),
        _ => StatusCode::OK,
    };
    let host = parts.uri.authority().map(ToString::to_string);
    let header = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let echo = Echo {
        pod: name.pod.clone(),
        version: name.version.clone(),
        method: parts.method.to_string(),
        path: parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        host: host.or_else(|| parts.headers.get("host").map(header)).unwrap_or_default(),
        protocol: format!("{:?}", parts.version),
        headers: parts.headers.iter().map(|(name, value)| (name.to_string(), header(value))).collect(),
        connection: number,
        body_bytes: body.len(),
    };
    let text = serde_json::to_vec(&echo)?;
    Ok(Response::builder().status(status).header("x-pod", &name.pod).body(Full::from(text).boxed())?)
}

/// So many megabytes, made as they are taken.
fn large(megabytes: u64, name: &Name, seen: Arc<Seen>) -> Result<Response<Body>> {
    const CHUNK: usize = 64 << 10;
    let chunk = Bytes::from_static(&[b'x'; CHUNK]);
    let chunks = (0..(megabytes << 20) / CHUNK as u64).map(move |_| {
        seen.large.fetch_add(CHUNK as u64, Ordering::Relaxed);
        Ok(Frame::data(chunk.clone()))
    });
    let body = StreamBody::new(futures_util::stream::iter(chunks)).boxed();
    Ok(Response::builder().header("x-pod", &name.pod).body(body)?)
}

/// Sends the message back, with trailers.
fn grpc(message: Bytes, name: &Name) -> Result<Response<Body>> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [Ok(Frame::data(message)), Ok(Frame::trailers(trailers))];
    let body = StreamBody::new(futures_util::stream::iter(frames)).boxed();
    Ok(Response::builder().header(CONTENT_TYPE, "application/grpc").header("x-pod", &name.pod).body(body)?)
}

/// Switches to the protocol that was asked for, and sends back what arrives.
fn upgrade(mut request: Request<Incoming>, name: &Name) -> Result<Response<Body>> {
    let protocol = request.headers().get(UPGRADE).cloned().unwrap_or(HeaderValue::from_static("websocket"));
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(stream) = upgraded.await {
            let (mut read, mut write) = tokio::io::split(TokioIo::new(stream));
            tokio::io::copy(&mut read, &mut write).await.unwrap_or_default();
        }
    });
    Ok(Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, protocol)
        .header("x-pod", &name.pod)
        .body(Full::default().boxed())?)
}
