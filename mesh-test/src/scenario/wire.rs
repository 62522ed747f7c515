//! What passes between two sidecars.

use anyhow::{Result, ensure};

use crate::manifest;
use crate::topology::{App, NAMESPACE, PodSpec, ServiceSpec, Topology};
use crate::wait::{self, PATIENCE};
use crate::world::World;

const MARKER: &str = "the-payloads-own-marker";

pub(super) fn relay_world() -> Topology {
    Topology::default()
        .pod(PodSpec::client("web"))
        .pod(PodSpec::server("reviews", App::Http).relayed())
        .service(ServiceSpec::new("reviews", "http"))
        .file("mode.yaml", manifest::peer_authentication(NAMESPACE, "PERMISSIVE"))
}

pub(super) async fn bytes_are_tls(world: &World) -> Result<()> {
    let (client, wire) = (world.client("web")?, world.pod("reviews")?.wire()?);
    let url = format!("http://reviews/{MARKER}");
    for _ in 0..10 {
        client.get(&url).await?.echo()?;
    }
    ensure!(wire.count(MARKER.as_bytes()) == 0, "the marker was on the wire");
    ensure!(wire.len() > 5_000, "only {} bytes passed", wire.len());
    let mtls = [("reporter", "destination"), ("connection_security_policy", "mutual_tls")];
    world.counted("reviews", "istio_requests_total", &mtls, 10).await?;
    // The same wire with the mesh off.
    world.edit("mode.yaml", &manifest::peer_authentication(NAMESPACE, "DISABLE"))?;
    wait::until("the marker is on the wire", PATIENCE, async || {
        client.get(&url).await.ok()?.echo().ok()?;
        (wire.count(MARKER.as_bytes()) > 0).then_some(())
    })
    .await
}
