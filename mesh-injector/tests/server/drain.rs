//! The end: what is under way finishes, and nobody who calls meanwhile is turned away before it has to be.

use std::time::Duration;

use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use mesh_test::wait::PATIENCE;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::world::{World, pod, post, read, review_of};

#[tokio::test]
async fn a_call_under_way_is_answered() -> Result<()> {
    let mut world = World::start().await?;
    let body = review_of("shop", &pod()).to_string();
    let mut tls = world.tls("http/1.1").await?;
    let head = "POST /inject HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let (first, rest) = body.split_at(20);
    tls.write_all(format!("{head}content-length: {}\r\n\r\n{first}", body.len()).as_bytes()).await?;
    // An answer on another connection: the server has had time for ours.
    world.review(&review_of("shop", &pod())).await?;

    let trigger = world.trigger.take().context("once")?;
    let draining = tokio::spawn(trigger.drain(Duration::from_secs(60)));
    mesh_test::wait::until("nobody new is taken", PATIENCE, async || world.tls("h2").await.err()).await?;
    tls.write_all(rest.as_bytes()).await?;
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, tls.read_to_end(&mut answer)).await?.ok();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"allowed\":true"), "{answer}");
    assert!(tokio::time::timeout(PATIENCE, draining).await??, "all finished in time");
    Ok(())
}

#[tokio::test]
async fn a_connection_in_use_is_given_up_before_the_drain() -> Result<()> {
    let world = World::start().await?;
    let io = TokioIo::new(world.tls("http/1.1").await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    let driver = tokio::spawn(connection);
    for leaving in [false, true] {
        if leaving {
            world.leaving.cancel();
        }
        let response = sender.send_request(post(review_of("shop", &pod()).to_string())).await?;
        assert_eq!(response.headers().get("connection").is_some_and(|it| it == "close"), leaving);
        assert_eq!(read(response).await?.0, 200);
    }
    // The server has closed it.
    tokio::time::timeout(PATIENCE, driver).await???;
    // Whoever comes meanwhile is served.
    world.review(&review_of("shop", &pod())).await?;
    Ok(())
}

#[tokio::test]
async fn whoever_does_not_finish_is_cut() -> Result<()> {
    let mut world = World::start().await?;
    let mut tls = world.tls("http/1.1").await?;
    tls.write_all(
        b"POST /inject HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{",
    )
    .await?;
    world.review(&review_of("shop", &pod())).await?;
    let trigger = world.trigger.take().context("once")?;
    assert!(!trigger.drain(Duration::from_millis(50)).await);
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, tls.read_to_end(&mut answer)).await?.ok();
    assert!(answer.is_empty());
    Ok(())
}
