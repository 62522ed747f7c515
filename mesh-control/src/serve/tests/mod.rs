//! Tests of serving: the pure parts as tables, with facts and a translator of their own.

mod binding;
mod cache;
mod delta;
mod delta_random;
pub(crate) mod node;
mod wildcard;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_common::spiffe::SpiffeId;
use mesh_common::xds::ResourceType;
use mesh_common::xds::protobuf::Any;

use super::cache::Key;
use super::recorder::Client;
use crate::model::facts::{Destination, FactKey, Facts};
use crate::model::route::PortRoutes;
use crate::model::service::{Endpoint, EndpointHealth, EndpointTls, PortEndpoints, Service};
use crate::model::workload::{Inbound, Workload};
use crate::model::{Address, OutboundTrafficPolicy, ServiceKey, Settings, WorkloadKey};
use crate::translate::client::ClientKind;
use crate::translate::{ClientView, Request, TranslateError};

/// Facts that a test sets one by one.
#[derive(Clone)]
struct FakeFacts {
    settings: Settings,
    endpoints: BTreeMap<String, PortEndpoints>,
    destinations: BTreeMap<(IpAddr, u16), Destination>,
    bundle: String,
}

impl Default for FakeFacts {
    fn default() -> Self {
        let settings = Settings {
            trust_domain: "cluster.local".to_owned(),
            domain: "cluster.local".to_owned(),
            cluster: "Kubernetes".to_owned(),
            network: String::new(),
            root_namespace: "mesh-system".to_owned(),
            outbound: OutboundTrafficPolicy::AllowAny,
            access_log: None,
            detection_timeout_ms: 100,
            connect_timeout_ms: 1000,
            standalone: true,
        };
        Self {
            settings,
            endpoints: BTreeMap::new(),
            destinations: BTreeMap::new(),
            bundle: "roots".to_owned(),
        }
    }
}

impl FakeFacts {
    fn with_endpoints(mut self, service: &str, ips: &[&str]) -> Self {
        let endpoints = ips.iter().map(|ip| endpoint(ip)).collect();
        self.endpoints.insert(service.to_owned(), PortEndpoints { endpoints });
        self
    }
}

fn endpoint(ip: &str) -> Endpoint {
    Endpoint {
        address: Address { network: String::new(), ip: ip.parse().unwrap() },
        port: 8080,
        health: EndpointHealth::Ready,
        tls: EndpointTls::Plaintext,
        zone: String::new(),
        region: String::new(),
        node: String::new(),
        workload: None,
        hostname: String::new(),
    }
}

fn service_key(name: &str) -> ServiceKey {
    ServiceKey { namespace: "shop".to_owned(), hostname: format!("{name}.shop.svc.cluster.local") }
}

impl Facts for FakeFacts {
    fn settings(&self) -> Arc<Settings> {
        Arc::new(self.settings.clone())
    }
    fn ranges(&self) -> Arc<Vec<IpNet>> {
        Arc::default()
    }
    fn service(&self, _: &ServiceKey) -> Option<Arc<Service>> {
        None
    }
    fn services(&self) -> Arc<BTreeSet<ServiceKey>> {
        Arc::new(self.endpoints.keys().map(|name| service_key(name)).collect())
    }
    fn identities(&self, _: &ServiceKey, _: u16) -> Option<Arc<BTreeSet<SpiffeId>>> {
        None
    }
    fn endpoints(&self, key: &ServiceKey, _: u16) -> Option<Arc<PortEndpoints>> {
        let name = key.hostname.split('.').next()?;
        self.endpoints.get(name).cloned().map(Arc::new)
    }
    fn routes(&self, _: &ServiceKey, _: u16) -> Option<Arc<PortRoutes>> {
        None
    }
    fn workload(&self, _: &WorkloadKey) -> Option<Arc<Workload>> {
        None
    }
    fn inbound(&self, _: &WorkloadKey) -> Option<Arc<Inbound>> {
        None
    }
    fn destination(&self, ip: IpAddr, port: u16) -> Option<Arc<Destination>> {
        self.destinations.get(&(ip, port)).cloned().map(Arc::new)
    }
    fn owner(&self, _: IpAddr) -> Option<Arc<Workload>> {
        None
    }
    fn trust_bundle(&self) -> Arc<String> {
        Arc::new(self.bundle.clone())
    }
}

/// The first word of a name says what a resource reads: `endpoints/`, `node/`, `address/`, `local/` (the node
/// only when the mesh is standalone), `broken/`.
fn fake_translate(
    request: Request<'_>,
    client: &dyn ClientView,
    facts: &dyn Facts,
) -> Result<Option<Any>, TranslateError> {
    let (what, name) = request.name.split_once('/').unwrap_or((request.name, ""));
    let value = match what {
        "endpoints" => facts.endpoints(&service_key(name), 80).map(|found| format!("{found:?}")),
        "node" => Some(format!("{name} on {}", client.node())),
        "address" => name
            .parse()
            .ok()
            .and_then(|address: std::net::SocketAddr| facts.destination(address.ip(), address.port()))
            .map(|found| format!("{found:?}")),
        "local" => Some(if facts.settings().standalone { client.node().to_owned() } else { String::new() }),
        "broken" if facts.trust_bundle().is_empty() => return Err(TranslateError::NoTrustBundle),
        "broken" => Some("good".to_owned()),
        _ => None,
    };
    Ok(value.map(|value| Any { type_url: request.kind.url().to_owned(), value: value.into_bytes() }))
}

fn key(name: &str) -> Key {
    (ResourceType::Endpoints, name.into())
}

fn client(node: &str) -> Arc<Client> {
    Arc::new(Client {
        namespace: "shop".to_owned(),
        workload: None,
        node: node.to_owned(),
        zone: "z1".to_owned(),
        kind: ClientKind::default(),
    })
}

fn endpoints_fact(service: &str) -> FactKey {
    FactKey::Endpoints(service_key(service), 80)
}
