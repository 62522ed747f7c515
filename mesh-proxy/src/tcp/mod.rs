//! TCP proxy: opaque bytes between a connection and an endpoint of a cluster. It never looks into them.

mod copy;
mod meter;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::Instant;

use crate::config::listener::{FilterChain, Listener, NetworkFilter, TcpProxy};
use crate::connect::{UpstreamError, UpstreamTcp};
use crate::connection::{Connection, Direction, Target};
use crate::telemetry::{AccessEntry, ResponseFlags};
use crate::worker::Worker;
use meter::Meter;

/// The outcome of dialling a cluster.
#[derive(Debug)]
pub(crate) struct Dialled {
    /// The cluster that was picked.
    pub(crate) cluster: String,
    /// The connection, or why there is none.
    pub(crate) result: Result<UpstreamTcp, UpstreamError>,
}

/// Picks a cluster by weight and dials it.
pub(crate) async fn dial(
    worker: &Rc<Worker>,
    tcp: &TcpProxy,
    target: &Target,
    app: Option<SocketAddr>,
) -> Dialled {
    let cluster = cluster_of(tcp).to_owned();
    let result = worker.connect_tcp(&cluster, target, app).await;
    Dialled { cluster, result }
}

/// Picks a cluster by weight.
pub(crate) fn cluster_of(tcp: &TcpProxy) -> &str {
    pick(&tcp.clusters, |total| rand::random_range(0..total))
}

/// The cluster at a random point of the sum of weights.
fn pick(clusters: &[(String, u32)], random: impl FnOnce(u64) -> u64) -> &str {
    let total = clusters.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let mut point = if total == 0 { 0 } else { random(total) };
    for (name, weight) in clusters {
        match point.checked_sub((*weight).into()) {
            Some(rest) => point = rest,
            None => return name,
        }
    }
    // Not reached by decoded configuration: there the sum is never 0.
    clusters.first().map_or("", |(name, _)| name)
}

/// Proxies `connection` by the `tcp_proxy` of `chain` until both sides are done. `dialled` is the upstream
/// connection if there is one already.
pub(crate) async fn proxy(
    worker: Rc<Worker>,
    connection: Connection,
    chain: Arc<FilterChain>,
    dialled: Option<Dialled>,
) {
    let NetworkFilter::Tcp(tcp) = &chain.filter else {
        tracing::error!(chain = chain.name, "a chain without TCP proxy was given to the TCP proxy");
        return;
    };
    let (start, started) = (SystemTime::now(), Instant::now());
    let mut dialled = match dialled {
        Some(dialled) => dialled,
        None => dial(&worker, tcp, &connection.target, connection.app).await,
    };
    refuse_loop(&connection, &mut dialled);
    let Connection { io: mut downstream, peer, .. } = connection;
    let mut line = AccessEntry { start, ..entry() };
    (line.downstream_local, line.downstream_remote) = (downstream.local_addr(), Some(peer));
    line.upstream_cluster = &dialled.cluster;
    line.route_name = &chain.name;
    let who = meter::Parties {
        direction: connection.direction,
        peer,
        identity: connection.identity,
        security: connection.security,
    };
    let meter = Meter::new(&worker, who, &dialled);
    let (failure, end);
    match dialled.result {
        Ok(upstream) => {
            let mut upstream = upstream.io;
            (line.upstream_host, line.upstream_local) = (upstream.peer_addr(), upstream.local_addr());
            // Boxed: it rests nearly always, and this future is held for as long as the connection.
            let refused = Box::pin(refused(&worker, &chain, connection.direction));
            let allowed = async {
                tokio::select! {
                    end = copy::copy(&mut downstream, &mut upstream, tcp.idle_timeout, meter.progress()) => end,
                    () = refused => copy::End::Refused,
                }
            };
            end = meter.run(allowed).await;
            line.flags = end.flags();
            failure = end.to_string();
            line.termination_details = &failure;
        }
        Err(error) => {
            meter.failed(error.flags).await;
            line.flags = error.flags;
            failure = error.reason;
            line.upstream_failure = &failure;
            tracing::debug!(
                cluster = line.upstream_cluster,
                reason = failure,
                "no upstream for a TCP connection"
            );
        }
    }
    if let Some(format) = tcp.access_log {
        (line.bytes_received, line.bytes_sent) = meter.progress().bytes();
        line.duration = started.elapsed();
        worker.telemetry.access_log().log(format, &line);
    }
}

/// Resolves when an inbound connection in plaintext came by a chain that is not there any more: the port has
/// turned STRICT. Whatever else changes, an open connection stays as it is.
async fn refused(worker: &Worker, chain: &FilterChain, direction: Direction) {
    if direction == Direction::Outbound || chain.tls.is_some() {
        return std::future::pending().await;
    }
    loop {
        // Made before the look, so that no change falls between the two.
        let changed = worker.inbound_changed.notified();
        let inbound = worker.store.snapshot().inbound.clone();
        if inbound.is_some_and(|inbound| !takes_plaintext(&inbound, chain)) {
            return;
        }
        changed.await;
    }
}

/// Whether a listener still has a chain for what `chain` took.
fn takes_plaintext(listener: &Listener, chain: &FilterChain) -> bool {
    let mut all = listener.chains.iter().chain(&listener.default_chain);
    all.any(|now| now.tls.is_none() && now.matches == chain.matches)
}

/// A target that led back to the very socket at which the client reached this proxy: it would come back for ever.
fn refuse_loop(connection: &Connection, dialled: &mut Dialled) {
    let Ok(upstream) = &dialled.result else { return };
    let reached = connection.io.local_addr();
    if connection.direction == Direction::Outbound && reached.is_some() && upstream.io.peer_addr() == reached
    {
        let reason = format!("{} leads back to this proxy", connection.target);
        dialled.result = Err(UpstreamError::new(ResponseFlags::NO_ROUTE, reason));
    }
}

fn entry() -> AccessEntry<'static> {
    AccessEntry {
        start: SystemTime::UNIX_EPOCH,
        method: "",
        path: "",
        protocol: "",
        code: 0,
        flags: ResponseFlags::NONE,
        code_details: "",
        termination_details: "",
        upstream_failure: "",
        bytes_received: 0,
        bytes_sent: 0,
        duration: std::time::Duration::ZERO,
        upstream_service_time: None,
        forwarded_for: "",
        user_agent: "",
        request_id: "",
        authority: "",
        upstream_host: None,
        upstream_cluster: "",
        upstream_local: None,
        downstream_local: None,
        downstream_remote: None,
        server_name: "",
        route_name: "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_are_picked_by_weight() {
        let clusters = [("a".to_owned(), 1), ("none".to_owned(), 0), ("b".to_owned(), 3)];
        let picked = |point| pick(&clusters, |total| point % total);
        assert_eq!([0, 1, 2, 3, 4].map(picked), ["a", "b", "b", "b", "a"]);
        assert_eq!(pick(&[], |_| 0), "");
    }
}
