//! Finds fields of a manifest that its type does not have. Kubernetes' types ignore what they do not know; a user
//! who mistypes a field must hear of it.

use serde_json::Value;

/// JSON pointers of the fields of `written` that `understood` (the same object, parsed and written again) lacks.
/// Nulls and empty values say nothing, so they may be lacking.
pub fn vanished(written: &Value, understood: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare(written, Some(understood), &mut String::new(), &mut found);
    found
}

fn compare(written: &Value, understood: Option<&Value>, path: &mut String, found: &mut Vec<String>) {
    let Some(understood) = understood else {
        if !says_nothing(written) {
            found.push(path.clone());
        }
        return;
    };
    let length = path.len();
    let mut step = |name: &str, value: &Value, inner: Option<&Value>| {
        path.push('/');
        path.push_str(&name.replace('~', "~0").replace('/', "~1"));
        compare(value, inner, path, found);
        path.truncate(length);
    };
    match written {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| step(name, value, understood.get(name)));
        }
        Value::Array(items) => {
            let numbered = items.iter().enumerate();
            numbered.for_each(|(i, value)| step(&i.to_string(), value, understood.get(i)));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.values().all(says_nothing),
        Value::Array(items) => items.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::vanished;

    #[test]
    fn names_what_is_lost() {
        let cases = [
            (json!({"a": 1}), json!({"a": 1}), vec![]),
            (json!({"a": 1, "b": null, "c": {}, "d": []}), json!({"a": 1}), vec![]),
            (
                json!({"a": {"b": [{"c": 1}, {"d": 2}]}}),
                json!({"a": {"b": [{"c": 1}, {}]}}),
                vec!["/a/b/1/d"],
            ),
            (json!({"a/b": 1}), json!({}), vec!["/a~1b"]),
            (json!({"time": "2026-01-01T00:00:00.000Z"}), json!({"time": "2026-01-01T00:00:00Z"}), vec![]),
        ];
        for (written, understood, expected) in cases {
            assert_eq!(vanished(&written, &understood), expected, "{written}");
        }
    }
}
