//! What the operator decides for all pods: the file that the chart mounts. A field that does not exist is refused by
//! name, and so is a value that no pod could use.

mod value;

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use mesh_common::capture::PortRange;
use mesh_common::options::LogFormat;
use mesh_common::spiffe::{is_kubernetes_name, is_trust_domain};
use serde::Deserialize;

use crate::quantity::Quantity;
pub(crate) use value::is_image;
pub use value::{log_level, range};

/// All settings. Whatever is absent has the default that the documentation names; only the image has none.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Settings {
    /// Trust domain of the mesh.
    pub trust_domain: String,
    /// The cluster that the pods run in.
    pub cluster: String,
    /// The network that the pods' addresses belong to; empty for the only one.
    pub network: String,
    /// Whether proxies are native sidecars.
    pub native_sidecar: NativeSidecar,
    /// Whether probes are sent through the proxy, where a pod does not say otherwise.
    pub rewrite_probes: bool,
    /// Whether metrics are merged, where a pod does not say otherwise.
    pub merge_metrics: bool,
    /// What of Istio's words counts, too.
    pub compat: Compat,
    /// The proxy's container.
    pub proxy: Proxy,
    /// What is not captured, in any pod.
    pub capture: Capture,
    /// How proxies end.
    pub drain: Drain,
}

/// Whether the proxy is an init container that keeps running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NativeSidecar {
    /// Where the API server's version has them.
    Auto,
    /// Always.
    Always,
    /// Never: the first container, which holds the others until it is ready.
    Never,
}

/// What of Istio's words counts, too.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Compat {
    /// `istio-injection`, `sidecar.istio.io/inject` and Istio's annotations with a counterpart of ours.
    pub istio_labels: bool,
    /// `sidecar.istio.io/proxyImage`: who may create pods then chooses the proxy's program.
    pub proxy_image: bool,
}

/// The proxy's container.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Proxy {
    /// The image of mesh-proxy.
    pub image: String,
    /// When it is pulled.
    pub image_pull_policy: PullPolicy,
    /// Names of Secrets, in the pods' namespaces, that pulling takes.
    pub image_pull_secrets: Vec<String>,
    /// What the container asks for and may use.
    pub resources: Resources,
    /// What the proxy logs.
    pub log_level: String,
    /// How its lines look.
    pub log_format: Format,
}

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum PullPolicy {
    /// At each start.
    Always,
    /// Where the node does not have it.
    IfNotPresent,
    /// Never.
    Never,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Requests and limits.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Resources {
    /// What the node must have free.
    #[serde(default)]
    pub requests: Amounts,
    /// What the container may not exceed.
    #[serde(default)]
    pub limits: Amounts,
}

/// CPU and memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Amounts {
    /// CPUs.
    #[serde(default, deserialize_with = "value::amount")]
    pub cpu: Option<Quantity>,
    /// Bytes.
    #[serde(default, deserialize_with = "value::amount")]
    pub memory: Option<Quantity>,
}

/// What is not captured.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Capture {
    /// Ports of the pod.
    #[serde(deserialize_with = "value::ports")]
    pub exclude_inbound_ports: Vec<PortRange>,
    /// Ports of others.
    #[serde(deserialize_with = "value::ports")]
    pub exclude_outbound_ports: Vec<PortRange>,
    /// Addresses that call the pod.
    #[serde(deserialize_with = "value::ranges")]
    pub exclude_inbound_ranges: Vec<IpNet>,
    /// Addresses that the pod calls.
    #[serde(deserialize_with = "value::ranges")]
    pub exclude_outbound_ranges: Vec<IpNet>,
}

/// How proxies end.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Drain {
    /// How long connections may take to finish, at most; a pod's grace period bounds it, too.
    #[serde(deserialize_with = "value::time")]
    pub deadline: Duration,
    /// How long new connections are still taken, so that clients learn of the end first.
    #[serde(deserialize_with = "value::time")]
    pub propagation: Duration,
}

/// Why the settings cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Not YAML, or a field or value that does not exist.
    #[error("{0}")]
    Syntax(String),
    /// A value that no pod could use.
    #[error("{field}: {problem}")]
    Value {
        /// The field's path.
        field: &'static str,
        /// What is wrong.
        problem: String,
    },
}

impl Settings {
    /// Reads the file's text.
    ///
    /// # Errors
    /// With the field that is wrong, and why.
    pub fn parse(text: &str) -> Result<Self, SettingsError> {
        let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
        let settings: Self = serde_saphyr::from_str_with_options(text, options)
            .map_err(|error| SettingsError::Syntax(error.to_string()))?;
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), SettingsError> {
        let bad = |field, problem: &str| Err(SettingsError::Value { field, problem: problem.to_owned() });
        if !is_image(&self.proxy.image) {
            return bad(
                "proxy.image",
                "name the image of mesh-proxy, such as registry.example/mesh-proxy:1.0",
            );
        }
        if !is_trust_domain(&self.trust_domain) {
            return bad(
                "trustDomain",
                "a trust domain holds lower-case letters, digits, dots, dashes, underscores",
            );
        }
        if self.cluster.is_empty() {
            return bad("cluster", "name the cluster");
        }
        if !self.proxy.image_pull_secrets.iter().all(|name| is_kubernetes_name(name)) {
            return bad("proxy.imagePullSecrets", "each is the name of a Secret");
        }
        if let Err(problem) = log_level(&self.proxy.log_level) {
            return bad("proxy.logLevel", &problem);
        }
        if self.drain.propagation >= self.drain.deadline {
            return bad("drain.propagation", "it must be shorter than drain.deadline");
        }
        let Resources { requests, limits } = &self.proxy.resources;
        for (request, limit) in [(&requests.cpu, &limits.cpu), (&requests.memory, &limits.memory)] {
            if let (Some(request), Some(limit)) = (request, limit)
                && request > limit
            {
                return bad(
                    "proxy.resources",
                    &format!("the request of {request} is above the limit of {limit}"),
                );
            }
        }
        Ok(())
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".to_owned(),
            cluster: "Kubernetes".to_owned(),
            network: String::new(),
            native_sidecar: NativeSidecar::Auto,
            rewrite_probes: true,
            merge_metrics: true,
            compat: Compat::default(),
            proxy: Proxy::default(),
            capture: Capture::default(),
            drain: Drain::default(),
        }
    }
}

impl Default for Proxy {
    fn default() -> Self {
        Self {
            image: String::new(),
            image_pull_policy: PullPolicy::IfNotPresent,
            image_pull_secrets: Vec::new(),
            resources: Resources::default(),
            log_level: "info".to_owned(),
            log_format: Format::Text,
        }
    }
}

impl Default for Resources {
    fn default() -> Self {
        let of = |cpu: &str, memory: &str| Amounts { cpu: cpu.parse().ok(), memory: memory.parse().ok() };
        Self { requests: of("10m", "40Mi"), limits: of("2", "1Gi") }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(30), propagation: Duration::from_secs(5) }
    }
}

impl PullPolicy {
    /// As Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

impl Format {
    /// As the proxy's flag takes it.
    pub fn as_str(self) -> &'static str {
        match LogFormat::from(self) {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }
    }
}

impl From<Format> for LogFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Text => Self::Text,
            Format::Json => Self::Json,
        }
    }
}

/// The amounts as Kubernetes takes them.
pub(crate) fn amounts(given: &Amounts) -> BTreeMap<&'static str, String> {
    let Amounts { cpu, memory } = given;
    [("cpu", cpu), ("memory", memory)]
        .into_iter()
        .filter_map(|(name, amount)| Some((name, amount.as_ref()?.to_string())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_image_must_be_said() {
        let settings = Settings::parse("proxy: {image: mesh-proxy:1}").unwrap();
        assert_eq!(settings.trust_domain, "cluster.local");
        assert_eq!(settings.proxy.resources.limits.cpu, "2".parse().ok());
        let all = "
trustDomain: example.org
nativeSidecar: never
compat: {istioLabels: true}
proxy: {image: a/b:1, imagePullSecrets: [pull], resources: {requests: {cpu: 0.1, memory: 32Mi}}, logFormat: json}
capture: {excludeInboundPorts: [22, 8000-8010], excludeOutboundRanges: [169.254.169.254/32]}
drain: {deadline: 1m, propagation: 2s}
";
        let settings = Settings::parse(all).unwrap();
        assert_eq!(settings.capture.exclude_inbound_ports[1].to_string(), "8000-8010");
        assert_eq!(settings.proxy.resources.requests.cpu, "100m".parse().ok());
        assert_eq!(settings.proxy.resources.limits.cpu, None, "who gives resources gives all of them");
        assert_eq!(settings.drain.deadline, Duration::from_secs(60));
    }

    #[test]
    fn what_no_pod_could_use_is_refused_by_name() {
        for (text, words) in [
            ("{}", "proxy.image"),
            ("proxy: {image: 'a b'}", "proxy.image"),
            ("proxy: {image: a, imagePullPolice: Always}", "imagePullPolice"),
            ("proxy: {image: a}\nnativeSidecars: auto", "nativeSidecars"),
            ("proxy: {image: a}\nnativeSidecar: sometimes", "sometimes"),
            ("proxy: {image: a}\ntrustDomain: Mesh", "trustDomain"),
            ("proxy: {image: a}\ncluster: ''", "cluster"),
            ("proxy: {image: a, imagePullSecrets: [a b]}", "proxy.imagePullSecrets"),
            ("proxy: {image: a, logLevel: loud}", "proxy.logLevel"),
            ("proxy: {image: a, resources: {limits: {gpu: 1}}}", "gpu"),
            ("proxy: {image: a, resources: {limit: {cpu: 1}}}", "limit"),
            ("proxy: {image: a, resources: {limits: {cpu: much}}}", "much"),
            ("proxy: {image: a, resources: {requests: {cpu: 2}, limits: {cpu: 1}}}", "above the limit"),
            (
                "proxy: {image: a, resources: {requests: {memory: 2Gi}, limits: {memory: 1Gi}}}",
                "above the limit",
            ),
            ("proxy: {image: a}\ncapture: {excludeInboundPort: [22]}", "excludeInboundPort"),
            ("proxy: {image: a}\ncapture: {excludeInboundPorts: [http]}", "http"),
            ("proxy: {image: a}\ncapture: {excludeOutboundRanges: [10.1.2.3/8]}", "did you mean 10.0.0.0/8"),
            ("proxy: {image: a}\ndrain: {deadline: 1s, propagation: 5s}", "drain.propagation"),
            ("proxy: {image: a}\ndrain: {timeout: 1s}", "timeout"),
            ("proxy: {image: a}\ncompat: {istioLabel: true}", "istioLabel"),
            ("proxy: {image: a}\ncompat: {istioLabels: 'yes'}", "boolean"),
            ("proxy: [", ""),
        ] {
            let error = Settings::parse(text).unwrap_err().to_string();
            assert!(error.to_lowercase().contains(&words.to_lowercase()), "{text}: {error}");
        }
    }
}
