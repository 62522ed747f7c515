//! The state of one stream, told as stories: what the client says, what it is answered.

use std::collections::HashMap;

use bytes::Bytes;
use tokio::time::Instant;

use super::super::cache::{Answer, Key, Resource};
use super::super::delta::{DeltaRequest, DeltaResponse, DeltaState, Effects, Limits, Refusal, Verdict};
use super::super::recorder::Version;
use super::*;

use ResourceType::{Cluster, Endpoints, Listener, Route, Secret};

/// A stream and what the names stand for.
struct Story {
    state: DeltaState,
    world: HashMap<Key, Answer>,
}

pub(super) fn version(number: u32) -> Version {
    format!("{number:032x}").parse().unwrap()
}

pub(super) fn found(number: u32) -> Answer {
    sized(number, 10)
}

fn sized(number: u32, bytes: usize) -> Answer {
    Answer::Found(Arc::new(Resource { version: version(number), body: Bytes::from(vec![0; bytes]) }))
}

fn names(of: &[&str]) -> Vec<String> {
    of.iter().map(ToString::to_string).collect()
}

impl Story {
    fn new(limits: Limits) -> Self {
        Self { state: DeltaState::new(limits, false), world: HashMap::new() }
    }

    fn with(mut self, kind: ResourceType, of: &[(&str, u32)]) -> Self {
        for (name, number) in of {
            self.world.insert((kind, Arc::from(*name)), found(*number));
        }
        self
    }

    fn set(&mut self, kind: ResourceType, name: &str, answer: Answer) {
        let key = (kind, Arc::from(name));
        self.world.insert(key.clone(), answer);
        self.state.changed(&key);
    }

    fn subscribe(&mut self, kind: ResourceType, of: &[&str]) -> Effects {
        self.state.request(kind, DeltaRequest { subscribe: names(of), ..DeltaRequest::default() }).unwrap()
    }

    fn ack(&mut self, response: &DeltaResponse) -> Option<Verdict> {
        let request = DeltaRequest { nonce: response.nonce.clone(), ..DeltaRequest::default() };
        self.state.request(response.kind, request).unwrap().verdict
    }

    fn next(&mut self) -> Option<DeltaResponse> {
        let world = &self.world;
        self.state
            .next_response(Instant::now(), |key| Some(world.get(key).cloned().unwrap_or(Answer::Missing)))
    }

    /// The next response as text: type, then resources, then `-` and what is removed.
    fn told(&mut self) -> Option<(DeltaResponse, String)> {
        let response = self.next()?;
        let mut words = vec![response.kind.short().to_owned()];
        words.extend(response.resources.iter().map(|(name, resource)| {
            format!("{name}={}", resource.version.to_string().trim_start_matches('0'))
        }));
        words.extend(response.removed.iter().map(|name| format!("-{name}")));
        Some((response, words.join(" ")))
    }

    fn expect(&mut self, text: &str) -> DeltaResponse {
        let (response, told) = self.told().unwrap_or_else(|| panic!("nothing told instead of {text:?}"));
        assert_eq!(told, text);
        response
    }
}

fn story() -> Story {
    Story::new(Limits::default())
}

#[test]
fn what_exists_is_sent_and_what_does_not_is_removed_at_once() {
    let mut story = story().with(Endpoints, &[("a", 1), ("b", 2)]);
    let effects = story.subscribe(Endpoints, &["a", "missing", "b"]);
    assert_eq!(effects.watch.len(), 3);
    let response = story.expect("eds a=1 b=2 -missing");
    assert_eq!(story.ack(&response), Some(Verdict::Ack));
    assert_eq!(story.next(), None);
    // It stays subscribed, and appears.
    story.set(Endpoints, "missing", found(7));
    story.expect("eds missing=7");
}

#[test]
fn a_name_subscribed_again_is_answered_again() {
    let mut story = story().with(Endpoints, &[("a", 1)]);
    story.subscribe(Endpoints, &["a", "gone"]);
    let response = story.expect("eds a=1 -gone");
    story.ack(&response);
    assert_eq!(story.subscribe(Endpoints, &["a", "gone"]).watch, []);
    story.expect("eds a=1 -gone");
}

#[test]
fn one_response_per_type_is_on_its_way_and_changes_wait_as_names() {
    let mut story = story().with(Endpoints, &[("a", 1)]).with(Cluster, &[("c", 5)]);
    story.subscribe(Endpoints, &["a"]);
    let response = story.expect("eds a=1");
    for number in 2..1000 {
        story.set(Endpoints, "a", found(number));
    }
    assert_eq!(story.next(), None, "the last one is not answered yet");
    story.subscribe(Cluster, &["c"]);
    story.expect("cds c=5");
    story.ack(&response);
    story.expect("eds a=3e7");
}

#[test]
fn types_go_out_in_the_order_of_reference() {
    let mut story = story()
        .with(Listener, &[("l", 1)])
        .with(Route, &[("r", 2)])
        .with(Endpoints, &[("e", 3)])
        .with(Cluster, &[("c", 4)])
        .with(Secret, &[("s", 5)]);
    for (kind, name) in [(Route, "r"), (Listener, "l"), (Endpoints, "e"), (Cluster, "c"), (Secret, "s")] {
        story.subscribe(kind, &[name]);
    }
    for text in ["sds s=5", "cds c=4", "eds e=3", "lds l=1", "rds r=2"] {
        story.expect(text);
    }
}

#[test]
fn a_change_back_while_waiting_sends_nothing() {
    let mut story = story().with(Endpoints, &[("a", 1)]);
    story.subscribe(Endpoints, &["a"]);
    let response = story.expect("eds a=1");
    story.set(Endpoints, "a", found(2));
    story.set(Endpoints, "a", found(1));
    story.ack(&response);
    assert_eq!(story.next(), None);
}

#[test]
fn a_reconnect_resends_only_what_differs() {
    let mut story = story().with(Endpoints, &[("same", 1), ("changed", 2), ("new", 3), ("foreign", 4)]);
    let held = [("same", version(1)), ("changed", version(9)), ("gone", version(8)), ("unasked", version(7))];
    let mut initial: HashMap<String, String> =
        held.iter().map(|(name, version)| ((*name).to_owned(), version.to_string())).collect();
    initial.insert("foreign".to_owned(), "v1".to_owned());
    let subscribe = names(&["same", "changed", "new", "gone", "foreign"]);
    let request = DeltaRequest { subscribe, initial_versions: initial, ..DeltaRequest::default() };
    story.state.request(Endpoints, request).unwrap();
    story.expect("eds changed=2 foreign=4 new=3 -gone");
}

#[test]
fn versions_count_only_in_the_first_request_of_a_type() {
    let mut story = story().with(Endpoints, &[("a", 1), ("b", 2)]);
    story.subscribe(Endpoints, &["a"]);
    let response = story.expect("eds a=1");
    story.ack(&response);
    let initial = HashMap::from([("b".to_owned(), version(2).to_string())]);
    let request =
        DeltaRequest { subscribe: names(&["b"]), initial_versions: initial, ..DeltaRequest::default() };
    story.state.request(Endpoints, request).unwrap();
    story.expect("eds b=2");
}

#[test]
fn a_nack_is_kept_shortened_and_the_refused_form_is_not_sent_again() {
    let mut story = Story::new(Limits { nack_bytes: 5, ..Limits::default() }).with(Endpoints, &[("a", 1)]);
    story.subscribe(Endpoints, &["a"]);
    let response = story.expect("eds a=1");
    let nack = |text: &str, nonce: &str| DeltaRequest {
        nonce: nonce.to_owned(),
        error: Some(text.to_owned()),
        ..DeltaRequest::default()
    };
    let verdict = story.state.request(Endpoints, nack("nein, ä", &response.nonce)).unwrap().verdict;
    assert_eq!(verdict, Some(Verdict::Nack("nein,".to_owned())));
    let status = &story.state.status()[0];
    assert_eq!((status.nacks, status.last_nack.as_deref(), status.names[0].2), (1, Some("nein,"), false));
    assert_eq!(story.next(), None);
    story.set(Endpoints, "a", found(2));
    let response = story.expect("eds a=2");
    story.ack(&response);
    let status = &story.state.status()[0];
    assert_eq!((status.acks, status.last_nack.clone(), status.names[0].2), (1, None, true));
    // A text is cut between characters.
    story.set(Endpoints, "a", found(3));
    let response = story.expect("eds a=3");
    let verdict = story.state.request(Endpoints, nack("ääääää", &response.nonce)).unwrap().verdict;
    assert_eq!(verdict, Some(Verdict::Nack("ää".to_owned())));
}

#[test]
fn an_answer_to_another_response_is_stale() {
    let mut story = story().with(Endpoints, &[("a", 1)]);
    story.subscribe(Endpoints, &["a"]);
    let response = story.expect("eds a=1");
    let stale = DeltaRequest { nonce: "77".to_owned(), ..DeltaRequest::default() };
    assert_eq!(story.state.request(Endpoints, stale).unwrap().verdict, Some(Verdict::Stale));
    assert_eq!(story.next(), None);
    assert_eq!(story.ack(&response), Some(Verdict::Ack));
    assert_eq!(story.ack(&response), Some(Verdict::Stale));
}

#[test]
fn what_is_unsubscribed_is_not_told_any_more() {
    let mut story = story().with(Endpoints, &[("a", 1), ("b", 2)]);
    story.subscribe(Endpoints, &["a", "b"]);
    let request = DeltaRequest { unsubscribe: names(&["a", "never"]), ..DeltaRequest::default() };
    let effects = story.state.request(Endpoints, request).unwrap();
    assert_eq!(effects.unwatch, [(Endpoints, Arc::from("a"))]);
    let response = story.expect("eds b=2");
    story.ack(&response);
    story.set(Endpoints, "a", found(9));
    assert_eq!(story.next(), None);
    // Asked for again, it is told again.
    story.subscribe(Endpoints, &["a"]);
    story.expect("eds a=9");
}

#[test]
fn everything_is_refused() {
    for (kind, subscribe, refused) in [
        (Listener, &[][..], true),
        (Cluster, &[], true),
        (Listener, &["*"], true),
        (Endpoints, &["a", "*"], true),
        (Endpoints, &[], false),
        (Listener, &["a"], false),
    ] {
        let request = DeltaRequest { subscribe: names(subscribe), ..DeltaRequest::default() };
        let result = DeltaState::new(Limits::default(), false).request(kind, request);
        assert_eq!(matches!(result, Err(Refusal::Wildcard(_))), refused, "{kind:?} {subscribe:?}");
    }
    // Later requests without names are answers or changes of the subscription.
    let mut story = story().with(Listener, &[("a", 1)]);
    story.subscribe(Listener, &["a"]);
    let response = story.expect("lds a=1");
    story.ack(&response);
    story.subscribe(Listener, &[]);
}

#[test]
fn names_are_bounded_by_number_and_bytes_over_all_types() {
    let limits = Limits { names: 3, name_bytes: 10, ..Limits::default() };
    let mut story = Story::new(limits);
    story.subscribe(Endpoints, &["a", "b"]);
    story.subscribe(Cluster, &["c"]);
    let more = DeltaRequest { subscribe: names(&["d"]), ..DeltaRequest::default() };
    assert_eq!(story.state.request(Endpoints, more.clone()), Err(Refusal::TooManyNames(3)));
    let forget = DeltaRequest { unsubscribe: names(&["a"]), ..DeltaRequest::default() };
    story.state.request(Endpoints, forget).unwrap();
    story.state.request(Endpoints, more).unwrap();

    let mut story = Story::new(limits);
    let long = DeltaRequest { subscribe: names(&["12345678901"]), ..DeltaRequest::default() };
    assert_eq!(story.state.request(Endpoints, long), Err(Refusal::TooManyBytes(10)));
}

#[test]
fn a_large_answer_comes_in_chunks() {
    let limits = Limits { response_resources: 3, response_bytes: 1000, ..Limits::default() };
    let mut story = Story::new(limits);
    let of: Vec<String> = (0..7).map(|number| format!("n{number}")).collect();
    for name in &of {
        story.world.insert((Endpoints, name.as_str().into()), found(1));
    }
    story.world.insert((Endpoints, "n5".into()), sized(2, 5000));
    let subscribe: Vec<&str> = of.iter().map(String::as_str).collect();
    story.subscribe(Endpoints, &subscribe);
    for text in ["eds n0=1 n1=1 n2=1", "eds n3=1 n4=1", "eds n5=2", "eds n6=1"] {
        let response = story.expect(text);
        story.ack(&response);
    }
    assert_eq!(story.next(), None);
}

#[tokio::test(start_paused = true)]
async fn it_knows_since_when_it_waits() {
    let mut story = story().with(Endpoints, &[("a", 1)]);
    assert_eq!(story.state.waiting_since(), None);
    story.subscribe(Endpoints, &["a"]);
    let response = story.expect("eds a=1");
    let sent = Instant::now();
    tokio::time::advance(std::time::Duration::from_secs(5)).await;
    assert_eq!(story.state.waiting_since(), Some(sent));
    story.ack(&response);
    assert_eq!(story.state.waiting_since(), None);
}
