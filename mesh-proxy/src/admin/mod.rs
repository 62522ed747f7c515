//! The admin pages: what is in force, who is connected, which certificate is shown. Loopback by default, GET
//! only reads; a private key is on no page.

mod dump;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use mesh_common::process::DrainStarter;
use mesh_common::telemetry::admin::{AdminState, common_pages};
use serde_json::Value;
use std::sync::Arc;
use tower::ServiceExt as _;

use crate::config::store::Store;
use crate::listener::Addresses;
use crate::tls::TlsContext;
use crate::xds::XdsStatus;

/// What the pages read.
#[derive(Clone)]
pub struct Pages {
    /// What is in force.
    pub store: Arc<Store>,
    /// The stream to the control plane.
    pub xds: XdsStatus,
    /// Own certificate and trust bundle.
    pub tls: TlsContext,
    /// Where the proxy listens.
    pub addresses: Addresses,
    /// The node id.
    pub node: String,
    /// Begins the drain when somebody asks for it.
    pub drain: DrainStarter,
}

/// All pages of the proxy.
pub fn router(pages: Pages, common: AdminState) -> Router {
    let common = common_pages(common);
    let metrics = common.clone();
    Router::new()
        .route("/", get(index))
        .route("/config_dump", get(|State(p): State<Pages>| async move { json(dump::config(&p)) }))
        .route("/clusters", get(|State(p): State<Pages>| async move { json(dump::clusters(&p)) }))
        .route("/listeners", get(|State(p): State<Pages>| async move { json(dump::listeners(&p)) }))
        .route("/certs", get(|State(p): State<Pages>| async move { json(dump::certificates(&p)) }))
        .route("/stats/prometheus", get(move || same_as_metrics(metrics)))
        .route("/drain", post(drain))
        .with_state(pages)
        .merge(common)
        .fallback(unknown)
}

const INDEX: &str = "/config_dump /clusters /listeners /certs /metrics /stats/prometheus /healthz /readyz \
                     /loglevel (GET, POST) /drain (POST)\n";

async fn index() -> &'static str {
    INDEX
}

async fn unknown(uri: Uri) -> (StatusCode, String) {
    (StatusCode::NOT_FOUND, format!("there is no page {}; there are: {INDEX}", uri.path()))
}

/// Envoy's name of the page.
async fn same_as_metrics(metrics: Router) -> Response {
    let mut request = Request::<Body>::default();
    *request.uri_mut() = Uri::from_static("/metrics");
    metrics.oneshot(request).await.into_response()
}

async fn drain(State(pages): State<Pages>) -> Response {
    if pages.drain.start() {
        tracing::info!(
            reason = "POST /drain",
            "draining: no new inbound work after a moment; outbound goes on"
        );
    }
    (StatusCode::ACCEPTED, "draining\n").into_response()
}

fn json(value: Value) -> Response {
    Json(value).into_response()
}
