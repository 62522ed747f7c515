//! Manifests as text, in the words of Kubernetes. One function for each kind that the worlds write
//! themselves; scenarios write their own routes and policies in full.

use std::fmt::Write as _;
use std::net::IpAddr;

/// A pod.
#[derive(Debug, Clone, Copy)]
pub struct Pod<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Label `app`.
    pub app: &'a str,
    /// Label `version`.
    pub version: &'a str,
    /// Its service account.
    pub service_account: &'a str,
    /// Its addresses, one of each family; the first is the main one.
    pub ips: &'a [IpAddr],
    /// The label that says it takes mutual TLS.
    pub meshed: bool,
}

/// A service.
#[derive(Debug, Clone, Copy)]
pub struct Service<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its ports: names, which declare the protocol, and numbers.
    pub ports: &'a [(&'a str, u16)],
    /// What it is reached by.
    pub address: Address<'a>,
}

/// What a service is reached by.
#[derive(Debug, Clone, Copy)]
pub enum Address<'a> {
    /// Virtual addresses, one of each family.
    Virtual(&'a [IpAddr]),
    /// The addresses of its pods.
    Headless,
    /// A host outside of the mesh.
    ExternalName(&'a str),
}

/// A namespace.
pub fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n---\n")
}

/// A running pod.
pub fn pod(pod: &Pod<'_>) -> String {
    let Pod { namespace, name, app, version, service_account, ips, meshed } = pod;
    let main = ips.first().map(ToString::to_string).unwrap_or_default();
    let all: String = ips.iter().map(|ip| format!("\n  - ip: \"{ip}\"")).collect();
    let tls_mode = if *meshed { "\n    security.istio.io/tlsMode: istio" } else { "" };
    format!(
        "\
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: {namespace}
  labels:
    app: {app}
    version: {version}{tls_mode}
spec:
  serviceAccountName: {service_account}
  containers:
  - name: app
    image: test/{app}:{version}
status:
  phase: Running
  podIP: \"{main}\"
  podIPs:{all}
---
"
    )
}

/// A service.
pub fn service(service: &Service<'_>) -> String {
    let Service { namespace, name, ports, address } = service;
    let address = match address {
        Address::Virtual(ips) => {
            let main = ips.first().map(ToString::to_string).unwrap_or_default();
            let all: Vec<_> = ips.iter().map(|ip| format!("\"{ip}\"")).collect();
            format!("clusterIP: \"{main}\"\n  clusterIPs: [{}]", all.join(", "))
        }
        Address::Headless => "clusterIP: None\n  clusterIPs: [None]".to_owned(),
        Address::ExternalName(host) => format!("type: ExternalName\n  externalName: {host}"),
    };
    let port = |(name, port): &(&str, u16)| format!("  - name: {name}\n    port: {port}\n");
    format!(
        "\
apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: {namespace}
spec:
  {address}
  ports:
{}---
",
        ports.iter().map(port).collect::<String>()
    )
}

/// Pods of a service that have its ports at the same numbers: `name` is the slice's own.
pub fn endpoint_slice(
    (namespace, service): (&str, &str),
    name: &str,
    ports: &[(&str, u16)],
    pods: &[(&str, IpAddr)],
) -> String {
    let target =
        |pod: &str| format!("  targetRef:\n    kind: Pod\n    name: {pod}\n    namespace: {namespace}\n");
    let endpoint = |(pod, ip): &(&str, IpAddr)| {
        format!("- addresses: [\"{ip}\"]\n  conditions:\n    ready: true\n{}", target(pod))
    };
    let family = family(pods.iter().map(|(_, ip)| ip));
    slice((namespace, service), name, (ports, family), pods.iter().map(endpoint).collect())
}

/// Addresses behind a service that nobody says to be pods.
pub fn bare_slice((namespace, service): (&str, &str), ports: &[(&str, u16)], addresses: &[IpAddr]) -> String {
    let endpoint = |ip: &IpAddr| format!("- addresses: [\"{ip}\"]\n");
    let ports = (ports, family(addresses.iter()));
    slice((namespace, service), service, ports, addresses.iter().map(endpoint).collect())
}

/// The type of a slice with these addresses, which are all of one family.
fn family<'a>(mut addresses: impl Iterator<Item = &'a IpAddr>) -> &'static str {
    if addresses.next().is_some_and(IpAddr::is_ipv6) { "IPv6" } else { "IPv4" }
}

fn slice(
    (namespace, service): (&str, &str),
    name: &str,
    (ports, family): (&[(&str, u16)], &str),
    endpoints: String,
) -> String {
    let port = |(name, port): &(&str, u16)| format!("- name: {name}\n  port: {port}\n");
    format!(
        "\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {name}
  namespace: {namespace}
  labels:
    kubernetes.io/service-name: {service}
addressType: {family}
ports:
{}endpoints:{}
{endpoints}---
",
        ports.iter().map(port).collect::<String>(),
        if endpoints.is_empty() { " []" } else { "" },
    )
}

/// An HTTPRoute with one rule that splits the requests of `service`:80 over other services by weight.
pub fn split(namespace: &str, service: &str, backends: &[(&str, u32)]) -> String {
    let mut text = http_route(namespace, "split", service, "  - backendRefs:\n");
    for (backend, weight) in backends {
        write!(text, "    - name: {backend}\n      port: 80\n      weight: {weight}\n").unwrap_or_default();
    }
    text
}

/// An HTTPRoute with `service`:80 as parent; `rules` is YAML, indented by two.
pub fn http_route(namespace: &str, name: &str, service: &str, rules: &str) -> String {
    http_route_for(namespace, name, &format!("name: {service}\n    port: 80"), rules)
}

/// An HTTPRoute with a Service as parent, which is said in YAML, indented by four; `rules` likewise, by two.
pub fn http_route_for(namespace: &str, name: &str, parent: &str, rules: &str) -> String {
    format!(
        "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: {name}
  namespace: {namespace}
spec:
  parentRefs:
  - group: \"\"
    kind: Service
    {parent}
  rules:
{rules}"
    )
}

/// A PeerAuthentication for a whole namespace.
pub fn peer_authentication(namespace: &str, mode: &str) -> String {
    format!(
        "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: default
  namespace: {namespace}
spec:
  mtls:
    mode: {mode}
"
    )
}
