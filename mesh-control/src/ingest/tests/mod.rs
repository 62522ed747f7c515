//! Golden files: `testdata/<name>.in.yaml` becomes `<name>.model.yaml` and `<name>.status.yaml`. Set
//! `UPDATE_GOLDEN=1` to write them anew, then read the difference.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Event, ingest};
use crate::api::Kind;
use crate::model::facts::Facts;
use crate::model::store::{Mesh, SharedModel};
use crate::model::{OutboundTrafficPolicy, Settings};
use crate::watch::manifests;

pub(crate) mod dump;

/// The settings of every test.
pub(crate) fn settings() -> Settings {
    Settings {
        trust_domain: "cluster.local".to_owned(),
        domain: "cluster.local".to_owned(),
        cluster: "Kubernetes".to_owned(),
        network: String::new(),
        root_namespace: "mesh-system".to_owned(),
        outbound: OutboundTrafficPolicy::AllowAny,
        access_log: None,
        detection_timeout_ms: 5_000,
        connect_timeout_ms: 10_000,
        standalone: true,
    }
}

/// A mesh of these manifests.
pub(crate) fn mesh(text: &str) -> (Mesh, Vec<String>) {
    let mut mesh = Mesh::new(settings());
    let errors = apply(&mut mesh, text);
    (mesh, errors)
}

fn apply(mesh: &mut Mesh, text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    for manifest in manifests::parse(Path::new("in.yaml"), text.as_bytes()).unwrap() {
        let event = Event::Apply(manifest.id, manifest.object);
        let refused = ingest(mesh, &event).err().unwrap_or_default();
        errors.extend(refused.into_iter().map(|(id, error)| format!("{id}: {error}")));
    }
    mesh.commit();
    errors
}

#[test]
fn golden() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut inputs: Vec<PathBuf> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.retain(|path| path.to_string_lossy().ends_with(".in.yaml"));
    inputs.sort();
    assert!(!inputs.is_empty());
    let mut different = String::new();
    for input in inputs {
        let (mesh, errors) = mesh(&fs::read_to_string(&input).unwrap());
        let model = dump::model(&mesh, &errors);
        let status = dump::status(&SharedModel::new(mesh));
        for (kind, text) in [("model", model), ("status", status)] {
            let path = input.to_string_lossy().replace(".in.yaml", &format!(".{kind}.yaml"));
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                fs::write(&path, &text).unwrap();
            } else if fs::read_to_string(&path).unwrap_or_default() != text {
                writeln!(different, "{path} should be:\n{text}").unwrap();
            }
        }
    }
    assert!(different.is_empty(), "{different}");
}

/// The order in which objects arrive must not show, or two replicas would not agree.
#[test]
fn any_order_gives_the_same_model() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if !path.to_string_lossy().ends_with(".in.yaml") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let expected = dump::model(&mesh(&text).0, &[]);
        let mut manifests = manifests::parse(&path, text.as_bytes()).unwrap();
        manifests.reverse();
        let mut one_by_one = Mesh::new(settings());
        for manifest in &manifests {
            let event = Event::Apply(manifest.id.clone(), manifest.object.clone());
            drop(ingest(&mut one_by_one, &event));
            one_by_one.commit();
        }
        assert_eq!(dump::model(&one_by_one, &[]), expected, "{}", path.display());
        for manifest in manifests {
            ingest(&mut one_by_one, &Event::Delete(manifest.id)).unwrap();
            one_by_one.commit();
        }
        assert_eq!(dump::model(&one_by_one, &[]), dump::model(&mesh("").0, &[]), "{}", path.display());
    }
}

const SHOP: &str = "
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web-1, namespace: shop, labels: {app: web, security.istio.io/tlsMode: istio}}, spec: {containers: []}, status: {podIP: 127.0.1.1}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [127.0.1.1], targetRef: {kind: Pod, name: web-1, namespace: shop}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: web, port: 80}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
";

/// Commits name exactly the facts whose value changed.
#[test]
fn a_change_reaches_only_what_it_concerns() {
    let web = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n";
    let cases: [(&str, String, &[&str]); 7] = [
        ("the same again", SHOP.to_owned(), &[]),
        ("metadata that nothing reads", format!("{web}  \nspec: {{clusterIP: 10.96.0.1, ports: [{{port: 80, nodePort: 30000}}]}}"), &[]),
        (
            "an endpoint that is not ready any more",
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{port: 8080}]\nendpoints: [{addresses: [127.0.1.1], conditions: {ready: false}, targetRef: {kind: Pod, name: web-1, namespace: shop}}]".to_owned(),
            &["Endpoints web:80"],
        ),
        (
            "another share of a backend",
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: web, namespace: shop}\nspec: {parentRefs: [{group: '', kind: Service, name: web, port: 80}], rules: [{backendRefs: [{name: web, port: 80, weight: 7}]}]}".to_owned(),
            &["Routes web:80"],
        ),
        (
            "a pod's mode",
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: shop}\nspec: {mtls: {mode: STRICT}}".to_owned(),
            &["Inbound web-1"],
        ),
        (
            "no mutual TLS",
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: shop}\nspec: {mtls: {mode: DISABLE}}".to_owned(),
            &["Identities web:80", "Endpoints web:80", "Inbound web-1", "Destination 127.0.1.1:0", "Destination 127.0.1.1:8080"],
        ),
        (
            "a service in a known range",
            "apiVersion: v1\nkind: Service\nmetadata: {name: b, namespace: shop}\nspec: {clusterIP: 10.96.7.7, ports: [{port: 80}]}".to_owned(),
            &["Service b", "Services", "Identities b:80", "Endpoints b:80", "Destination 10.96.7.7:0", "Destination 10.96.7.7:80"],
        ),
    ];
    for (what, change, expected) in cases {
        let (mut mesh, errors) = mesh(SHOP);
        assert!(errors.is_empty(), "{errors:?}");
        for manifest in manifests::parse(Path::new("in.yaml"), change.as_bytes()).unwrap() {
            ingest(&mut mesh, &Event::Apply(manifest.id, manifest.object)).unwrap();
        }
        let changed: Vec<String> = mesh.commit().iter().map(dump::key).collect();
        assert_eq!(changed, expected, "{what}");
    }
}

#[test]
fn a_reset_removes_what_it_does_not_name() {
    let (mut mesh, _) = mesh(SHOP);
    for kind in Kind::ALL {
        ingest(&mut mesh, &Event::Reset(kind, Vec::new())).unwrap();
    }
    assert!(!mesh.commit().is_empty());
    assert!(mesh.service_keys().is_empty() && mesh.pod_keys().is_empty() && mesh.slice_names().is_empty());
    assert!(mesh.ranges().is_empty());
}

/// What the model cannot take is named, and what it held stays.
#[test]
fn refused_objects() {
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s}\n";
    let policy = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\n";
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\n";
    let cases = [
        (
            format!("{slice}addressType: IPv4\n"),
            "EndpointSlice default/s: metadata.labels: the label kubernetes.io",
        ),
        (format!("{slice}addressType: IPX\n"), "EndpointSlice default/s: addressType: \"IPX\" is not known"),
        (
            format!("{service}spec: {{clusterIP: one}}\n"),
            "Service default/s: spec.clusterIPs: \"one\" is not an IP",
        ),
        (
            format!("{service}spec: {{ports: [{{port: 0}}]}}\n"),
            "Service default/s: spec.ports[0].port: 0 is not a port",
        ),
        (
            format!("{service}spec: {{type: ExternalName}}\n"),
            "Service default/s: spec.externalName: a service of",
        ),
        (
            format!("{policy}spec: {{portLevelMtls: {{\"80\": {{mode: STRICT}}}}}}\n"),
            "PeerAuthentication default/p: spec.portLevelMtls: modes of single ports need a selector",
        ),
        (
            "kind: MeshConfig\naccessLogFile: /tmp/x\n".to_owned(),
            "MeshConfig mesh: accessLogFile: \"/tmp/x\" is not",
        ),
        (
            "kind: MeshConfig\nconnectTimeout: soon\n".to_owned(),
            "MeshConfig mesh: connectTimeout: \"soon\" is not a",
        ),
        (
            "kind: MeshConfig\ntrustDomain: UP\n".to_owned(),
            "MeshConfig mesh: trustDomain: \"UP\" is not a trust",
        ),
    ];
    for (text, begin) in cases {
        let (mesh, errors) = mesh(&text);
        assert_eq!(errors.len(), 1, "{text}");
        assert!(errors[0].starts_with(begin), "{}", errors[0]);
        assert_eq!(dump::model(&mesh, &[]), dump::model(&self::mesh("").0, &[]));
    }
}
