//! The content of one file: all of its objects, or everything that is wrong with it. Never a part of it.

use std::path::Path;

use serde_json::Value;

use super::yaml::{self, Document};
use crate::api::{InvalidObject, Object, ObjectId};
use crate::model::store::ConfigError;

/// An object, and where it is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// Its name.
    pub id: ObjectId,
    /// The object.
    pub object: Object,
    /// The line where it begins.
    pub line: usize,
}

/// A file of this name holds mesh-wide settings and nothing else, so it needs no `kind`.
const MESH_CONFIG_FILES: [&str; 2] = ["mesh-config.yaml", "mesh-config.yml"];

/// Reads a file's content.
///
/// # Errors
/// With everything that is wrong with it, each with its line.
pub fn parse(file: &Path, content: &[u8]) -> Result<Vec<Manifest>, Vec<ConfigError>> {
    let error = |line: usize, reason: String| ConfigError { file: file.display().to_string(), line, reason };
    let text =
        std::str::from_utf8(content).map_err(|_| vec![error(0, "this is not UTF-8 text".to_owned())])?;
    let documents = yaml::documents(text).map_err(|e| vec![error(e.line, e.reason)])?;
    let bare = file.file_name().is_some_and(|name| MESH_CONFIG_FILES.iter().any(|known| name == *known));
    let mut manifests = Vec::new();
    let mut errors = Vec::new();
    for document in &documents {
        for (pointer, value) in unrolled(&document.value) {
            let parsed = match bare && value.get("kind").is_none() {
                true => Object::parse_mesh_config(value),
                false => Object::parse(value),
            };
            match parsed {
                Ok((id, object)) => manifests.push(Manifest { id, object, line: document.line(&pointer) }),
                Err(found) => {
                    let located = |e: InvalidObject| error(line_of(document, &pointer, &e), e.to_string());
                    errors.extend(found.into_iter().map(located));
                }
            }
        }
    }
    if errors.is_empty() { Ok(manifests) } else { Err(errors) }
}

fn line_of(document: &Document, pointer: &str, error: &InvalidObject) -> usize {
    document.line(&format!("{pointer}{}", error.pointer))
}

/// `kind: List` stands for its items.
fn unrolled(value: &Value) -> Vec<(String, &Value)> {
    let is_list = value.get("kind").and_then(Value::as_str) == Some("List");
    match value.get("items").and_then(Value::as_array).filter(|_| is_list) {
        Some(items) => items.iter().enumerate().map(|(i, item)| (format!("/items/{i}"), item)).collect(),
        None => vec![(String::new(), value)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(text: &str) -> Vec<(usize, String)> {
        let errors = parse(Path::new("a.yaml"), text.as_bytes()).unwrap_err();
        errors.into_iter().map(|error| (error.line, error.reason)).collect()
    }

    #[test]
    fn lists_and_documents() {
        let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Node\n  metadata: {name: n}\n- apiVersion: v1\n  kind: Service\n  metadata: {name: s}\n---\nkind: MeshConfig\nrootNamespace: root\n";
        let found = parse(Path::new("a.yaml"), text.as_bytes()).unwrap();
        let found: Vec<_> = found.iter().map(|manifest| (manifest.id.to_string(), manifest.line)).collect();
        let expected = [("Node n", 4), ("Service default/s", 7), ("MeshConfig mesh", 11)];
        assert_eq!(found, expected.map(|(id, line)| (id.to_owned(), line)));
        let bare = parse(Path::new("x/mesh-config.yaml"), b"accessLogFile: /dev/stdout\n").unwrap();
        assert_eq!(bare[0].id.to_string(), "MeshConfig mesh");
    }

    #[test]
    fn names_everything_that_is_wrong() {
        let cases: [(&str, &[(usize, &str)]); 8] = [
            ("kind: Servise\napiVersion: v1\n", &[(1, "kind: the kind Servise is not known")]),
            (
                "apiVersion: v2\nkind: Service\nmetadata: {name: s}\n",
                &[(1, "apiVersion: Service is read as v1, not")],
            ),
            ("apiVersion: v1\nkind: Service\n", &[(1, "metadata.name: a Service needs a name")]),
            ("a: b\n", &[(1, "a manifest needs a kind")]),
            (
                "apiVersion: v1\nkind: Service\nmetadata:\n  name: s\n  labls: {a: b}\nspec:\n  ports:\n  - port: 80\n    targetport: 1\n",
                &[
                    (5, "metadata.labls: this field is not known"),
                    (9, "spec.ports[0].targetport: this field is not"),
                ],
            ),
            (
                "apiVersion: v1\nkind: Service\nmetadata:\n  name: s\nspec:\n  ports:\n  - port: many\n",
                &[(7, "spec.ports[0].port: invalid type")],
            ),
            (
                "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: r\nspec:\n  rules:\n  - filters:\n    - type: Wish\n",
                &[(8, "spec.rules[0].filters[0].type: unknown variant `Wish`")],
            ),
            (
                "kind: MeshConfig\noutboundTrafficPolicy:\n  mode: ALLOW_SOME\n",
                &[(3, "outboundTrafficPolicy.mode: unknown variant `ALLOW_SOME`")],
            ),
        ];
        for (text, expected) in cases {
            let found = errors(text);
            assert_eq!(found.len(), expected.len(), "{found:?}");
            for ((line, reason), (expected_line, begin)) in found.iter().zip(expected) {
                assert_eq!(line, expected_line, "{reason}");
                assert!(reason.starts_with(begin), "{reason}");
            }
        }
    }
}
