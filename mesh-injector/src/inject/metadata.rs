//! Labels and annotations of an injected pod: those by which the mesh and people know it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use mesh_common::maker::Maker;
use serde_json::{Map, Value, json};

use super::Context;
use crate::names::{PROXY, REDIRECT, ROOT_VOLUME, STATE_VOLUME, STATUS_ANNOTATION, TOKEN_VOLUME, is_ours};

const TLS_MODE: &str = "security.istio.io/tlsMode";
const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// Sets labels that the pod does not have, and what was injected.
pub(super) fn note(out: &mut Value, context: &Context<'_>, metrics: &BTreeMap<&'static str, String>) {
    let labels = entries(out, "labels");
    let of = |labels: &Map<String, Value>, names: [&str; 2]| {
        names
            .iter()
            .find_map(|name| labels.get(*name)?.as_str().filter(|it| !it.is_empty()).map(str::to_owned))
    };
    let name = of(labels, ["app.kubernetes.io/name", "app"]).unwrap_or_else(|| workload(context.pod));
    let revision = of(labels, ["app.kubernetes.io/version", "version"]);
    let revision = revision.unwrap_or_else(|| "latest".to_owned());
    for (label, value) in [(TLS_MODE, "istio"), (CANONICAL_NAME, &name), (CANONICAL_REVISION, &revision)] {
        let value = label_value(value);
        if !value.is_empty() {
            labels.entry(label).or_insert_with(|| json!(value));
        }
    }
    let first = context.pod.spec.as_ref().and_then(|it| it.containers.iter().find(|it| !is_ours(&it.name)));
    let annotations = entries(out, "annotations");
    for (name, value) in metrics {
        annotations.insert((*name).to_owned(), json!(value));
    }
    if let Some(first) = first {
        annotations.entry(DEFAULT_CONTAINER).or_insert_with(|| json!(first.name));
    }
    annotations.insert(STATUS_ANNOTATION.to_owned(), json!(status(context).to_string()));
}

fn status(context: &Context<'_>) -> Value {
    json!({
        "version": context.facts.version,
        "sidecar": if context.native { "native" } else { "container" },
        "containers": [REDIRECT, PROXY],
        "volumes": [STATE_VOLUME, TOKEN_VOLUME, ROOT_VOLUME],
        "imagePullSecrets": context.settings.proxy.image_pull_secrets,
    })
}

/// The name of what made the pod: its Deployment's, CronJob's or other owner's, else its own.
pub fn workload(pod: &Pod) -> String {
    let metadata = &pod.metadata;
    let owner = metadata.owner_references.iter().flatten().find(|it| it.controller == Some(true));
    let Some(owner) = owner else {
        let own = metadata.name.clone().or_else(|| metadata.generate_name.clone()).unwrap_or_default();
        return own.trim_end_matches('-').to_owned();
    };
    let hash = metadata.labels.as_ref().and_then(|it| it.get("pod-template-hash"));
    Maker::of(&owner.kind, &owner.name, hash.map(String::as_str)).name().to_owned()
}

/// What a label can hold: 63 characters, the last one a letter or digit.
fn label_value(text: &str) -> String {
    let short: String = text.chars().take(63).collect();
    short.trim_end_matches(['-', '_', '.']).to_owned()
}

fn entries<'a>(out: &'a mut Value, name: &str) -> &'a mut Map<String, Value> {
    let map = &mut out["metadata"][name];
    if !map.is_object() {
        *map = json!({});
    }
    match map {
        Value::Object(map) => map,
        _ => unreachable!("it was just made one"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_made_the_pod() {
        let owned = |kind: &str, name: &str, controller: bool| {
            json!({ "metadata": {
                "name": "web-1", "labels": { "pod-template-hash": "5f" },
                "ownerReferences": [{ "apiVersion": "v1", "uid": "u", "kind": kind, "name": name, "controller": controller }],
            } })
        };
        for (pod, expected) in [
            (json!({ "metadata": { "generateName": "web-" } }), "web"),
            (json!({ "metadata": { "name": "web-1", "generateName": "web-" } }), "web-1"),
            (json!({ "metadata": {} }), ""),
            (owned("ReplicaSet", "web-5f", true), "web"),
            (owned("ReplicaSet", "web-5f", false), "web-1"),
            (owned("Job", "nightly-29012345", true), "nightly"),
        ] {
            let parsed: Pod = serde_json::from_value(pod.clone()).unwrap();
            assert_eq!(workload(&parsed), expected, "{pod}");
        }
    }
}
