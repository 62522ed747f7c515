//! What an earlier run left in the pod, and how a wanted element gets into a list: left alone where it is there, as
//! others may have added to it; written anew where something is missing, with what others added; else put in.

use serde_json::{Value, json};

use crate::names::{METRICS_ENV, PROBES_ENV, PROXY, STATUS_ANNOTATION};
use crate::probes::Probes;
use crate::quantity::Quantity;

/// What an earlier run noted.
#[derive(Debug, Default)]
pub(super) struct Present {
    /// The pod carries our note. By itself that means nothing: anybody can write it.
    pub(super) noted: bool,
    /// The original probes.
    pub(super) probes: Probes,
    /// Where the application's metrics are.
    pub(super) metrics: Option<Value>,
}

impl Present {
    pub(super) fn of(pod: &Value) -> Self {
        let noted = pod["metadata"]["annotations"].get(STATUS_ANNOTATION).is_some();
        if !noted {
            return Self::default();
        }
        let lists = ["/spec/initContainers", "/spec/containers"];
        let containers = lists.iter().filter_map(|list| pod.pointer(list)?.as_array()).flatten();
        let proxy = containers.into_iter().find(|it| it["name"] == PROXY);
        let env = |name: &str| -> Option<Value> {
            let entry = proxy?["env"].as_array()?.iter().find(|it| it["name"] == name)?;
            serde_json::from_str(entry["value"].as_str()?).ok()
        };
        let probes = match env(PROBES_ENV) {
            Some(Value::Object(probes)) => probes,
            _ => Probes::new(),
        };
        Self { noted, probes, metrics: env(METRICS_ENV).filter(Value::is_object) }
    }
}

/// A list of the spec, made where there is none.
pub(super) fn array<'a>(spec: &'a mut Value, name: &str) -> &'a mut Vec<Value> {
    let list = &mut spec[name];
    if !list.is_array() {
        *list = json!([]);
    }
    match list {
        Value::Array(list) => list,
        _ => unreachable!("it was just made one"),
    }
}

/// Takes a container out of a list it does not belong to.
pub(super) fn take(spec: &mut Value, list: &str, name: &str) {
    if let Some(list) = spec.get_mut(list).and_then(Value::as_array_mut) {
        list.retain(|it| it["name"] != name);
    }
}

/// Puts a named element into a list, at `at` if it is not there.
pub(super) fn put(list: &mut Vec<Value>, wanted: Value, at: impl Fn(&Vec<Value>) -> usize) {
    match list.iter_mut().find(|it| it["name"] == wanted["name"]) {
        Some(present) if holds(present, &wanted) && !outdated(present, &wanted) => {}
        Some(present) => {
            let old = std::mem::replace(present, wanted);
            ADDED.iter().for_each(|(list, key)| keep_added(present, &old, list, key));
        }
        None => list.insert(at(list), wanted),
    }
}

/// What other webhooks add to a container that is not theirs: the list, and what tells its elements apart.
const ADDED: [(&str, &str); 2] = [("env", "name"), ("volumeMounts", "mountPath")];
/// What nobody but the injector says.
const OWN: [&str; 2] = [PROBES_ENV, METRICS_ENV];

/// Whether `present` says something of the application that is no longer so.
fn outdated(present: &Value, wanted: &Value) -> bool {
    OWN.iter().any(|name| has(present, "env", "name", name) && !has(wanted, "env", "name", name))
}

/// Takes over from `old` what is in its list and not in the one of `container`.
fn keep_added(container: &mut Value, old: &Value, list: &str, key: &str) {
    let all = old[list].as_array().into_iter().flatten();
    let is_added = |it: &&Value| {
        it[key].as_str().is_some_and(|name| !OWN.contains(&name) && !has(container, list, key, name))
    };
    let added: Vec<Value> = all.filter(is_added).cloned().collect();
    if !added.is_empty() {
        array(container, list).extend(added);
    }
}

fn has(container: &Value, list: &str, key: &str, name: &str) -> bool {
    container[list].as_array().is_some_and(|all| all.iter().any(|it| it[key] == name))
}

/// The same, and at the end of the list wherever it was.
pub(super) fn last(list: &mut Vec<Value>, wanted: Value) {
    if let Some(at) = list.iter().position(|it| it["name"] == wanted["name"]) {
        let present = list.remove(at);
        list.push(present);
    }
    put(list, wanted, Vec::len);
}

/// Whether all of `wanted` is in `present`: the API server adds defaults, other webhooks add variables and mounts.
fn holds(present: &Value, wanted: &Value) -> bool {
    match (present, wanted) {
        (Value::Object(present), Value::Object(wanted)) => {
            wanted.iter().all(|(key, wanted)| present.get(key).is_some_and(|present| holds(present, wanted)))
        }
        (Value::Array(present), Value::Array(wanted)) => {
            let mut rest = present.iter();
            wanted.iter().all(|wanted| rest.any(|present| holds(present, wanted)))
        }
        // The API server writes 0.5 as 500m.
        (Value::String(present), Value::String(wanted)) if present != wanted => {
            Quantity::parse_any(present).is_some_and(|it| Some(it) == Quantity::parse_any(wanted))
        }
        (present, wanted) => present == wanted,
    }
}
