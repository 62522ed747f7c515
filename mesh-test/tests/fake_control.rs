//! What a sidecar makes of a mesh-control that is not ours: bad resources, and a pod that poses as one.

use anyhow::{Context as _, Result, ensure};
use mesh_common::xds::ResourceType;
use mesh_common::xds::names::{BLACK_HOLE_CLUSTER, TRUST_BUNDLE};
use mesh_common::xds::proto::config::cluster::v3::Cluster;
use mesh_common::xds::proto::config::core::v3::TrafficDirection;
use mesh_test::certs::{Authority, Leaf};
use mesh_test::client::{CONTROL_NAME, socks5};
use mesh_test::fake::resources::{any, closed_inbound, static_cluster, tcp_listener, trust_bundle};
use mesh_test::fake::{FakeControl, LoneSidecar};
use mesh_test::server::Server;
use mesh_test::topology::App;
use mesh_test::wait::{self, PATIENCE};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const CLUSTER: &str = "outbound|80||echo.shop.svc.cluster.local";

/// Everything a sidecar needs to be ready, and the service `echo`.
fn serve_basics(control: &FakeControl, root_pem: &str, echo: std::net::SocketAddr) {
    let outbound = TrafficDirection::Outbound;
    let virtual_outbound = tcp_listener("virtualOutbound", outbound, BLACK_HOLE_CLUSTER);
    let black_hole = Cluster { name: BLACK_HOLE_CLUSTER.to_owned(), ..Cluster::default() };
    control.set(ResourceType::Secret, TRUST_BUNDLE, any(ResourceType::Secret, &trust_bundle(root_pem)));
    control.set(ResourceType::Cluster, BLACK_HOLE_CLUSTER, any(ResourceType::Cluster, &black_hole));
    control.set(ResourceType::Listener, "virtualOutbound", any(ResourceType::Listener, &virtual_outbound));
    let inbound = "inbound/shop/web";
    control.set(ResourceType::Listener, inbound, any(ResourceType::Listener, &closed_inbound(inbound)));
    let listener = tcp_listener("host/echo:80", outbound, CLUSTER);
    control.set(ResourceType::Listener, "host/echo:80", any(ResourceType::Listener, &listener));
    control.set(ResourceType::Cluster, CLUSTER, any(ResourceType::Cluster, &static_cluster(CLUSTER, echo)));
}

async fn echoes(sidecar: &LoneSidecar) -> Result<()> {
    let mut stream = socks5(sidecar.addresses.outbound.context("no outbound port")?, "echo", 80).await?;
    stream.write_all(b"ping").await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    ensure!(answer == *b"ping");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalid_resource_is_refused_by_name() -> Result<()> {
    let authority = Authority::new("root")?;
    let root_pem = authority.root_pem().to_owned();
    let own = authority.leaf(&Leaf { dns: &[CONTROL_NAME], ..Leaf::default() })?;
    let control = FakeControl::start(authority, &own).await?;
    let echo = Server::start(App::TcpEcho, ([127, 0, 0, 1], 0).into(), "echo", "v1").await?;
    serve_basics(&control, &root_pem, echo.address());
    let folder = tempfile::tempdir()?;
    let mut sidecar = LoneSidecar::start(control.address(), &root_pem, folder.path()).await?;
    sidecar.ready().await.with_context(|| format!("refused: {:?}", control.nacks()))?;
    echoes(&sidecar).await?;
    ensure!(control.nacks().is_empty(), "refused: {:?}", control.nacks());

    let good = static_cluster(CLUSTER, echo.address());
    let bad = Cluster {
        ignore_health_on_host_removal: true,
        close_connections_on_host_health_failure: true,
        ..good.clone()
    };
    control.set(ResourceType::Cluster, CLUSTER, any(ResourceType::Cluster, &bad));
    let nack = wait::until("the refusal", PATIENCE, async || control.nacks().first().cloned()).await?;
    ensure!(nack.type_url == ResourceType::Cluster.url(), "{nack:?}");
    for word in [CLUSTER, "ignore_health_on_host_removal", "close_connections_on_host_health_failure"] {
        ensure!(nack.reason.contains(word), "{word} is not named: {nack:?}");
    }
    echoes(&sidecar).await.context("the last good one stays")?;
    control.set(ResourceType::Cluster, CLUSTER, any(ResourceType::Cluster, &good));
    echoes(&sidecar).await?;
    ensure!(control.nacks().len() == 1, "refused: {:?}", control.nacks());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_poses_as_mesh_control() -> Result<()> {
    let authority = Authority::new("root")?;
    let root_pem = authority.root_pem().to_owned();
    // Any pod has a certificate of the root; the name is what counts.
    let pod =
        Leaf { uris: &["spiffe://cluster.local/ns/shop/sa/evil"], dns: &["evil.shop.svc"], expired: false };
    let own = authority.leaf(&pod)?;
    let control = FakeControl::start(authority, &own).await?;
    let folder = tempfile::tempdir()?;
    let sidecar = LoneSidecar::start(control.address(), &root_pem, folder.path()).await?;
    wait::until("the log names the wrong name", PATIENCE, async || {
        sidecar.log().contains("mesh-control.mesh-system.svc").then_some(())
    })
    .await
    .with_context(|| sidecar.log())?;
    ensure!(control.calls() == 0, "it was told a token");
    ensure!(!sidecar.is_ready().await);
    // Not in plaintext, not anywhere: the request waits, then fails.
    ensure!(echoes(&sidecar).await.is_err());
    Ok(())
}
