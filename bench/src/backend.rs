//! The backend: answers with as many bytes as the path says, over HTTP/1.1, HTTP/2 and gRPC.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::http2::MESSAGE;
use crate::{GRPC_HEAD, Local, grpc_message};

/// Serves for ever: HTTP/2 without TLS, or HTTP/1.1.
pub async fn serve(listener: TcpListener, over_http2: bool) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        stream.set_nodelay(true).unwrap_or_default();
        let stream = TokioIo::new(stream);
        tokio::task::spawn_local(async move {
            let served = if over_http2 {
                http2::Builder::new(Local).serve_connection(stream, service_fn(answer)).await
            } else {
                http1::Builder::new().serve_connection(stream, service_fn(answer)).await
            };
            // A connection that fails is the client's to see.
            served.unwrap_or_default();
        });
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Reply>, Infallible> {
    let bytes = request.uri().path().trim_start_matches('/').parse().unwrap_or(0);
    let kind = request.headers().get("content-type").map_or(&b""[..], HeaderValue::as_bytes).to_vec();
    let mut response = match kind.as_slice() {
        b"application/grpc+stream" => {
            let reply = grpc_message(bytes);
            Response::new(Reply::Messages { from: request.into_body(), received: 0, reply })
        }
        b"application/grpc" => {
            read(request.into_body()).await;
            let trailers = HeaderMap::from_iter(
                [("grpc-status".parse(), "0")]
                    .into_iter()
                    .filter_map(|(name, value)| Some((name.ok()?, HeaderValue::from_static(value)))),
            );
            let frames = [Frame::data(grpc_message(bytes)), Frame::trailers(trailers)];
            Response::new(Reply::Frames(frames.into()))
        }
        _ => {
            read(request.into_body()).await;
            Response::new(Reply::Frames([Frame::data(vec![b'x'; bytes].into())].into()))
        }
    };
    let kind = if kind.is_empty() { HeaderValue::from_static("text/plain") } else { grpc() };
    response.headers_mut().insert("content-type", kind);
    Ok(response)
}

fn grpc() -> HeaderValue {
    HeaderValue::from_static("application/grpc")
}

async fn read(mut body: Incoming) {
    while let Some(Ok(_)) = body.frame().await {}
}

/// An answer's body.
enum Reply {
    Frames(VecDeque<Frame<Bytes>>),
    /// A message for each message that comes.
    Messages {
        from: Incoming,
        received: usize,
        reply: Bytes,
    },
}

impl Body for Reply {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Frames(frames) => Poll::Ready(frames.pop_front().map(Ok)),
            Self::Messages { from, received, reply } => loop {
                if *received >= GRPC_HEAD + MESSAGE {
                    *received -= GRPC_HEAD + MESSAGE;
                    return Poll::Ready(Some(Ok(Frame::data(reply.clone()))));
                }
                match ready!(Pin::new(&mut *from).poll_frame(cx)) {
                    Some(Ok(frame)) => *received += frame.data_ref().map_or(0, Bytes::len),
                    ended => return Poll::Ready(ended),
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Frames(frames) if frames.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Frames(frames) => SizeHint::with_exact(
                frames.iter().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum(),
            ),
            Self::Messages { .. } => SizeHint::default(),
        }
    }
}
