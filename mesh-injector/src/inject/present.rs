//! What an earlier run left in the pod, and how a wanted element gets into a list: left alone where it is there, as
//! others may have added to it; replaced where something is missing; else put in.

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
        Some(present) if holds(present, &wanted) => {}
        Some(present) => *present = wanted,
        None => list.insert(at(list), wanted),
    }
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
