//! Many endpoints: balanced per call, removed and drained under load; and connections that are upgraded.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::client::{Dialer, Http2Client};
use crate::load::Load;
use crate::topology::{App, PodSpec, ServiceSpec, Topology};
use crate::wait::{self, PATIENCE};
use crate::world::World;

const PODS: [&str; 3] = ["pool-a", "pool-b", "pool-c"];

fn pool(port_name: &str) -> Topology {
    let mut topology = Topology::default().pod(PodSpec::client("web"));
    for name in PODS {
        topology = topology.pod(PodSpec::server(name, App::Http).app("pool"));
    }
    topology.service(ServiceSpec::new("pool", port_name))
}

pub(super) fn pool_world() -> Topology {
    pool("http")
}

pub(super) fn grpc_world() -> Topology {
    pool("grpc")
}

pub(super) async fn grpc_per_call(world: &World) -> Result<()> {
    const CALLS: u64 = 300;
    let stream = world.pod("web")?.dial("pool", 80).await?;
    let client = Http2Client::new(stream, "pool").await?;
    let mut by_pod = std::collections::BTreeMap::<String, u64>::new();
    for call in 0..CALLS {
        let message = format!("call {call}");
        let reply = client.call("/echo.Echo/Call", message.as_bytes()).await?;
        ensure!(reply.trailers.get("grpc-status").is_some_and(|status| status == "0"), "{reply}");
        ensure!(reply.body.ends_with(message.as_bytes()), "another answer: {reply}");
        *by_pod.entry(reply.header("x-pod").to_owned()).or_default() += 1;
    }
    for pod in PODS {
        let calls = by_pod.get(pod).copied().unwrap_or_default();
        ensure!(calls > CALLS / 6, "{pod} got {calls} of {CALLS}: {by_pod:?}");
        let labels = [
            ("reporter", "destination"),
            ("connection_security_policy", "mutual_tls"),
            ("request_protocol", "grpc"),
            ("grpc_response_status", "0"),
        ];
        world.counted(pod, "istio_requests_total", &labels, calls).await?;
        // One message each way in a call.
        world.counted(pod, "istio_request_messages_total", &labels, calls).await?;
        world.counted(pod, "istio_response_messages_total", &labels, calls).await?;
    }
    for name in ["istio_request_messages_total", "istio_response_messages_total"] {
        world.counted("web", name, &[("reporter", "source"), ("request_protocol", "grpc")], CALLS).await?;
    }
    world.counted("web", "istio_requests_total", &[("request_protocol", "grpc")], CALLS).await
}

pub(super) async fn web_socket(world: &World) -> Result<()> {
    let mut ways = vec![("straight", world.pod("web")?.dial("chat", 80).await?, "/ws")];
    if let Dialer::Forward(proxy) = world.pod("web")?.dialer() {
        ways.push(("forward", TcpStream::connect(proxy).await?, "http://chat/ws"));
    }
    let count = ways.len() as u64;
    for (what, mut stream, target) in ways {
        let head = format!(
            "GET {target} HTTP/1.1\r\nHost: chat\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.with_context(|| format!("{what}: no answer"))?);
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        ensure!(answer.starts_with("HTTP/1.1 101"), "{what}: {answer}");
        for frame in [&b"\x81\x05hello"[..], &[0x82; 70_000]] {
            let mut echo = vec![0; frame.len()];
            let (mut read, mut write) = stream.split();
            tokio::try_join!(write.write_all(frame), read.read_exact(&mut echo))?;
            ensure!(echo == frame, "{what}: another frame came back");
        }
    }
    let labels = [("response_code", "101"), ("connection_security_policy", "mutual_tls")];
    world.counted("chat", "istio_requests_total", &labels, count).await?;
    world.counted("web", "istio_requests_total", &[("response_code", "101")], count).await
}

pub(super) async fn endpoints_removed_under_load(world: &World) -> Result<()> {
    let load = Load::start(&world.client("web")?, "http://pool/", 300);
    let seen = async |pods: &[&str]| {
        let from = load.elapsed();
        wait::until("exactly these pods answer", PATIENCE, async || {
            let report = load.report();
            let recent = |at: Duration| at > from && at + Duration::from_millis(300) > load.elapsed();
            let answers: Vec<_> = report.answers.iter().filter(|(at, _)| recent(*at)).collect();
            let all = pods.iter().all(|pod| answers.iter().any(|(_, by)| by == pod));
            (answers.len() > 30 && all && answers.iter().all(|(_, by)| pods.contains(&by.as_str())))
                .then_some(())
        })
        .await
    };
    seen(&PODS).await?;
    for pods in [&PODS[..2], &PODS[1..2], &PODS[..]] {
        world.set_endpoints("pool", pods)?;
        seen(pods).await.with_context(|| format!("{pods:?}"))?;
    }
    let report = load.stop().await?;
    report.no_failure()?;
    world.counted("web", "istio_requests_total", &[("response_code", "200")], report.sent).await
}

pub(super) async fn drained_under_load(world: &World) -> Result<()> {
    // Slow enough that there are always some under way at the one that ends.
    let load = Load::start(&world.client("web")?, "http://pool/delay/150", 200);
    wait::until("the load runs", PATIENCE, async || (load.report().by_pod.len() == 3).then_some(())).await?;
    let sidecar = world.pod("pool-a")?.sidecar()?;
    let before = Instant::now();
    sidecar.terminate().await?;
    // It is still an endpoint for a while, as on a cluster, where its removal has to get about.
    let sent = load.report().sent;
    wait::until("the load goes on", PATIENCE, async || (load.report().sent > sent + 120).then_some(()))
        .await?;
    world.set_endpoints("pool", &PODS[1..])?;
    ensure!(sidecar.ended(PATIENCE * 2).await?, "the drained sidecar did not exit with 0");
    super::figure("a server's sidecar has drained after", format!("{:?}", before.elapsed()));
    let sent = load.report().sent;
    wait::until("the load goes on", PATIENCE, async || (load.report().sent > sent + 200).then_some(()))
        .await?;
    load.stop().await?.no_failure()
}
