//! Pods in, pods out: one file for each rule. `UPDATE_GOLDEN=1 cargo test` writes what comes out; read the difference.
//! Beside the comparison, each case must hold what holds for all: the patch makes the result, and doing it again
//! changes nothing.
#![allow(clippy::unwrap_used, clippy::panic)] // test code, outside of test functions

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use mesh_injector::decide::Namespace;
use mesh_injector::difference::difference;
use mesh_injector::inject::{Facts, Outcome, inject};
use mesh_injector::settings::Settings;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    #[serde(default = "shop")]
    namespace: Labelled,
    #[serde(default)]
    settings: Value,
    #[serde(default = "yes")]
    native: bool,
    pod: Value,
    /// Inject, change by `then`, inject again.
    #[serde(default)]
    reinject: bool,
    #[serde(default)]
    then: Value,
}

#[derive(Deserialize)]
struct Labelled {
    name: String,
    labels: BTreeMap<String, String>,
}

fn shop() -> Labelled {
    Labelled { name: "shop".to_owned(), labels: [("mesh/inject".to_owned(), "enabled".to_owned())].into() }
}

fn yes() -> bool {
    true
}

impl Case {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap();
        serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn settings(&self) -> Settings {
        let mut settings = self.settings.clone();
        if settings.is_null() {
            settings = json!({});
        }
        let proxy = settings.as_object_mut().unwrap().entry("proxy").or_insert_with(|| json!({}));
        proxy.as_object_mut().unwrap().entry("image").or_insert_with(|| json!("mesh-proxy:test"));
        Settings::parse(&settings.to_string()).unwrap()
    }

    fn run(&self, pod: &Value) -> Result<Outcome, mesh_injector::refusal::Refusal> {
        let Labelled { name, labels } = &self.namespace;
        let namespace = Namespace { name: name.clone(), labels: labels.clone() };
        let facts = Facts {
            control: "mesh-control.mesh-system.svc:15012".to_owned(),
            control_name: "mesh-control.mesh-system.svc".to_owned(),
            namespace: "mesh-system".to_owned(),
            roots: "-----BEGIN CERTIFICATE-----\n".to_owned(),
            native: self.native,
            version: "test".to_owned(),
        };
        inject(pod, &namespace, &self.settings(), &facts)
    }
}

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let all = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut cases: Vec<PathBuf> = all.filter(|path| path.to_string_lossy().ends_with(".in.yaml")).collect();
    cases.sort();
    assert!(cases.len() >= 50, "only {} cases", cases.len());
    cases
}

#[test]
fn golden() {
    let mut wrong = Vec::new();
    for path in cases() {
        let case = Case::read(&path);
        let mut pod = case.pod.clone();
        if case.reinject {
            pod = injected(&case, &pod, &path);
            let then: json_patch::Patch = serde_json::from_value(case.then.clone()).unwrap();
            json_patch::patch(&mut pod, &then).unwrap();
        }
        let found = match case.run(&pod) {
            Ok(Outcome::Injected { pod: out, warnings }) => {
                check(&case, &pod, &out, &path);
                json!({ "outcome": "injected", "warnings": warnings, "pod": out })
            }
            Ok(Outcome::Skipped(skip)) => {
                json!({ "outcome": "skipped", "reason": skip.reason(), "warning": skip.warning() })
            }
            Err(refusal) => {
                json!({ "outcome": "refused", "reason": refusal.reason, "code": refusal.code, "message": refusal.message })
            }
        };
        let golden = PathBuf::from(path.to_string_lossy().replace(".in.yaml", ".out.yaml"));
        let text = serde_saphyr::to_string(&found).unwrap();
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&golden, &text).unwrap();
        }
        if fs::read_to_string(&golden).unwrap_or_default() != text {
            wrong.push(format!("{}:\n{text}", golden.display()));
        }
    }
    assert!(wrong.is_empty(), "UPDATE_GOLDEN=1 writes these anew:\n{}", wrong.join("\n"));
}

fn injected(case: &Case, pod: &Value, path: &Path) -> Value {
    match case.run(pod) {
        Ok(Outcome::Injected { pod, .. }) => *pod,
        other => panic!("{}: {other:?}", path.display()),
    }
}

/// What holds for every pod that is injected.
fn check(case: &Case, before: &Value, after: &Value, path: &Path) {
    let name = path.display();
    let mut patched = before.clone();
    json_patch::patch(&mut patched, &difference(before, after)).unwrap();
    assert_eq!(&patched, after, "{name}: the patch makes something else");
    assert_eq!(&injected(case, after, path), after, "{name}: doing it again changes something");
    let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(after.clone()).unwrap();
    let spec = pod.spec.unwrap();
    let all: Vec<_> = spec.init_containers.iter().flatten().chain(&spec.containers).collect();
    for (ours, capabilities, uid) in
        [("mesh-redirect", Some(vec!["NET_ADMIN".to_owned()]), 0), ("mesh-proxy", None, 1337)]
    {
        let found: Vec<_> = all.iter().filter(|it| it.name == ours).collect();
        let [container] = found[..] else { panic!("{name}: {} containers {ours}", found.len()) };
        let context = container.security_context.as_ref().unwrap();
        let held = context.capabilities.as_ref().unwrap();
        assert_eq!(
            (&held.add, held.drop.as_deref()),
            (&capabilities, Some(&["ALL".to_owned()][..])),
            "{name}"
        );
        assert_eq!((context.privileged, context.run_as_user), (Some(false), Some(uid)), "{name}");
        assert_eq!(context.allow_privilege_escalation, Some(false), "{name}");
        assert_eq!(context.read_only_root_filesystem, Some(true), "{name}");
    }
    // Nothing that the author wrote is gone or moved among its own.
    for list in ["/spec/containers", "/spec/initContainers", "/spec/volumes"] {
        let names = |pod: &Value| -> Vec<String> {
            let list = pod.pointer(list).and_then(Value::as_array).cloned().unwrap_or_default();
            let names = list.iter().map(|it| it["name"].as_str().unwrap().to_owned());
            names.filter(|it| !it.starts_with("mesh-")).collect()
        };
        assert_eq!(names(before), names(after), "{name}: {list}");
    }
}
