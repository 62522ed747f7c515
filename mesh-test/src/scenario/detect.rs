//! Connections whose protocol nobody declared, opaque ones, and those that are none of the mesh's concern.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::figure;
use crate::client::exchange;
use crate::server::BANNER;
use crate::topology::{App, Topology};
use crate::wait::PATIENCE;
use crate::world::World;

/// A port whose name declares nothing.
const UNDECLARED: &str = "main";

pub(super) fn banner_world() -> Topology {
    Topology::pair("mail", App::TcpBanner, UNDECLARED)
}

pub(super) fn quiet_world() -> Topology {
    Topology::pair("reviews", App::Http, UNDECLARED)
}

pub(super) async fn external_addresses_cause_no_look_up(world: &World) -> Result<()> {
    const CONNECTIONS: usize = 10_000;
    let outside = world.outside(App::TcpEcho).await?;
    let port = outside.address().port();
    let before = look_ups(world).await?;
    let dialer = world.pod("web")?.dialer();
    let mut tasks = JoinSet::new();
    for worker in 0..16 {
        let addresses: Vec<_> = (worker..CONNECTIONS).step_by(16).map(|_| world.outside_address()).collect();
        let dialer = dialer.clone();
        tasks.spawn(async move {
            for ip in addresses {
                let mut stream = dialer.dial(&ip.to_string(), port).await?;
                stream.write_all(b"x").await?;
                ensure!(stream.read_u8().await? == b'x', "{ip} answered something else");
            }
            Ok(())
        });
    }
    for done in tasks.join_all().await {
        done?;
    }
    ensure!(outside.connections() == CONNECTIONS as u64, "{} connections arrived", outside.connections());
    let after = look_ups(world).await?;
    ensure!(before == after, "looked up before: {before:?}, after: {after:?}");
    Ok(())
}

/// The names of listeners that the client's sidecar holds.
async fn look_ups(world: &World) -> Result<Vec<String>> {
    let page = world.control_page("/debug/streams").await?;
    let streams = page.as_array().context("no list of streams")?;
    let web = streams.iter().find(|stream| stream["pod"] == "web").context("web has no stream")?;
    let names = web["types"]["lds"]["names"].as_array().context("no listeners")?;
    Ok(names.iter().filter_map(|name| name["name"].as_str()).map(str::to_owned).collect())
}

pub(super) async fn server_speaks_first(world: &World) -> Result<()> {
    let pod = world.pod("web")?;
    let hear = async || -> Result<Duration> {
        let before = Instant::now();
        let mut stream = pod.dial("mail", 80).await?;
        let mut banner = vec![0; BANNER.len()];
        stream.read_exact(&mut banner).await?;
        ensure!(banner == BANNER, "heard {banner:?}");
        let took = before.elapsed();
        stream.write_all(b"quit").await?;
        let mut rest = [0; 4];
        stream.read_exact(&mut rest).await?;
        ensure!(rest == *b"quit", "heard {rest:?}");
        Ok(took)
    };
    let hear = async || timeout(PATIENCE, hear()).await.context("nothing is heard")?;
    hear().await?;
    let mut times = Vec::new();
    for _ in 0..9 {
        times.push(hear().await?);
    }
    times.sort();
    let median = times[times.len() / 2];
    figure("a server that speaks first is heard after", format!("{median:?}"));
    ensure!(median < Duration::from_millis(200), "heard after {median:?}");
    let opened = [("reporter", "destination"), ("connection_security_policy", "mutual_tls")];
    world.counted("mail", "istio_tcp_connections_opened_total", &opened, 10).await?;
    world.counted("web", "istio_tcp_connections_opened_total", &[("reporter", "source")], 10).await
}

pub(super) async fn idle_then_http(world: &World) -> Result<()> {
    let stream = world.pod("web")?.dial("reviews", 80).await?;
    // What is shown is just this: nothing said for so long, in real time.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let reply = exchange(stream, "reviews", "/late").await?;
    ensure!(reply.echo()?.path == "/late", "{reply}");
    // It was routed as a request, at both ends, and not passed on as bytes.
    let mtls = [("reporter", "destination"), ("connection_security_policy", "mutual_tls")];
    world.counted("reviews", "istio_requests_total", &mtls, 1).await?;
    world.counted("web", "istio_requests_total", &[("reporter", "source")], 1).await?;
    world.counted("web", "istio_tcp_connections_opened_total", &[], 0).await
}

pub(super) async fn opaque_tcp(world: &World) -> Result<()> {
    let ip = world.service_ip("echo")?.to_string();
    let direct = world.pod("echo")?.ip().to_string();
    let targets = [("echo", 80), ("echo.shop.svc.cluster.local", 80), (&*ip, 80), (&*direct, world.port())];
    for (host, port) in targets {
        let mut stream = world.pod("web")?.dial(host, port).await.with_context(|| host.to_owned())?;
        stream.write_all(&[7; 1000]).await?;
        let mut answer = [0; 1000];
        stream.read_exact(&mut answer).await.with_context(|| host.to_owned())?;
        ensure!(answer == [7; 1000], "{host} answered something else");
        stream.shutdown().await?;
        ensure!(stream.read(&mut answer).await? == 0, "{host}: more than was sent");
    }
    for (pod, reporter) in [("web", "source"), ("echo", "destination")] {
        let labels = [("reporter", reporter)];
        for name in ["istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total"] {
            world.counted(pod, name, &labels, 4).await?;
        }
        for name in ["istio_tcp_sent_bytes_total", "istio_tcp_received_bytes_total"] {
            world.counted(pod, name, &labels, 4_000).await?;
        }
    }
    let mtls = [("connection_security_policy", "mutual_tls")];
    world.counted("echo", "istio_tcp_connections_opened_total", &mtls, 4).await?;
    let page: Value = world.pod("web")?.sidecar()?.page("/config_dump").await?;
    ensure!(page.is_object(), "no dump: {page}");
    Ok(())
}
