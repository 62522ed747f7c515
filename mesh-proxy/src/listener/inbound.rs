//! Inbound connections: from other workloads to the application of this pod. What no filter chain takes is
//! closed, counted and logged with its reason; it never reaches the application.

use std::net::SocketAddr;
use std::rc::Rc;

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::InboundPort;
use super::captured::{self, Capture};
use super::detect::{Detected, Undecided, detect};
use super::refuse::Refusal;
use super::resolve::{CONFIG_TIMEOUT, configured};
use crate::config::listener::{NetworkFilter, TcpProxy};
use crate::connection::{Connection, Direction, Prefixed, Target};
use crate::http::{self, Scope};
use crate::tcp;
use crate::telemetry::Security;
use crate::tls::TlsError;
use crate::worker::Worker;

/// Serves a connection to `port.listen`.
pub(super) async fn serve(worker: Rc<Worker>, stream: TcpStream, peer: SocketAddr, port: InboundPort) {
    let InboundPort { listen, app } = port;
    if let Err(refusal) = filter(&worker, stream, peer, listen, Some(app)).await {
        refusal.inbound(&worker.telemetry, peer, listen);
    }
}

/// Serves a captured connection: the application is where the client wanted to go.
pub(super) async fn captured(worker: Rc<Worker>, stream: TcpStream, peer: SocketAddr, capture: Capture) {
    match captured::inbound(&stream, capture) {
        Ok(to) => {
            if let Err(refusal) = filter(&worker, stream, peer, to, None).await {
                refusal.inbound(&worker.telemetry, peer, to);
            }
        }
        Err(error) => {
            let at = SocketAddr::from(([0; 4], capture.inbound));
            Refusal::new(error.label(), error.to_string()).inbound(&worker.telemetry, peer, at);
        }
    }
}

async fn filter(
    worker: &Rc<Worker>,
    mut stream: TcpStream,
    peer: SocketAddr,
    to: SocketAddr,
    app: Option<SocketAddr>,
) -> Result<(), Refusal> {
    let listener =
        configured(&worker.store, |snapshot| snapshot.inbound.clone()).await.map_err(|waited| {
            let reason = format!("no inbound configuration from the control plane within {waited:?}");
            Refusal::new("no_configuration", reason)
        })?;
    let target = Target::Address(to);
    let mut first = BytesMut::new();
    let dial = |tcp: TcpProxy| {
        let (worker, target) = (Rc::clone(worker), target.clone());
        async move { tcp::dial(&worker, &tcp, &target, app).await }
    };
    let detected = detect(&mut stream, &mut first, &listener, &target, dial).await;
    let Detected { chain, dialled } = match detected {
        Ok(detected) => detected,
        Err(Undecided::NoChain(reason)) => return Err(Refusal::new(reason.label(), reason.to_string())),
        Err(undecided) => {
            // Port scans and health checks do this all day.
            tracing::debug!(%peer, reason = %undecided, "inbound connection ended before its first bytes");
            return Ok(());
        }
    };
    let stream = Prefixed::new(first.freeze(), stream);
    let (io, identity) = match &chain.tls {
        None => (stream.into(), None),
        Some(downstream) => {
            // At the start of the process the first certificate may be on its way still.
            if !worker.tls.is_ready() {
                timeout(CONFIG_TIMEOUT, worker.tls.ready()).await.ok();
            }
            let accepted = Box::pin(worker.tls.accept(stream, downstream)).await;
            let (stream, identity) =
                accepted.map_err(|error| Refusal::new(tls_label(&error), error.to_string()))?;
            (stream.into(), Some(identity))
        }
    };
    let security = if identity.is_some() { Security::MutualTls } else { Security::None };
    let direction = Direction::Inbound;
    let connection = Connection { io, direction, peer, target, app, identity, security };
    match &chain.filter {
        NetworkFilter::Http(_) => {
            Box::pin(http::serve(Rc::clone(worker), connection, Scope::Chain { listener, chain })).await;
        }
        NetworkFilter::Tcp(_) => Box::pin(tcp::proxy(Rc::clone(worker), connection, chain, dialled)).await,
        NetworkFilter::OnDemand => {
            return Err(Refusal::new("no_filter_chain", format!("chain {} is not for traffic", chain.name)));
        }
    }
    Ok(())
}

/// The reason as a metric's label: one of few.
fn tls_label(error: &TlsError) -> &'static str {
    match error {
        TlsError::NoCertificate
        | TlsError::NoBundle
        | TlsError::OwnCertificateExpired(_)
        | TlsError::OwnCertificate(_) => "no_own_certificate",
        TlsError::Timeout(_) => "tls_timeout",
        TlsError::Peer(_) => "peer_certificate",
        TlsError::RefusedByPeer(_) => "refused_by_peer",
        TlsError::NotTls
        | TlsError::OldVersion
        | TlsError::Alpn { .. }
        | TlsError::ServerName(_)
        | TlsError::Protocol(_) => "tls_protocol",
        TlsError::Io(_) => "tls_broken_off",
    }
}
