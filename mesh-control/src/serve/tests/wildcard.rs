//! Everything: the list is followed, what is new comes first, what left is told last.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::super::cache::{Answer, Key};
use super::super::delta::{DeltaRequest, DeltaState, Limits};
use super::super::sotw::{SotwRequest, SotwState};
use super::delta::{found, version};
use super::*;

use ResourceType::{Cluster, Endpoints, Listener, Route};

const GRACE: Duration = Duration::from_secs(1);

/// What exists, and what the stream watches of it.
#[derive(Default)]
struct Model {
    lists: HashMap<ResourceType, Vec<&'static str>>,
    world: HashMap<Key, Answer>,
    watched: HashSet<Key>,
}

impl Model {
    fn has(&mut self, kind: ResourceType, names: &[(&'static str, u32)]) {
        self.lists.insert(kind, names.iter().map(|(name, _)| *name).collect());
        self.world.retain(|(of, _), _| *of != kind);
        self.world.extend(names.iter().map(|(name, number)| ((kind, Arc::from(*name)), found(*number))));
    }

    fn list(&self, kind: ResourceType) -> Vec<Arc<str>> {
        self.lists[&kind].iter().map(|name| Arc::from(*name)).collect()
    }

    fn answer(&self, key: &Key) -> Option<Answer> {
        self.watched.contains(key).then(|| self.world.get(key).cloned().unwrap_or(Answer::Missing))
    }

    fn apply(&mut self, effects: super::super::delta::Effects) {
        for key in effects.unwatch {
            assert!(self.watched.remove(&key), "{key:?} was not watched");
        }
        for key in effects.watch {
            assert!(self.watched.insert(key.clone()), "{key:?} was watched already");
        }
    }
}

/// The same calls of both forms.
macro_rules! follow {
    ($story:expr) => {
        while let Some(kind) = $story.state.stale_list() {
            let list = $story.model.list(kind);
            let effects = $story.state.take_list(kind, list, $story.now).unwrap();
            $story.model.apply(effects);
        }
    };
}

struct Incremental {
    state: DeltaState,
    model: Model,
    now: Instant,
}

impl Incremental {
    fn new() -> Self {
        Self { state: DeltaState::new(Limits::default(), true), model: Model::default(), now: Instant::now() }
    }

    fn ask(&mut self, kind: ResourceType, subscribe: &[&str], held: &[(&str, u32)]) {
        let request = DeltaRequest {
            subscribe: subscribe.iter().map(ToString::to_string).collect(),
            initial_versions: held
                .iter()
                .map(|(name, number)| ((*name).to_owned(), version(*number).to_string()))
                .collect(),
            ..DeltaRequest::default()
        };
        let effects = self.state.request(kind, request).unwrap();
        self.model.apply(effects);
        follow!(self);
    }

    fn now_has(&mut self, kind: ResourceType, names: &[(&'static str, u32)]) {
        let before = std::mem::take(&mut self.model.world);
        self.model.world.clone_from(&before);
        self.model.has(kind, names);
        let all: HashSet<Key> = before.keys().chain(self.model.world.keys()).cloned().collect();
        for key in all.into_iter().filter(|key| before.get(key) != self.model.world.get(key)) {
            self.state.changed(&key);
        }
        self.state.changed(&(kind, Arc::from("*")));
        follow!(self);
    }

    /// The next response as text, acknowledged.
    fn told(&mut self) -> String {
        let Some(response) = self.state.next_response(self.now, |key| self.model.answer(key)) else {
            return "nothing".to_owned();
        };
        let request = DeltaRequest { nonce: response.nonce.clone(), ..DeltaRequest::default() };
        self.state.request(response.kind, request).unwrap();
        let names = response.resources.iter().map(|(name, _)| name.to_string());
        let removed = response.removed.iter().map(|name| format!("-{name}"));
        let mut words: Vec<String> = names.chain(removed).collect();
        words.insert(0, response.kind.short().to_owned());
        words.join(" ")
    }
}

#[tokio::test(start_paused = true)]
async fn everything_is_what_the_list_says() {
    let mut story = Incremental::new();
    story.model.has(Cluster, &[("a", 1), ("b", 2)]);
    story.ask(Cluster, &[], &[]);
    assert_eq!(story.told(), "cds a b");
    assert_eq!(story.told(), "nothing");
    story.now_has(Cluster, &[("a", 1), ("b", 3), ("c", 4)]);
    assert_eq!(story.told(), "cds b c");
    assert_eq!(story.told(), "nothing");
    // All that is watched is given back at the end.
    let all: HashSet<Key> = story.state.subscriptions().collect();
    assert_eq!(all, story.model.watched);
}

#[tokio::test(start_paused = true)]
async fn what_left_is_told_last_and_referrers_go_first() {
    let mut story = Incremental::new();
    story.model.has(Cluster, &[("a", 1)]);
    story.model.has(Listener, &[("l", 1)]);
    story.ask(Cluster, &["*"], &[]);
    story.ask(Listener, &["*"], &[]);
    assert_eq!((story.told(), story.told()), ("cds a".to_owned(), "lds l".to_owned()));
    // It may be known that it stands for nothing before it is known that it left the list.
    story.model.world.remove(&(Cluster, Arc::from("a")));
    story.state.changed(&(Cluster, Arc::from("a")));
    assert_eq!(story.told(), "nothing");
    story.now_has(Cluster, &[("b", 2)]);
    story.now_has(Listener, &[("m", 2)]);
    assert_eq!((story.told(), story.told()), ("cds b".to_owned(), "lds m".to_owned()));
    assert_eq!(story.told(), "nothing");
    story.now += GRACE;
    assert_eq!((story.told(), story.told()), ("lds -l".to_owned(), "cds -a".to_owned()));
    assert_eq!(story.told(), "nothing");
}

#[tokio::test(start_paused = true)]
async fn what_comes_back_in_time_was_never_away() {
    let mut story = Incremental::new();
    story.model.has(Cluster, &[("a", 1), ("b", 1)]);
    story.ask(Cluster, &["*"], &[]);
    story.told();
    story.now_has(Cluster, &[("b", 1)]);
    story.now_has(Cluster, &[("a", 1), ("b", 1)]);
    story.now += GRACE;
    assert_eq!(story.told(), "nothing");
    story.now_has(Cluster, &[("b", 1)]);
    story.now_has(Cluster, &[("a", 5), ("b", 1)]);
    assert_eq!(story.told(), "cds a");
}

#[tokio::test(start_paused = true)]
async fn a_reconnect_is_told_what_differs() {
    let mut story = Incremental::new();
    story.model.has(Cluster, &[("same", 1), ("changed", 2), ("new", 3)]);
    story.ask(Cluster, &["*"], &[("same", 1), ("changed", 9), ("gone", 4)]);
    assert_eq!(story.told(), "cds changed new");
    story.now += GRACE;
    assert_eq!(story.told(), "cds -gone");
}

#[tokio::test(start_paused = true)]
async fn a_name_of_its_own_outlives_everything() {
    let mut story = Incremental::new();
    story.model.has(Cluster, &[("a", 1), ("b", 1)]);
    story.ask(Cluster, &["*", "a"], &[]);
    assert_eq!(story.told(), "cds a b");
    let request = DeltaRequest { unsubscribe: vec!["*".to_owned()], ..DeltaRequest::default() };
    let effects = story.state.request(Cluster, request).unwrap();
    story.model.apply(effects);
    story.now_has(Cluster, &[("a", 2), ("b", 2), ("c", 2)]);
    assert_eq!(story.told(), "cds a");
    assert_eq!(story.told(), "nothing");
}

/// A state-of-the-world stream.
struct World {
    state: SotwState,
    model: Model,
    now: Instant,
    nonces: HashMap<ResourceType, String>,
}

impl World {
    fn new() -> Self {
        let state = SotwState::new(Limits::default(), true);
        Self { state, model: Model::default(), now: Instant::now(), nonces: HashMap::new() }
    }

    fn ask(&mut self, kind: ResourceType, names: &[&str]) {
        self.ask_again(kind, names, "", None);
    }

    fn ask_again(&mut self, kind: ResourceType, names: &[&str], version: &str, error: Option<&str>) {
        let request = SotwRequest {
            names: names.iter().map(ToString::to_string).collect(),
            version: version.to_owned(),
            nonce: self.nonces.get(&kind).cloned().unwrap_or_default(),
            error: error.map(str::to_owned),
        };
        let effects = self.state.request(kind, request).unwrap();
        self.model.apply(effects);
        follow!(self);
    }

    fn now_has(&mut self, kind: ResourceType, names: &[(&'static str, u32)]) {
        self.model.has(kind, names);
        self.state.changed(&(kind, Arc::from("*")));
        for (name, _) in names {
            self.state.changed(&(kind, Arc::from(*name)));
        }
        follow!(self);
    }

    /// The next response: its type, the version numbers in it, and the version of all.
    fn told(&mut self) -> Option<(String, String)> {
        let response = self.state.next_response(self.now, |key| self.model.answer(key))?;
        self.nonces.insert(response.kind, response.nonce);
        let numbers = response
            .resources
            .iter()
            .map(|resource| resource.version.to_string().trim_start_matches('0').to_owned());
        let mut words: Vec<String> = numbers.collect();
        words.insert(0, response.kind.short().to_owned());
        Some((words.join(" "), response.version.to_string()))
    }

    fn expect(&mut self, text: &str) -> String {
        let (told, version) = self.told().unwrap_or_else(|| panic!("nothing told instead of {text:?}"));
        assert_eq!(told, text);
        version
    }
}

#[tokio::test(start_paused = true)]
async fn each_response_says_all_that_there_is_until_all_else_is_known() {
    let mut story = World::new();
    story.model.has(Cluster, &[("a", 1), ("b", 2)]);
    story.ask(Cluster, &[]);
    story.expect("cds 1 2");
    story.ask(Cluster, &[]);
    assert_eq!(story.told(), None, "an acknowledgement is not a question");
    story.now_has(Cluster, &[("b", 2), ("c", 3)]);
    // The one that left is still there.
    story.expect("cds 1 2 3");
    story.ask(Cluster, &[]);
    assert_eq!(story.told(), None);
    story.now += GRACE;
    story.expect("cds 2 3");
}

#[tokio::test(start_paused = true)]
async fn endpoints_and_routes_come_as_they_change() {
    let mut story = World::new();
    story.model.has(Endpoints, &[("a", 1), ("b", 2)]);
    story.ask(Endpoints, &["a", "b", "missing"]);
    story.expect("eds 1 2");
    story.ask(Endpoints, &["a", "b", "missing"]);
    story.model.world.insert((Endpoints, "b".into()), found(5));
    story.state.changed(&(Endpoints, "b".into()));
    story.expect("eds 5");
    story.ask(Endpoints, &["a"]);
    assert_eq!(story.told(), None, "what is not wanted any more is not told");
    story.state.changed(&(Endpoints, "b".into()));
    assert_eq!(story.told(), None);
    // Only missing ones: there is no way to say so.
    story.ask(Endpoints, &["a", "missing"]);
    assert_eq!(story.told(), None);
    story.ask(Endpoints, &["a", "missing", "b"]);
    story.expect("eds 5");
}

#[tokio::test(start_paused = true)]
async fn who_builds_a_cluster_anew_is_told_its_endpoints_again() {
    let mut story = World::new();
    story.model.has(Cluster, &[("a", 1)]);
    story.model.has(Endpoints, &[("a", 7)]);
    story.ask(Cluster, &[]);
    story.expect("cds 1");
    story.ask(Cluster, &[]);
    story.ask(Endpoints, &["a"]);
    story.expect("eds 7");
    story.ask(Endpoints, &["a"]);
    assert_eq!(story.told(), None);
    // The same question with the nonce that was answered long ago.
    story.ask(Endpoints, &["a"]);
    story.expect("eds 7");
    story.ask(Endpoints, &["a"]);
    // A response is on its way when the clusters change: its acknowledgement is a question, too.
    story.now_has(Cluster, &[("a", 2)]);
    story.state.changed(&(Endpoints, "a".into()));
    story.model.world.insert((Endpoints, "a".into()), found(8));
    story.expect("cds 2");
    story.expect("eds 8");
    story.ask(Endpoints, &["a"]);
    story.expect("eds 8");
}

#[tokio::test(start_paused = true)]
async fn names_of_its_own_are_not_everything() {
    let mut story = World::new();
    story.model.has(Listener, &[("a", 1), ("b", 2)]);
    story.ask(Listener, &["a", "nobody"]);
    story.expect("lds 1");
    story.ask(Listener, &[]);
    assert_eq!(story.told(), None);
    story.now_has(Listener, &[("a", 3), ("b", 4)]);
    assert_eq!(story.told(), None, "it wants nothing now");
    // A name that does not exist is answered by its absence, at once.
    let mut story = World::new();
    story.ask(Listener, &["nobody"]);
    story.expect("lds");
    let mut modest = SotwState::new(Limits::default(), false);
    assert!(modest.request(Listener, SotwRequest::default()).is_err());
}

#[tokio::test(start_paused = true)]
async fn of_a_name_that_was_dropped_nothing_is_sent() {
    for kind in [Listener, Cluster] {
        let mut story = World::new();
        story.model.has(kind, &[("kept", 1), ("dropped", 2)]);
        story.ask(kind, &["dropped", "kept"]);
        story.expect(&format!("{} 2 1", kind.short()));
        story.ask(kind, &["kept"]);
        assert_eq!(story.told(), None);
        story.now_has(kind, &[("kept", 1), ("dropped", 3)]);
        assert_eq!(story.told(), None, "nobody asks for what changed");
        story.now_has(kind, &[("kept", 4), ("dropped", 3)]);
        let version = story.expect(&format!("{} 4", kind.short()));
        // Whoever never asked for it holds the same.
        let mut other = World::new();
        other.model.has(kind, &[("kept", 4), ("dropped", 3)]);
        other.ask_again(kind, &["kept"], &version, None);
        assert_eq!(other.told(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reconnect_that_has_all_is_told_nothing() {
    let mut first = World::new();
    first.model.has(Cluster, &[("a", 1), ("b", 2)]);
    first.ask(Cluster, &[]);
    let version = first.expect("cds 1 2");
    let mut second = World::new();
    second.model.has(Cluster, &[("a", 1), ("b", 2)]);
    second.ask_again(Cluster, &[], &version, None);
    assert_eq!(second.told(), None);
    second.now_has(Cluster, &[("a", 1), ("b", 3)]);
    second.expect("cds 1 3");
    let mut third = World::new();
    third.model.has(Cluster, &[("a", 1)]);
    third.ask_again(Cluster, &[], &version, None);
    third.expect("cds 1");
}

#[tokio::test(start_paused = true)]
async fn stale_questions_and_refusals_are_not_answered() {
    let mut story = World::new();
    story.model.has(Route, &[("a", 1)]);
    story.ask(Route, &["a"]);
    story.expect("rds 1");
    story.ask_again(Route, &["a"], "", Some("no"));
    assert_eq!(story.told(), None);
    story.model.world.insert((Route, "a".into()), found(2));
    story.state.changed(&(Route, "a".into()));
    story.expect("rds 2");
    story.nonces.insert(Route, "old".to_owned());
    story.ask(Route, &[]);
    assert_eq!(story.told(), None);
    let status = story.state.status();
    assert_eq!((status[0].nacks, status[0].names.len()), (1, 1));
}
