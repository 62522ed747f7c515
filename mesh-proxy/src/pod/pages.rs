//! What each port answers. A page that is not named here or by the pod does not exist: this is no relay.

use std::convert::Infallible;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use mesh_common::process::{DrainStarter, Phase, Readiness};
use mesh_common::telemetry::admin::SharedRegistry;

use super::check::{Failed, Reach, run};
use super::exposition::Format;
use super::merge::{Page, scrape};
use super::ports::Port;
use super::spec::{AppMetrics, AppProbes, LIFECYCLE, Probe};
use crate::telemetry::ProxyMetrics;

/// Lifecycle handlers have no time-out of their own; kubelet goes away when the pod's time is over.
const LIFECYCLE_LIMIT: Duration = Duration::from_secs(600);

pub(super) type PageBody = UnsyncBoxBody<Bytes, Infallible>;

/// Whoever asked gets no answer: the connection is closed.
#[derive(Debug, thiserror::Error)]
#[error("the application could not be asked")]
pub(super) struct NoAnswer;

/// What the pages read.
pub(crate) struct Pages {
    /// Whether the proxy is ready.
    pub(crate) readiness: Readiness,
    /// Whether it drains.
    pub(crate) drain: DrainStarter,
    /// Its metrics.
    pub(crate) registry: SharedRegistry,
    /// Where failures are counted.
    pub(crate) metrics: ProxyMetrics,
    /// The way to the application.
    pub(crate) reach: Reach,
    /// What may be asked of it.
    pub(crate) probes: AppProbes,
    /// Where its metrics are.
    pub(crate) app_metrics: Option<AppMetrics>,
}

impl Pages {
    /// The longest that an answer may take.
    pub(super) fn longest(&self) -> Duration {
        LIFECYCLE_LIMIT.max(self.probes.longest())
    }

    /// Answers a request to `port`.
    pub(super) async fn answer(
        &self,
        port: Port,
        request: Request<Incoming>,
    ) -> Result<Response<PageBody>, NoAnswer> {
        if request.method() != Method::GET {
            return Ok(text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here"));
        }
        let path = request.uri().path();
        match (port, path) {
            (Port::Status | Port::Ready, "/healthz/ready") => Ok(self.ready()),
            (Port::Stats, "/stats/prometheus") => Ok(self.own_metrics(&request)),
            (Port::Status, "/stats/prometheus") => Ok(self.merged_metrics(&request).await),
            (Port::Status, _) => match self.probes.get(path) {
                Some(probe) if path.starts_with(LIFECYCLE) => self.handler(path, probe, &request).await,
                Some(probe) => Ok(probed(self.reach, path, probe, &request).await),
                None => Ok(unknown(path)),
            },
            _ => Ok(unknown(path)),
        }
    }

    /// Ready once, ready for ever, whatever becomes of the control plane; but a proxy that drains wants no new work.
    fn ready(&self) -> Response<PageBody> {
        let missing = self.readiness.missing();
        if !missing.is_empty() {
            let reason = format!("not ready, waiting for: {}", missing.join(", "));
            return text(StatusCode::SERVICE_UNAVAILABLE, reason);
        }
        match self.drain.phase() {
            Phase::Serving => text(StatusCode::OK, "ready"),
            _ => text(StatusCode::SERVICE_UNAVAILABLE, "draining"),
        }
    }

    fn own_metrics(&self, request: &Request<Incoming>) -> Response<PageBody> {
        let format = wanted(request);
        self.page(format, HeaderValue::from_static(format.content_type()), None)
    }

    async fn merged_metrics(&self, request: &Request<Incoming>) -> Response<PageBody> {
        let Some(app) = &self.app_metrics else { return self.own_metrics(request) };
        match scrape(self.reach, app, request.headers()).await {
            Ok(part) => self.page(part.format, part.content_type.clone(), Some(part)),
            Err(reason) => {
                self.metrics.app_scrape_failed();
                tracing::info!(reason, "the application's metrics cannot be had; the proxy's own are served");
                self.own_metrics(request)
            }
        }
    }

    fn page(
        &self,
        format: Format,
        content_type: HeaderValue,
        app: Option<super::merge::AppPart>,
    ) -> Response<PageBody> {
        let mut encoded = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        if prometheus_client::encoding::text::encode(&mut encoded, &registry).is_err() {
            return text(StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be encoded");
        }
        drop(registry);
        let page = Page::new(&encoded, format, app, self.metrics.clone());
        let mut response = Response::new(page.boxed_unsync());
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        response
    }

    /// Kubelet takes every answer to a handler as success, and the lack of one as failure.
    async fn handler(
        &self,
        path: &str,
        handler: &Probe,
        request: &Request<Incoming>,
    ) -> Result<Response<PageBody>, NoAnswer> {
        match run(self.reach, handler, LIFECYCLE_LIMIT, request.headers().get(USER_AGENT)).await {
            Ok(()) => Ok(text(StatusCode::OK, "done")),
            Err(Failed::Answered(reason)) => Ok(text(StatusCode::SERVICE_UNAVAILABLE, reason)),
            Err(Failed::NoAnswer(reason)) => {
                tracing::warn!(path, reason, "a lifecycle handler of the application did not answer");
                Err(NoAnswer)
            }
        }
    }
}

async fn probed(reach: Reach, path: &str, probe: &Probe, request: &Request<Incoming>) -> Response<PageBody> {
    match run(reach, probe, probe.timeout, request.headers().get(USER_AGENT)).await {
        Ok(()) => text(StatusCode::OK, "passed"),
        Err(failed) => {
            tracing::debug!(path, reason = %failed, "a probe of the application failed");
            text(StatusCode::SERVICE_UNAVAILABLE, failed.to_string())
        }
    }
}

fn wanted(request: &Request<Incoming>) -> Format {
    let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
    Format::wanted(accept.unwrap_or_default())
}

fn unknown(path: &str) -> Response<PageBody> {
    text(StatusCode::NOT_FOUND, format!("there is no page {path} at this port"))
}

fn text(status: StatusCode, text: impl Into<String>) -> Response<PageBody> {
    let mut body: String = text.into();
    body.push('\n');
    let mut response = Response::new(Full::from(body).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
