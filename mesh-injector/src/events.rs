//! Events that say on a pod's owner what was done with its pods and why: the answer's warnings reach whoever creates a
//! pod, and that is mostly a controller. Best effort: a full queue drops, and nothing waits for it.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::metrics::Metrics;

/// Events that wait.
const QUEUE: usize = 256;
/// The same event about the same object is not written again within this time.
const SILENCE: Duration = Duration::from_secs(600);
/// Objects whose last event is remembered.
const REMEMBERED: usize = 4096;
/// At most this many events a second, after a first burst of as many.
const PER_SECOND: u32 = 10;
/// Kubernetes' own bound.
const MESSAGE_BYTES: usize = 1024;
const TIMEOUT: Duration = Duration::from_secs(5);
const COMPONENT: &str = "mesh-injector";

/// Something to tell.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Notice {
    /// About whom.
    pub about: Subject,
    /// One word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// The object that an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subject {
    /// Of which API.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Where the event is written.
    pub namespace: String,
    /// Its uid, where known.
    pub uid: Option<String>,
}

/// Whoever made the pod: its controller, else its namespace.
pub fn owner(pod: &Value, namespace: &str) -> Subject {
    let owners = pod.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    let controller = owners.into_iter().flatten().find(|it| it["controller"] == true);
    let text = |it: &Value, key: &str| it[key].as_str().unwrap_or_default().to_owned();
    match controller {
        Some(it) => Subject {
            api_version: text(it, "apiVersion"),
            kind: text(it, "kind"),
            name: text(it, "name"),
            namespace: namespace.to_owned(),
            uid: it["uid"].as_str().map(str::to_owned),
        },
        None => Subject {
            api_version: "v1".to_owned(),
            kind: "Namespace".to_owned(),
            name: namespace.to_owned(),
            namespace: namespace.to_owned(),
            uid: None,
        },
    }
}

/// Where notices go.
#[derive(Debug, Clone)]
pub struct Events {
    queue: mpsc::Sender<Notice>,
    metrics: Metrics,
}

/// Writes them.
pub struct Writer {
    queue: mpsc::Receiver<Notice>,
    client: Client,
    metrics: Metrics,
    pace: Pace,
}

/// Both ends.
pub fn events(client: Client, metrics: Metrics) -> (Events, Writer) {
    let (sender, queue) = mpsc::channel(QUEUE);
    let events = Events { queue: sender, metrics: metrics.clone() };
    (events, Writer { queue, client, metrics, pace: Pace::new(Instant::now()) })
}

impl Events {
    /// Tells it, or drops it when too much waits already.
    pub fn tell(&self, notice: Notice) {
        if self.queue.try_send(notice).is_err() {
            self.metrics.event("dropped");
        }
    }
}

impl Writer {
    /// Writes until nobody can tell anything any more.
    pub async fn run(mut self) {
        while let Some(notice) = self.queue.recv().await {
            if !self.pace.allows(&notice, Instant::now()) {
                self.metrics.event("suppressed");
                continue;
            }
            let api: Api<Event> = Api::namespaced(self.client.clone(), &notice.about.namespace);
            let event = event(notice);
            let parameters = PostParams::default();
            let written = tokio::time::timeout(TIMEOUT, api.create(&parameters, &event)).await;
            let error = match written {
                Ok(Ok(_)) => {
                    self.metrics.event("written");
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {TIMEOUT:?}"),
            };
            self.metrics.event("failed");
            tracing::warn!(error, "an event cannot be written");
        }
    }
}

fn event(notice: Notice) -> Event {
    let Notice { about, reason, message } = notice;
    let now = Some(Time(Timestamp::now()));
    Event {
        metadata: ObjectMeta {
            generate_name: Some(format!("{COMPONENT}-")),
            namespace: Some(about.namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some(about.api_version),
            kind: Some(about.kind),
            name: Some(about.name),
            namespace: Some(about.namespace),
            uid: about.uid,
            ..ObjectReference::default()
        },
        reason: Some(reason.to_owned()),
        message: Some(cut(message)),
        type_: Some("Warning".to_owned()),
        source: Some(EventSource { component: Some(COMPONENT.to_owned()), host: None }),
        first_timestamp: now.clone(),
        last_timestamp: now,
        count: Some(1),
        ..Event::default()
    }
}

fn cut(mut message: String) -> String {
    let mut end = message.len().min(MESSAGE_BYTES);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message.truncate(end);
    message
}

/// How often events are written. Time is an argument.
#[derive(Debug)]
struct Pace {
    last: HashMap<Notice, Instant>,
    tokens: f64,
    at: Instant,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { last: HashMap::new(), tokens: f64::from(PER_SECOND), at: now }
    }

    fn allows(&mut self, notice: &Notice, now: Instant) -> bool {
        if self.last.get(notice).is_some_and(|last| now.duration_since(*last) < SILENCE) {
            return false;
        }
        let grown = self.tokens + now.duration_since(self.at).as_secs_f64() * f64::from(PER_SECOND);
        (self.tokens, self.at) = (grown.min(f64::from(PER_SECOND)), now);
        if self.tokens < 1.0 {
            return false;
        }
        if self.last.len() >= REMEMBERED {
            self.last.retain(|_, last| now.duration_since(*last) < SILENCE);
        }
        if self.last.len() >= REMEMBERED {
            self.last.clear();
        }
        self.tokens -= 1.0;
        self.last.insert(notice.clone(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn notice(message: &str) -> Notice {
        Notice { about: owner(&json!({}), "shop"), reason: "Test", message: message.to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_is_not_told_twice_and_a_flood_is_bounded() {
        let mut pace = Pace::new(Instant::now());
        assert!(pace.allows(&notice("a"), Instant::now()));
        assert!(!pace.allows(&notice("a"), Instant::now()));
        let told = (0..100).filter(|it| pace.allows(&notice(&it.to_string()), Instant::now())).count();
        assert_eq!(told, 9, "the burst is ten");
        tokio::time::advance(SILENCE).await;
        assert!(pace.allows(&notice("a"), Instant::now()));
        for more in 0..10_000 {
            tokio::time::advance(Duration::from_millis(100)).await;
            pace.allows(&notice(&format!("more {more}")), Instant::now());
            assert!(pace.last.len() <= REMEMBERED);
        }
    }

    #[test]
    fn a_message_is_cut_between_two_characters() {
        let event = event(notice(&format!("x{}", "ä".repeat(MESSAGE_BYTES))));
        assert_eq!(event.message.unwrap().len(), MESSAGE_BYTES - 1);
        assert_eq!(super::event(notice("short")).message.as_deref(), Some("short"));
    }

    #[test]
    fn who_is_told() {
        let pod = json!({ "metadata": { "ownerReferences": [
            { "apiVersion": "v1", "kind": "Other", "name": "x", "uid": "0" },
            { "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-1", "uid": "u", "controller": true },
        ] } });
        let about = owner(&pod, "shop");
        assert_eq!(
            (about.kind.as_str(), about.name.as_str(), about.uid.as_deref()),
            ("ReplicaSet", "web-1", Some("u"))
        );
        let about = owner(&json!({}), "shop");
        assert_eq!((about.kind.as_str(), about.name.as_str()), ("Namespace", "shop"));
    }
}
