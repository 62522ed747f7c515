//! Tests of the protocol state: single rules as stories, and a model server under random events.

use std::collections::BTreeMap;

use mesh_common::xds::ResourceType;
use mesh_common::xds::proto::service::discovery::v3 as pb;
use mesh_common::xds::protobuf::Any;
use proptest::prelude::*;

use super::{Delta, ProtocolError, Received};

const CDS: ResourceType = ResourceType::Cluster;

fn response(resources: &[(&str, &str, &[u8])], removed: &[&str]) -> pb::DeltaDiscoveryResponse {
    pb::DeltaDiscoveryResponse {
        type_url: CDS.url().into(),
        nonce: "n".into(),
        resources: resources
            .iter()
            .map(|(name, version, value)| pb::Resource {
                name: (*name).into(),
                version: (*version).into(),
                resource: Some(Any { type_url: CDS.url().into(), value: value.to_vec() }),
                ..Default::default()
            })
            .collect(),
        removed_resources: removed.iter().map(|name| (*name).into()).collect(),
        ..Default::default()
    }
}

/// A resource is good unless its bytes say otherwise.
fn take(delta: &mut Delta, response: pb::DeltaDiscoveryResponse) -> Received<Vec<u8>> {
    let decode = |_, _: &str, any: &Any| match any.value.as_slice() {
        b"bad" => Err(vec!["a: wrong".to_owned(), "b: wrong too".to_owned()]),
        value => Ok(value.to_vec()),
    };
    delta.receive(response, decode).unwrap()
}

fn opened(names: &[&str]) -> Delta {
    let mut delta = Delta::new(Default::default());
    names.iter().for_each(|name| delta.subscribe(CDS, name));
    delta.stream_opened();
    let first = delta.next_request().unwrap();
    assert!(first.node.is_some());
    assert_eq!(first.resource_names_subscribe, names);
    assert!(delta.next_request().is_none());
    delta
}

#[test]
fn no_type_is_opened_without_a_name() {
    let mut delta = Delta::new(Default::default());
    delta.stream_opened();
    assert!(!delta.has_request());
    delta.subscribe(CDS, "*");
    delta.subscribe(CDS, "");
    delta.subscribe(CDS, "a");
    delta.unsubscribe(CDS, "a");
    assert!(delta.next_request().is_none());
    let error = delta.receive::<()>(response(&[], &["a"]), |_, _, _| Ok(())).unwrap_err();
    assert_eq!(error, ProtocolError::NotOpened(CDS));
}

#[test]
fn the_last_name_goes_and_the_type_is_not_opened_again() {
    let mut delta = opened(&["a"]);
    delta.unsubscribe(CDS, "a");
    let request = delta.next_request().unwrap();
    assert_eq!(request.resource_names_unsubscribe, ["a"]);
    assert!(request.resource_names_subscribe.is_empty() && request.node.is_none());
    delta.stream_opened();
    assert!(delta.next_request().is_none());
}

#[test]
fn a_bad_resource_is_refused_by_name_and_the_good_ones_count() {
    let mut delta = opened(&["a", "b"]);
    take(&mut delta, response(&[("a", "1", b"x"), ("b", "1", b"x")], &[]));
    assert!(delta.next_request().unwrap().error_detail.is_none());
    let received = take(&mut delta, response(&[("a", "2", b"bad"), ("b", "2", b"y")], &[]));
    assert_eq!(received.applied.len(), 1);
    let answer = delta.next_request().unwrap();
    assert_eq!(answer.response_nonce, "n");
    assert_eq!(answer.error_detail.unwrap().message, "cds a: a: wrong; b: wrong too");
    delta.stream_opened();
    let versions: BTreeMap<_, _> =
        delta.next_request().unwrap().initial_resource_versions.into_iter().collect();
    assert_eq!(versions, BTreeMap::from([("a".into(), "1".into()), ("b".into(), "2".into())]));
}

#[test]
fn what_was_not_asked_for_is_ignored_and_what_is_gone_is_forgotten() {
    let mut delta = opened(&["a"]);
    let received = take(&mut delta, response(&[("a", "1", b"x"), ("z", "1", b"bad")], &["y"]));
    assert!(received.applied.len() == 1 && received.removed.is_empty() && received.refusal.is_none());
    take(&mut delta, response(&[], &["a"]));
    delta.stream_opened();
    assert!(delta.next_request().unwrap().initial_resource_versions.is_empty());
}

#[derive(Debug, Clone)]
enum Event {
    Subscribe(u8),
    Unsubscribe(u8),
    Change(u8, bool),
    Delete(u8),
    Reconnect,
}

fn event() -> impl Strategy<Value = Event> {
    let name = 0u8..4;
    prop_oneof![
        3 => name.clone().prop_map(Event::Subscribe),
        2 => name.clone().prop_map(Event::Unsubscribe),
        3 => (name.clone(), any::<bool>()).prop_map(|(name, good)| Event::Change(name, good)),
        1 => name.prop_map(Event::Delete),
        1 => Just(Event::Reconnect),
    ]
}

/// A server that keeps the rules of the protocol.
#[derive(Default)]
struct Server {
    resources: BTreeMap<String, (String, bool)>,
    subscribed: std::collections::BTreeSet<String>,
    opened: bool,
    version: u32,
}

impl Server {
    fn serve(&mut self, delta: &mut Delta, client: &mut BTreeMap<String, String>) {
        while let Some(request) = delta.next_request() {
            assert!(self.opened || !request.resource_names_subscribe.is_empty(), "a wildcard");
            self.opened = true;
            for name in &request.resource_names_unsubscribe {
                self.subscribed.remove(name);
            }
            for name in &request.resource_names_subscribe {
                self.subscribed.insert(name.clone());
                let held = request.initial_resource_versions.get(name);
                if held.is_none() || held != self.resources.get(name).map(|(version, _)| version) {
                    self.send(name, delta, client);
                }
            }
        }
    }

    fn send(&self, name: &str, delta: &mut Delta, client: &mut BTreeMap<String, String>) {
        let message = match self.resources.get(name) {
            Some((version, good)) => {
                response(&[(name, version, if *good { version.as_bytes() } else { b"bad" })], &[])
            }
            None => response(&[], &[name]),
        };
        let received = take(delta, message);
        for (name, value) in received.applied {
            client.insert(name.to_string(), String::from_utf8(value).unwrap());
        }
        for name in received.removed {
            client.remove(&*name);
        }
    }
}

proptest! {
    #[test]
    fn client_and_server_agree(events in prop::collection::vec(event(), 0..60)) {
        let (mut delta, mut server, mut client) = (Delta::new(Default::default()), Server::default(), BTreeMap::new());
        let mut good: BTreeMap<String, String> = BTreeMap::new();
        delta.stream_opened();
        for event in events {
            match event {
                Event::Subscribe(n) => delta.subscribe(CDS, &n.to_string()),
                Event::Unsubscribe(n) => {
                    delta.unsubscribe(CDS, &n.to_string());
                    client.remove(&n.to_string());
                }
                Event::Change(n, is_good) => {
                    let name = n.to_string();
                    server.version += 1;
                    server.resources.insert(name.clone(), (server.version.to_string(), is_good));
                    if server.subscribed.contains(&name) {
                        server.send(&name, &mut delta, &mut client);
                    }
                }
                Event::Delete(n) => {
                    let name = n.to_string();
                    server.resources.remove(&name);
                    if server.subscribed.contains(&name) {
                        server.send(&name, &mut delta, &mut client);
                    }
                }
                Event::Reconnect => {
                    delta.stream_opened();
                    server.subscribed.clear();
                    server.opened = false;
                }
            }
            server.serve(&mut delta, &mut client);
            let asked: Vec<String> = delta.names(CDS).map(|(name, _)| name.to_string()).collect();
            prop_assert_eq!(server.subscribed.iter().cloned().collect::<Vec<_>>(), asked);
        }
        // Whoever's newest version is good holds it; a bad one never replaced anything.
        for (name, (version, is_good)) in &server.resources {
            if server.subscribed.contains(name) && *is_good {
                good.insert(name.clone(), version.clone());
                prop_assert_eq!(client.get(name), Some(version));
            }
        }
        for (name, held) in delta.names(CDS) {
            prop_assert_eq!(held.version.as_deref(), client.get(&**name).map(String::as_str));
        }
    }
}
