//! The small admin server of every binary: health, readiness, metrics, log level; a binary merges its own
//! pages in. GET reads and never changes anything.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use prometheus_client::registry::Registry;

use super::log::LogLevel;
use crate::process::{DrainGuard, Readiness};

/// The metrics of a process. Registered once at start, encoded on request.
pub type SharedRegistry = Arc<Mutex<Registry>>;

/// What the common pages read.
#[derive(Clone)]
pub struct AdminState {
    /// Answers `/readyz`.
    pub readiness: Readiness,
    /// Answers `/metrics`.
    pub registry: SharedRegistry,
    /// Answers `/loglevel`.
    pub log_level: Option<LogLevel>,
}

/// The pages every binary has: `/healthz`, `/readyz`, `/metrics`, `GET` and `POST /loglevel`.
/// The registry gets the figures of the process, too.
pub fn common_pages(state: AdminState) -> Router {
    let mut registry = state.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    super::process::register(&mut registry, state.readiness.clone());
    drop(registry);
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/loglevel", get(read_level))
        .route("/loglevel", post(write_level))
        .with_state(state)
}

/// Serves `pages` on a bound listener until the process drains to its end. Requests whose Host is a name
/// other than localhost are refused, so that a web page in a browser cannot reach the admin port by a
/// name that it made resolve to this machine.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(
    listener: tokio::net::TcpListener,
    pages: Router,
    mut guard: DrainGuard,
) -> std::io::Result<()> {
    let pages = pages.layer(axum::middleware::from_fn(local_host_only));
    axum::serve(listener, pages.into_make_service_with_connect_info::<SocketAddr>())
        .with_graceful_shutdown(async move { guard.stopping().await })
        .await
}

async fn local_host_only(request: axum::extract::Request, next: axum::middleware::Next) -> Response {
    // A web page can send a POST to an address without reading the answer; it then tells its origin.
    let foreign =
        request.method() != axum::http::Method::GET && request.headers().contains_key(header::ORIGIN);
    if !foreign && host_is_local(request.headers()) {
        next.run(request).await
    } else {
        (
            StatusCode::FORBIDDEN,
            "this page is served to addresses and localhost only, not to names or other pages\n",
        )
            .into_response()
    }
}

fn host_is_local(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else { return true };
    let Ok(host) = host.to_str() else { return false };
    let name = host
        .rsplit_once(':')
        .map_or(host, |(name, port)| if port.bytes().all(|b| b.is_ascii_digit()) { name } else { host });
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok()
}

async fn ready(State(state): State<AdminState>) -> Response {
    let missing = state.readiness.explained();
    if missing.is_empty() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready, waiting for: {}\n", missing.join(", ")))
            .into_response()
    }
}

async fn metrics(State(state): State<AdminState>) -> Response {
    let mut text = String::new();
    let registry = state.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be encoded\n").into_response(),
    }
}

async fn read_level(State(state): State<AdminState>) -> String {
    state.log_level.as_ref().map(LogLevel::get).unwrap_or_default() + "\n"
}

#[derive(serde::Deserialize)]
struct NewLevel {
    level: String,
}

async fn write_level(State(state): State<AdminState>, Query(new): Query<NewLevel>) -> Response {
    match state.log_level.as_ref().map(|level| level.set(&new.level)) {
        Some(Ok(())) => "ok\n".into_response(),
        Some(Err(error)) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
        None => (StatusCode::NOT_FOUND, "this process has no log level to change\n").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost() {
        for (host, local) in [
            ("127.0.0.1:15000", true),
            ("[::1]:15000", true),
            ("localhost", true),
            ("LocalHost:15000", true),
            ("10.0.0.1", true),
            ("evil.example", false),
            ("evil.example:15000", false),
            ("localhost.evil.example", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            assert_eq!(host_is_local(&headers), local, "{host}");
        }
    }
}
