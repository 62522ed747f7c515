//! YAML (and so JSON) with the line of every node, so that whatever is found wrong later can say where it stands.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value};
use serde_saphyr::Spanned;

/// One document of a file.
#[derive(Debug)]
pub struct Document {
    /// Its content.
    pub value: Value,
    /// JSON pointer -> line, from 1.
    lines: BTreeMap<String, usize>,
}

/// Why a text is not YAML.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct InvalidYaml {
    /// The line, from 1; 0 if it is not known.
    pub line: usize,
    /// What is wrong.
    pub reason: String,
}

impl Document {
    /// The line of a node, or of the nearest node around it.
    pub fn line(&self, pointer: &str) -> usize {
        let mut pointer = pointer;
        loop {
            if let Some(line) = self.lines.get(pointer) {
                return *line;
            }
            match pointer.rfind('/') {
                Some(parent) => pointer = &pointer[..parent],
                None => return 0,
            }
        }
    }
}

/// Reads all documents of a text; empty ones are left out.
///
/// # Errors
/// When the text is not YAML, or says a key twice.
pub fn documents(text: &str) -> Result<Vec<Document>, InvalidYaml> {
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
    let nodes: Vec<Spanned<Node>> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| InvalidYaml {
            line: error.location().map_or(0, |location| to_line(location.line())),
            reason: error.to_string(),
        })?;
    Ok(nodes.into_iter().map(document).filter(|document| !document.value.is_null()).collect())
}

fn document(root: Spanned<Node>) -> Document {
    let mut lines = BTreeMap::new();
    let value = flatten(root, &mut String::new(), &mut lines);
    Document { value, lines }
}

/// A value that knows its line.
enum Node {
    Scalar(Value),
    Sequence(Vec<Spanned<Node>>),
    Mapping(Vec<(Spanned<String>, Spanned<Node>)>),
}

fn flatten(node: Spanned<Node>, pointer: &mut String, lines: &mut BTreeMap<String, usize>) -> Value {
    lines.entry(pointer.clone()).or_insert_with(|| to_line(node.referenced.line()));
    let length = pointer.len();
    match node.value {
        Node::Scalar(value) => value,
        Node::Sequence(items) => {
            let item = |(i, item)| {
                pointer.push_str(&format!("/{i}"));
                let value = flatten(item, pointer, lines);
                pointer.truncate(length);
                value
            };
            Value::Array(items.into_iter().enumerate().map(item).collect())
        }
        Node::Mapping(entries) => {
            let entry = |(key, item): (Spanned<String>, Spanned<Node>)| {
                pointer.push_str(&format!("/{}", key.value.replace('~', "~0").replace('/', "~1")));
                // The line of the key: a value in block style begins on the next one.
                lines.insert(pointer.clone(), to_line(key.referenced.line()));
                let value = flatten(item, pointer, lines);
                pointer.truncate(length);
                (key.value, value)
            };
            Value::Object(entries.into_iter().map(entry).collect())
        }
    }
}

fn to_line(line: u64) -> usize {
    usize::try_from(line).unwrap_or(0)
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Bool(value)))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Node, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("this is not a finite number"))?;
        Ok(Node::Scalar(Value::Number(number)))
    }
    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(Value::String(value.to_owned())))
    }
    fn visit_string<E>(self, value: String) -> Result<Node, E> {
        Ok(Node::Scalar(Value::String(value)))
    }
    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }
    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut found = Vec::new();
        while let Some(item) = items.next_element()? {
            found.push(item);
        }
        Ok(Node::Sequence(found))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut found = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            found.push(entry);
        }
        Ok(Node::Mapping(found))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn several_documents_with_lines() {
        let text = "# first\na: 1\nb:\n  - c: x\n  - d: {e: true}\n---\n---\n{\"f\": null,\n \"g/h\": 1.5}\n";
        let found = documents(text).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].value, json!({"a": 1, "b": [{"c": "x"}, {"d": {"e": true}}]}));
        for (pointer, line) in [("/a", 2), ("/b", 3), ("/b/0/c", 4), ("/b/1/d/e", 5), ("/b/7/x", 3)] {
            assert_eq!(found[0].line(pointer), line, "{pointer}");
        }
        assert_eq!(found[1].value, json!({"f": null, "g/h": 1.5}));
        assert_eq!((found[1].line("/f"), found[1].line("/g~1h")), (8, 9));
        assert!(documents("").unwrap().is_empty());
        assert!(documents("# nothing\n").unwrap().is_empty());
    }

    #[test]
    fn texts_stay_texts() {
        let found =
            documents("a: \"1\"\nb: 'true'\nc: |\n  two\n  lines\nd: 10.0.0.1\ne: 2026-01-01T00:00:00Z\n")
                .unwrap();
        let expected =
            json!({"a": "1", "b": "true", "c": "two\nlines\n", "d": "10.0.0.1", "e": "2026-01-01T00:00:00Z"});
        assert_eq!(found[0].value, expected);
    }

    #[test]
    fn says_where_it_is_broken() {
        for (text, line) in [("a: 1\nb: [1\nc: 2\n", 3), ("a: 1\na: 2\n", 2), ("a: 1\n b: 2\n", 2)] {
            let error = documents(text).unwrap_err();
            assert_eq!(error.line, line, "{error}");
        }
    }
}
