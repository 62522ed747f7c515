//! Probes and handlers, carried out on the application as kubelet would: at the pod's own address, past the rules of
//! capture, without a look at certificates. Each ends within its time.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST, LOCATION, TE, USER_AGENT};
use http::{HeaderValue, Method, Request, StatusCode, Uri, Version};
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_common::error::in_full;
use prost::Message as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use super::exchange::{Answer, exchange, text};
use super::redirect::{self, Next};
use super::spec::{Handler, HttpGet, Probe};

/// How the proxy reaches its application.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reach {
    /// The pod's address.
    pub(crate) pod_ip: IpAddr,
    /// Whether the rules of capture are in force: they leave alone what comes from the proxy's own source address.
    pub(crate) captured: bool,
    /// The port of these pages: a probe that leads there would come back for ever.
    pub(crate) own_port: u16,
}

/// Why the application could not be asked, or what was wrong with its answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// There is no answer.
    NoAnswer(String),
    /// There is one, which is not a good one.
    Answered(String),
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::NoAnswer(reason) | Self::Answered(reason)) = self;
        f.write_str(reason)
    }
}

impl Reach {
    /// Dials the application, or whatever host the handler names.
    pub(super) async fn dial(&self, host: Option<&str>, port: u16) -> io::Result<TcpStream> {
        let ip = match host.map(str::parse) {
            None => self.pod_ip,
            Some(Ok(ip)) => ip,
            Some(Err(_)) => {
                let found = tokio::net::lookup_host((host.unwrap_or_default(), port)).await?.next();
                found.ok_or_else(|| io::Error::other("the host has no address"))?.ip()
            }
        };
        let local = ip == self.pod_ip || ip.is_loopback();
        if local && port == self.own_port {
            return Err(io::Error::other(
                "it is the proxy's own port: the question would come back for ever",
            ));
        }
        let socket = if ip.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if self.captured && ip == self.pod_ip {
            let source = match ip {
                IpAddr::V4(_) => IpAddr::from(Ipv4Addr::new(127, 0, 0, 6)),
                IpAddr::V6(_) => IpAddr::from(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6)),
            };
            socket.bind(SocketAddr::new(source, 0))?;
        }
        socket.connect(SocketAddr::new(ip, port)).await
    }
}

/// Carries it out; `user_agent` is kubelet's.
pub(super) async fn run(
    reach: Reach,
    probe: &Probe,
    limit: Duration,
    user_agent: Option<&HeaderValue>,
) -> Result<(), Failed> {
    let asking = async {
        match &probe.handler {
            Handler::Http(get) => http(reach, get, user_agent).await,
            Handler::Tcp { host, port } => dial(reach, host.as_deref(), *port).await.map(drop),
            Handler::Grpc { port, service } => grpc(reach, *port, service).await,
        }
    };
    match tokio::time::timeout(limit, asking).await {
        Ok(result) => result,
        Err(_) => Err(Failed::NoAnswer(format!("no answer within {limit:?}"))),
    }
}

async fn dial(reach: Reach, host: Option<&str>, port: u16) -> Result<TcpStream, Failed> {
    let named = || host.map_or_else(|| reach.pod_ip.to_string(), str::to_owned);
    let dialled = reach.dial(host, port).await;
    dialled.map_err(|error| Failed::NoAnswer(format!("cannot connect to {} port {port}: {error}", named())))
}

async fn http(reach: Reach, get: &HttpGet, user_agent: Option<&HeaderValue>) -> Result<(), Failed> {
    let mut uri = first(reach, get)?;
    for _ in 0..=redirect::MAX {
        let Answer { response, driver } = ask(reach, get, &uri, user_agent).await?;
        let status = response.status();
        let location = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
        match location.filter(|_| follows(status)).map(|to| redirect::next(&uri, to)) {
            Some(Some(Next::Follow(to))) => uri = to,
            Some(None) => return Err(Failed::Answered(format!("status {status}, which leads nowhere"))),
            Some(Some(Next::Elsewhere)) | None if (200..400).contains(&status.as_u16()) => return Ok(()),
            _ => {
                let body = text(response.into_body()).await;
                return Err(Failed::Answered(format!("status {}: {body}", status.as_u16())));
            }
        }
        drop(driver);
    }
    Err(Failed::Answered(format!("more than {} redirects", redirect::MAX)))
}

/// Statuses that a client follows.
fn follows(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn first(reach: Reach, get: &HttpGet) -> Result<Uri, Failed> {
    let host = get.host.clone().unwrap_or_else(|| reach.pod_ip.to_string());
    let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host };
    let uri = Uri::builder()
        .scheme(if get.tls { "https" } else { "http" })
        .authority(format!("{host}:{}", get.port))
        .path_and_query(get.path.clone())
        .build();
    uri.map_err(|error| Failed::NoAnswer(format!("{host}: {error}")))
}

async fn ask(
    reach: Reach,
    get: &HttpGet,
    uri: &Uri,
    user_agent: Option<&HeaderValue>,
) -> Result<Answer, Failed> {
    let tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let stream = dial(reach, uri.host().map(|host| host.trim_matches(['[', ']'])), port).await?;
    let mut request = Request::new(Empty::new());
    *request.method_mut() = Method::GET;
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let headers = request.headers_mut();
    if let Ok(host) = HeaderValue::try_from(authority) {
        headers.insert(HOST, host);
    }
    headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    let user_agent = user_agent.cloned().unwrap_or(HeaderValue::from_static("kube-probe/mesh"));
    headers.insert(USER_AGENT, user_agent);
    for (name, value) in &get.headers {
        headers.insert(name, value.clone());
    }
    *request.uri_mut() = uri.clone();
    exchange(stream, tls, request).await.map_err(Failed::NoAnswer)
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `SERVING` of grpc.health.v1.
const SERVING: i32 = 1;
/// A health check's answer has two bytes; more than this is something else.
const MESSAGE: usize = 1024;

async fn grpc(reach: Reach, port: u16, service: &str) -> Result<(), Failed> {
    let stream = dial(reach, None, port).await?;
    let no_answer = |error: hyper::Error| Failed::NoAnswer(in_full(&error));
    let (mut sender, driver) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(no_answer)?;
    let _driver = AbortOnDropHandle::new(tokio::spawn(async move {
        driver.await.ok();
    }));
    let message = HealthCheckRequest { service: service.to_owned() }.encode_to_vec();
    let mut body = BytesMut::new();
    body.put_u8(0);
    body.put_u32(message.len() as u32);
    body.extend_from_slice(&message);
    let authority = SocketAddr::new(reach.pod_ip, port);
    let request = Request::post(format!("http://{authority}/grpc.health.v1.Health/Check"))
        .version(Version::HTTP_2)
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .body(Full::new(body.freeze()))
        .map_err(|error| Failed::NoAnswer(error.to_string()))?;
    let response = sender.send_request(request).await.map_err(no_answer)?;
    let (head, body) = response.into_parts();
    let body =
        Limited::new(body, MESSAGE).collect().await.map_err(|error| Failed::Answered(error.to_string()))?;
    let said = |name: &str| {
        let in_trailers = body.trailers().and_then(|trailers| trailers.get(name));
        let value = in_trailers.or_else(|| head.headers.get(name));
        value.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    match said("grpc-status").as_deref() {
        Some("0") => {}
        Some(status) => {
            let message = said("grpc-message").unwrap_or_default();
            return Err(Failed::Answered(format!("gRPC status {status}: {message}")));
        }
        None => return Err(Failed::Answered(format!("it speaks no gRPC: status {}", head.status.as_u16()))),
    }
    serving(body.to_bytes())
}

fn serving(mut body: Bytes) -> Result<(), Failed> {
    let unreadable = || Failed::Answered("the answer is no HealthCheckResponse".to_owned());
    if body.len() < 5 || body.get_u8() != 0 || body.get_u32() as usize != body.len() {
        return Err(unreadable());
    }
    match HealthCheckResponse::decode(body) {
        Ok(HealthCheckResponse { status: SERVING }) => Ok(()),
        Ok(HealthCheckResponse { status }) => {
            let name = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
            let name = usize::try_from(status).ok().and_then(|at| name.get(at)).copied();
            Err(Failed::Answered(format!("health status {}", name.unwrap_or("that nobody knows"))))
        }
        Err(_) => Err(unreadable()),
    }
}
