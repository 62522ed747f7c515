//! The cache and the recorder: who shares what, what a change touches, what a version depends on.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::cache::{Answer, Cache, Refreshed, StreamId, translate};
use super::super::recorder::Version;
use super::*;
use crate::model::store::Changed;
use crate::translate::client::{EnvoyClient, GrpcClient};

const A: StreamId = StreamId(1);
const B: StreamId = StreamId(2);
const C: StreamId = StreamId(3);

fn version(cache: &Cache, stream: StreamId, name: &str) -> Option<Version> {
    match cache.answer(stream, &key(name)) {
        Some(Answer::Found(resource)) => Some(resource.version),
        _ => None,
    }
}

fn changed(facts: impl IntoIterator<Item = FactKey>) -> Changed {
    Changed::Facts(facts.into_iter().collect())
}

/// What a change of these facts makes the cache do.
fn apply(cache: &mut Cache, change: &Changed, facts: &FakeFacts) -> Refreshed {
    let affected = cache.affected(change);
    cache.refresh(&affected, facts)
}

#[test]
fn a_resource_that_reads_nothing_of_the_client_is_made_once() {
    let facts = FakeFacts::default().with_endpoints("reviews", &["10.0.0.1"]);
    let mut cache = Cache::new(fake_translate);
    let made: Vec<usize> = [A, B, C]
        .into_iter()
        .zip(["n1", "n2", "n3"])
        .map(|(stream, node)| {
            cache.watch(stream, &key("endpoints/reviews"), &client(node), &facts).translations
        })
        .collect();
    assert_eq!(made, [1, 0, 0]);
    let bodies: Vec<_> = [A, B, C]
        .into_iter()
        .filter_map(|stream| match cache.answer(stream, &key("endpoints/reviews")) {
            Some(Answer::Found(resource)) => Some(resource.body.as_ptr()),
            _ => None,
        })
        .collect();
    assert!(bodies.len() == 3 && bodies.iter().all(|body| *body == bodies[0]), "one buffer for all");
    assert_eq!((cache.size().names, cache.size().resources), (1, 1));
}

#[test]
fn what_is_made_for_one_kind_of_client_never_reaches_another() {
    let facts = FakeFacts::default().with_endpoints("reviews", &["10.0.0.1"]);
    let mut cache = Cache::new(fake_translate);
    let kind = |kind| Arc::new(Client { kind, ..Client::clone(&client("n1")) });
    let envoy = |folder: &str| {
        kind(ClientKind::Envoy(EnvoyClient { certificates: folder.to_owned(), ..EnvoyClient::default() }))
    };
    let name = key("endpoints/reviews");
    let made =
        [client("n1"), envoy("/a"), envoy("/b"), envoy("/a"), kind(ClientKind::Grpc(GrpcClient::default()))];
    let made =
        (1..).zip(made).map(|(id, client)| cache.watch(StreamId(id), &name, &client, &facts).translations);
    assert_eq!(made.collect::<Vec<_>>(), [1, 1, 1, 0, 1]);
    assert_ne!(version(&cache, A, "endpoints/reviews"), version(&cache, B, "endpoints/reviews"));
}

#[test]
fn a_resource_that_reads_the_node_is_made_per_node() {
    let facts = FakeFacts::default();
    let mut cache = Cache::new(fake_translate);
    let made: Vec<usize> = [(A, "n1"), (B, "n2"), (C, "n1")]
        .into_iter()
        .map(|(stream, node)| cache.watch(stream, &key("node/x"), &client(node), &facts).translations)
        .collect();
    assert_eq!(made, [1, 1, 0]);
    assert_eq!(version(&cache, A, "node/x"), version(&cache, C, "node/x"));
    assert_ne!(version(&cache, A, "node/x"), version(&cache, B, "node/x"));
}

#[test]
fn what_is_read_of_the_client_may_change_with_the_facts() {
    let mut facts = FakeFacts::default();
    facts.settings.standalone = false;
    let mut cache = Cache::new(fake_translate);
    for (stream, node) in [(A, "n1"), (B, "n2")] {
        cache.watch(stream, &key("local/x"), &client(node), &facts);
    }
    assert_eq!(cache.size().resources, 1);
    facts.settings.standalone = true;
    let done = apply(&mut cache, &changed([FactKey::Settings]), &facts);
    assert_eq!((done.translations, done.tell.len()), (2, 2));
    assert_ne!(version(&cache, A, "local/x"), version(&cache, B, "local/x"));
    facts.settings.standalone = false;
    assert_eq!(apply(&mut cache, &changed([FactKey::Settings]), &facts).translations, 1);
    assert_eq!(version(&cache, A, "local/x"), version(&cache, B, "local/x"));
}

#[test]
fn a_change_touches_only_what_was_made_from_it_and_is_watched() {
    let facts = FakeFacts::default().with_endpoints("a", &["10.0.0.1"]).with_endpoints("b", &["10.0.0.2"]);
    let mut cache = Cache::new(fake_translate);
    for name in ["endpoints/a", "endpoints/b", "endpoints/missing", "node/x"] {
        cache.watch(A, &key(name), &client("n1"), &facts);
    }
    let affected = |cache: &Cache, fact: FactKey| cache.affected(&changed([fact])).len();
    assert_eq!(affected(&cache, endpoints_fact("a")), 1);
    assert_eq!(affected(&cache, endpoints_fact("missing")), 1, "so that it can appear");
    assert_eq!(affected(&cache, endpoints_fact("other")), 0);
    assert_eq!(affected(&cache, FactKey::Settings), 0);
    assert_eq!(cache.affected(&Changed::Everything).len(), 4);

    let facts = facts.with_endpoints("a", &["10.0.0.1", "10.0.0.9"]);
    let done = apply(&mut cache, &changed([endpoints_fact("a")]), &facts);
    assert_eq!(done.tell, [(A, key("endpoints/a"))]);
    // Everything is looked at again, and nothing differs.
    assert_eq!(apply(&mut cache, &Changed::Everything, &facts).tell, []);

    cache.unwatch(A, &key("endpoints/a"));
    assert_eq!(affected(&cache, endpoints_fact("a")), 0);
    for name in ["endpoints/b", "endpoints/missing", "node/x"] {
        cache.unwatch(A, &key(name));
    }
    assert_eq!(cache.size(), Default::default());
    assert_eq!(cache.affected(&Changed::Everything), BTreeSet::new());
}

#[test]
fn a_name_appears_and_disappears() {
    let mut cache = Cache::new(fake_translate);
    cache.watch(A, &key("endpoints/a"), &client("n1"), &FakeFacts::default());
    assert_eq!(cache.answer(A, &key("endpoints/a")), Some(Answer::Missing));
    let facts = FakeFacts::default().with_endpoints("a", &["10.0.0.1"]);
    assert_eq!(apply(&mut cache, &changed([endpoints_fact("a")]), &facts).tell.len(), 1);
    assert!(version(&cache, A, "endpoints/a").is_some());
    assert_eq!(apply(&mut cache, &changed([endpoints_fact("a")]), &FakeFacts::default()).tell.len(), 1);
    assert_eq!(cache.answer(A, &key("endpoints/a")), Some(Answer::Missing));
    assert_eq!(cache.answer(B, &key("endpoints/a")), None, "nobody else's watch");
}

#[test]
fn a_change_of_an_address_touches_each_of_its_ports() {
    let mut cache = Cache::new(fake_translate);
    for name in ["address/10.9.0.1:80", "address/10.9.0.1:81", "address/10.9.0.2:80"] {
        cache.watch(A, &key(name), &client("n1"), &FakeFacts::default());
    }
    let ip = "10.9.0.1".parse().unwrap();
    assert_eq!(cache.affected(&changed([FactKey::Destination(ip, 0)])).len(), 2);
    assert_eq!(cache.affected(&changed([FactKey::Destination(ip, 80)])).len(), 1);
}

#[test]
fn a_failed_translation_keeps_the_last_good_form() {
    let mut facts = FakeFacts::default();
    let mut cache = Cache::new(fake_translate);
    cache.watch(A, &key("broken/x"), &client("n1"), &facts);
    let good = version(&cache, A, "broken/x");
    facts.bundle.clear();
    let done = apply(&mut cache, &changed([FactKey::TrustBundle]), &facts);
    assert_eq!((done.failures.len(), done.tell.len()), (1, 0));
    assert_eq!(version(&cache, A, "broken/x"), good);
    let done = cache.watch(B, &key("broken/y"), &client("n1"), &facts);
    assert_eq!((done.failures.len(), cache.answer(B, &key("broken/y"))), (1, Some(Answer::Missing)));
    facts.bundle = "roots again".to_owned();
    assert_eq!(apply(&mut cache, &changed([FactKey::TrustBundle]), &facts).tell.len(), 2);
}

#[test]
fn a_version_depends_on_name_type_facts_and_view_and_on_nothing_else() {
    let facts = FakeFacts::default().with_endpoints("a", &["10.0.0.1"]);
    let of = |kind, name: &str, node: &str, facts: &FakeFacts| match translate(
        fake_translate,
        &(kind, Arc::from(name)),
        &client(node),
        facts,
    )
    .1
    {
        Ok(Answer::Found(resource)) => resource.version,
        other => panic!("{other:?}"),
    };
    let base = of(ResourceType::Endpoints, "endpoints/a", "n1", &facts);
    assert_eq!(base, of(ResourceType::Endpoints, "endpoints/a", "n2", &facts.clone()));
    let mut unread = facts.clone().with_endpoints("b", &["10.0.0.2"]);
    unread.settings.standalone = false;
    assert_eq!(base, of(ResourceType::Endpoints, "endpoints/a", "n1", &unread));
    assert_ne!(base, of(ResourceType::Cluster, "endpoints/a", "n1", &facts));
    let other = facts.clone().with_endpoints("a", &["10.0.0.2"]);
    assert_ne!(base, of(ResourceType::Endpoints, "endpoints/a", "n1", &other));
    // The same text in every process: two replicas must agree. Raise ENCODER_VERSION when this changes.
    assert_eq!(base.to_string().len(), 32);
    assert_eq!(base.to_string().parse::<Version>().unwrap(), base);
    assert_eq!(of(ResourceType::Cluster, "node/x", "n1", &facts).to_string(), STABLE);
}

const STABLE: &str = "8ee80280f3a7b473c8c08b96c9894b8b";
