//! Answers of the proxy's own. Each names the reason, for the client, the access log and metrics alike; gRPC
//! clients get it as a gRPC status.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::body::ResponseBody;
use super::headers::UNPROCESSED;
use super::record::Record;
use super::rewrite;
use crate::config::route::HeaderMutation;
use crate::connect::UpstreamError;
use crate::telemetry::ResponseFlags;

const REASON: HeaderName = HeaderName::from_static("x-mesh-reason");

/// An answer of the proxy's own.
#[derive(Debug)]
pub(crate) struct Reply {
    status: StatusCode,
    flags: ResponseFlags,
    kind: Kind,
    mutation: Option<HeaderMutation>,
    /// No endpoint has seen the request.
    unprocessed: bool,
}

#[derive(Debug)]
enum Kind {
    /// Something is wrong.
    Failure(String),
    /// A route's own answer; of a status that tells of an error, it is the reason, too.
    Direct(String),
    /// A route's redirect.
    Redirect(HeaderValue),
}

impl Reply {
    /// A request that cannot be served, and why.
    pub(crate) fn failure(status: StatusCode, flags: ResponseFlags, reason: impl Into<String>) -> Self {
        Self { status, flags, kind: Kind::Failure(reason.into()), mutation: None, unprocessed: false }
    }

    /// What a route answers itself.
    pub(crate) fn direct(status: StatusCode, body: String, mutation: HeaderMutation) -> Self {
        Self::of_route(status, Kind::Direct(body), mutation)
    }

    /// Where a route sends the client.
    pub(crate) fn redirect(status: StatusCode, location: HeaderValue, mutation: HeaderMutation) -> Self {
        Self::of_route(status, Kind::Redirect(location), mutation)
    }

    fn of_route(status: StatusCode, kind: Kind, mutation: HeaderMutation) -> Self {
        Self { status, flags: ResponseFlags::NONE, kind, mutation: Some(mutation), unprocessed: false }
    }

    /// The response; the request is counted when it has been sent.
    pub(crate) fn into_response(self, mut record: Record) -> Response<ResponseBody> {
        let mut headers = HeaderMap::new();
        let mut status = self.status;
        let mut body = Bytes::new();
        let own_words = matches!(self.kind, Kind::Direct(_));
        match self.kind {
            Kind::Redirect(location) => {
                headers.insert(LOCATION, location);
            }
            Kind::Direct(text) if status.as_u16() < 400 => body = text_body(&mut headers, text),
            Kind::Direct(reason) | Kind::Failure(reason) => {
                if let Some(line) = &mut record.line {
                    line.reason.clone_from(&reason);
                }
                if let Ok(value) = HeaderValue::try_from(visible(&format!("{}; {reason}", self.flags))) {
                    headers.insert(REASON, value);
                }
                if record.is_grpc() {
                    record.set_grpc_status(grpc_status(status));
                    grpc_headers(&mut headers, grpc_status(status), &reason);
                    status = StatusCode::OK;
                } else if own_words {
                    body = text_body(&mut headers, reason);
                } else {
                    body = text_body(&mut headers, format!("mesh: {}: {reason}\n", self.flags));
                }
            }
        }
        if let Some(mutation) = &self.mutation {
            rewrite::headers(mutation, &mut headers);
        }
        if self.unprocessed && record.is_to_mesh() {
            headers.insert(UNPROCESSED, HeaderValue::from_static("1"));
        }
        record.code = status.as_u16();
        record.flags |= self.flags;
        record.response_bytes = body.len() as u64;
        let mut response = Response::new(ResponseBody::local(body, Some(record)));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }
}

impl From<UpstreamError> for Reply {
    fn from(error: UpstreamError) -> Self {
        let status = if error.flags.contains(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT) {
            StatusCode::GATEWAY_TIMEOUT
        } else if error.flags.contains(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION) {
            StatusCode::BAD_REQUEST
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        Self { unprocessed: error.unprocessed, ..Self::failure(status, error.flags, error.reason) }
    }
}

fn text_body(headers: &mut HeaderMap, text: String) -> Bytes {
    if !text.is_empty() {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    text.into()
}

fn grpc_headers(headers: &mut HeaderMap, status: u16, reason: &str) {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(status));
    let message = percent_encoding::utf8_percent_encode(reason, GRPC_MESSAGE).to_string();
    if let Ok(message) = HeaderValue::try_from(message) {
        headers.insert("grpc-message", message);
    }
}

/// What a gRPC message must escape: all that is not printable ASCII, and the percent sign.
const GRPC_MESSAGE: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS.add(b'%');

/// As gRPC maps HTTP statuses.
fn grpc_status(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 | 431 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// A reason may quote what came from the network: only visible characters go into a header.
fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
}
