//! The manifests of the demo's shop: what one would apply to a cluster, with pods and endpoints written out,
//! because here nobody else makes them. Written to be read and edited.

use super::subnet::Subnet;

/// The namespace of the shop.
pub(super) const NAMESPACE: &str = "shop";
/// The file that people edit.
pub(super) const SPLIT: &str = "90-split.yaml";
/// The highest last number of a pod's address.
pub(super) const LAST_HOST: u8 = 6;

/// A pod of the shop. Its service account has the name of its app.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) name: &'static str,
    pub(super) app: &'static str,
    pub(super) version: &'static str,
    /// The last number of its address.
    pub(super) host: u8,
    /// The services that it calls for each request.
    pub(super) calls: &'static [&'static str],
}

/// The pods. The first one sends the traffic.
pub(super) const PODS: &[Pod] = &[
    Pod { name: "client", app: "client", version: "v1", host: 1, calls: &[] },
    Pod { name: "frontend", app: "frontend", version: "v1", host: 2, calls: &["reviews", "details"] },
    Pod { name: "reviews-v1", app: "reviews", version: "v1", host: 3, calls: &["ratings"] },
    Pod { name: "reviews-v2", app: "reviews", version: "v2", host: 4, calls: &["ratings"] },
    Pod { name: "ratings", app: "ratings", version: "v1", host: 5, calls: &[] },
    Pod { name: "details", app: "details", version: "v1", host: 6, calls: &[] },
];

/// Each file with its text.
pub(super) fn all(subnet: &Subnet) -> Vec<(String, String)> {
    let mut files = vec![("00-namespace.yaml".to_owned(), namespace())];
    for (number, app) in ["client", "frontend", "reviews", "ratings", "details"].into_iter().enumerate() {
        let pods: Vec<&Pod> = PODS.iter().filter(|pod| pod.app == app).collect();
        let mut text = String::new();
        if app != "client" {
            text.push_str(&service(app, number, &pods, subnet));
        }
        for pod in &pods {
            text.push_str(&self::pod(pod, subnet));
        }
        files.push((format!("{}0-{app}.yaml", number + 1), text));
    }
    files.push((SPLIT.to_owned(), split(subnet)));
    files
}

fn namespace() -> String {
    format!(
        "\
# The namespace of the shop.
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
---
# Pods of this namespace take mutual TLS only. With PERMISSIVE they would take plaintext too.
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: default
  namespace: {NAMESPACE}
spec:
  mtls:
    mode: STRICT
"
    )
}

/// A service and its endpoints. Nothing ever listens on the service's own address: it is a name for the
/// pods behind it, as on a cluster.
fn service(name: &str, number: usize, pods: &[&Pod], subnet: &Subnet) -> String {
    let port = subnet.port();
    let mut text = format!(
        "\
# Clients call http://{name}.{NAMESPACE}/ ; the port's name says that HTTP is spoken.
apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: {NAMESPACE}
spec:
  clusterIP: 10.96.0.{address}
  clusterIPs: [10.96.0.{address}]
  ports:
  - name: http
    port: 80
    targetPort: {port}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {name}-1
  namespace: {NAMESPACE}
  labels:
    kubernetes.io/service-name: {name}
addressType: IPv4
ports:
- name: http
  port: {port}
endpoints:
",
        address = 10 + number,
    );
    for pod in pods {
        text.push_str(&format!(
            "\
- addresses: [{ip}]
  conditions:
    ready: true
  targetRef:
    kind: Pod
    name: {name}
    namespace: {NAMESPACE}
",
            ip = subnet.address(pod.host),
            name = pod.name,
        ));
    }
    text.push_str("---\n");
    text
}

fn pod(pod: &Pod, subnet: &Subnet) -> String {
    let Pod { name, app, version, host, calls: _ } = pod;
    let ip = subnet.address(*host);
    format!(
        "\
# The label tlsMode says that a sidecar stands beside this pod.
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: {NAMESPACE}
  labels:
    app: {app}
    version: {version}
    security.istio.io/tlsMode: istio
spec:
  serviceAccountName: {app}
  containers:
  - name: app
    image: shop/{app}:{version}
status:
  phase: Running
  podIP: {ip}
  podIPs:
  - ip: {ip}
---
"
    )
}

/// The route, after a service of its own for each version, which is what the route's backends name.
fn split(subnet: &Subnet) -> String {
    let mut text = format!(
        "\
# EDIT ME: change the weights, save, and watch the shares follow.
# Requests to the service reviews go to its two versions by weight.
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: split
  namespace: {NAMESPACE}
spec:
  parentRefs:
  - group: \"\"
    kind: Service
    name: reviews
    port: 80
  rules:
  - backendRefs:
    - name: reviews-v1
      port: 80
      weight: 90
    - name: reviews-v2
      port: 80
      weight: 10
---
"
    );
    for (number, pod) in PODS.iter().filter(|pod| pod.app == "reviews").enumerate() {
        text.push_str(&service(pod.name, 10 + number, &[pod], subnet));
    }
    text
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1 as core;
    use k8s_openapi::api::discovery::v1::EndpointSlice;
    use serde_json::Value;

    use super::*;

    /// Every document is what it says it is, in the words of Kubernetes.
    #[test]
    fn the_manifests_are_kubernetes_own() {
        let subnet = Subnet::claim(LAST_HOST).unwrap();
        let mut kinds = Vec::new();
        for (name, text) in all(&subnet) {
            for document in text.split("---\n").filter(|document| !document.trim().is_empty()) {
                let value: Value = serde_saphyr::from_str(document).unwrap();
                let kind = value["kind"].as_str().unwrap().to_owned();
                let parsed = match kind.as_str() {
                    "Service" => serde_json::from_value::<core::Service>(value).map(drop),
                    "Pod" => serde_json::from_value::<core::Pod>(value).map(drop),
                    "EndpointSlice" => serde_json::from_value::<EndpointSlice>(value).map(drop),
                    _ => Ok(()),
                };
                parsed.unwrap_or_else(|error| panic!("{name}: {kind}: {error}\n{document}"));
                kinds.push(kind);
            }
        }
        let count = |kind: &str| kinds.iter().filter(|k| *k == kind).count();
        assert_eq!((count("Pod"), count("Service"), count("EndpointSlice")), (6, 6, 6));
        assert_eq!((count("HTTPRoute"), count("PeerAuthentication"), count("Namespace")), (1, 1, 1));
    }
}
