//! The definition of PeerAuthentication for an API server, made from its type, so that the two cannot disagree.

use kube::core::schema::{OptionalEnum, OptionalIntOrString, StructuralSchemaRewriter};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use schemars::transform::AddNullable;
use serde_json::{Value, json};

use super::Kind;
use super::peer_authentication::PeerAuthenticationSpec;

/// The CustomResourceDefinition. Stored as v1; v1beta1 is the same.
pub fn peer_authentication() -> Value {
    let version = |name: &str| {
        json!({
            "name": name,
            "served": true,
            "storage": name == "v1",
            "subresources": { "status": {} },
            "additionalPrinterColumns": [
                { "name": "Mode", "type": "string", "jsonPath": ".spec.mtls.mode", "description": "Of the workload." },
                { "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" },
            ],
            "schema": { "openAPIV3Schema": {
                "type": "object",
                "description": "Which mutual TLS modes hold for workloads.",
                "properties": {
                    "spec": schema::<PeerAuthenticationSpec>(),
                    "status": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
                },
            } },
        })
    };
    let versions = Kind::PeerAuthentication.versions().iter().filter_map(|text| text.split_once('/'));
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": "peerauthentications.security.istio.io" },
        "spec": {
            "group": "security.istio.io",
            "scope": "Namespaced",
            "names": {
                "kind": "PeerAuthentication",
                "listKind": "PeerAuthenticationList",
                "plural": "peerauthentications",
                "singular": "peerauthentication",
                "shortNames": ["pa"],
                "categories": ["mesh"],
            },
            "versions": versions.map(|(_, name)| version(name)).collect::<Value>(),
        },
    })
}

/// The structural schema of a type.
fn schema<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let generator = settings
        .with_transform(AddNullable::default())
        .with_transform(StructuralSchemaRewriter)
        .with_transform(OptionalEnum)
        .with_transform(OptionalIntOrString)
        .into_generator();
    let mut schema = generator.into_root_schema_for::<T>().to_value();
    if let Some(fields) = schema.as_object_mut() {
        fields.remove("title");
    }
    schema
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// `UPDATE_GOLDEN=1` writes the file.
    #[test]
    fn the_chart_has_it() {
        let file = "../charts/mesh/files/peerauthentications.security.istio.io.yaml";
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let definition = peer_authentication();
        let text = format!(
            "# Made from mesh-control/src/api/peer_authentication.rs: UPDATE_GOLDEN=1 cargo test writes it.\n{}",
            serde_saphyr::to_string(&definition).unwrap()
        );
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(found, text, "{} is not what the type says", path.display());
        // What was written reads as what was meant.
        let documents = crate::watch::yaml::documents(&found).unwrap();
        assert_eq!(documents[0].value, definition);
    }

    #[test]
    fn the_schema_has_the_fields_of_the_type() {
        let definition = peer_authentication();
        let versions = definition.pointer("/spec/versions").and_then(Value::as_array).unwrap();
        let named: Vec<_> = versions.iter().map(|version| (&version["name"], &version["storage"])).collect();
        assert_eq!(named, [(&json!("v1"), &json!(true)), (&json!("v1beta1"), &json!(false))]);
        for version in versions {
            let spec = version.pointer("/schema/openAPIV3Schema/properties/spec/properties").unwrap();
            let mode = spec.pointer("/mtls/properties/mode").unwrap();
            assert_eq!(mode["enum"], json!(["UNSET", "DISABLE", "PERMISSIVE", "STRICT"]), "{mode}");
            let port = spec.pointer("/portLevelMtls/additionalProperties/properties/mode/enum");
            assert_eq!(port, Some(&mode["enum"]));
            let labels = spec.pointer("/selector/properties/matchLabels/additionalProperties/type");
            assert_eq!(labels, Some(&json!("string")));
            let text = version.to_string();
            for forbidden in ["$ref", "anyOf", "oneOf", "null]", "definitions"] {
                assert!(!text.contains(forbidden), "a structural schema has no {forbidden}: {text}");
            }
        }
    }
}
