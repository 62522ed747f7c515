//! One connection to one endpoint: TCP, then the mesh's mutual TLS when the endpoint takes it. An endpoint whose
//! identity is not known is never dialled, and a failed handshake never ends in plaintext.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mesh_common::xds::names::ALPN_TCP;

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};

use super::{UpstreamError, keepalive};
use crate::config::cluster::{Bind, Cluster, Endpoint, EndpointTls, UpstreamTls};
use crate::connection::Io;
use crate::telemetry::ResponseFlags;
use crate::worker::Worker;

/// How long bytes of a request may be on their way without a word from the peer's kernel, or wait for an
/// application that does not read them, before it counts as gone; the kernel itself would try for a quarter of an
/// hour. Opaque connections are not judged: their applications may have reasons.
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// Whether connections to this endpoint are secured by the mesh.
pub(crate) fn is_mutual(cluster: &Cluster, endpoint: &Endpoint) -> bool {
    matches!((&cluster.tls, &endpoint.tls), (UpstreamTls::ByEndpoint(_), EndpointTls::Mutual(_)))
}

/// Dials `endpoint` within the cluster's time limit; `alpn` is what is spoken under mutual TLS.
pub(crate) async fn dial(
    worker: &Worker,
    cluster: &Cluster,
    endpoint: &Endpoint,
    alpn: &'static str,
) -> Result<Io, UpstreamError> {
    let limit = cluster.connect_timeout;
    // Boxed: a handshake's state is large, and most requests find a connection in the pool.
    let connecting = Box::pin(connect(worker, cluster, endpoint, alpn));
    match tokio::time::timeout(limit, connecting).await {
        Ok(result) => result,
        Err(_) => Err(failed(endpoint.address, &format!("no connection within {limit:?}"))),
    }
}

async fn connect(
    worker: &Worker,
    cluster: &Cluster,
    endpoint: &Endpoint,
    alpn: &'static str,
) -> Result<Io, UpstreamError> {
    let (mesh, identity) = match (&cluster.tls, &endpoint.tls) {
        (_, EndpointTls::Refused(reason)) => return Err(failed(endpoint.address, reason)),
        (UpstreamTls::ByEndpoint(mesh), EndpointTls::Mutual(identity)) => (mesh, identity),
        (UpstreamTls::None, EndpointTls::Mutual(_)) => {
            return Err(failed(endpoint.address, "it takes mutual TLS only, and its cluster has none"));
        }
        (_, EndpointTls::Plaintext) => {
            return Ok(tcp(worker, cluster, endpoint.address, alpn).await?.into());
        }
    };
    let stream = tcp(worker, cluster, endpoint.address, alpn).await?;
    let tls = worker.tls.connect(stream, mesh, identity, alpn).await;
    tls.map(Io::from).map_err(|error| failed(endpoint.address, &error.to_string()))
}

async fn tcp(
    worker: &Worker,
    cluster: &Cluster,
    to: SocketAddr,
    alpn: &str,
) -> Result<TcpStream, UpstreamError> {
    if worker.own.holds(to) {
        let reason = format!("{to} is this proxy itself: the connection would come back for ever");
        return Err(UpstreamError::new(ResponseFlags::NO_ROUTE, reason));
    }
    let unacknowledged = (alpn != ALPN_TCP).then_some(UNACKNOWLEDGED);
    open(source(cluster.bind, worker.source_ip, to.ip()), to, unacknowledged)
        .await
        .map_err(|error| failed(to, &error.to_string()))
}

/// The address to dial from, if it matters: the cluster's own, else the pod's toward loopback endpoints. One of
/// the other family cannot be used.
fn source(bind: Bind, pod: Option<IpAddr>, to: IpAddr) -> Option<IpAddr> {
    let own = match to {
        IpAddr::V4(_) => bind.v4.map(IpAddr::V4),
        // Of IPv6's loopback there is one address, and what is dialled there is never captured.
        IpAddr::V6(to) => bind.v6.filter(|_| !to.is_loopback()).map(IpAddr::V6),
    };
    own.or(pod.filter(|pod| to.is_loopback() && pod.is_ipv4() == to.is_ipv4()))
}

async fn open(
    from: Option<IpAddr>,
    to: SocketAddr,
    unacknowledged: Option<Duration>,
) -> std::io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(from) = from {
        socket.bind(SocketAddr::new(from, 0))?;
    }
    socket.set_nodelay(true)?;
    SockRef::from(&socket).set_tcp_keepalive(&keepalive())?;
    if unacknowledged.is_some() {
        SockRef::from(&socket).set_tcp_user_timeout(unacknowledged)?;
    }
    socket.connect(to).await
}

fn failed(to: SocketAddr, reason: &str) -> UpstreamError {
    UpstreamError::new(
        ResponseFlags::UPSTREAM_CONNECTION_FAILURE,
        format!("connection to endpoint {to} failed: {reason}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dials_from_where_the_peer_looks() {
        let ip = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        let none = Bind::default();
        let app = Bind { v4: "127.0.0.6".parse().ok(), v6: "::6".parse().ok() };
        for (bind, pod, to, expected) in [
            (app, ip("127.0.0.11"), "127.0.0.1", ip("127.0.0.6")),
            (app, ip("10.0.0.1"), "10.0.0.1", ip("127.0.0.6")),
            (app, ip("fd00::1"), "fd00::1", ip("::6")),
            (app, None, "::1", None),
            (Bind { v6: None, ..app }, None, "fd00::1", None),
            (none, ip("127.0.0.11"), "127.0.0.12", ip("127.0.0.11")),
            (none, ip("127.0.0.11"), "::1", None),
            (none, ip("10.0.0.1"), "10.0.0.2", None),
            (none, None, "127.0.0.1", None),
        ] {
            assert_eq!(source(bind, pod, to.parse().unwrap()), expected, "{to}");
        }
    }
}
