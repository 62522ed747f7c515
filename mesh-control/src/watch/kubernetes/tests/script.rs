//! One watch before a server that says exactly what a test wants: what is told of it, and what is asked next.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::{StreamExt as _, stream};
use http::{Request, Response};
use mesh_common::process::Readiness;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::api::Kind;
use crate::ingest::Event;
use crate::serve::metrics::Metrics;
use crate::watch::health::WatchHealth;
use crate::watch::kubernetes::follow::Follower;
use crate::watch::kubernetes::{Client, resource::Resource};

/// An answer of the server.
struct Answer {
    code: u16,
    lines: Vec<Value>,
    ends: bool,
}

fn says(lines: impl Into<Vec<Value>>) -> Answer {
    Answer { code: 200, lines: lines.into(), ends: true }
}

fn stays(lines: impl Into<Vec<Value>>) -> Answer {
    Answer { ends: false, ..says(lines) }
}

fn refuses(code: u16) -> Answer {
    let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": "Test", "message": "no" });
    Answer { code, ..says([status]) }
}

impl Answer {
    fn response(self) -> Response<Body> {
        let lines: Vec<_> =
            self.lines.iter().map(|line| Ok::<_, Infallible>(Bytes::from(format!("{line}\n")))).collect();
        let body = stream::iter(lines);
        let body = if self.ends { body.boxed() } else { body.chain(stream::pending()).boxed() };
        Response::builder().status(self.code).body(Body::from_stream(body)).unwrap()
    }
}

/// A change of the service `name`.
fn change(what: &str, name: &str, version: &str) -> Value {
    let metadata = json!({ "name": name, "namespace": "shop", "resourceVersion": version });
    json!({ "type": what, "object": { "apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {} } })
}

/// Up to here everything was told; `end`: and this was all that is there.
fn bookmark(version: &str, end: bool) -> Value {
    let annotations = if end { json!({ "k8s.io/initial-events-end": "true" }) } else { json!({}) };
    let metadata = json!({ "resourceVersion": version, "annotations": annotations });
    json!({ "type": "BOOKMARK", "object": { "apiVersion": "v1", "kind": "Service", "metadata": metadata } })
}

fn page(version: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ServiceList", "metadata": { "resourceVersion": version }, "items": [] })
}

/// A watch, running.
struct Following {
    asked: Arc<Mutex<Vec<(Instant, String)>>>,
    events: mpsc::Receiver<Event>,
    task: JoinHandle<()>,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Following {
    /// Follows a kind at a server that gives these answers, and then none.
    fn begin(kind: Kind, answers: impl Into<VecDeque<Answer>>) -> Self {
        let (answers, asked) = (Arc::new(Mutex::new(answers.into())), Arc::<Mutex<Vec<_>>>::default());
        let log = Arc::clone(&asked);
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            log.lock().unwrap().push((Instant::now(), request.uri().to_string()));
            let answer = answers.lock().unwrap().pop_front();
            async move {
                match answer {
                    Some(answer) => Ok::<_, Infallible>(answer.response()),
                    None => std::future::pending().await,
                }
            }
        });
        let (sender, events) = mpsc::channel(100);
        let follower = Follower {
            client: Client::new(service, "default"),
            resource: Resource::of(kind, "mesh-system"),
            events: sender,
            health: WatchHealth::default(),
            metrics: Arc::new(Metrics::new(&mut Registry::default())),
            condition: Arc::new(Readiness::default().condition("it")),
        };
        Self { asked, events, task: tokio::spawn(follower.run()) }
    }

    /// What was told: `+a` is there, `-a` is gone, `=a,b` is all that there is.
    async fn told(&mut self) -> Vec<String> {
        sleep(Duration::from_secs(1)).await;
        let mut told = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            told.push(match event {
                Event::Apply(id, _) => format!("+{}", id.name),
                Event::Delete(id) => format!("-{}", id.name),
                Event::Retain(_, names) => {
                    let names: Vec<_> = names.into_iter().map(|id| id.name).collect();
                    format!("={}", names.join(","))
                }
                other => format!("{other:?}"),
            });
        }
        told
    }

    /// How it was asked: `stream` for a watch that begins with everything, `list`, or the version that a watch goes on
    /// from.
    fn asked(&self) -> Vec<String> {
        let how = |(_, uri): &(Instant, String)| {
            let value =
                |name: &str| uri.split(['?', '&']).find_map(|it| it.strip_prefix(name)).map(str::to_owned);
            match (value("sendInitialEvents="), value("watch=")) {
                (Some(_), _) => "stream".to_owned(),
                (None, Some(_)) => value("resourceVersion=").unwrap_or_default(),
                (None, None) => "list".to_owned(),
            }
        };
        self.asked.lock().unwrap().iter().map(how).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn everything_is_what_is_told_before_its_end() {
    let lines = [
        change("ADDED", "a", "1"),
        change("ADDED", "b", "2"),
        bookmark("3", false),
        change("ADDED", "c", "4"),
        change("DELETED", "b", "5"),
        bookmark("6", true),
        change("DELETED", "c", "7"),
    ];
    let mut following = Following::begin(Kind::Service, [stays(lines)]);
    assert_eq!(following.told().await, ["+a", "+b", "+c", "-b", "=a,c", "-c"]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_goes_on_from_what_was_told_last() {
    let answers = [
        says([change("ADDED", "a", "1"), bookmark("10", true)]),
        says([change("MODIFIED", "a", "11")]),
        says([bookmark("15", false)]),
        says([change("DELETED", "a", "16")]),
    ];
    let mut following = Following::begin(Kind::Service, answers);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(following.told().await, ["+a", "=a", "+a", "-a"]);
    assert_eq!(following.asked(), ["stream", "10", "11", "15", "16"]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_died_in_silence_is_begun_again() {
    let answers = [stays([bookmark("10", true)]), stays([bookmark("20", false)]), stays([])];
    let following = Following::begin(Kind::Service, answers);
    sleep(Duration::from_secs(240)).await;
    assert_eq!(following.asked(), ["stream", "10", "20", "20"]);
    let asked = following.asked.lock().unwrap();
    for pair in asked.windows(2) {
        let silence = pair[1].0 - pair[0].0;
        assert!((60..90).contains(&silence.as_secs()), "{silence:?}");
    }
}

/// What cannot be read may be a change: it must not be passed over.
#[tokio::test(start_paused = true)]
async fn a_line_that_cannot_be_read_is_not_passed_over() {
    for line in [json!(5), json!({ "type": "ADDED", "object": 5 })] {
        let answers = [
            says([bookmark("10", true)]),
            stays([line, change("ADDED", "b", "12")]),
            stays([change("ADDED", "a", "11"), change("ADDED", "b", "12"), bookmark("13", true)]),
        ];
        let mut following = Following::begin(Kind::Service, answers);
        sleep(Duration::from_secs(10)).await;
        assert_eq!(following.told().await, ["=", "+a", "+b", "=a,b"]);
        assert_eq!(following.asked(), ["stream", "10", "stream"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_streams_no_lists_is_not_asked_for_it_again() {
    let gone = json!({ "type": "ERROR", "object": { "kind": "Status", "code": 410, "reason": "Expired", "message": "old" } });
    let answers = [refuses(422), says([page("10")]), says([gone]), says([page("20")]), stays([])];
    let mut following = Following::begin(Kind::Service, answers);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(following.told().await, ["=", "="]);
    assert_eq!(following.asked(), ["stream", "list", "10", "list", "20"]);
}

/// What may not be read may well be there.
#[tokio::test(start_paused = true)]
async fn a_kind_that_may_not_be_read_is_not_absent() {
    let refusals = (0..20).map(|_| refuses(403)).collect::<VecDeque<_>>();
    let mut following = Following::begin(Kind::HttpRoute, refusals);
    sleep(Duration::from_secs(600)).await;
    assert_eq!(following.told().await, [""; 0]);
    assert!(following.asked().len() > 20, "it is tried again and again");
}

/// Whoever may read one ConfigMap is not asked for all of them.
#[tokio::test(start_paused = true)]
async fn of_config_maps_only_the_settings_are_asked_for() {
    let answers = [refuses(422), says([page("10")]), stays([change("ADDED", "other", "11")])];
    let mut following = Following::begin(Kind::MeshConfig, answers);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(following.told().await, ["="], "and no other counts");
    assert_eq!(following.asked(), ["stream", "list", "10"]);
    for (_, uri) in following.asked.lock().unwrap().iter() {
        let wanted = "fieldSelector=metadata.name%3Dmesh-config";
        assert!(
            uri.starts_with("/api/v1/namespaces/mesh-system/configmaps?") && uri.contains(wanted),
            "{uri}"
        );
    }
}
