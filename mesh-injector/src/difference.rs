//! From one object to another as a JSON patch (RFC 6902) that says no more than what changes: elements of lists are
//! told apart by their `name`, so an added container is one `add`, and what other webhooks wrote is not written again.

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation};
use serde_json::{Map, Value};

/// The patch that makes `to` of `from`; empty when they are equal.
pub fn difference(from: &Value, to: &Value) -> Patch {
    let mut operations = Vec::new();
    compare(&PointerBuf::root(), from, to, &mut operations);
    Patch(operations)
}

fn compare(at: &PointerBuf, from: &Value, to: &Value, patch: &mut Vec<PatchOperation>) {
    match (from, to) {
        (from, to) if from == to => {}
        (Value::Object(from), Value::Object(to)) => objects(at, from, to, patch),
        (Value::Array(from), Value::Array(to)) if lists(at, from, to, patch).is_some() => {}
        (_, to) => {
            patch.push(PatchOperation::Replace(ReplaceOperation { path: at.clone(), value: to.clone() }));
        }
    }
}

fn objects(
    at: &PointerBuf,
    from: &Map<String, Value>,
    to: &Map<String, Value>,
    patch: &mut Vec<PatchOperation>,
) {
    for key in from.keys().filter(|key| !to.contains_key(*key)) {
        patch.push(PatchOperation::Remove(RemoveOperation { path: below(at, key) }));
    }
    for (key, value) in to {
        match from.get(key) {
            Some(old) => compare(&below(at, key), old, value, patch),
            None => {
                patch.push(PatchOperation::Add(AddOperation { path: below(at, key), value: value.clone() }))
            }
        }
    }
}

/// Lists of named elements whose common elements keep their order; `None` for any other list, with nothing written.
fn lists(at: &PointerBuf, from: &[Value], to: &[Value], patch: &mut Vec<PatchOperation>) -> Option<()> {
    let (old, new) = (names(from)?, names(to)?);
    let stay: Vec<usize> = (0..old.len()).filter(|index| new.contains(&old[*index])).collect();
    let order: Vec<&str> = new.iter().filter(|name| old.contains(name)).copied().collect();
    if !stay.iter().map(|index| old[*index]).eq(order) {
        return None;
    }
    // From the end, so that the indices before stay true.
    for index in (0..old.len()).rev().filter(|index| !stay.contains(index)) {
        patch.push(PatchOperation::Remove(RemoveOperation { path: below(at, &index.to_string()) }));
    }
    let mut rest = stay.into_iter();
    for (index, (name, value)) in new.iter().zip(to).enumerate() {
        let path = below(at, &index.to_string());
        if old.contains(name) {
            compare(&path, &from[rest.next()?], value, patch);
        } else {
            patch.push(PatchOperation::Add(AddOperation { path, value: value.clone() }));
        }
    }
    Some(())
}

/// The names of all elements, if all have one of their own.
fn names(list: &[Value]) -> Option<Vec<&str>> {
    let names = list.iter().map(|it| it.get("name")?.as_str()).collect::<Option<Vec<_>>>()?;
    let mut sorted = names.clone();
    sorted.sort_unstable();
    sorted.dedup();
    (sorted.len() == names.len()).then_some(names)
}

fn below(at: &PointerBuf, key: &str) -> PointerBuf {
    let mut path = at.clone();
    path.push_back(key);
    path
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn an_added_container_is_one_operation() {
        let from = json!({ "a": [{ "name": "x", "v": 1 }, { "name": "y" }], "gone/~": 1 });
        let to =
            json!({ "a": [{ "name": "new" }, { "name": "x", "v": 2 }, { "name": "y" }, { "name": "z" }] });
        let patch = difference(&from, &to);
        assert_eq!(
            serde_json::to_value(&patch).unwrap(),
            json!([
                { "op": "remove", "path": "/gone~1~0" },
                { "op": "add", "path": "/a/0", "value": { "name": "new" } },
                { "op": "replace", "path": "/a/1/v", "value": 2 },
                { "op": "add", "path": "/a/3", "value": { "name": "z" } },
            ])
        );
        assert_eq!(difference(&to, &to), Patch(Vec::new()));
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            "[ab~/]{0,2}".prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[ab~/]{0,2}", inner.clone(), 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
                prop::collection::vec(("[a-e]", inner), 0..5).prop_map(|all| {
                    all.into_iter().map(|(name, value)| json!({ "name": name, "value": value })).collect()
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_patch_makes_the_one_of_the_other(from in values(), to in values()) {
            let mut patched = from.clone();
            json_patch::patch(&mut patched, &difference(&from, &to)).unwrap();
            prop_assert_eq!(patched, to);
        }
    }
}
