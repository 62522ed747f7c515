//! From an HTTP request to an answer. Whatever is wrong with it is said in one line of text, with the status that fits.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Limits;
use crate::review;
use crate::webhook::Webhook;

const PATH: &str = "/inject";

/// What all connections share.
pub(super) struct Service {
    pub(super) webhook: Webhook,
    /// KiB of all bodies together.
    pub(super) budget: Arc<Semaphore>,
    pub(super) limits: Limits,
    pub(super) leaving: CancellationToken,
}

/// What is wrong with a request.
struct Wrong(StatusCode, String);

type Answering = Pin<Box<dyn Future<Output = Result<Response<Full<Bytes>>, Infallible>> + Send>>;

impl Service {
    /// As hyper takes it.
    pub(super) fn per_connection(
        service: &Arc<Self>,
    ) -> impl hyper::service::Service<
        Request<Incoming>,
        Response = Response<Full<Bytes>>,
        Error = Infallible,
        Future = Answering,
    > + use<> {
        let service = Arc::clone(service);
        service_fn(move |request| -> Answering {
            let service = Arc::clone(&service);
            Box::pin(async move {
                let version = request.version();
                let mut response = service.respond(request).await;
                if service.leaving.is_cancelled() && version < Version::HTTP_2 {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok(response)
            })
        })
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        match self.answer(request).await {
            Ok(review) => response(StatusCode::OK, "application/json", review),
            Err(Wrong(status, why)) => {
                self.webhook.metrics.answered("bad_request", "http", Duration::ZERO);
                tracing::info!(%status, why, "a request that is none of the API server's was refused");
                let mut response = response(status, "text/plain; charset=utf-8", format!("{why}\n").into());
                if status == StatusCode::METHOD_NOT_ALLOWED {
                    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
                }
                response
            }
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Bytes, Wrong> {
        check(request.method(), request.uri().path(), request.headers(), self.limits.body_bytes)?;
        let (body, _taken) = self.read(request.into_body()).await?;
        let started = Instant::now();
        let review = review::parse(&body).map_err(|why| Wrong(StatusCode::BAD_REQUEST, why))?;
        drop(body);
        let answer = self.webhook.answer(review).await;
        self.webhook.metrics.answered(answer.outcome, answer.reason, started.elapsed());
        Ok(answer.review.to_string().into())
    }

    /// The whole body, with the share of the budget that it takes.
    async fn read(&self, body: Incoming) -> Result<(Bytes, Vec<OwnedSemaphorePermit>), Wrong> {
        match tokio::time::timeout(self.limits.body, self.collect(body)).await {
            Ok(read) => read,
            Err(_) => {
                let why = format!("the body did not come within {:?}", self.limits.body);
                Err(Wrong(StatusCode::REQUEST_TIMEOUT, why))
            }
        }
    }

    async fn collect(&self, mut body: Incoming) -> Result<(Bytes, Vec<OwnedSemaphorePermit>), Wrong> {
        let (mut bytes, mut taken, mut paid) = (BytesMut::new(), Vec::new(), 0);
        while let Some(frame) = body.frame().await {
            let frame = frame
                .map_err(|error| Wrong(StatusCode::BAD_REQUEST, format!("the body broke off: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > self.limits.body_bytes {
                return Err(too_large(self.limits.body_bytes));
            }
            bytes.extend_from_slice(&data);
            let due = bytes.len().div_ceil(1024);
            let share = u32::try_from(due - paid).unwrap_or(u32::MAX);
            taken.push(Arc::clone(&self.budget).try_acquire_many_owned(share).map_err(|_| {
                let why = "too many requests are being read; try again".to_owned();
                Wrong(StatusCode::SERVICE_UNAVAILABLE, why)
            })?);
            paid = due;
        }
        Ok((bytes.freeze(), taken))
    }
}

fn check(method: &Method, path: &str, headers: &HeaderMap, most: usize) -> Result<(), Wrong> {
    if path != PATH {
        return Err(Wrong(StatusCode::NOT_FOUND, format!("there is only {PATH} here")));
    }
    if method != Method::POST {
        return Err(Wrong(StatusCode::METHOD_NOT_ALLOWED, "an AdmissionReview comes by POST".to_owned()));
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|it| it.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        let why = format!("the body is {kind:?}; an AdmissionReview is application/json");
        return Err(Wrong(StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
    }
    let length = headers.get(header::CONTENT_LENGTH).and_then(|it| it.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > most) {
        return Err(too_large(most));
    }
    Ok(())
}

fn too_large(most: usize) -> Wrong {
    Wrong(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {most} bytes"))
}

fn response(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
