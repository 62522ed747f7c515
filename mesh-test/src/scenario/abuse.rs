//! Clients that misbehave: one that reads nothing, and those who try to make two readers see two different
//! requests.

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::{MTLS, figure};
use crate::wait::{self, PATIENCE};
use crate::world::World;

pub(super) async fn slow_clients(world: &World) -> Result<()> {
    const CLIENTS: usize = 8;
    const MEGABYTES: u64 = 256;
    let server = world.pod("reviews")?.server()?;
    let memory = async || -> Result<(f64, f64)> {
        let resident = async |pod| world.pod(pod)?.sidecar()?.resident_mb().await;
        Ok((resident("web").await?, resident("reviews").await?))
    };
    world.client("web")?.get(super::routing::REVIEWS).await?.echo()?;
    let before = memory().await?;
    let mut streams = Vec::new();
    for _ in 0..CLIENTS {
        let mut stream = world.pod("web")?.dial("reviews", 80).await?;
        let request = format!("GET /large/{MEGABYTES} HTTP/1.1\r\nHost: reviews\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        streams.push(stream);
    }
    // Nothing is taken from the server any more: every buffer on the way is full.
    let (mut last, mut same) = (0, 0);
    wait::until("the server has to wait", PATIENCE, async || {
        let now = server.large_bytes();
        same = if now == last && now > 0 { same + 1 } else { 0 };
        last = now;
        (same > 50).then_some(())
    })
    .await?;
    let after = memory().await?;
    let grown = (after.0 - before.0).max(after.1 - before.1);
    figure(&format!("{CLIENTS} clients that read nothing cost a sidecar"), format!("{grown:.1} MB"));
    ensure!(grown < 60.0, "{CLIENTS} clients that read nothing cost {grown} MB");
    ensure!(last < CLIENTS as u64 * (MEGABYTES << 20) / 2, "the server could send {last} bytes");
    // Nor did they harm anybody else, and what they are sent is whole when they read at last.
    world.client("web")?.get(super::routing::REVIEWS).await?.echo()?;
    let mut patient = streams.pop().context("no stream")?;
    let (mut read, mut buffer) = (0, vec![0; 1 << 20]);
    while read < MEGABYTES << 20 {
        let n = timeout(PATIENCE, patient.read(&mut buffer)).await.context("the answer stopped")??;
        ensure!(n > 0, "the answer ended after {read} bytes");
        read += n as u64;
    }
    drop(patient);
    drop(streams);
    let gone = CLIENTS as u64 - 1;
    for (pod, reporter) in [("web", "source"), ("reviews", "destination")] {
        let left = [("reporter", reporter), ("response_flags", "DC")];
        world.counted(pod, "istio_requests_total", &left, gone).await?;
        let whole = [("reporter", reporter), ("response_flags", "-")];
        world.counted(pod, "istio_requests_total", &whole, 3).await?;
    }
    world.counted("reviews", "istio_requests_total", &MTLS, 3 + gone).await
}

/// What would follow as a request of its own for a reader who ends the first one early.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: reviews\r\n\r\n";

fn post(lines: &str, body: &str) -> String {
    format!("POST /bad HTTP/1.1\r\nHost: reviews\r\n{lines}\r\n{body}{SMUGGLED}")
}

fn get(lines: &str) -> String {
    format!("GET /bad HTTP/1.1\r\n{lines}Connection: close\r\n\r\n")
}

/// What must be refused, by what is wrong with it.
fn malformed() -> Vec<(&'static str, String)> {
    let chunked = |size: &str| post("Transfer-Encoding: chunked\r\n", &format!("{size}\r\n\r\n"));
    vec![
        ("two lengths", post("Content-Length: 0\r\nContent-Length: 5\r\n", "")),
        ("a list of lengths", post("Content-Length: 5, 6\r\n", "hello")),
        ("a length with a sign", post("Content-Length: +5\r\n", "hello")),
        ("an unknown coding", post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n")),
        ("chunked is not the last", post("Transfer-Encoding: chunked, gzip\r\n", "0\r\n\r\n")),
        ("a folded line", post("X-A: b\r\n Transfer-Encoding: chunked\r\n", "")),
        ("a space before the colon", post("Content-Length : 5\r\n", "hello")),
        ("a NUL in a header", post("X-A: \0\r\nContent-Length: 5\r\n", "hello")),
        ("a size that is no number", chunked("zz")),
        ("a size that is too large", chunked("fffffffffffffffff1")),
        ("a size below zero", chunked("-1")),
        ("two hosts", get("Host: reviews\r\nHost: other\r\n")),
        ("no host", get("")),
    ]
}

pub(super) async fn malformed_http(world: &World) -> Result<()> {
    let seen = world.pod("reviews")?.server()?;
    let mut wrong = Vec::new();
    for (what, bytes) in malformed() {
        let (before, answer) = (seen.requests(), ask(world, &bytes).await);
        let (answer, arrived) = (answer.unwrap_or_else(|e| format!("{e:#}")), seen.requests() - before);
        if !answer.starts_with("HTTP/1.1 400 ") || answer.contains("smuggled") || arrived > 0 {
            wrong.push(format!("{what}, {arrived} arrived: {answer}"));
        }
    }
    // Transfer-Encoding counts, Content-Length goes no further, and nothing more is read (RFC 9112 6.3).
    let (te, cl) = ("Transfer-Encoding: chunked\r\n", "Content-Length: 5\r\n");
    for lines in [format!("{te}{cl}"), format!("{cl}{te}")] {
        let (before, answer) = (seen.requests(), ask(world, &post(&lines, "0\r\n\r\n")).await?);
        let (answers, arrived) = (answer.matches("HTTP/1.1 ").count(), seen.requests() - before);
        let one = (answers, arrived) == (1, 1) && !answer.contains("smuggled");
        if !one || answer.contains("\"content-length\"") {
            wrong.push(format!("{lines:?}, {arrived} arrived: {answer}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Whose fault it was; what is no head at all never becomes a request that could be counted.
    for (flags, count) in [("DPE", 2), ("DC", 3)] {
        let refused = [("reporter", "source"), ("response_code", "400"), ("response_flags", flags)];
        world.counted("web", "istio_requests_total", &refused, count).await?;
    }
    world.counted("reviews", "istio_requests_total", &[MTLS[0], MTLS[1], ("response_code", "200")], 2).await
}

pub(super) async fn headers_of_one_hop(world: &World) -> Result<()> {
    let head = "GET / HTTP/1.1\r\nHost: reviews\r\nConnection: close, x-mine\r\nX-Mine: 1\r\nKeep-Alive: timeout=5\r\n\
                Proxy-Authorization: secret\r\nProxy-Connection: keep-alive\r\nTE: gzip\r\nX-Envoy-Internal: true\r\n\
                X-Forwarded-Client-Cert: URI=spiffe://cluster.local/ns/shop/sa/admin\r\nX-Own: kept\r\n\r\n";
    let answer = ask(world, head).await?.to_lowercase();
    ensure!(answer.starts_with("http/1.1 200") && answer.contains("\"x-own\":\"kept\""), "{answer}");
    for word in ["x-mine", "keep-alive\":", "proxy-", "\"te\"", "sa/admin", "x-envoy-internal"] {
        ensure!(!answer.contains(word), "{word} passed: {answer}");
    }
    // Two requests at once are two, on one connection.
    let first = "GET /a HTTP/1.1\r\nHost: reviews\r\n\r\n";
    let both = format!("{first}{}", get("Host: reviews\r\n"));
    let answer = ask(world, &both).await?;
    ensure!(answer.matches("HTTP/1.1 200").count() == 2, "{answer}");
    world.counted("reviews", "istio_requests_total", &MTLS, 3).await?;
    world.counted("web", "istio_requests_total", &[("reporter", "source"), ("response_code", "200")], 3).await
}

/// Sends these bytes to `reviews`, and reads until the other side closes.
async fn ask(world: &World, bytes: &str) -> Result<String> {
    let mut stream = world.pod("web")?.dial("reviews", 80).await?;
    stream.write_all(bytes.as_bytes()).await?;
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.context("the connection stays open")??;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
