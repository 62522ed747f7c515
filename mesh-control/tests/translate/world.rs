//! A small model that tests fill by hand, and clients that look at it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_common::spiffe::SpiffeId;
use mesh_control::model::facts::{Destination, Facts, PodDestination};
use mesh_control::model::policy::MtlsMode;
use mesh_control::model::route::PortRoutes;
use mesh_control::model::service::{
    Endpoint, EndpointHealth, EndpointTls, PortEndpoints, Protocol, Service, ServiceKind, ServicePort,
};
use mesh_control::model::workload::{Inbound, InboundPort, Workload, WorkloadKind};
use mesh_control::model::{Address, OutboundTrafficPolicy, ServiceKey, Settings, WorkloadKey};
use mesh_control::translate::ClientView;
use mesh_control::translate::client::ClientKind;

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn service_key(name: &str) -> ServiceKey {
    ServiceKey { namespace: "shop".to_owned(), hostname: format!("{name}.shop.svc.cluster.local") }
}

pub fn pod_key(name: &str) -> WorkloadKey {
    WorkloadKey { cluster: "Kubernetes".to_owned(), namespace: "shop".to_owned(), name: name.to_owned() }
}

/// A model, filled by hand.
#[derive(Debug, Clone)]
pub struct World {
    pub settings: Settings,
    pub ranges: Vec<ipnet::IpNet>,
    pub bundle: String,
    services: BTreeMap<ServiceKey, Arc<Service>>,
    endpoints: BTreeMap<(ServiceKey, u16), Arc<PortEndpoints>>,
    routes: BTreeMap<(ServiceKey, u16), Arc<PortRoutes>>,
    workloads: BTreeMap<WorkloadKey, Arc<Workload>>,
    inbound: BTreeMap<WorkloadKey, Arc<Inbound>>,
    destinations: BTreeMap<(IpAddr, u16), Arc<Destination>>,
}

impl World {
    pub fn new() -> Self {
        let settings = Settings {
            trust_domain: "cluster.local".to_owned(),
            domain: "cluster.local".to_owned(),
            cluster: "Kubernetes".to_owned(),
            network: String::new(),
            root_namespace: "mesh-system".to_owned(),
            outbound: OutboundTrafficPolicy::AllowAny,
            access_log: None,
            detection_timeout_ms: 100,
            connect_timeout_ms: 10_500,
            standalone: false,
        };
        Self {
            settings,
            ranges: vec!["10.0.0.0/16".parse().unwrap(), "fd00::/48".parse().unwrap()],
            bundle: "-----BEGIN CERTIFICATE-----\n".to_owned(),
            services: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            routes: BTreeMap::new(),
            workloads: BTreeMap::new(),
            inbound: BTreeMap::new(),
            destinations: BTreeMap::new(),
        }
    }

    /// A service at `address` (headless: none) with one port per protocol.
    pub fn service(
        mut self,
        name: &str,
        kind: ServiceKind,
        address: Option<&str>,
        ports: &[(u16, Protocol)],
    ) -> Self {
        let key = service_key(name);
        let ports: Vec<_> = ports
            .iter()
            .map(|&(port, protocol)| ServicePort { port, name: String::new(), protocol })
            .collect();
        for port in &ports {
            self.endpoints.entry((key.clone(), port.port)).or_default();
            if let Some(address) = address {
                let here = Arc::new(Destination::Service(key.clone()));
                self.destinations.insert((ip(address), port.port), here);
            }
        }
        let service = Service {
            name: name.to_owned(),
            addresses: address.map(ip).into_iter().collect(),
            kind,
            ports,
            node_local: false,
            created: 1,
            key: key.clone(),
        };
        self.services.insert(key, Arc::new(service));
        self
    }

    pub fn node_local(mut self, name: &str) -> Self {
        Arc::make_mut(self.services.get_mut(&service_key(name)).unwrap()).node_local = true;
        self
    }

    pub fn no_such_port(mut self, name: &str, address: &str, port: u16) -> Self {
        let nobody = Destination::NoSuchPort(service_key(name));
        self.destinations.insert((ip(address), port), Arc::new(nobody));
        self
    }

    pub fn pod(mut self, workload: Workload) -> Self {
        self.workloads.insert(workload.key.clone(), Arc::new(workload));
        self
    }

    /// The pod is dialled by its own address.
    pub fn dialled(mut self, pod: &str, port: u16, protocol: Protocol, service: Option<&str>) -> Self {
        let endpoint = self.endpoint_of(pod, port);
        let address = (endpoint.address.ip, port);
        let service = service.map(|name| (service_key(name).hostname, name.to_owned(), "shop".to_owned()));
        let pod = PodDestination { endpoint, protocol, service };
        self.destinations.insert(address, Arc::new(Destination::Pod(Arc::new(pod))));
        self
    }

    pub fn endpoint_of(&self, pod: &str, port: u16) -> Endpoint {
        let workload = Arc::clone(&self.workloads[&pod_key(pod)]);
        Endpoint {
            address: Address { network: String::new(), ip: workload.addresses[0] },
            port,
            health: EndpointHealth::Ready,
            tls: match (&workload.identity, workload.meshed) {
                (_, false) => EndpointTls::Plaintext,
                (Some(identity), true) => EndpointTls::Mutual(identity.clone()),
                (None, true) => EndpointTls::Refused,
            },
            zone: workload.zone.clone(),
            region: workload.region.clone(),
            node: workload.node.clone(),
            workload: Some(workload),
            hostname: String::new(),
        }
    }

    pub fn endpoints(mut self, name: &str, port: u16, endpoints: Vec<Endpoint>) -> Self {
        self.endpoints.insert((service_key(name), port), Arc::new(PortEndpoints { endpoints }));
        self
    }

    pub fn routes(mut self, name: &str, port: u16, routes: PortRoutes) -> Self {
        self.routes.insert((service_key(name), port), Arc::new(routes));
        self
    }

    pub fn inbound(mut self, pod: &str, default_mode: MtlsMode, ports: &[(u16, Protocol, MtlsMode)]) -> Self {
        let service = Some((service_key("reviews").hostname, "reviews".to_owned(), "shop".to_owned()));
        let port = |&(port, protocol, mode)| InboundPort { port, protocol, mode, service: service.clone() };
        let inbound = Inbound { key: pod_key(pod), ports: ports.iter().map(port).collect(), default_mode };
        self.inbound.insert(pod_key(pod), Arc::new(inbound));
        self
    }
}

/// A meshed pod of namespace `shop`.
pub fn pod(name: &str, address: &str, zone: &str) -> Workload {
    Workload {
        key: pod_key(name),
        addresses: vec![ip(address)],
        host_network: false,
        identity: Some(SpiffeId::new("cluster.local", "shop", "reviews").unwrap()),
        service_account: "reviews".to_owned(),
        meshed: true,
        uncaptured: Vec::new(),
        workload_name: "reviews-v1".to_owned(),
        workload_kind: WorkloadKind::Deployment,
        canonical_service: "reviews".to_owned(),
        canonical_revision: "v1".to_owned(),
        app: "reviews".to_owned(),
        version: "v1".to_owned(),
        node: format!("node-{zone}"),
        zone: zone.to_owned(),
        region: "eu".to_owned(),
        labels: BTreeMap::new(),
        live: true,
        leaving: false,
    }
}

impl Facts for World {
    fn settings(&self) -> Arc<Settings> {
        Arc::new(self.settings.clone())
    }
    fn ranges(&self) -> Arc<Vec<ipnet::IpNet>> {
        Arc::new(self.ranges.clone())
    }
    fn service(&self, key: &ServiceKey) -> Option<Arc<Service>> {
        self.services.get(key).cloned()
    }
    fn services(&self) -> Arc<BTreeSet<ServiceKey>> {
        Arc::new(self.services.keys().cloned().collect())
    }
    fn identities(&self, key: &ServiceKey, port: u16) -> Option<Arc<BTreeSet<SpiffeId>>> {
        let endpoints = self.endpoints.get(&(key.clone(), port))?;
        let identity = |endpoint: &Endpoint| match &endpoint.tls {
            EndpointTls::Mutual(identity) => Some(identity.clone()),
            EndpointTls::Plaintext | EndpointTls::Refused => None,
        };
        Some(Arc::new(endpoints.endpoints.iter().filter_map(identity).collect()))
    }
    fn endpoints(&self, key: &ServiceKey, port: u16) -> Option<Arc<PortEndpoints>> {
        self.endpoints.get(&(key.clone(), port)).cloned()
    }
    fn routes(&self, key: &ServiceKey, port: u16) -> Option<Arc<PortRoutes>> {
        self.routes.get(&(key.clone(), port)).cloned()
    }
    fn workload(&self, key: &WorkloadKey) -> Option<Arc<Workload>> {
        self.workloads.get(key).cloned()
    }
    fn inbound(&self, key: &WorkloadKey) -> Option<Arc<Inbound>> {
        self.inbound.get(key).cloned()
    }
    fn destination(&self, ip: IpAddr, port: u16) -> Option<Arc<Destination>> {
        self.destinations.get(&(ip, port)).cloned()
    }
    fn owner(&self, ip: IpAddr) -> Option<Arc<Workload>> {
        self.workloads.values().find(|workload| workload.addresses.contains(&ip)).cloned()
    }
    fn trust_bundle(&self) -> Arc<String> {
        Arc::new(self.bundle.clone())
    }
}

/// A client that says everything about itself.
#[derive(Debug, Clone)]
pub struct Client {
    pub namespace: &'static str,
    pub pod: WorkloadKey,
    pub node: &'static str,
    pub kind: ClientKind,
}

impl Client {
    /// The sidecar of `shop/reviews-1` on `node-a`.
    pub fn new() -> Self {
        Self { namespace: "shop", pod: pod_key("reviews-1"), node: "node-a", kind: ClientKind::MeshProxy }
    }
}

impl ClientView for Client {
    fn kind(&self) -> &ClientKind {
        &self.kind
    }
    fn namespace(&self) -> &str {
        self.namespace
    }
    fn workload(&self) -> Option<&WorkloadKey> {
        Some(&self.pod)
    }
    fn node(&self) -> &str {
        self.node
    }
    fn zone(&self) -> &str {
        "a"
    }
}

/// A client that fails the test when anything about it is read.
#[derive(Debug, Clone, Copy)]
pub struct Unread;

impl ClientView for Unread {
    fn kind(&self) -> &ClientKind {
        &ClientKind::MeshProxy
    }
    fn namespace(&self) -> &str {
        panic!("the client's namespace was read")
    }
    fn workload(&self) -> Option<&WorkloadKey> {
        panic!("the client's pod was read")
    }
    fn node(&self) -> &str {
        panic!("the client's node was read")
    }
    fn zone(&self) -> &str {
        panic!("the client's zone was read")
    }
}
