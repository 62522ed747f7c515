//! The pod with its proxy. Pure: pod, settings and facts in, pod out, or why not. It must never take anything from the
//! pod that its author wrote, and doing it twice must change nothing.

mod container;
mod metadata;
mod present;
mod resources;
mod volumes;

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use crate::annotations::{self, Overrides};
use crate::decide::{Decision, Namespace, Skip, decide};
use crate::names::{PROXY, REDIRECT, is_ours};
use crate::refusal::Refusal;
use crate::settings::Settings;
use crate::{conflicts, metrics_merge, probes};

pub use metadata::workload;

use present::{Present, array, last, put, take};

/// What injection takes beside the pod and the settings.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Where mesh-control is, `host:port`.
    pub control: String,
    /// The DNS name of its certificate.
    pub control_name: String,
    /// The mesh's own namespace.
    pub namespace: String,
    /// The mesh's roots, PEM.
    pub roots: String,
    /// Whether the cluster has native sidecars.
    pub native: bool,
    /// The version of the mesh, noted on the pod.
    pub version: String,
}

/// What becomes of a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// This is the pod with its proxy. It may be equal to what came: then nothing was missing.
    Injected {
        /// The whole pod.
        pod: Box<Value>,
        /// What its author should know.
        warnings: Vec<String>,
    },
    /// It stays as it is.
    Skipped(Skip),
}

/// Everything about one pod that the parts of the injection read.
pub(crate) struct Context<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) settings: &'a Settings,
    pub(crate) facts: &'a Facts,
    pub(crate) overrides: Overrides,
    pub(crate) native: bool,
}

/// Decides about a pod and injects it.
///
/// # Errors
/// When the pod must not be created as it is.
pub fn inject(
    original: &Value,
    namespace: &Namespace,
    settings: &Settings,
    facts: &Facts,
) -> Result<Outcome, Refusal> {
    let pod: Pod = serde_json::from_value(original.clone())
        .map_err(|error| Refusal::bad("pod", format!("this is not a pod: {error}")))?;
    match decide(&pod, namespace, &facts.namespace, settings.compat.istio_labels)? {
        Decision::Inject => {}
        Decision::Skip(skip) => return Ok(Outcome::Skipped(skip)),
    }
    let Some(spec) = &pod.spec else { return Err(Refusal::bad("pod", "the pod has no spec")) };
    let none = BTreeMap::new();
    let notes = pod.metadata.annotations.as_ref().unwrap_or(&none);
    let (overrides, mut warnings) = annotations::read(notes, settings)?;
    let present = Present::of(original);
    conflicts::check(spec, present.noted)?;
    let native = settings_native(settings, facts);
    let context = Context { pod: &pod, settings, facts, overrides, native };
    let mut told = Told { probes: present.probes.clone(), metrics: present.metrics.clone() };
    let mut out = original.clone();

    if context.overrides.rewrite_probes.unwrap_or(settings.rewrite_probes) {
        let (probes, more) = probes::rewrite(&mut out, &present.probes);
        told.probes = probes;
        warnings.extend(more);
    }
    let mut merged = metrics_merge::Merged { application: told.metrics.take(), ..Default::default() };
    if context.overrides.merge_metrics.unwrap_or(settings.merge_metrics) {
        merged = metrics_merge::merge(notes, spec, merged.application.as_ref());
        warnings.extend(merged.warning.clone());
    }
    told.metrics = merged.application;

    containers(&mut out, &context, &told)?;
    volumes::add(&mut out, settings);
    metadata::note(&mut out, &context, &merged.annotations);
    warnings.extend(remarks(&context, namespace));
    Ok(Outcome::Injected { pod: Box::new(out), warnings })
}

/// What the proxy is told of the application.
pub(crate) struct Told {
    pub(crate) probes: probes::Probes,
    pub(crate) metrics: Option<Value>,
}

fn settings_native(settings: &Settings, facts: &Facts) -> bool {
    use crate::settings::NativeSidecar;
    match settings.native_sidecar {
        NativeSidecar::Auto => facts.native,
        NativeSidecar::Always => true,
        NativeSidecar::Never => false,
    }
}

/// Native: redirect, proxy, then the author's init containers, which are meshed. Else the proxy is the first container
/// and redirect the last init container: before it, nothing is captured.
fn containers(out: &mut Value, context: &Context<'_>, told: &Told) -> Result<(), Refusal> {
    let (redirect, proxy) = (container::redirect(context), container::proxy(context, told)?);
    let spec = &mut out["spec"];
    if context.native {
        take(spec, "containers", PROXY);
        take(spec, "containers", REDIRECT);
        let init = array(spec, "initContainers");
        put(init, redirect, |_| 0);
        put(init, proxy, |list| list.iter().position(|it| it["name"] == REDIRECT).map_or(0, |it| it + 1));
    } else {
        take(spec, "initContainers", PROXY);
        take(spec, "containers", REDIRECT);
        // Whatever came behind it since would have no network: nothing carries its traffic yet.
        last(array(spec, "initContainers"), redirect);
        put(array(spec, "containers"), proxy, |_| 0);
    }
    Ok(())
}

/// What its author should know of a pod that is injected.
fn remarks(context: &Context<'_>, namespace: &Namespace) -> Vec<String> {
    let mut remarks = Vec::new();
    let Some(spec) = &context.pod.spec else { return remarks };
    if !context.native {
        if spec.init_containers.iter().flatten().any(|it| !is_ours(&it.name)) {
            remarks.push(
                "the traffic of this pod's init containers is not meshed: this cluster has no native sidecars \
                 (Kubernetes 1.29)"
                    .to_owned(),
            );
        }
        if context.pod.metadata.owner_references.iter().flatten().any(|it| it.kind == "Job") {
            remarks.push(
                "this Job will not complete while its proxy runs: this cluster has no native sidecars (Kubernetes \
                 1.29); opt out with the pod's label mesh/inject: disabled"
                    .to_owned(),
            );
        }
    }
    let enforced = namespace.labels.get("pod-security.kubernetes.io/enforce").map(String::as_str);
    if let Some(level @ ("baseline" | "restricted")) = enforced {
        remarks.push(format!(
            "Pod Security {level:?} of the namespace {} refuses this pod: its container mesh-redirect needs NET_ADMIN; \
             set the label pod-security.kubernetes.io/enforce to privileged, or opt out",
            namespace.name
        ));
    }
    if spec.dns_policy.as_deref() == Some("Default") {
        remarks.push(format!(
            "dnsPolicy Default: the proxy may not find {}; use ClusterFirst",
            context.facts.control
        ));
    }
    remarks
}

impl Context<'_> {
    /// How long the pod may take to end.
    pub(crate) fn grace(&self) -> Duration {
        let seconds = self.pod.spec.as_ref().and_then(|it| it.termination_grace_period_seconds).unwrap_or(30);
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }
}
