//! What is kept of an object: enough, and no more.

use std::fs;
use std::path::Path;

use kube::api::DynamicObject;
use serde_json::{Value, json};

use crate::api::{Kind, Object};
use crate::ingest::tests::{dump, settings};
use crate::ingest::{Event, ingest};
use crate::model::store::{Mesh, SharedModel};
use crate::watch::kubernetes::read;
use crate::watch::manifests;
use crate::watch::yaml;

fn event(object: &Value) -> Event {
    let kind = Kind::ALL.into_iter().find(|kind| object["kind"] == kind.name()).unwrap();
    let object: DynamicObject = serde_json::from_value(object.clone()).unwrap();
    read::applied(kind, object).unwrap()
}

/// An object as a server has it: with a namespace, and with much that nobody reads.
fn dressed(object: &Value) -> Value {
    let mut object = object.clone();
    let kind = Kind::ALL.into_iter().find(|kind| object["kind"] == kind.name()).unwrap();
    if kind.namespaced() && object["metadata"]["namespace"].is_null() {
        object["metadata"]["namespace"] = json!("default");
    }
    let metadata = object["metadata"].as_object_mut().unwrap();
    metadata.insert("resourceVersion".to_owned(), json!("7"));
    metadata
        .insert("annotations".to_owned(), json!({ "kubectl.kubernetes.io/last-applied": "x".repeat(5_000) }));
    let fields = json!([{ "manager": "kubectl", "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": { "f:spec": {} } }]);
    metadata.insert("managedFields".to_owned(), fields);
    metadata.insert("finalizers".to_owned(), json!(["example.com/wait"]));
    let container =
        json!({ "name": "more", "image": "x", "env": [{ "name": "A", "value": "x".repeat(2_000) }] });
    if kind == Kind::Pod {
        object["spec"]["containers"] = json!([container.clone(), container]);
        object["spec"]["volumes"] = json!([{ "name": "v", "emptyDir": {} }]);
        object["status"]["containerStatuses"] =
            json!([{ "name": "app", "ready": true, "restartCount": 0, "image": "x", "imageID": "y" }]);
        object["status"]["ofTheFuture"] = json!(true);
        object["spec"]["ofTheFuture"] = json!({ "a": 1 });
    } else if kind == Kind::HttpRoute {
        object["status"] = json!({ "parents": [], "ofTheFuture": 1 });
    } else if kind == Kind::PeerAuthentication {
        object["status"] = json!({ "conditions": [] });
    }
    object
}

/// The same model and statuses come of the files of the golden tests, read whole, and of the same as a server gives it.
#[test]
fn what_is_trimmed_is_not_missed() {
    let mut looked_at = 0;
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata")).unwrap() {
        let path = entry.unwrap().path();
        if !path.to_string_lossy().ends_with(".in.yaml") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let mut from_file = Mesh::new(settings());
        for manifest in manifests::parse(&path, text.as_bytes()).unwrap() {
            drop(ingest(&mut from_file, &Event::Apply(manifest.id, manifest.object)));
        }
        from_file.commit();
        let mut from_server = Mesh::new(settings());
        for document in yaml::documents(&text).unwrap() {
            if document.value["kind"] == "MeshConfig" {
                let (id, object) = Object::parse(&document.value).unwrap();
                drop(ingest(&mut from_server, &Event::Apply(id, object)));
                continue;
            }
            looked_at += 1;
            let event = event(&dressed(&document.value));
            assert!(matches!(event, Event::Apply(..)), "{event:?}");
            drop(ingest(&mut from_server, &event));
        }
        from_server.commit();
        assert_eq!(dump::model(&from_server, &[]), dump::model(&from_file, &[]), "{}", path.display());
        let status = |mesh| dump::status(&SharedModel::new(mesh));
        assert_eq!(status(from_server), status(from_file), "{}", path.display());
    }
    assert!(looked_at > 20, "{looked_at}");
}

#[test]
fn nothing_is_kept_that_nobody_reads() {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "p", "namespace": "shop", "uid": "u", "labels": { "app": "p" } },
        "spec": {
            "serviceAccountName": "p", "nodeName": "n",
            "initContainers": [{ "name": "mesh-redirect", "args": ["redirect", "--exclude-inbound-ports=22"] }],
        },
        "status": { "phase": "Running", "podIP": "10.0.0.1" },
    });
    let mut given = pod.clone();
    given["spec"]["initContainers"][0]["env"] = json!([{ "name": "A", "value": "x" }]);
    given["spec"]["initContainers"].as_array_mut().unwrap().push(json!({ "name": "setup", "image": "x" }));
    let Event::Apply(_, Object::Pod(kept)) = event(&dressed(&given)) else { panic!("not applied") };
    let mut expected = pod.clone();
    // Its type always writes this one.
    expected["spec"]["containers"] = json!([]);
    assert_eq!(serde_json::to_value(&*kept).unwrap(), expected);

    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": "n", "labels": { "topology.kubernetes.io/zone": "z", "beta.kubernetes.io/os": "linux" } },
        "spec": { "podCIDR": "10.0.0.0/24" }, "status": { "images": [{ "names": ["a"], "sizeBytes": 1 }] },
    });
    let Event::Apply(_, Object::Node(kept)) = event(&dressed(&node)) else { panic!("not applied") };
    let expected = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": "n", "labels": { "topology.kubernetes.io/zone": "z" } },
    });
    assert_eq!(serde_json::to_value(&*kept).unwrap(), expected);
}

#[test]
fn the_addresses_of_a_load_balancer_are_kept() {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "s", "namespace": "shop" },
        "spec": { "type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }] },
        "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.7" }] } },
    });
    let Event::Apply(_, Object::Service(kept)) = event(&dressed(&service)) else { panic!("not applied") };
    assert_eq!(serde_json::to_value(&*kept).unwrap(), service);
}

/// A kind of Kubernetes' own with a value that no version of it has is refused by its name; its neighbours are not.
#[test]
fn one_bad_object_is_one_refusal() {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p", "namespace": "shop" },
        "spec": {}, "status": { "podIP": "10.0.0.1" },
    });
    pod["status"]["podIPs"] = json!("10.0.0.1");
    let Event::Refuse(id, known, errors) = event(&pod) else { panic!("not refused") };
    assert_eq!((id.to_string(), known), ("Pod shop/p".to_owned(), None));
    assert_eq!(errors[0].pointer, "/status/podIPs");
}
