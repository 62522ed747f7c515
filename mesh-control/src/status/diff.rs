//! What has to be written into the status of an object, given what is there and what should be. Pure. What others
//! wrote stays as it is: entries of other controllers, conditions of other types.

use serde_json::{Value, json};

use super::conditions::CONTROLLER;
use super::{Condition, ObjectStatus};

/// Longer messages are cut: the API server takes 32,768 characters.
const MAX_MESSAGE: usize = 8 << 10;

/// An object as the API server has it: no more of it than its status needs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub version: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// `spec.parentRefs`.
    pub parent_refs: Vec<Value>,
    /// `status.parents`.
    pub parents: Vec<Value>,
    /// `status.conditions`.
    pub conditions: Vec<Value>,
}

/// What there is to write.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Nothing.
    None,
    /// The mesh has not seen this generation of the object yet.
    NotYet,
    /// This, for `status.parents` or `status.conditions`.
    Write(Value),
}

/// Of an HTTPRoute of this namespace. `now` is written as the time of conditions whose status is another than before.
pub fn route(observed: &Observed, namespace: &str, wanted: Option<&ObjectStatus>, now: &str) -> Change {
    let mut ours = Vec::new();
    for parent_ref in observed.parent_refs.iter().filter(|parent| parent["kind"] == "Service") {
        let text = parent_text(parent_ref, namespace);
        let parent =
            wanted.into_iter().flat_map(|wanted| &wanted.parents).find(|parent| parent.parent == text);
        match parent {
            Some(parent) if is_about(observed, &parent.conditions) => {
                ours.push((parent_ref, &parent.conditions))
            }
            _ => return Change::NotYet,
        }
    }
    let mut parents = Vec::new();
    let mut written = vec![false; ours.len()];
    for entry in &observed.parents {
        if entry["controllerName"] != CONTROLLER {
            parents.push(entry.clone());
            continue;
        }
        let place = ours.iter().position(|(parent, _)| same_parent(parent, &entry["parentRef"], namespace));
        if let Some(place) = place.filter(|&place| !written[place]) {
            written[place] = true;
            parents.push(parent_entry(ours[place].0, &entry["conditions"], ours[place].1, now));
        }
    }
    let new = ours.iter().zip(written).filter(|(_, written)| !written);
    parents.extend(new.map(|((parent, conditions), _)| parent_entry(parent, &Value::Null, conditions, now)));
    if parents == observed.parents { Change::None } else { Change::Write(Value::Array(parents)) }
}

/// Of an object whose conditions stand beside each other.
pub fn policy(observed: &Observed, wanted: Option<&ObjectStatus>, now: &str) -> Change {
    let Some(whole) = wanted.and_then(|wanted| wanted.parents.first()) else { return Change::NotYet };
    if !is_about(observed, &whole.conditions) {
        return Change::NotYet;
    }
    let conditions = merged(&observed.conditions, &whole.conditions, now);
    if conditions == observed.conditions { Change::None } else { Change::Write(Value::Array(conditions)) }
}

fn is_about(observed: &Observed, conditions: &[Condition]) -> bool {
    conditions.iter().all(|condition| condition.observed_generation == observed.generation)
}

fn parent_entry(parent_ref: &Value, known: &Value, wanted: &[Condition], now: &str) -> Value {
    let known = known.as_array().map(Vec::as_slice).unwrap_or_default();
    json!({ "parentRef": parent_ref, "controllerName": CONTROLLER, "conditions": merged(known, wanted, now) })
}

/// The conditions that are there, with ours among them as they should be.
fn merged(known: &[Value], wanted: &[Condition], now: &str) -> Vec<Value> {
    let mut conditions = known.to_vec();
    for condition in wanted {
        let place = conditions.iter().position(|known| known["type"] == *condition.kind);
        let old = place.map(|place| &conditions[place]);
        let status = if condition.status { "True" } else { "False" };
        let since =
            old.filter(|old| old["status"] == status).and_then(|old| old["lastTransitionTime"].as_str());
        let entry = json!({
            "type": condition.kind,
            "status": status,
            "reason": condition.reason,
            "message": cut(&condition.message),
            "observedGeneration": condition.observed_generation,
            "lastTransitionTime": since.unwrap_or(now),
        });
        match place {
            Some(place) => conditions[place] = entry,
            None => conditions.push(entry),
        }
    }
    conditions
}

fn cut(message: &str) -> String {
    if message.len() <= MAX_MESSAGE {
        return message.to_owned();
    }
    let end = (0..=MAX_MESSAGE).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
    format!("{}...", &message[..end])
}

/// As the model calls a parent: `Service shop/reviews:80`.
fn parent_text(parent: &Value, namespace: &str) -> String {
    let (name, namespace) = (text(parent, "name", ""), text(parent, "namespace", namespace));
    let suffix = match (parent["port"].as_i64(), parent["sectionName"].as_str()) {
        (Some(port), _) => format!(":{port}"),
        (None, Some(section)) => format!(":{section}"),
        (None, None) => String::new(),
    };
    format!("Service {namespace}/{name}{suffix}")
}

fn text<'a>(parent: &'a Value, field: &str, default: &'a str) -> &'a str {
    parent[field].as_str().unwrap_or(default)
}

/// Whether two references mean the same, with the API server's defaults where one is silent.
fn same_parent(a: &Value, b: &Value, namespace: &str) -> bool {
    let defaults =
        [("group", "gateway.networking.k8s.io"), ("kind", "Gateway"), ("namespace", namespace), ("name", "")];
    defaults.iter().all(|(field, default)| text(a, field, default) == text(b, field, default))
        && a["sectionName"] == b["sectionName"]
        && a["port"] == b["port"]
}
