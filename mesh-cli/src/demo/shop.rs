//! The shop: the applications of the pods, all in this process, each on a loopback port of its own that only
//! its sidecar knows. They speak plain HTTP and call each other through their own sidecars, nothing else.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::client::Client;
use super::manifests::Pod;
use super::world::World;

/// The running applications. They end when this is dropped.
#[derive(Debug)]
pub(super) struct Shop {
    entrance: Client,
    _apps: JoinSet<()>,
}

/// One application.
#[derive(Debug)]
struct App {
    pod: &'static Pod,
    client: Client,
}

impl Shop {
    /// Starts the application of every pod on the listener that its sidecar was told of.
    pub(super) fn start(world: &mut World) -> Self {
        let entrance = Client::new(world.client_proxy());
        let mut apps = JoinSet::new();
        for (pod, outbound, listener) in world.take_apps() {
            apps.spawn(serve(listener, Arc::new(App { pod, client: Client::new(outbound) })));
        }
        Self { entrance, _apps: apps }
    }

    /// The client of the pod that sends the traffic.
    pub(super) fn entrance(&self) -> Client {
        self.entrance.clone()
    }
}

async fn serve(listener: TcpListener, app: Arc<App>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let app = Arc::clone(&app);
                let service = service_fn(move |request| answer(Arc::clone(&app), request));
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service);
                connections.spawn(async move { connection.await.unwrap_or_default() });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn answer(app: Arc<App>, _request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, body) = match page(&app).await {
        Ok(page) => (StatusCode::OK, page.to_string()),
        Err(error) => (StatusCode::BAD_GATEWAY, error),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    Ok(response)
}

/// What the application answers: its own name, and the answers of those it calls.
async fn page(app: &App) -> Result<Value, String> {
    let mut page = json!({ "pod": app.pod.name, "version": app.pod.version });
    for service in app.pod.calls {
        let url = format!("http://{service}.shop/");
        let body = app.client.get(&url).await.map_err(|error| error.to_string())?;
        page[*service] = serde_json::from_slice(&body).map_err(|error| format!("{url}: {error}"))?;
    }
    Ok(page)
}
