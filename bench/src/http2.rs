//! HTTP/2: plain requests, gRPC calls, and one long gRPC stream for each connection.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use h2::RecvStream;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Uri, Version};
use tokio::net::TcpStream;

use crate::report::Tally;
use crate::schedule::Due;
use crate::{GRPC_HEAD, grpc_message};

/// Bytes of a request's gRPC message.
pub(crate) const MESSAGE: usize = 100;

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// GET.
    Plain,
    /// One message each way, and a status.
    Call,
    /// One stream; each request is a message, its answer another one.
    Stream,
}

/// Requests on one connection, as they are due, until one fails.
///
/// # Errors
/// The failure.
pub async fn run(
    to: SocketAddr,
    authority: &str,
    (kind, bytes): (Kind, usize),
    tally: &Tally,
    due: &mut Due,
) -> Result<()> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = h2::client::handshake(stream).await?;
    tokio::task::spawn_local(async move { connection.await.unwrap_or_default() });
    let uri: Uri = format!("http://{authority}/{bytes}").parse()?;
    if kind == Kind::Stream {
        return stream_of_messages(sender, uri, bytes, tally, due).await;
    }
    let message = grpc_message(MESSAGE);
    while let Some(due) = due.next().await {
        sender = sender.ready().await?;
        let (answer, mut body) = sender.send_request(head(&uri, kind)?, kind == Kind::Plain)?;
        if kind == Kind::Call {
            body.send_data(message.clone(), true)?;
        }
        let answer = answer.await?;
        ensure!(answer.status() == 200, "status {} {:?}", answer.status(), answer.headers());
        let mut body = answer.into_body();
        let mut length = 0;
        while let Some(data) = body.data().await {
            length += take(&mut body, &data?)?;
        }
        let trailers = body.trailers().await?;
        if kind == Kind::Call {
            let status = trailers.as_ref().and_then(|trailers: &HeaderMap| trailers.get("grpc-status"));
            ensure!(status.is_some_and(|status| status == "0"), "trailers {trailers:?}");
            length -= GRPC_HEAD;
        }
        ensure!(length == bytes, "{length} bytes instead of {bytes}");
        tally.answered(due);
    }
    Ok(())
}

fn head(uri: &Uri, kind: Kind) -> Result<Request<()>> {
    let request = Request::builder().uri(uri.clone()).version(Version::HTTP_2).header("user-agent", "bench");
    Ok(match kind {
        Kind::Plain => request,
        Kind::Call => {
            request.method("POST").header("content-type", "application/grpc").header("te", "trailers")
        }
        Kind::Stream => {
            request.method("POST").header("content-type", "application/grpc+stream").header("te", "trailers")
        }
    }
    .body(())?)
}

fn take(body: &mut RecvStream, data: &Bytes) -> Result<usize> {
    body.flow_control().release_capacity(data.len())?;
    Ok(data.len())
}

async fn stream_of_messages(
    sender: SendRequest<Bytes>,
    uri: Uri,
    bytes: usize,
    tally: &Tally,
    due: &mut Due,
) -> Result<()> {
    let mut sender = sender.ready().await?;
    let (answer, mut outgoing) = sender.send_request(head(&uri, Kind::Stream)?, false)?;
    let message = grpc_message(MESSAGE);
    let mut answer = Some(answer);
    let mut incoming = None;
    while let Some(due) = due.next().await {
        outgoing.send_data(message.clone(), false)?;
        if let Some(answer) = answer.take() {
            let answer = answer.await?;
            ensure!(answer.status() == 200, "status {}", answer.status());
            incoming = Some(answer.into_body());
        }
        let body = incoming.as_mut().context("no body")?;
        let mut left = bytes + GRPC_HEAD;
        while left > 0 {
            let data = body.data().await.context("the stream ended")??;
            left = left.checked_sub(take(body, &data)?).context("more came than a message")?;
        }
        tally.answered(due);
    }
    Ok(())
}
