//! A Kubernetes API in memory: what the injector asks of it, and no more.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use kube::client::Body;
use serde_json::{Value, json};

/// What it holds, and what it was told.
#[derive(Default)]
pub(crate) struct Held {
    /// Namespaces that the list and single reads show.
    pub(crate) namespaces: BTreeMap<String, Value>,
    /// Namespaces that only single reads show: the watch does not know of them yet.
    pub(crate) fresh: BTreeMap<String, Value>,
    pub(crate) roots: String,
    pub(crate) minor: String,
    pub(crate) events: Vec<Value>,
    pub(crate) single_reads: usize,
    pub(crate) down: bool,
}

#[derive(Clone)]
pub(crate) struct Api(pub(crate) Arc<Mutex<Held>>);

impl Api {
    pub(crate) fn new() -> Self {
        let held = Held { minor: "35".to_owned(), ..Held::default() };
        Self(Arc::new(Mutex::new(held)))
    }

    pub(crate) fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    async fn answer(&self, request: Request<Body>) -> Response<BoxBody<Bytes, Infallible>> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let mut held = self.0.lock().unwrap();
        let query = head.uri.query().unwrap_or_default();
        let reads = head.method == Method::GET;
        if reads && query.contains("watch=") {
            let never = futures_util::stream::pending::<Result<http_body::Frame<Bytes>, Infallible>>();
            return Response::new(BodyExt::boxed(StreamBody::new(SyncStream(never))));
        }
        if held.down {
            return json_response(
                StatusCode::INTERNAL_SERVER_ERROR,
                &json!({ "kind": "Status", "code": 500 }),
            );
        }
        let path: Vec<&str> = head.uri.path().trim_matches('/').split('/').collect();
        match path[..] {
            ["version"] => json_response(StatusCode::OK, &version(&held.minor)),
            ["api", "v1", "namespaces"] if reads => {
                let items: Vec<&Value> = held.namespaces.values().collect();
                json_response(StatusCode::OK, &list("NamespaceList", &json!(items)))
            }
            ["api", "v1", "namespaces", name] if reads => {
                held.single_reads += 1;
                match held.fresh.get(name).or(held.namespaces.get(name)) {
                    Some(found) => json_response(StatusCode::OK, found),
                    None => json_response(
                        StatusCode::NOT_FOUND,
                        &json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
                                 "reason": "NotFound", "message": "not found" }),
                    ),
                }
            }
            ["api", "v1", "namespaces", "mesh-system", "configmaps"] if reads => {
                let map = json!({ "metadata": { "name": "mesh-root-cert", "resourceVersion": "1" },
                                  "data": { "root-cert.pem": held.roots } });
                json_response(StatusCode::OK, &list("ConfigMapList", &json!([map])))
            }
            ["api", "v1", "namespaces", _, "events"] => {
                let event: Value = serde_json::from_slice(&body).unwrap();
                held.events.push(event.clone());
                json_response(StatusCode::CREATED, &event)
            }
            _ => panic!("nobody may ask for {} {}", head.method, head.uri),
        }
    }
}

/// A stream that is `Sync` because nothing is in it.
struct SyncStream<S>(S);

impl<S: futures_util::Stream + Unpin> futures_util::Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        std::pin::Pin::new(&mut self.0).poll_next(context)
    }
}

pub(crate) fn namespace(name: &str, labels: &Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": name, "labels": labels, "resourceVersion": "1" } })
}

fn version(minor: &str) -> Value {
    json!({ "major": "1", "minor": minor, "gitVersion": format!("v1.{minor}.0"), "gitCommit": "", "gitTreeState": "",
            "buildDate": "", "goVersion": "", "compiler": "", "platform": "" })
}

fn list(kind: &str, items: &Value) -> Value {
    json!({ "apiVersion": "v1", "kind": kind, "metadata": { "resourceVersion": "1" }, "items": items })
}

fn json_response(status: StatusCode, body: &Value) -> Response<BoxBody<Bytes, Infallible>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())).boxed());
    *response.status_mut() = status;
    response
}
