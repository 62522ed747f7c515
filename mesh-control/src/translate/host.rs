//! Host names: what a name means to a client, as the cluster's DNS would answer it. The client's namespace is
//! read only for names that are relative to it, so that a full name is one resource for all clients.

use std::net::IpAddr;
use std::sync::Arc;

use super::ClientView;
use crate::model::facts::Facts;
use crate::model::service::{Endpoint, Service, ServiceKind};
use crate::model::{ServiceKey, Settings, WorkloadKey};

/// What a full name names, whether or not it exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NamedHost {
    /// `<service>.<namespace>.svc.<domain>`.
    Service(ServiceKey),
    /// `<pod>.<namespace>.pod.<domain>`: the name under which a pod is dialled by its address.
    Pod {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name; it may hold dots.
        pod: String,
    },
}

/// What a host name resolves to.
#[derive(Debug, Clone)]
pub(super) enum Resolved {
    /// A service.
    Service(Arc<Service>),
    /// One pod of a headless service: its address.
    Pod(IpAddr),
}

/// Takes a full name apart.
pub(super) fn parse_full(host: &str, domain: &str) -> Option<NamedHost> {
    let rest = host.strip_suffix(domain)?.strip_suffix('.')?;
    if let Some(rest) = rest.strip_suffix(".svc") {
        let (name, namespace) = rest.split_once('.')?;
        return (!name.is_empty() && is_label(namespace))
            .then(|| NamedHost::Service(service_key(name, namespace, domain)));
    }
    let (pod, namespace) = rest.strip_suffix(".pod")?.rsplit_once('.')?;
    (!pod.is_empty() && is_label(namespace))
        .then(|| NamedHost::Pod { namespace: namespace.to_owned(), pod: pod.to_owned() })
}

/// The full name under which a pod is dialled by its address.
pub(super) fn pod_host(key: &WorkloadKey, domain: &str) -> String {
    format!("{}.{}.pod.{domain}", key.name, key.namespace)
}

/// What this name means to this client; `None` when it is nobody's in the mesh.
pub(super) fn resolve(
    host: &str,
    client: &dyn ClientView,
    settings: &Settings,
    facts: &dyn Facts,
) -> Option<Resolved> {
    let domain = settings.domain.as_str();
    let host = host.strip_suffix('.').unwrap_or(host);
    let relative = host
        .strip_suffix(domain)
        .and_then(|rest| rest.strip_suffix(".svc."))
        .or_else(|| host.strip_suffix(".svc").filter(|rest| rest.contains('.')));
    let absolute = relative.is_some();
    let labels: Vec<&str> = relative.unwrap_or(host).split('.').collect();
    let service = |name: &str, namespace: &str| facts.service(&service_key(name, namespace, domain));
    match labels.as_slice() {
        [name] if !absolute => service(name, client.namespace()).map(Resolved::Service),
        [name, namespace] => match service(name, namespace) {
            Some(found) => Some(Resolved::Service(found)),
            // `mysql-0.mysql`, as DNS search lists allow it; after `<service>.<namespace>`, which is far
            // more common and does not depend on who asks.
            None if !absolute => {
                let found = service(namespace, client.namespace())?;
                pod_of(&found, name, settings, facts)
            }
            None => None,
        },
        [pod, name, namespace] => pod_of(&*service(name, namespace)?, pod, settings, facts),
        _ => None,
    }
}

/// The address of a headless service's pod of this name: its hostname, where it has one, else its own name.
fn pod_of(service: &Service, pod: &str, settings: &Settings, facts: &dyn Facts) -> Option<Resolved> {
    if service.kind != ServiceKind::Headless {
        return None;
    }
    let key = WorkloadKey {
        cluster: settings.cluster.clone(),
        namespace: service.key.namespace.clone(),
        name: pod.to_owned(),
    };
    service.ports.iter().find_map(|port| {
        let endpoints = facts.endpoints(&service.key, port.port)?;
        let behind = |workload: &Arc<crate::model::workload::Workload>| workload.key == key;
        let is_named = |endpoint: &&Endpoint| match endpoint.hostname.as_str() {
            "" => endpoint.workload.as_ref().is_some_and(behind),
            hostname => hostname == pod,
        };
        let mine = endpoints.endpoints.iter().find(is_named)?;
        Some(Resolved::Pod(mine.address.ip))
    })
}

fn service_key(name: &str, namespace: &str, domain: &str) -> ServiceKey {
    ServiceKey { namespace: namespace.to_owned(), hostname: format!("{name}.{namespace}.svc.{domain}") }
}

fn is_label(text: &str) -> bool {
    !text.is_empty() && !text.contains('.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::recorder::{Client, Recorder};

    const DB: &str = "
{apiVersion: v1, kind: Service, metadata: {name: db, namespace: shop}, spec: {clusterIP: None, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db-0, namespace: shop}, spec: {containers: []}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: x7f, namespace: shop}, spec: {containers: []}, status: {podIP: 10.0.0.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: y8g, namespace: shop}, spec: {containers: []}, status: {podIP: 10.0.0.3}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.0.0.1], hostname: db-0, targetRef: {kind: Pod, name: db-0, namespace: shop}}
- {addresses: [10.0.0.2], hostname: primary, targetRef: {kind: Pod, name: x7f, namespace: shop}}
- {addresses: [10.0.0.3], targetRef: {kind: Pod, name: y8g, namespace: shop}}
";

    /// By hostname where the pod has one, as the cluster's DNS knows it; else by the pod's own name.
    #[test]
    fn pods_of_a_headless_service_by_name() {
        let (mesh, errors) = crate::ingest::tests::mesh(DB);
        assert_eq!(errors, [""; 0]);
        let client = Client {
            namespace: "shop".to_owned(),
            workload: None,
            node: String::new(),
            zone: String::new(),
            kind: crate::translate::client::ClientKind::default(),
        };
        let view = Recorder::new(&mesh, &client);
        for (host, expected) in [
            ("db-0.db.shop.svc.cluster.local", Some("10.0.0.1")),
            ("db-0.db.shop.svc", Some("10.0.0.1")),
            ("db-0.db.shop", Some("10.0.0.1")),
            ("db-0.db", Some("10.0.0.1")),
            ("primary.db.shop.svc.cluster.local", Some("10.0.0.2")),
            ("x7f.db.shop.svc.cluster.local", None),
            ("y8g.db.shop.svc.cluster.local", Some("10.0.0.3")),
            ("z.db.shop.svc.cluster.local", None),
        ] {
            let found = match resolve(host, &view, &mesh.settings(), &mesh) {
                Some(Resolved::Pod(ip)) => Some(ip.to_string()),
                Some(Resolved::Service(service)) => Some(service.name.clone()),
                None => None,
            };
            assert_eq!(found.as_deref(), expected, "{host}");
        }
    }
}
