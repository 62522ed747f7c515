//! Manifests as text, in the words of Kubernetes. One function for each kind that the worlds write
//! themselves; scenarios write their own routes and policies in full.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

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
    /// Its address.
    pub ip: Ipv4Addr,
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
    /// Its port's name, which declares the protocol.
    pub port_name: &'a str,
    /// Its port.
    pub port: u16,
    /// Its virtual address; `None` is headless.
    pub cluster_ip: Option<Ipv4Addr>,
}

/// A namespace.
pub fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n---\n")
}

/// A running pod.
pub fn pod(pod: &Pod<'_>) -> String {
    let Pod { namespace, name, app, version, service_account, ip, meshed } = pod;
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
  podIP: {ip}
  podIPs:
  - ip: {ip}
---
"
    )
}

/// A service with one port.
pub fn service(service: &Service<'_>) -> String {
    let Service { namespace, name, port_name, port, cluster_ip } = service;
    let ip = cluster_ip.map_or("None".to_owned(), |ip| ip.to_string());
    format!(
        "\
apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: {namespace}
spec:
  clusterIP: {ip}
  clusterIPs: [\"{ip}\"]
  ports:
  - name: {port_name}
    port: {port}
---
"
    )
}

/// The endpoints of a service's one port: pods by name and address.
pub fn endpoint_slice(service: &Service<'_>, port: u16, pods: &[(&str, Ipv4Addr)]) -> String {
    let Service { namespace, name, port_name, .. } = service;
    let mut text = format!(
        "\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {name}-1
  namespace: {namespace}
  labels:
    kubernetes.io/service-name: {name}
addressType: IPv4
ports:
- name: {port_name}
  port: {port}
endpoints:{}
",
        if pods.is_empty() { " []" } else { "" }
    );
    for (pod, ip) in pods {
        write!(
            text,
            "\
- addresses: [{ip}]
  conditions:
    ready: true
  targetRef:
    kind: Pod
    name: {pod}
    namespace: {namespace}
"
        )
        .unwrap_or_default(); // writing to a String cannot fail
    }
    text + "---\n"
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
    name: {service}
    port: 80
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
