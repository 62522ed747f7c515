//! A proxy that is killed while mesh-control is away: what it kept is enough to serve again.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_common::xds::ResourceType;
use tokio::time::Instant;

use super::figure;
use super::routing::REVIEWS;
use crate::wait::{self, PATIENCE};
use crate::world::{Sidecar, World};

/// From the start of the process to the answer.
const LIMIT: Duration = Duration::from_secs(2);

pub(super) async fn killed_without_control(world: &World) -> Result<()> {
    let (web, reviews) = (world.pod("web")?.sidecar()?, world.pod("reviews")?.sidecar()?);
    let client = world.client("web")?;
    client.get(REVIEWS).await?.echo()?;
    world.counted("web", "istio_requests_total", &[], 1).await?;
    // What is asked for last of all, by each of them.
    kept(web, ResourceType::Endpoints, "outbound|80||reviews.shop.svc.cluster.local").await?;
    kept(reviews, ResourceType::Cluster, "inbound|").await?;
    world.kill_control().await?;
    for sidecar in [web, reviews] {
        sidecar.kill().await?;
    }
    ensure!(client.get(REVIEWS).await.is_err(), "somebody answered for a proxy that was killed");
    let started = Instant::now();
    for sidecar in [web, reviews] {
        sidecar.restart().await?;
    }
    // The port is STRICT: an answer is proof of mutual TLS, and the counter says so, too.
    let answered = async || client.get(REVIEWS).await?.echo();
    wait::until_ok("an answer after the restart", PATIENCE, answered).await?;
    let took = started.elapsed();
    figure("both proxies killed, mesh-control away, to the first answer", format!("{took:?}"));
    ensure!(took < LIMIT, "it took {took:?}");
    let mutual = [("reporter", "destination"), ("connection_security_policy", "mutual_tls")];
    world.counted("reviews", "istio_requests_total", &mutual, 1).await?;
    for (name, mode) in [("configuration.kept", 0o600), ("identity.pem", 0o600)] {
        use std::os::unix::fs::PermissionsExt as _;
        let found = std::fs::metadata(web.state().join(name))?.permissions().mode() & 0o777;
        ensure!(found == mode, "{name} has mode {found:o}");
    }

    world.restart_control().await?;
    wait::until_ok("all streams are back", PATIENCE, async || {
        let metrics = world.control_metrics().await?;
        let asked = metrics.sum("mesh_control_streams", &[]);
        ensure!(asked == 2.0, "{asked} streams");
        Ok(())
    })
    .await?;
    client.get(REVIEWS).await?.echo()?;
    // Each asks for the trust bundle again; all else was held.
    wait::until_ok("the bundle is sent", PATIENCE, async || {
        let sent = world.control_metrics().await?.sum("mesh_control_pushed_resources_total", &[]);
        ensure!(sent == 2.0, "{sent} resources were sent");
        Ok(())
    })
    .await
}

/// Waits until a type and a name are in the file that the sidecar keeps.
async fn kept(sidecar: &Sidecar, kind: ResourceType, name: &str) -> Result<()> {
    let file = sidecar.state().join("configuration.kept");
    let what = format!("{kind} {name} in {}", file.display());
    wait::until(&what, PATIENCE, async || {
        let bytes = std::fs::read(&file).ok()?;
        let holds = |text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
        (holds(kind.url()) && holds(name)).then_some(())
    })
    .await
}
