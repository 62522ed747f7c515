//! The two containers. What they may do is fixed here and by nobody else: no annotation reaches a security context.

use std::time::Duration;

use mesh_common::capture::EXCLUDE_INBOUND_PORTS;
use mesh_common::options::duration;
use serde_json::{Map, Value, json};

use super::metadata::workload;
use super::{Context, Told, resources::resources};
use crate::names::{
    BUNDLE_ENV, MERGED_PORT, METRICS_ENV, METRICS_PORT, PROBES_ENV, PROXY, PROXY_UID, READY_PORT, REDIRECT,
    ROOT_KEY, ROOT_VOLUME, STATE_VOLUME, TOKEN_VOLUME,
};
use crate::refusal::Refusal;
use crate::settings::{Resources, amounts};

const PROGRAM: &str = "/mesh-proxy";
const STATE_DIR: &str = "/var/run/mesh/state";
const ROOT_DIR: &str = "/var/run/mesh/root";
const TOKEN_DIR: &str = "/var/run/secrets/tokens";
/// More threads than this no sidecar needs; the proxy takes no more than 256 anyway.
const MAX_WORKERS: u128 = 64;

/// Writes the rules of capture, and is gone.
pub(super) fn redirect(context: &Context<'_>) -> Value {
    let (usual, own) = (&context.settings.capture, &context.overrides);
    let mut args = vec!["redirect".to_owned(), "--verify".to_owned()];
    let mut exclude = |flag: &str, all: Vec<String>| {
        if !all.is_empty() {
            args.push(format!("{flag}={}", all.join(",")));
        }
    };
    exclude(EXCLUDE_INBOUND_PORTS, together(&usual.exclude_inbound_ports, &own.exclude_inbound_ports));
    exclude("--exclude-inbound-ranges", together(&usual.exclude_inbound_ranges, &own.exclude_inbound_ranges));
    exclude("--exclude-outbound-ports", together(&usual.exclude_outbound_ports, &own.exclude_outbound_ports));
    exclude(
        "--exclude-outbound-ranges",
        together(&usual.exclude_outbound_ranges, &own.exclude_outbound_ranges),
    );
    json!({
        "name": REDIRECT,
        "image": image(context),
        "imagePullPolicy": context.settings.proxy.image_pull_policy.as_str(),
        "args": args,
        "resources": {
            "requests": { "cpu": "10m", "memory": "16Mi" },
            "limits": { "cpu": "1", "memory": "64Mi" },
        },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "add": ["NET_ADMIN"], "drop": ["ALL"] },
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "runAsUser": 0,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
    })
}

/// Carries the traffic.
///
/// # Errors
/// When annotations do not fit together.
pub(super) fn proxy(context: &Context<'_>, told: &Told) -> Result<Value, Refusal> {
    let resources = resources(context)?;
    let mut container = json!({
        "name": PROXY,
        "image": image(context),
        "imagePullPolicy": context.settings.proxy.image_pull_policy.as_str(),
        "args": arguments(context, &resources)?,
        "env": environment(context, told),
        "ports": [
            { "name": "mesh-merged", "containerPort": MERGED_PORT, "protocol": "TCP" },
            { "name": "mesh-ready", "containerPort": READY_PORT, "protocol": "TCP" },
            { "name": "mesh-metrics", "containerPort": METRICS_PORT, "protocol": "TCP" },
        ],
        "lifecycle": {
            "postStart": { "exec": { "command": [PROGRAM, "wait"] } },
            "preStop": { "exec": { "command": [PROGRAM, "drain"] } },
        },
        "readinessProbe": {
            "httpGet": { "path": "/healthz/ready", "port": READY_PORT, "scheme": "HTTP" },
            "periodSeconds": 10,
            "timeoutSeconds": 3,
            "failureThreshold": 3,
        },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": PROXY_UID,
            "runAsNonRoot": true,
            "runAsUser": PROXY_UID,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "volumeMounts": [
            { "name": STATE_VOLUME, "mountPath": STATE_DIR },
            { "name": TOKEN_VOLUME, "mountPath": TOKEN_DIR, "readOnly": true },
            { "name": ROOT_VOLUME, "mountPath": ROOT_DIR, "readOnly": true },
        ],
    });
    let mut wanted = Map::new();
    for (what, amounts) in
        [("requests", amounts(&resources.requests)), ("limits", amounts(&resources.limits))]
    {
        if !amounts.is_empty() {
            wanted.insert(what.to_owned(), json!(amounts));
        }
    }
    if !wanted.is_empty() {
        container["resources"] = Value::Object(wanted);
    }
    if context.native {
        container["restartPolicy"] = json!("Always");
    }
    Ok(container)
}

fn arguments(context: &Context<'_>, resources: &Resources) -> Result<Vec<String>, Refusal> {
    let (settings, facts) = (context.settings, context.facts);
    let (deadline, propagation) = drain(context)?;
    let log_level = context.overrides.log_level.as_ref().unwrap_or(&settings.proxy.log_level);
    let mut arguments = vec![
        "run".to_owned(),
        "--capture".to_owned(),
        format!("--control={}", facts.control),
        format!("--control-name={}", facts.control_name),
        format!("--trust-bundle={ROOT_DIR}/{ROOT_KEY}"),
        format!("--token-file={TOKEN_DIR}/{TOKEN_VOLUME}"),
        "--namespace=$(POD_NAMESPACE)".to_owned(),
        "--pod=$(POD_NAME)".to_owned(),
        "--service-account=$(SERVICE_ACCOUNT)".to_owned(),
        "--pod-ip=$(POD_IP)".to_owned(),
        "--node=$(NODE_NAME)".to_owned(),
        format!("--trust-domain={}", settings.trust_domain),
        format!("--cluster={}", settings.cluster),
        format!("--network={}", settings.network),
        format!("--state-dir={STATE_DIR}"),
        format!("--drain-deadline={}", written(deadline)),
        format!("--drain-propagation={}", written(propagation)),
        format!("--log-level={log_level}"),
        format!("--log-format={}", settings.proxy.log_format.as_str()),
    ];
    if let Some(cpu) = &resources.limits.cpu {
        arguments.push(format!("--workers={}", cpu.ceil().clamp(1, MAX_WORKERS)));
    }
    Ok(arguments)
}

/// How long draining may take: a second less than the pod has, so that the proxy ends by itself.
fn drain(context: &Context<'_>) -> Result<(Duration, Duration), Refusal> {
    let (usual, grace) = (&context.settings.drain, context.grace());
    let least = Duration::from_secs(1);
    let deadline = usual.deadline.min(grace.saturating_sub(least)).max(least);
    let propagation = match context.overrides.drain_propagation {
        Some(own) if own > deadline => {
            let message = format!(
                "annotations of the pod cannot be used: mesh/drain-propagation: {} does not fit into the {} that the \
                 proxy has to end (terminationGracePeriodSeconds less one second, at most {})",
                written(own),
                written(deadline),
                written(usual.deadline)
            );
            return Err(Refusal::forbidden("annotation", message));
        }
        Some(own) => own,
        None => usual.propagation.min(deadline / 2),
    };
    Ok((deadline, propagation))
}

/// As [`duration`] reads it.
fn written(time: Duration) -> String {
    let whole = format!("{}s", time.as_secs());
    if duration(&whole) == Ok(time) { whole } else { format!("{}ms", time.as_millis()) }
}

fn environment(context: &Context<'_>, told: &Told) -> Value {
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": path } } });
    let mut environment = vec![
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_IP", "status.podIP"),
        field("NODE_NAME", "spec.nodeName"),
        field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        // How metrics name the pod from its first request on; a label that is not there is an empty variable.
        json!({ "name": "MESH_WORKLOAD", "value": workload(context.pod) }),
        field("MESH_APP", "metadata.labels['app']"),
        field("MESH_APP_VERSION", "metadata.labels['version']"),
        field("MESH_CANONICAL_NAME", "metadata.labels['service.istio.io/canonical-name']"),
        field("MESH_CANONICAL_REVISION", "metadata.labels['service.istio.io/canonical-revision']"),
        json!({ "name": BUNDLE_ENV, "value": context.facts.roots }),
    ];
    if !told.probes.is_empty() {
        environment
            .push(json!({ "name": PROBES_ENV, "value": literal(&Value::Object(told.probes.clone())) }));
    }
    if let Some(metrics) = &told.metrics {
        environment.push(json!({ "name": METRICS_ENV, "value": literal(metrics) }));
    }
    Value::Array(environment)
}

/// JSON for a variable. The kubelet puts other variables in place of `$(NAME)`, and makes one dollar of two; in JSON
/// a dollar can only stand inside a string.
fn literal(value: &Value) -> String {
    value.to_string().replace('$', "\\u0024")
}

fn image<'a>(context: &'a Context<'_>) -> &'a str {
    context.overrides.image.as_deref().unwrap_or(&context.settings.proxy.image)
}

fn together<T: ToString>(usual: &[T], own: &[T]) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for one in usual.iter().chain(own).map(ToString::to_string) {
        if !all.contains(&one) {
            all.push(one);
        }
    }
    all
}
