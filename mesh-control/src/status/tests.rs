//! What is written into a status, as a table: from what is there and what should be.

use serde_json::{Value, json};

use super::diff::{Change, Observed, policy, route};
use super::{Condition, ObjectStatus, ParentStatus};

const BEFORE: &str = "2026-01-01T00:00:00Z";
const NOW: &str = "2026-02-02T00:00:00Z";

fn condition(kind: &str, status: bool, generation: i64) -> Condition {
    Condition {
        kind: kind.to_owned(),
        status,
        reason: if status { kind.to_owned() } else { "NoMatchingParent".to_owned() },
        message: String::new(),
        observed_generation: generation,
    }
}

/// What the mesh says of a route: accepted or not, per parent.
fn wanted(generation: i64, parents: &[(&str, bool)]) -> ObjectStatus {
    let parent = |(parent, accepted): &(&str, bool)| ParentStatus {
        parent: (*parent).to_owned(),
        controller: "mesh/control".to_owned(),
        conditions: vec![
            condition("Accepted", *accepted, generation),
            condition("ResolvedRefs", true, generation),
        ],
    };
    ObjectStatus {
        kind: "HTTPRoute".to_owned(),
        namespace: "shop".to_owned(),
        name: "r".to_owned(),
        parents: parents.iter().map(parent).collect(),
    }
}

fn service(name: &str, port: Option<i64>) -> Value {
    let mut parent = json!({ "group": "", "kind": "Service", "name": name });
    if let Some(port) = port {
        parent["port"] = json!(port);
    }
    parent
}

fn gateway() -> Value {
    json!({ "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge" })
}

fn written(kind: &str, status: bool, generation: i64, since: &str) -> Value {
    let reason = if status { kind } else { "NoMatchingParent" };
    json!({
        "type": kind, "status": if status { "True" } else { "False" }, "reason": reason, "message": "",
        "observedGeneration": generation, "lastTransitionTime": since,
    })
}

/// Our entry of a parent.
fn ours(parent: &Value, accepted: bool, generation: i64, since: &str) -> Value {
    json!({
        "parentRef": parent, "controllerName": "mesh/control",
        "conditions": [
            written("Accepted", accepted, generation, since),
            written("ResolvedRefs", true, generation, since),
        ],
    })
}

fn foreign(parent: &Value) -> Value {
    json!({
        "parentRef": parent, "controllerName": "example.com/gateway",
        "conditions": [written("Accepted", false, 1, BEFORE)],
    })
}

fn observed(generation: i64, refs: &[Value], parents: &[Value]) -> Observed {
    Observed { generation, parent_refs: refs.to_vec(), parents: parents.to_vec(), ..Observed::default() }
}

#[test]
#[allow(clippy::too_many_lines)] // a table
fn what_is_there_and_what_should_be() {
    let (reviews, port) = (service("reviews", None), service("reviews", Some(80)));
    let reviews_text = "Service shop/reviews";
    let same = wanted(2, &[(reviews_text, true)]);
    let mut extra = ours(&reviews, true, 2, BEFORE);
    extra["conditions"]
        .as_array_mut()
        .unwrap()
        .insert(0, json!({ "type": "example.com/Checked", "status": "True" }));
    let mut changed_extra = extra.clone();
    changed_extra["conditions"][1] = written("Accepted", false, 2, NOW);
    // The API server may leave the defaults in, or somebody may have written them out.
    let spelled = json!({ "group": "", "kind": "Service", "namespace": "shop", "name": "reviews" });
    let write = |parents: &[Value]| Change::Write(Value::Array(parents.to_vec()));
    for (what, there, should, change) in [
        (
            "a new route",
            observed(2, std::slice::from_ref(&reviews), &[]),
            Some(&same),
            write(&[ours(&reviews, true, 2, NOW)]),
        ),
        (
            "as it should be",
            observed(2, std::slice::from_ref(&reviews), &[ours(&reviews, true, 2, BEFORE)]),
            Some(&same),
            Change::None,
        ),
        (
            "another generation: the time stays",
            observed(2, std::slice::from_ref(&reviews), &[ours(&reviews, true, 1, BEFORE)]),
            Some(&same),
            write(&[ours(&reviews, true, 2, BEFORE)]),
        ),
        (
            "foreign entries stay, in their places",
            observed(
                2,
                &[gateway(), reviews.clone()],
                &[foreign(&gateway()), ours(&reviews, true, 1, BEFORE), foreign(&reviews)],
            ),
            Some(&same),
            write(&[foreign(&gateway()), ours(&reviews, true, 2, BEFORE), foreign(&reviews)]),
        ),
        ("foreign entries alone", observed(2, &[gateway()], &[foreign(&gateway())]), None, Change::None),
        (
            "foreign conditions stay",
            observed(2, std::slice::from_ref(&reviews), &[extra.clone()]),
            Some(&wanted(2, &[(reviews_text, false)])),
            write(&[changed_extra]),
        ),
        (
            "foreign conditions are no difference",
            observed(2, std::slice::from_ref(&reviews), &[extra]),
            Some(&same),
            Change::None,
        ),
        (
            "a parent that left",
            observed(
                2,
                std::slice::from_ref(&reviews),
                &[ours(&service("old", None), true, 1, BEFORE), ours(&reviews, true, 2, BEFORE)],
            ),
            Some(&same),
            write(&[ours(&reviews, true, 2, BEFORE)]),
        ),
        (
            "all our parents left",
            observed(2, &[gateway()], &[foreign(&gateway()), ours(&reviews, true, 1, BEFORE)]),
            None,
            write(&[foreign(&gateway())]),
        ),
        (
            "an entry twice",
            observed(
                2,
                std::slice::from_ref(&reviews),
                &[ours(&reviews, true, 2, BEFORE), ours(&reviews, false, 2, BEFORE)],
            ),
            Some(&same),
            write(&[ours(&reviews, true, 2, BEFORE)]),
        ),
        (
            "ports tell parents apart",
            observed(2, &[reviews.clone(), port.clone()], &[ours(&port, false, 2, BEFORE)]),
            Some(&wanted(2, &[(reviews_text, true), ("Service shop/reviews:80", false)])),
            write(&[ours(&port, false, 2, BEFORE), ours(&reviews, true, 2, NOW)]),
        ),
        (
            "a reference spelled out is the same",
            observed(2, std::slice::from_ref(&reviews), &[ours(&spelled, true, 2, BEFORE)]),
            Some(&same),
            write(&[ours(&reviews, true, 2, BEFORE)]),
        ),
        (
            "the mesh has seen an older one",
            observed(3, std::slice::from_ref(&reviews), &[]),
            Some(&same),
            Change::NotYet,
        ),
        (
            "the mesh has seen a newer one",
            observed(1, std::slice::from_ref(&reviews), &[]),
            Some(&same),
            Change::NotYet,
        ),
        ("the mesh has seen none", observed(1, std::slice::from_ref(&reviews), &[]), None, Change::NotYet),
        (
            "the mesh has seen another parent",
            observed(2, &[service("ratings", None)], &[]),
            Some(&same),
            Change::NotYet,
        ),
    ] {
        assert_eq!(route(&there, "shop", should, NOW), change, "{what}");
    }
}

#[test]
fn a_condition_has_a_new_time_only_with_a_new_status() {
    let reviews = service("reviews", None);
    let there = observed(2, std::slice::from_ref(&reviews), &[ours(&reviews, true, 2, BEFORE)]);
    let Change::Write(parents) =
        route(&there, "shop", Some(&wanted(2, &[("Service shop/reviews", false)])), NOW)
    else {
        panic!("there is something to write")
    };
    assert_eq!(parents[0]["conditions"][0], written("Accepted", false, 2, NOW));
    assert_eq!(parents[0]["conditions"][1], written("ResolvedRefs", true, 2, BEFORE));
    // The reason alone is no transition.
    let mut should = wanted(2, &[("Service shop/reviews", true)]);
    should.parents[0].conditions[0].message = "é".repeat(40_000);
    let Change::Write(parents) = route(&there, "shop", Some(&should), NOW) else {
        panic!("the message is new")
    };
    let condition = &parents[0]["conditions"][0];
    assert_eq!(condition["lastTransitionTime"], BEFORE);
    assert!(condition["message"].as_str().unwrap().len() < 32_768, "no longer than the API server takes");
}

#[test]
fn policies_have_their_conditions_side_by_side() {
    let whole = |status| {
        let conditions = vec![condition("Accepted", status, 2)];
        let parent =
            ParentStatus { parent: String::new(), controller: "mesh/control".to_owned(), conditions };
        ObjectStatus { kind: "PeerAuthentication".to_owned(), parents: vec![parent], ..wanted(2, &[]) }
    };
    let there = |conditions: &[Value]| Observed {
        generation: 2,
        conditions: conditions.to_vec(),
        ..Observed::default()
    };
    let other = json!({ "type": "Reconciled", "status": "True" });
    let (accepted, refused) = (written("Accepted", true, 2, BEFORE), written("Accepted", false, 2, NOW));
    for (what, there, should, change) in [
        (
            "new",
            there(std::slice::from_ref(&other)),
            Some(whole(true)),
            Change::Write(json!([other, written("Accepted", true, 2, NOW)])),
        ),
        ("same", there(&[accepted.clone(), other.clone()]), Some(whole(true)), Change::None),
        (
            "refused",
            there(&[accepted.clone(), other.clone()]),
            Some(whole(false)),
            Change::Write(json!([refused, other])),
        ),
        ("not seen", there(&[]), None, Change::NotYet),
        ("another generation", Observed { generation: 3, ..there(&[]) }, Some(whole(true)), Change::NotYet),
    ] {
        assert_eq!(policy(&there, should.as_ref(), NOW), change, "{what}");
    }
}
