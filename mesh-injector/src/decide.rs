//! Whether a pod gets the proxy. Pure: the pod, its namespace's labels and the settings in, the decision out. It must
//! never leave out a pod that was to be injected without a reason that can be told.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodSpec};

use crate::names::INJECT_LABEL;
use crate::refusal::Refusal;

const ISTIO_POD: &str = "sidecar.istio.io/inject";
const ISTIO_NAMESPACE: &str = "istio-injection";
/// Set by the kubelet on the API's copy of a pod that it started from a file: nothing can be changed about it.
const MIRROR: &str = "kubernetes.io/config.mirror";
const SYSTEM: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];
/// Proxies of other meshes, by the name of their container.
const OTHERS: [(&str, &str); 5] = [
    ("istio-proxy", "Istio"),
    ("istio-init", "Istio"),
    ("linkerd-proxy", "Linkerd"),
    ("linkerd-init", "Linkerd"),
    ("kuma-sidecar", "Kuma"),
];

/// What is known of a pod's namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// What is to be done with a pod that is not refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It gets the proxy.
    Inject,
    /// It stays as it is.
    Skip(Skip),
}

/// Why a pod stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Skip {
    /// Nobody asked for injection.
    NotEnabled,
    /// The namespace says no, the pod nothing.
    DisabledByNamespace,
    /// The pod says no.
    DisabledByPod,
    /// The namespace's label has a value that means nothing.
    NamespaceLabel(String),
    /// The kubelet's copy of a static pod.
    Mirror,
    /// A namespace of Kubernetes itself.
    System(String),
    /// The mesh's own namespace: its parts cannot wait for themselves.
    Own(String),
    /// The pod uses the node's network: capture would take the node's traffic.
    HostNetwork,
    /// Not a Linux pod.
    Windows,
    /// Another mesh's proxy is there already.
    OtherMesh(&'static str, &'static str),
}

impl Skip {
    /// For the metric.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotEnabled => "not_enabled",
            Self::DisabledByNamespace => "disabled_by_namespace",
            Self::DisabledByPod => "disabled_by_pod",
            Self::NamespaceLabel(_) => "namespace_label",
            Self::Mirror => "mirror_pod",
            Self::System(_) => "system_namespace",
            Self::Own(_) => "own_namespace",
            Self::HostNetwork => "host_network",
            Self::Windows => "windows",
            Self::OtherMesh(..) => "other_mesh",
        }
    }

    /// Whether it rests on the namespace's labels alone, which may have changed a moment ago.
    pub fn depends_on_namespace(&self) -> bool {
        matches!(self, Self::NotEnabled | Self::DisabledByNamespace | Self::NamespaceLabel(_))
    }

    /// What to tell whoever asked for injection; `None` when nobody did.
    pub fn warning(&self) -> Option<String> {
        let why = match self {
            Self::NotEnabled | Self::DisabledByNamespace | Self::DisabledByPod | Self::Mirror => return None,
            Self::NamespaceLabel(value) => {
                format!("the namespace's label {value} means nothing; write enabled or disabled")
            }
            Self::System(name) => format!("{name} is a namespace of Kubernetes itself"),
            Self::Own(name) => format!("{name} is the mesh's own namespace"),
            Self::HostNetwork => {
                "it uses the node's network (hostNetwork), where capture would take the traffic \
                                  of the node"
                    .to_owned()
            }
            Self::Windows => "the proxy runs on Linux only".to_owned(),
            Self::OtherMesh(container, mesh) => {
                format!("it carries {mesh}'s container {container}; disable one of the two meshes for it")
            }
        };
        Some(format!("no mesh proxy in this pod: {why}"))
    }
}

/// Decides about one pod. `own` is the mesh's namespace; `istio` says whether Istio's labels count.
///
/// # Errors
/// When the pod's own label has a value that means nothing.
pub fn decide(pod: &Pod, namespace: &Namespace, own: &str, istio: bool) -> Result<Decision, Refusal> {
    let annotations = pod.metadata.annotations.as_ref();
    if annotations.is_some_and(|it| it.contains_key(MIRROR)) {
        return Ok(Decision::Skip(Skip::Mirror));
    }
    let skip = match pod_wish(pod, istio)? {
        Some(true) => None,
        Some(false) => Some(Skip::DisabledByPod),
        None => namespace_wish(namespace, istio),
    };
    let skip = skip.or_else(|| obstacle(pod.spec.as_ref(), namespace, own));
    Ok(skip.map_or(Decision::Inject, Decision::Skip))
}

/// What the pod itself says.
fn pod_wish(pod: &Pod, istio: bool) -> Result<Option<bool>, Refusal> {
    let read = |from: &Option<BTreeMap<String, String>>, name: &str| from.as_ref()?.get(name).cloned();
    let bad = |what: &str, value: &str, wanted: &str| {
        Refusal::forbidden("label", format!("the pod's {what}: {value:?} means nothing; write {wanted}"))
    };
    if let Some(value) = read(&pod.metadata.labels, INJECT_LABEL) {
        return match value.as_str() {
            "enabled" => Ok(Some(true)),
            "disabled" => Ok(Some(false)),
            other => Err(bad("label mesh/inject", other, "enabled or disabled")),
        };
    }
    if !istio {
        return Ok(None);
    }
    let label = read(&pod.metadata.labels, ISTIO_POD).map(|it| ("label", it));
    let Some((kind, value)) =
        label.or_else(|| read(&pod.metadata.annotations, ISTIO_POD).map(|it| ("annotation", it)))
    else {
        return Ok(None);
    };
    match value.as_str() {
        "true" => Ok(Some(true)),
        "false" => Ok(Some(false)),
        other => Err(bad(&format!("{kind} {ISTIO_POD}"), other, "true or false")),
    }
}

/// Why the namespace does not want its pods injected, if so.
fn namespace_wish(namespace: &Namespace, istio: bool) -> Option<Skip> {
    let own = namespace.labels.get(INJECT_LABEL).map(|value| (INJECT_LABEL, value));
    let theirs = || namespace.labels.get(ISTIO_NAMESPACE).map(|value| (ISTIO_NAMESPACE, value));
    match own.or_else(|| istio.then(theirs).flatten()) {
        Some((_, value)) if value == "enabled" => None,
        Some((_, value)) if value == "disabled" => Some(Skip::DisabledByNamespace),
        Some((label, value)) => Some(Skip::NamespaceLabel(format!("{label}: {value:?}"))),
        None => Some(Skip::NotEnabled),
    }
}

/// Why a pod that is to be injected cannot be.
fn obstacle(spec: Option<&PodSpec>, namespace: &Namespace, own: &str) -> Option<Skip> {
    let name = &namespace.name;
    if SYSTEM.contains(&name.as_str()) {
        return Some(Skip::System(name.clone()));
    }
    if name == own {
        return Some(Skip::Own(name.clone()));
    }
    let spec = spec?;
    if spec.host_network == Some(true) {
        return Some(Skip::HostNetwork);
    }
    let selected = spec.node_selector.as_ref().and_then(|it| it.get("kubernetes.io/os"));
    if spec.os.as_ref().map(|os| &os.name).or(selected).is_some_and(|os| os == "windows") {
        return Some(Skip::Windows);
    }
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut names = containers.map(|container| container.name.as_str());
    names
        .find_map(|name| OTHERS.iter().find(|(other, _)| *other == name))
        .map(|(it, mesh)| Skip::OtherMesh(it, mesh))
}
