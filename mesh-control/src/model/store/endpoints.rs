//! Endpoints of services, from EndpointSlices and pods. An endpoint that says it takes mutual TLS is never dialled
//! in plaintext because its pod is not known.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_common::spiffe::SpiffeId;

use super::input::SliceEndpoint;
use super::{Mesh, Name};
use crate::model::facts::FactKey;
use crate::model::policy::{Modes, MtlsMode};
use crate::model::service::{Endpoint, EndpointHealth, EndpointTls, PortEndpoints, Service};
use crate::model::workload::Workload;
use crate::model::{Address, ServiceKey, WorkloadKey};

impl Mesh {
    pub(super) fn make_endpoints(&mut self, key: &ServiceKey) {
        let mut new: BTreeMap<u16, Arc<PortEndpoints>> = BTreeMap::new();
        let mut ports_of_pod: BTreeMap<WorkloadKey, BTreeSet<(u16, u16)>> = BTreeMap::new();
        if let Some(service) = self.made.services.get(key) {
            for port in &service.ports {
                let endpoints = self.endpoints_of(service, &port.name);
                for endpoint in &endpoints {
                    if let Some(workload) = &endpoint.workload {
                        let ports = ports_of_pod.entry(workload.key.clone()).or_default();
                        ports.insert((endpoint.port, port.port));
                    }
                }
                new.insert(port.port, Arc::new(PortEndpoints { endpoints }));
            }
        }
        self.index_ports(key, ports_of_pod);
        self.make_identities(key, &new);
        let old = self.made.endpoints.get(key).cloned().unwrap_or_default();
        let ports: BTreeSet<u16> = old.keys().chain(new.keys()).copied().collect();
        let changed = ports.into_iter().filter(|port| old.get(port) != new.get(port));
        self.dirty.changed.extend(changed.map(|port| FactKey::Endpoints(key.clone(), port)));
        super::replace(&mut self.made.endpoints, key.clone(), (!new.is_empty()).then_some(new));
    }

    fn make_identities(&mut self, key: &ServiceKey, endpoints: &BTreeMap<u16, Arc<PortEndpoints>>) {
        let of_port = |endpoints: &PortEndpoints| {
            let identity = |endpoint: &Endpoint| match &endpoint.tls {
                EndpointTls::Mutual(identity) => Some(identity.clone()),
                EndpointTls::Plaintext | EndpointTls::Refused => None,
            };
            Arc::new(endpoints.endpoints.iter().filter_map(identity).collect::<BTreeSet<SpiffeId>>())
        };
        let new: BTreeMap<u16, _> = endpoints.iter().map(|(&port, all)| (port, of_port(all))).collect();
        let old = self.made.identities.get(key).cloned().unwrap_or_default();
        let ports: BTreeSet<u16> = old.keys().chain(new.keys()).copied().collect();
        let changed = ports.into_iter().filter(|port| old.get(port) != new.get(port));
        self.dirty.changed.extend(changed.map(|port| FactKey::Identities(key.clone(), port)));
        super::replace(&mut self.made.identities, key.clone(), (!new.is_empty()).then_some(new));
    }

    fn index_ports(&mut self, key: &ServiceKey, new: BTreeMap<WorkloadKey, BTreeSet<(u16, u16)>>) {
        let before: BTreeSet<WorkloadKey> = self.index.pods_of_service.of(key).cloned().collect();
        for pod in before.iter().chain(new.keys()) {
            let services = self.index.ports_of_pod.entry(pod.clone()).or_default();
            if super::replace(services, key.clone(), new.get(pod).cloned()) {
                self.dirty.inbound.insert(pod.clone());
            }
            if services.is_empty() {
                self.index.ports_of_pod.remove(pod);
            }
            self.index.pods_of_service.set(key, pod, new.contains_key(pod));
        }
    }

    /// Sorted by address and port, each once.
    fn endpoints_of(&self, service: &Service, port_name: &str) -> Vec<Endpoint> {
        let mut found: BTreeMap<(IpAddr, u16), Endpoint> = BTreeMap::new();
        let slices = self.index.slices_of_service.of(&service.key);
        for slice in slices.filter_map(|name| self.input.slices.get(name)) {
            let ports = slice.ports.iter().filter(|(name, _)| name == port_name);
            for (_, port) in ports {
                for of_slice in &slice.endpoints {
                    for &ip in &of_slice.addresses {
                        let new = self.endpoint_of(of_slice, ip, *port);
                        // An endpoint moves between slices by being in both for a moment.
                        let known = found.get(&(ip, *port));
                        if known.is_none_or(|known| rank(new.health) < rank(known.health)) {
                            found.insert((ip, *port), new);
                        }
                    }
                }
            }
        }
        found.into_values().collect()
    }

    fn endpoint_of(&self, of_slice: &SliceEndpoint, ip: IpAddr, port: u16) -> Endpoint {
        let workload = match &of_slice.pod {
            Some(pod) => self.made.workloads.get(&self.pod_key(pod)).cloned(),
            None => self.only_pod_at(ip),
        };
        let modes = workload.as_ref().map(|workload| self.modes(workload));
        let mut endpoint = self.pod_endpoint(workload.as_ref(), ip, port, modes.as_ref());
        endpoint.health = of_slice.health;
        endpoint.hostname.clone_from(&of_slice.hostname);
        let claimed = self.index.pods_at.of(&ip).next().is_some();
        if endpoint.workload.is_none() && (of_slice.pod.is_some() || claimed) {
            // Whose label counts is not known: plaintext could be what the pod forbids.
            endpoint.tls = EndpointTls::Refused;
        }
        if !of_slice.zone.is_empty() {
            endpoint.zone.clone_from(&of_slice.zone);
        }
        if !of_slice.node.is_empty() {
            endpoint.node.clone_from(&of_slice.node);
            if let Some(node) = self.input.nodes.get(&of_slice.node) {
                endpoint.region.clone_from(&node.region);
                if of_slice.zone.is_empty() {
                    endpoint.zone.clone_from(&node.zone);
                }
            }
        }
        endpoint
    }

    /// A port of a pod (or of a bare address) as an endpoint.
    pub(super) fn pod_endpoint(
        &self,
        workload: Option<&Arc<Workload>>,
        ip: IpAddr,
        port: u16,
        modes: Option<&Modes>,
    ) -> Endpoint {
        let text = |field: fn(&Workload) -> &String| workload.map(|w| field(w).clone()).unwrap_or_default();
        Endpoint {
            address: Address { network: self.settings.network.clone(), ip },
            port,
            health: EndpointHealth::Ready,
            tls: tls_of(workload, port, modes),
            zone: text(|workload| &workload.zone),
            region: text(|workload| &workload.region),
            node: text(|workload| &workload.node),
            workload: workload.cloned(),
            hostname: String::new(),
        }
    }

    fn pod_key(&self, (namespace, name): &Name) -> WorkloadKey {
        let cluster = self.settings.cluster.clone();
        WorkloadKey { cluster, namespace: namespace.clone(), name: name.clone() }
    }

    /// The pod that has this address for itself; none when several claim it. Of a pod that is being deleted the address
    /// may be given to another before its object is gone.
    pub(super) fn only_pod_at(&self, ip: IpAddr) -> Option<Arc<Workload>> {
        let pods = || self.index.pods_at.of(&ip).filter_map(|key| self.made.workloads.get(key));
        let only = |pods: &mut dyn Iterator<Item = &Arc<Workload>>| match (pods.next(), pods.next()) {
            (Some(pod), None) => Some(pod.clone()),
            _ => None,
        };
        only(&mut pods()).or_else(|| only(&mut pods().filter(|pod| !pod.leaving)))
    }
}

fn tls_of(workload: Option<&Arc<Workload>>, port: u16, modes: Option<&Modes>) -> EndpointTls {
    let Some(workload) = workload.filter(|workload| workload.meshed) else { return EndpointTls::Plaintext };
    if workload.uncaptured.iter().any(|ports| ports.contains(port)) {
        return EndpointTls::Plaintext;
    }
    if modes.is_some_and(|modes| modes.of(port) == MtlsMode::Disable) {
        return EndpointTls::Plaintext;
    }
    workload.identity.clone().map_or(EndpointTls::Refused, EndpointTls::Mutual)
}

fn rank(health: EndpointHealth) -> u8 {
    match health {
        EndpointHealth::Ready => 0,
        EndpointHealth::Draining => 1,
        EndpointHealth::NotReady => 2,
    }
}
