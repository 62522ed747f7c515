//! The debug pages: who is connected and holds what, what became of users' objects, what could not be read,
//! what a client would get. They read, and never change anything.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use mesh_common::xds::ResourceType;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::model::WorkloadKey;
use crate::model::facts::Facts as _;
use crate::model::store::SharedModel;
use crate::serve::cache::{self, Answer};
use crate::serve::delta::TypeStatus;
use crate::serve::discovery::{Discovery, Stream};
use crate::serve::{inspect, recorder::Client};
use crate::translate::translate;
use crate::watch::health::WatchHealth;

#[derive(Clone)]
struct Pages {
    model: SharedModel,
    discovery: Arc<Discovery>,
    watches: WatchHealth,
}

/// `/debug/streams`, `/debug/routes`, `/debug/config-errors`, `/debug/watches`, `/debug/resource`.
pub fn pages(model: SharedModel, discovery: Arc<Discovery>, watches: WatchHealth) -> Router {
    Router::new()
        .route("/debug/streams", get(streams))
        .route("/debug/routes", get(routes))
        .route("/debug/config-errors", get(config_errors))
        .route("/debug/watches", get(watch_statuses))
        .route("/debug/resource", get(resource))
        .with_state(Pages { model, discovery, watches })
}

async fn streams(State(pages): State<Pages>) -> Json<Value> {
    Json(pages.discovery.streams().iter().map(|stream| stream_page(stream)).collect())
}

fn stream_page(stream: &Stream) -> Value {
    let types: serde_json::Map<String, Value> = stream
        .status()
        .into_iter()
        .map(|status| (status.kind.short().to_owned(), type_page(status)))
        .collect();
    json!({
        "node": stream.claims.id,
        "namespace": stream.claims.namespace,
        "pod": stream.claims.pod,
        "serviceAccount": stream.claims.service_account,
        "peer": stream.peer,
        "caller": stream.caller,
        "since": stream.since,
        "client": stream.client.kind.name(),
        "features": stream.claims.features,
        "types": types,
    })
}

fn type_page(status: TypeStatus) -> Value {
    let TypeStatus { kind: _, names, waiting, acks, nacks, last_nack } = status;
    let name = |(name, version, acked): (Arc<str>, Option<_>, bool)| {
        let version = version.as_ref().map(ToString::to_string);
        let acknowledged = version.clone().filter(|_| acked);
        json!({ "name": &*name, "sent": version, "acked": acknowledged })
    };
    json!({
        "names": names.into_iter().map(name).collect::<Value>(),
        "waiting": waiting,
        "acks": acks,
        "nacks": nacks,
        "lastNack": last_nack,
    })
}

async fn routes(State(pages): State<Pages>) -> Json<Value> {
    let statuses = pages.model.statuses();
    Json(statuses.iter().map(|status| serde_json::to_value(status).unwrap_or_default()).collect())
}

async fn config_errors(State(pages): State<Pages>) -> Json<Value> {
    let page = |error: crate::model::store::ConfigError| json!({ "file": error.file, "line": error.line, "reason": error.reason });
    Json(pages.model.config_errors().into_iter().map(page).collect())
}

async fn watch_statuses(State(pages): State<Pages>) -> Json<Value> {
    let watches = pages.watches.statuses();
    Json(watches.iter().map(|status| serde_json::to_value(status).unwrap_or_default()).collect())
}

#[derive(Deserialize)]
struct Wanted {
    r#type: String,
    name: String,
    #[serde(default)]
    namespace: String,
    /// To see what this pod would get.
    #[serde(default)]
    pod: Option<String>,
}

async fn resource(State(pages): State<Pages>, Query(wanted): Query<Wanted>) -> Response {
    let Some(kind) = ResourceType::ALL.into_iter().find(|kind| kind.short() == wanted.r#type) else {
        let known: Vec<&str> = ResourceType::ALL.into_iter().map(ResourceType::short).collect();
        let sentence = format!("type {:?} is not one of {}\n", wanted.r#type, known.join(", "));
        return (StatusCode::BAD_REQUEST, sentence).into_response();
    };
    // One read lock at a time: `client` takes its own, and a writer may queue between two.
    let cluster = pages.model.read().settings().cluster.clone();
    let client = client(&wanted, &cluster, &pages);
    let facts = pages.model.read();
    let (notes, answer) = cache::translate(translate, &(kind, wanted.name.as_str().into()), &client, &facts);
    let reads: Vec<String> = notes.facts.keys().map(|fact| format!("{fact:?}")).collect();
    match answer {
        Ok(Answer::Found(found)) => Json(json!({
            "version": found.version.to_string(),
            "type": kind.url(),
            "bytes": found.body.len(),
            "madeFrom": reads,
            "resource": inspect::text(kind, &found.body),
        }))
        .into_response(),
        Ok(Answer::Missing) => (StatusCode::NOT_FOUND, Json(json!({ "madeFrom": reads }))).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// As the pod's open stream has it, if there is one.
fn client(wanted: &Wanted, cluster: &str, pages: &Pages) -> Client {
    let model = &pages.model;
    let is_wanted = |stream: &Arc<Stream>| {
        stream.claims.namespace == wanted.namespace && Some(&stream.claims.pod) == wanted.pod.as_ref()
    };
    let kind = pages.discovery.streams().into_iter().find(is_wanted);
    let kind = kind.map(|stream| stream.client.kind.clone()).unwrap_or_default();
    let pod = wanted.pod.as_ref().and_then(|pod| model.live_pod(&wanted.namespace, pod));
    let workload = wanted.pod.as_ref().map(|pod| WorkloadKey {
        cluster: cluster.to_owned(),
        namespace: wanted.namespace.clone(),
        name: pod.clone(),
    });
    let (node, zone) = pod.map(|pod| (pod.node.clone(), pod.zone.clone())).unwrap_or_default();
    Client { namespace: wanted.namespace.clone(), workload, node, zone, kind }
}
