//! From an object of the API server to an event. Only what ingest reads is kept: a pod's containers, but for the one
//! that captures its connections, annotations and managed fields never leave this file.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::DynamicObject;
use mesh_common::capture::REDIRECT_CONTAINER;
use serde_json::{Map, Value, json};

use super::resource::MESH_CONFIG;
use crate::api::{InvalidObject, Kind, Object, ObjectId, Unusable};
use crate::ingest::Event;
use crate::watch::yaml;

/// The key of the settings in their ConfigMap.
const MESH: &str = "mesh";
/// Labels of nodes and EndpointSlices that are read.
const LABELS: [&str; 3] =
    ["topology.kubernetes.io/region", "topology.kubernetes.io/zone", "kubernetes.io/service-name"];

/// The name of an object.
pub(super) fn id(kind: Kind, metadata: &ObjectMeta) -> ObjectId {
    if kind == Kind::MeshConfig {
        return ObjectId::mesh_config();
    }
    let namespace = metadata.namespace.clone().unwrap_or_default();
    ObjectId { kind, namespace, name: metadata.name.clone().unwrap_or_default() }
}

/// The object is there and looks like this. `None` for objects that are not ours to read.
pub(super) fn applied(kind: Kind, object: DynamicObject) -> Option<Event> {
    let id = id(kind, &object.metadata);
    let read = match kind {
        Kind::MeshConfig if object.metadata.name.as_deref() != Some(MESH_CONFIG) => return None,
        Kind::MeshConfig => settings(&object.data),
        _ => Object::from_server(kind, &trimmed(kind, object)),
    };
    Some(match read {
        Ok(object) => Event::Apply(id, object),
        Err(Unusable { known, errors }) => Event::Refuse(id, known, errors),
    })
}

/// The settings in the ConfigMap.
fn settings(config_map: &Value) -> Result<Object, Unusable> {
    let refused = |reason: String| Unusable {
        known: None,
        errors: vec![InvalidObject { pointer: format!("/data/{MESH}"), reason }],
    };
    let Some(text) = config_map.pointer("/data/mesh").and_then(Value::as_str) else {
        return Err(refused("the ConfigMap does not have this key".to_owned()));
    };
    let documents = yaml::documents(text).map_err(|error| match error.line {
        0 => refused(error.reason),
        line => refused(format!("line {line}: {}", error.reason)),
    })?;
    let nothing = json!({});
    let (value, line) = match documents.as_slice() {
        [] => (&nothing, None),
        [one] => (&one.value, Some(one)),
        _ => return Err(refused("there is more than one YAML document".to_owned())),
    };
    let read = match value.get("kind") {
        Some(_) => Object::parse(value),
        None => Object::parse_mesh_config(value),
    };
    let located = |error: InvalidObject| match line.map_or(0, |document| document.line(&error.pointer)) {
        0 => error,
        line => InvalidObject { reason: format!("{} (line {line})", error.reason), ..error },
    };
    match read {
        Ok((id, object)) if id.kind == Kind::MeshConfig => Ok(object),
        Ok((id, _)) => Err(refused(format!("this is a {}, not the mesh's settings", id.kind.name()))),
        Err(errors) => Err(Unusable { known: None, errors: errors.into_iter().map(located).collect() }),
    }
}

/// The parts of an object that are read. Users' rules whole: an unknown field has to be seen.
fn trimmed(kind: Kind, object: DynamicObject) -> Value {
    let DynamicObject { types: _, metadata, mut data } = object;
    let paths: &[&[&str]] = match kind {
        Kind::MeshConfig | Kind::Namespace | Kind::Node => &[],
        Kind::ServiceCidr => &[&["spec", "cidrs"]],
        Kind::Pod => &[
            &["spec", "serviceAccountName"],
            &["spec", "nodeName"],
            &["spec", "hostNetwork"],
            &["spec", "initContainers"],
            &["status", "phase"],
            &["status", "podIP"],
            &["status", "podIPs"],
        ],
        Kind::Service => &[
            &["spec", "clusterIP"],
            &["spec", "clusterIPs"],
            &["spec", "externalIPs"],
            &["spec", "externalName"],
            &["spec", "internalTrafficPolicy"],
            &["spec", "ports"],
            &["spec", "type"],
            &["status", "loadBalancer"],
        ],
        Kind::EndpointSlice => &[&["addressType"], &["endpoints"], &["ports"]],
        Kind::ReferenceGrant | Kind::HttpRoute | Kind::PeerAuthentication => {
            return whole(kind, metadata, data);
        }
    };
    let mut kept = Map::new();
    for path in paths {
        keep(&mut data, &mut kept, path);
    }
    if let Some(Value::Array(containers)) =
        kept.get_mut("spec").and_then(|spec| spec.get_mut("initContainers"))
    {
        containers.retain(|container| container["name"] == REDIRECT_CONTAINER);
        for container in containers {
            *container = json!({ "name": REDIRECT_CONTAINER, "args": container["args"] });
        }
    }
    kept.insert("metadata".to_owned(), metadata_of(kind, metadata));
    Value::Object(kept)
}

/// Moves one part over, if it is there.
fn keep(from: &mut Value, to: &mut Map<String, Value>, path: &[&str]) {
    let [name, rest @ ..] = path else { return };
    let Some(part) = from.get_mut(*name) else { return };
    if rest.is_empty() {
        to.insert((*name).to_owned(), part.take());
    } else if let Value::Object(inner) = to.entry(*name).or_insert_with(|| json!({})) {
        keep(part, inner, rest);
    }
}

/// All but what the server and controllers add.
fn whole(kind: Kind, metadata: ObjectMeta, data: Value) -> Value {
    let mut fields = match data {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    fields.remove("status");
    fields.insert("metadata".to_owned(), metadata_of(kind, metadata));
    if kind != Kind::PeerAuthentication {
        // Its type insists on the version that it was made for; the older one has the same fields.
        fields.insert("apiVersion".to_owned(), kind.versions()[0].into());
        fields.insert("kind".to_owned(), kind.name().into());
    }
    Value::Object(fields)
}

fn metadata_of(kind: Kind, metadata: ObjectMeta) -> Value {
    let pod = kind == Kind::Pod;
    let labels = |labels: BTreeMap<String, String>| -> Option<BTreeMap<String, String>> {
        let read = |name: &str| match kind {
            Kind::Pod => true,
            Kind::Node | Kind::EndpointSlice => LABELS.contains(&name),
            _ => false,
        };
        let kept: BTreeMap<_, _> = labels.into_iter().filter(|(name, _)| read(name)).collect();
        (!kept.is_empty()).then_some(kept)
    };
    let kept = ObjectMeta {
        name: metadata.name,
        namespace: metadata.namespace,
        generation: metadata.generation,
        creation_timestamp: metadata.creation_timestamp,
        uid: metadata.uid.filter(|_| pod),
        labels: metadata.labels.and_then(labels),
        deletion_timestamp: metadata.deletion_timestamp.filter(|_| pod),
        owner_references: metadata.owner_references.filter(|_| pod),
        ..ObjectMeta::default()
    };
    serde_json::to_value(kept).unwrap_or_default()
}
