//! The application's metrics behind the proxy's own, as one page. The application's part streams through and is never
//! held; whatever becomes of it, the proxy's part is there and the page is whole.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use http_body::{Body, Frame};
use http_body_util::Empty;
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};
use tokio_util::task::AbortOnDropHandle;

use super::check::Reach;
use super::exchange::{Answer, exchange};
use super::exposition::{Format, Lines, readable};
use super::spec::AppMetrics;
use crate::telemetry::ProxyMetrics;

/// The largest page of an application that is passed on.
const LARGEST: usize = 16 << 20;
/// How long a scrape may take when the scraper does not say.
const LONGEST: Duration = Duration::from_secs(10);
/// What is left of the scraper's time for the rest.
const MARGIN: Duration = Duration::from_millis(250);
const SCRAPE_TIMEOUT: HeaderName = HeaderName::from_static("x-prometheus-scrape-timeout-seconds");

/// The application's part of a page, begun.
pub(super) struct AppPart {
    /// What it is written in; the proxy's part must be, too.
    pub(super) format: Format,
    /// As the application calls it.
    pub(super) content_type: HeaderValue,
    body: Incoming,
    _driver: AbortOnDropHandle<()>,
    lines: Lines,
    left: usize,
    deadline: Pin<Box<Sleep>>,
}

/// Asks the application for its metrics, for a scraper that sent `headers`.
///
/// # Errors
/// With the reason, when there are none that can be used.
pub(super) async fn scrape(reach: Reach, app: &AppMetrics, headers: &HeaderMap) -> Result<AppPart, String> {
    let deadline = Instant::now() + time(headers);
    let asking = async {
        let stream = reach.dial(None, app.port).await;
        let stream = stream.map_err(|error| format!("cannot connect to port {}: {error}", app.port))?;
        exchange(stream, app.tls, request(reach, app, headers)?).await
    };
    let answer = tokio::time::timeout_at(deadline, asking).await;
    let Answer { response, driver } = answer.map_err(|_| "no answer in time".to_owned())??;
    let (head, body) = response.into_parts();
    if head.status != 200 {
        return Err(format!("status {}", head.status.as_u16()));
    }
    if head.headers.contains_key(CONTENT_ENCODING) {
        return Err("the answer is compressed, which was not asked for".to_owned());
    }
    let said = head.headers.get(CONTENT_TYPE);
    let format = Format::of(said.map(|value| value.to_str().unwrap_or_default()))
        .ok_or_else(|| format!("{said:?} is not a format that can be merged"))?;
    let content_type = said.cloned().unwrap_or_else(|| HeaderValue::from_static(Format::Text.content_type()));
    let deadline = Box::pin(tokio::time::sleep_until(deadline));
    let lines = Lines::default();
    Ok(AppPart { format, content_type, body, _driver: driver, lines, left: LARGEST, deadline })
}

/// The time that a scrape of the application may take.
fn time(headers: &HeaderMap) -> Duration {
    let said = headers.get(SCRAPE_TIMEOUT).and_then(|value| value.to_str().ok()?.trim().parse::<f64>().ok());
    let said = said.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    said.map_or(LONGEST, |said| said.saturating_sub(MARGIN).clamp(MARGIN, LONGEST * 6))
}

fn request(reach: Reach, app: &AppMetrics, headers: &HeaderMap) -> Result<Request<Empty<Bytes>>, String> {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let authority = std::net::SocketAddr::new(reach.pod_ip, app.port).to_string();
    let accept = HeaderValue::try_from(readable(accept)).map_err(|error| error.to_string())?;
    let uri = Uri::builder()
        .scheme(if app.tls { "https" } else { "http" })
        .authority(authority.as_str())
        .path_and_query(app.path.clone())
        .build();
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = uri.map_err(|error| error.to_string())?;
    let own = request.headers_mut();
    own.insert(HOST, HeaderValue::try_from(authority).map_err(|error| error.to_string())?);
    own.insert(ACCEPT, accept);
    own.insert(CONNECTION, HeaderValue::from_static("close"));
    for name in [SCRAPE_TIMEOUT, http::header::USER_AGENT] {
        if let Some(value) = headers.get(&name) {
            own.insert(name, value.clone());
        }
    }
    Ok(request)
}

/// A page of metrics.
pub(super) struct Page {
    own: Option<Bytes>,
    app: Option<AppPart>,
    end: Option<Bytes>,
    metrics: ProxyMetrics,
}

impl Page {
    /// The proxy's part, which is encoded as `OpenMetrics`, then the application's.
    pub(super) fn new(encoded: &str, format: Format, app: Option<AppPart>, metrics: ProxyMetrics) -> Self {
        let own = Some(format.own(encoded).into());
        Self { own, app, end: Some(Bytes::from_static(format.end().as_bytes())), metrics }
    }
}

impl AppPart {
    /// The next lines; none at the end, an error when it breaks off.
    fn poll_lines(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, String>>> {
        loop {
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    ready!(self.deadline.as_mut().poll(cx));
                    return Poll::Ready(Some(Err("it takes too long".to_owned())));
                }
            };
            let data = match frame {
                None => {
                    let last = self.lines.end();
                    return Poll::Ready((!last.is_empty()).then_some(Ok(last)));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error.to_string()))),
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            };
            let Some(left) = self.left.checked_sub(data.len()) else {
                return Poll::Ready(Some(Err(format!("it has more than {LARGEST} bytes"))));
            };
            self.left = left;
            match self.lines.push(&data) {
                Ok(lines) if lines.is_empty() => {}
                Ok(lines) => return Poll::Ready(Some(Ok(lines))),
                Err(_) => return Poll::Ready(Some(Err("it has a line without end".to_owned()))),
            }
        }
    }
}

impl Body for Page {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(own) = self.own.take() {
            return Poll::Ready(Some(Ok(Frame::data(own))));
        }
        if let Some(app) = &mut self.app {
            match ready!(app.poll_lines(cx)) {
                Some(Ok(lines)) => return Poll::Ready(Some(Ok(Frame::data(lines)))),
                Some(Err(reason)) => {
                    self.metrics.app_scrape_failed();
                    tracing::info!(
                        reason,
                        "the application's metrics broke off; the page ends with the last whole line"
                    );
                }
                None => {}
            }
            self.app = None;
        }
        let end = self.end.take().filter(|end| !end.is_empty());
        Poll::Ready(end.map(|end| Ok(Frame::data(end))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scrapers_time_counts() {
        for (said, millis) in [
            (None, 10_000),
            (Some("5"), 4_750),
            (Some("0.1"), 250),
            (Some("1e9"), 60_000),
            (Some("-1"), 10_000),
            (Some("x"), 10_000),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(said) = said {
                headers.insert(SCRAPE_TIMEOUT, HeaderValue::from_static(said));
            }
            assert_eq!(time(&headers), Duration::from_millis(millis), "{said:?}");
        }
    }
}
