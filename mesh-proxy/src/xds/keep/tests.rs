//! Tests of the format: what is written is read again, everything else is refused.

use mesh_common::xds::proto::config::core::v3::Node;
use proptest::prelude::*;

use super::format::{Unusable, decode, encode};
use super::*;

fn node(id: &str) -> Node {
    Node { id: id.to_owned(), ..Node::default() }
}

fn kept(kind: ResourceType, name: &str, version: &str, size: usize) -> Kept {
    let resource = (!version.is_empty()).then(|| {
        Arc::new(pb::Resource {
            name: name.to_owned(),
            version: version.to_owned(),
            resource: Some(Any { type_url: kind.url().to_owned(), value: vec![7; size] }),
            ..Default::default()
        })
    });
    Kept { kind, name: name.into(), resource }
}

/// (type, name, version), the version empty where there is no such resource.
fn names(messages: &[pb::DeltaDiscoveryResponse]) -> Vec<(ResourceType, String, String)> {
    let mut all = Vec::new();
    for message in messages {
        let kind = ResourceType::from_url(&message.type_url).unwrap();
        all.extend(message.resources.iter().map(|r| (kind, r.name.clone(), r.version.clone())));
        all.extend(message.removed_resources.iter().map(|name| (kind, name.clone(), String::new())));
    }
    all.sort();
    all
}

fn some() -> Vec<Kept> {
    vec![
        kept(ResourceType::Listener, "10.96.0.1:80", "1", 100),
        kept(ResourceType::Listener, "10.96.0.2:80", "", 0),
        kept(ResourceType::Cluster, "outbound|80||a.b.svc", "2", 100),
        kept(ResourceType::Cluster, "inbound|80||", "3", 100),
        kept(ResourceType::Listener, "inbound/shop/web", "4", 100),
        kept(ResourceType::Secret, "ROOTCA", "5", 100),
    ]
}

#[test]
fn what_is_kept_is_read_again() {
    let (bytes, left_out) = encode(&node("a"), some(), BOUND);
    assert_eq!(left_out, 0);
    let again = decode(&bytes, &node("a")).unwrap();
    let mut expected: Vec<_> = some()
        .into_iter()
        .map(|k| (k.kind, k.name.to_string(), k.resource.map_or(String::new(), |r| r.version.clone())))
        .collect();
    expected.sort();
    assert_eq!(names(&again), expected);
    let value = &again[0].resources[0].resource.as_ref().unwrap().value;
    assert_eq!(value, &vec![7; 100]);
}

#[test]
fn what_has_no_room_is_left_out_and_the_own_pods_comes_first() {
    let (bytes, left_out) = encode(&node("a"), some(), 640);
    let all = names(&decode(&bytes, &node("a")).unwrap());
    let mut names: Vec<&str> = all.iter().map(|(_, name, _)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["10.96.0.2:80", "ROOTCA", "inbound/shop/web", "inbound|80||"]);
    assert_eq!(left_out, 2);
    assert!(bytes.len() < 900, "{}", bytes.len());
}

#[test]
fn another_node_and_broken_bytes_are_refused() {
    let (bytes, _) = encode(&node("a"), some(), BOUND);
    let error = decode(&bytes, &node("b")).unwrap_err();
    assert_eq!(error, Unusable::OtherNode { kept: "a".into(), id: "b".into() });
    let mut newer = Node { user_agent_name: "mesh-proxy".into(), ..node("a") };
    assert!(decode(&bytes, &newer).is_err(), "another version of the proxy");
    newer.user_agent_name = String::new();
    assert!(decode(&bytes, &newer).is_ok());
    let mut other_format = bytes.clone();
    other_format[33] = b'2';
    assert_eq!(decode(&other_format, &node("a")).unwrap_err(), Unusable::Format);
    for length in 0..bytes.len() {
        assert!(decode(&bytes[..length], &node("a")).is_err(), "cut to {length} bytes");
    }
    for index in 0..bytes.len() {
        let mut broken = bytes.clone();
        broken[index] ^= 0x10;
        assert!(decode(&broken, &node("a")).is_err(), "a bit of byte {index} is another");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        let (whole, _) = encode(&node("a"), Vec::new(), BOUND);
        let first_line = whole.iter().position(|byte| *byte == b'\n').unwrap();
        let checksum = twox_hash::XxHash3_128::oneshot(&payload).to_be_bytes();
        let bytes = [&whole[..=first_line], &checksum, &payload].concat();
        decode(&bytes, &node("a")).ok();
        decode(&payload, &node("a")).ok();
    }
}
