//! Connections for opaque TCP. An endpoint that cannot be reached is followed by another: no byte was sent yet.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use mesh_common::xds::names::ALPN_TCP;

use super::dial::{dial, is_mutual};
use super::{UpstreamError, UpstreamTcp};
use crate::cluster::{Destination, pick};
use crate::config::cluster::Discovery;
use crate::connection::Target;
use crate::telemetry::{ResponseFlags, Security};
use crate::worker::Worker;

/// Endpoints that are tried.
const MAX_ATTEMPTS: u32 = 3;

/// See [`Worker::connect_tcp`].
pub(crate) async fn connect(
    worker: &Rc<Worker>,
    cluster: &str,
    target: &Target,
    app: Option<SocketAddr>,
) -> Result<UpstreamTcp, UpstreamError> {
    let cluster = worker.cluster(cluster).ok_or_else(|| {
        UpstreamError::new(ResponseFlags::NO_CLUSTER, format!("cluster {cluster} does not exist"))
    })?;
    let mut tried = Vec::new();
    let mut last = None;
    for _ in 0..MAX_ATTEMPTS {
        let usable = cluster.usable(worker, Destination { target, app }).await?;
        let Some(endpoint) = pick(&usable.endpoints, &tried, &mut rand::rng()) else {
            let name = &cluster.config().name;
            let reason = usable.refused.as_deref().unwrap_or("none is healthy");
            let flags = ResponseFlags::NO_HEALTHY_UPSTREAM;
            let none =
                || UpstreamError::new(flags, format!("cluster {name} has no usable endpoint: {reason}"));
            return Err(last.unwrap_or_else(none));
        };
        match dial(worker, cluster.config(), &endpoint.endpoint, ALPN_TCP).await {
            Ok(io) => {
                let mutual = is_mutual(cluster.config(), &endpoint.endpoint);
                let listed = !matches!(cluster.config().discovery, Discovery::OriginalDestination);
                return Ok(UpstreamTcp {
                    io,
                    endpoint: listed.then(|| Arc::clone(&endpoint.endpoint)),
                    security: if mutual { Security::MutualTls } else { Security::None },
                    service: cluster.service.clone(),
                    destination: Arc::clone(&endpoint.endpoint.workload),
                });
            }
            Err(error) => {
                tracing::debug!(reason = %error, "trying another endpoint");
                last = Some(error);
                tried.push(endpoint);
            }
        }
    }
    Err(last
        .unwrap_or_else(|| UpstreamError::new(ResponseFlags::UPSTREAM_CONNECTION_FAILURE, "not connected")))
}
