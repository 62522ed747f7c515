//! Patches: RFC 7396, and the part of Kubernetes' strategic merge that lists with names need. Pure.

use serde_json::{Map, Value};

/// Applies a patch. A strategic one merges lists of objects that have names, by name.
pub(super) fn apply(target: &mut Value, patch: &Value, strategic: bool) {
    match (target, patch) {
        (target, Value::Object(fields)) => {
            if !target.is_object() {
                *target = Value::Object(Map::new());
            }
            let Some(known) = target.as_object_mut() else { return };
            for (key, value) in fields {
                if value.is_null() {
                    known.remove(key);
                } else {
                    apply(known.entry(key.clone()).or_insert(Value::Null), value, strategic);
                }
            }
        }
        (Value::Array(known), Value::Array(new)) if strategic && by_name(new) => {
            for item in new {
                match known.iter_mut().find(|known| known["name"] == item["name"]) {
                    Some(known) => apply(known, item, strategic),
                    None => known.push(item.clone()),
                }
            }
        }
        (target, other) => *target = other.clone(),
    }
}

fn by_name(items: &[Value]) -> bool {
    !items.is_empty() && items.iter().all(|item| item["name"].is_string())
}
