//! No annotation, whatever it is called and whatever it says, gains a pod a privilege.

use std::collections::BTreeMap;

use mesh_injector::decide::Namespace;
use mesh_injector::inject::{Facts, Outcome, inject};
use mesh_injector::settings::Settings;
use proptest::prelude::*;
use serde_json::{Value, json};

const NAMES: [&str; 24] = [
    "mesh/proxy-cpu",
    "mesh/proxy-cpu-limit",
    "mesh/proxy-memory",
    "mesh/proxy-memory-limit",
    "mesh/log-level",
    "mesh/exclude-inbound-ports",
    "mesh/exclude-outbound-ports",
    "mesh/exclude-inbound-ranges",
    "mesh/exclude-outbound-ranges",
    "mesh/drain-propagation",
    "mesh/rewrite-probes",
    "mesh/merge-metrics",
    "mesh/status",
    "mesh/inject",
    "mesh/privileged",
    "mesh/proxy-image",
    "sidecar.istio.io/proxyImage",
    "sidecar.istio.io/proxyCPU",
    "sidecar.istio.io/logLevel",
    "sidecar.istio.io/interceptionMode",
    "sidecar.istio.io/userVolume",
    "proxy.istio.io/config",
    "proxy.istio.io/overrides",
    "prometheus.io/port",
];

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "1",
            "100m",
            "64Mi",
            "debug",
            "true",
            "false",
            "80,90-95",
            "10.0.0.0/8",
            "0",
            "-1",
            "99999999999999",
            "info --privileged",
            "info\",\"x",
            "$(KUBERNETES_SERVICE_HOST)",
            "{\"privileged\":true}",
            "2s",
            "[{\"securityContext\":{\"privileged\":true}}]",
            "evil/image:1",
            "a=b=c",
            "22 --dry-run",
            "::/0",
        ])
        .prop_map(str::to_owned),
        any::<String>(),
    ]
}

/// Everything that could be a privilege, wherever it stands.
fn privileges(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let bad = match key.as_str() {
                    "privileged" | "allowPrivilegeEscalation" | "hostNetwork" | "hostPID" | "hostIPC" => {
                        value == &json!(true)
                    }
                    "hostPath" | "procMount" | "hostPort" => true,
                    "add" => value != &json!(["NET_ADMIN"]),
                    "image" => value != "mesh-proxy:test" && value != "shop/web:1",
                    _ => false,
                };
                if bad {
                    found.push(format!("{key}: {value}"));
                }
                privileges(value, found);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| privileges(value, found)),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn no_annotation_gains_a_privilege(
        annotations in prop::collection::btree_map(prop::sample::select(NAMES.to_vec()), value(), 0..6),
        istio in any::<bool>(),
        native in any::<bool>(),
    ) {
        let annotations: BTreeMap<&str, String> = annotations;
        let pod = json!({
            "metadata": { "name": "web-1", "annotations": annotations },
            "spec": { "containers": [{ "name": "web", "image": "shop/web:1" }] },
        });
        let settings = json!({ "proxy": { "image": "mesh-proxy:test" }, "compat": { "istioLabels": istio } });
        let settings = Settings::parse(&settings.to_string()).unwrap();
        let labels = [("mesh/inject".to_owned(), "enabled".to_owned())].into();
        let facts = Facts {
            control: "c:1".to_owned(),
            control_name: "c".to_owned(),
            namespace: "mesh-system".to_owned(),
            roots: "PEM".to_owned(),
            native,
            version: "test".to_owned(),
        };
        let outcome = inject(&pod, &Namespace { name: "shop".to_owned(), labels }, &settings, &facts);
        if let Ok(Outcome::Injected { pod, .. }) = outcome {
            let mut found = Vec::new();
            privileges(&pod, &mut found);
            prop_assert!(found.is_empty(), "{:?}", found);
            let argument = |it: &Value| it.as_str().is_some_and(|it| {
                it.starts_with("--") && it.matches('=').count() >= 1 || ["redirect", "run", "--verify", "--capture"].contains(&it)
            });
            for list in ["/spec/initContainers", "/spec/containers"] {
                for container in pod.pointer(list).and_then(Value::as_array).into_iter().flatten() {
                    let args = container["args"].as_array().cloned().unwrap_or_default();
                    prop_assert!(args.iter().all(argument), "{:?}", args);
                    prop_assert!(args.iter().all(|it| !it.as_str().unwrap().contains("$(KUBERNETES")), "{:?}", args);
                }
            }
        }
    }
}
