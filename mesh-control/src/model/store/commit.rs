//! A commit: makes again what a change can reach, in the order of dependence (workloads, routes, services,
//! endpoints, inbound, addresses, ranges), and notes which facts have another value.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;

use mesh_common::spiffe::SpiffeId;

use super::Mesh;
use crate::model::facts::FactKey;
use crate::model::service::{Protocol, Service};
use crate::model::workload::{Inbound, InboundPort, Workload};
use crate::model::{ServiceKey, WorkloadKey};

impl Mesh {
    /// Makes the facts from what was put since the last commit. Returns those whose value changed;
    /// `Destination(ip, 0)` stands for every port of the address that is not named itself.
    pub fn commit(&mut self) -> BTreeSet<FactKey> {
        for key in mem::take(&mut self.dirty.pods) {
            self.make_workload(key);
        }
        for key in mem::take(&mut self.dirty.routes) {
            self.make_routes(&key);
        }
        for key in mem::take(&mut self.dirty.services) {
            self.make_service(key);
        }
        for key in mem::take(&mut self.dirty.endpoints) {
            self.make_endpoints(&key);
        }
        for key in mem::take(&mut self.dirty.inbound) {
            self.make_inbound(key);
        }
        for ip in mem::take(&mut self.dirty.addresses) {
            self.make_address(ip);
        }
        if mem::take(&mut self.dirty.ranges) {
            let cover = self.made.blocks.cover();
            if *self.made.ranges != cover {
                self.made.ranges = Arc::new(cover);
                self.dirty.changed.insert(FactKey::Ranges);
            }
        }
        mem::take(&mut self.dirty.changed)
    }

    fn make_workload(&mut self, key: WorkloadKey) {
        let new = self.input.pods.get(&key).map(|pod| {
            let node = self.input.nodes.get(&pod.workload.node).cloned().unwrap_or_default();
            let identity =
                SpiffeId::new(&self.settings.trust_domain, &key.namespace, &pod.workload.service_account);
            Arc::new(Workload {
                identity: identity.ok(),
                zone: node.zone,
                region: node.region,
                ..pod.workload.clone()
            })
        });
        let old = self.made.workloads.get(&key).cloned();
        if old == new {
            return;
        }
        for (workload, present) in [(&old, false), (&new, true)] {
            for &ip in workload.iter().flat_map(|workload| &workload.addresses) {
                let by_ip = self.index.slices_of_ip.of(&ip).filter_map(|name| self.input.slices.get(name));
                self.dirty.endpoints.extend(by_ip.map(|slice| slice.service.clone()));
                self.dirty.addresses.insert(ip);
            }
            for ip in workload.iter().flat_map(|workload| held_addresses(workload)) {
                self.index.pods_at.set(&ip, &key, present);
                self.dirty.ranges |=
                    if present { self.made.blocks.add(ip) } else { self.made.blocks.remove(ip) };
            }
        }
        let name = (key.namespace.clone(), key.name.clone());
        let by_name = self.index.slices_of_pod.of(&name).filter_map(|name| self.input.slices.get(name));
        self.dirty.endpoints.extend(by_name.map(|slice| slice.service.clone()));
        super::replace(&mut self.made.workloads, key.clone(), new);
        self.dirty.changed.insert(FactKey::Workload(key.clone()));
        self.dirty.inbound.insert(key);
    }

    fn make_service(&mut self, key: ServiceKey) {
        let declared = self.protocols_declared_by_routes(&key);
        let new = self.input.services.get(&key).map(|service| {
            let mut service = Service::clone(service);
            for port in &mut service.ports {
                if port.protocol == Protocol::Detect && declared.contains(&port.port) {
                    port.protocol = Protocol::Http;
                }
            }
            Arc::new(service)
        });
        let old = self.made.services.get(&key).cloned();
        if old == new {
            return;
        }
        for (service, present) in [(&old, false), (&new, true)] {
            for &ip in service.iter().flat_map(|service| &service.addresses) {
                self.index.services_at.set(&ip, &key, present);
                self.dirty.addresses.insert(ip);
                self.dirty.ranges |=
                    if present { self.made.blocks.add(ip) } else { self.made.blocks.remove(ip) };
            }
        }
        if old.is_some() != new.is_some() {
            let keys = Arc::make_mut(&mut self.made.service_keys);
            if new.is_some() {
                keys.insert(key.clone())
            } else {
                keys.remove(&key)
            };
            self.dirty.changed.insert(FactKey::Services);
        }
        super::replace(&mut self.made.services, key.clone(), new);
        self.dirty.inbound.extend(self.index.pods_of_service.of(&key).cloned());
        self.dirty.changed.insert(FactKey::Service(key.clone()));
        self.dirty.endpoints.insert(key);
    }

    fn make_inbound(&mut self, key: WorkloadKey) {
        let new = self.made.workloads.get(&key).map(|workload| Arc::new(self.inbound_of(workload)));
        // A direct dial of the pod depends on the same things.
        let addresses = self.made.workloads.get(&key).into_iter().flat_map(|workload| &workload.addresses);
        self.dirty.addresses.extend(addresses.copied());
        if super::replace(&mut self.made.inbound, key.clone(), new) {
            self.dirty.changed.insert(FactKey::Inbound(key));
        }
    }

    fn inbound_of(&self, workload: &Workload) -> Inbound {
        let modes = self.modes(workload);
        let mut ports: BTreeMap<u16, InboundPort> = modes
            .ports
            .iter()
            .map(|(&port, &mode)| {
                (port, InboundPort { port, protocol: Protocol::Detect, mode, service: None })
            })
            .collect();
        for port in self.service_ports_of(&workload.key) {
            ports.entry(port.own).or_insert_with(|| InboundPort {
                port: port.own,
                protocol: Protocol::Detect,
                mode: modes.of(port.own),
                service: None,
            });
        }
        for (number, port) in &mut ports {
            // The oldest comes first.
            if let Some(declared) =
                self.service_ports_of(&workload.key).into_iter().find(|p| p.own == *number)
            {
                port.protocol = declared.protocol;
                port.service = Some(declared.service_labels());
            }
        }
        Inbound {
            key: workload.key.clone(),
            ports: ports.into_values().collect(),
            default_mode: modes.default,
        }
    }

    /// What the services say about a pod's ports, the oldest service first.
    pub(super) fn service_ports_of(&self, key: &WorkloadKey) -> Vec<OwnPort<'_>> {
        let Some(services) = self.index.ports_of_pod.get(key) else { return Vec::new() };
        let mut found: Vec<OwnPort<'_>> = services
            .iter()
            .filter_map(|(key, ports)| Some((self.made.services.get(key)?, ports)))
            .flat_map(|(service, ports)| {
                ports.iter().filter_map(|&(own, port)| {
                    let port = service.ports.iter().find(|known| known.port == port)?;
                    Some(OwnPort { own, protocol: port.protocol, service })
                })
            })
            .collect();
        found.sort_by(|a, b| (a.service.created, &a.service.key).cmp(&(b.service.created, &b.service.key)));
        found
    }

    pub(super) fn modes(&self, workload: &Workload) -> crate::model::policy::Modes {
        let root = &self.settings.root_namespace;
        self.input.policies.resolve(root, &workload.key.namespace, &workload.labels)
    }
}

/// A port of a pod that stands behind a port of a service.
pub(super) struct OwnPort<'a> {
    pub(super) own: u16,
    pub(super) protocol: Protocol,
    pub(super) service: &'a Service,
}

impl OwnPort<'_> {
    /// Full name, name and namespace.
    pub(super) fn service_labels(&self) -> (String, String, String) {
        let Service { key, name, .. } = self.service;
        (key.hostname.clone(), name.clone(), key.namespace.clone())
    }
}

/// The addresses that tell a pod: not those of its node, and none once it is finished, since they are given to
/// others then.
fn held_addresses(workload: &Workload) -> Vec<std::net::IpAddr> {
    if workload.host_network || !workload.live { Vec::new() } else { workload.addresses.clone() }
}
