//! After `101 Switching Protocols`: bytes both ways between client and endpoint, looked at by nobody. The request
//! is counted when both are done.

use std::rc::Rc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::clock::{Clock, Touching};
use super::connection::Conn;
use super::record::Record;
use super::upstream::Lease;
use crate::telemetry::ResponseFlags;

/// The two ends of an upgraded request, and what lives as long as it does.
pub(super) struct Tunnel {
    pub(super) downstream: OnUpgrade,
    pub(super) upstream: OnUpgrade,
    pub(super) lease: Lease,
    pub(super) clock: Rc<Clock>,
    pub(super) record: Record,
}

/// Copies until both sides are done. The task holds the connection, and with it the drain guard.
pub(super) fn spawn(conn: Rc<Conn>, tunnel: Tunnel) {
    tokio::task::spawn_local(async move {
        let Tunnel { downstream, upstream, lease, clock, mut record } = tunnel;
        let (downstream, upstream) = match tokio::try_join!(downstream, upstream) {
            Ok(both) => both,
            Err(error) => {
                tracing::debug!(%error, peer = %conn.peer, "the upgrade did not come about");
                record.finish(ResponseFlags::UPSTREAM_CONNECTION_TERMINATION, Instant::now());
                return;
            }
        };
        clock.touch();
        let touching = |io| Touching { io: TokioIo::new(io), clock: Rc::clone(&clock) };
        let (mut downstream, mut upstream) = (touching(downstream), touching(upstream));
        let mut flags = ResponseFlags::NONE;
        tokio::select! {
            copied = tokio::io::copy_bidirectional(&mut downstream, &mut upstream) => {
                if let Ok((sent, received)) = copied {
                    record.request_bytes = sent;
                    record.response_bytes = received;
                }
            }
            () = clock.idle() => flags = ResponseFlags::STREAM_IDLE_TIMEOUT,
        }
        drop(lease);
        record.finish(flags, Instant::now());
    });
}
