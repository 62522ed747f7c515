//! What an address stands for: a service's virtual address, or a pod dialled directly.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::Mesh;
use crate::model::ServiceKey;
use crate::model::facts::{Destination, FactKey, PodDestination};
use crate::model::policy::Modes;
use crate::model::service::{Endpoint, Protocol, Service, ServiceKind};
use crate::model::workload::Workload;

/// Everything about one address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct AddressEntry {
    owner: Option<Arc<Workload>>,
    ports: BTreeMap<u16, Arc<Destination>>,
    other: Other,
}

/// What every port is that has no entry of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Other {
    #[default]
    Nobody,
    NoSuchPort(ServiceKey),
    Contested,
    /// This endpoint, with the port that is asked for.
    Pod(Endpoint),
}

impl AddressEntry {
    pub(super) fn owner(&self) -> Option<Arc<Workload>> {
        self.owner.clone()
    }

    pub(super) fn destination(&self, port: u16) -> Option<Arc<Destination>> {
        if let Some(known) = self.ports.get(&port) {
            return Some(known.clone());
        }
        match &self.other {
            Other::Nobody => None,
            Other::NoSuchPort(service) => Some(Arc::new(Destination::NoSuchPort(service.clone()))),
            Other::Contested => Some(Arc::new(Destination::Contested)),
            Other::Pod(template) => {
                Some(pod_destination(Endpoint { port, ..template.clone() }, Protocol::Detect, None))
            }
        }
    }
}

impl Mesh {
    pub(super) fn make_address(&mut self, ip: IpAddr) {
        let new = self.entry_of(ip);
        let old = self.made.addresses.get(&ip).cloned().unwrap_or_default();
        if old == new {
            return;
        }
        if old.owner != new.owner {
            self.dirty.changed.insert(FactKey::Owner(ip));
        }
        let ports: BTreeSet<u16> = old.ports.keys().chain(new.ports.keys()).copied().collect();
        let changed = ports.into_iter().filter(|port| old.destination(*port) != new.destination(*port));
        self.dirty.changed.extend(changed.map(|port| FactKey::Destination(ip, port)));
        if old.other != new.other {
            self.dirty.changed.insert(FactKey::Destination(ip, 0));
        }
        let empty = new == AddressEntry::default();
        super::replace(&mut self.made.addresses, ip, (!empty).then_some(new));
    }

    fn entry_of(&self, ip: IpAddr) -> AddressEntry {
        let mut entry = AddressEntry { owner: self.only_pod_at(ip), ..AddressEntry::default() };
        if let Some(workload) = entry.owner.clone() {
            self.add_pod(&mut entry, &workload, ip);
        } else if self.index.pods_at.of(&ip).next().is_some() {
            entry.other = Other::Contested;
        }
        let mut services: Vec<&Arc<Service>> =
            self.index.services_at.of(&ip).filter_map(|key| self.made.services.get(key)).collect();
        services.sort_by(|a, b| (a.created, &a.key).cmp(&(b.created, &b.key)));
        if let Some(oldest) = services.first() {
            // A virtual address wins over a pod: nothing else could be meant by it.
            entry.ports.clear();
            entry.other = Other::NoSuchPort(oldest.key.clone());
        }
        for service in services {
            for port in &service.ports {
                let destination = || Arc::new(Destination::Service(service.key.clone()));
                entry.ports.entry(port.port).or_insert_with(destination);
            }
        }
        entry
    }

    fn add_pod(&self, entry: &mut AddressEntry, workload: &Arc<Workload>, ip: IpAddr) {
        let modes = self.modes(workload);
        let ports = self.service_ports_of(&workload.key);
        let own: BTreeSet<u16> =
            ports.iter().map(|port| port.own).chain(modes.ports.keys().copied()).collect();
        for own in own {
            let mut declared = ports.iter().filter(|port| port.own == own);
            let protocol = declared.clone().next().map_or(Protocol::Detect, |port| port.protocol);
            let headless = declared.find(|port| port.service.kind == ServiceKind::Headless);
            let endpoint = self.pod_endpoint(Some(workload), ip, own, Some(&modes));
            let service = headless.map(super::commit::OwnPort::service_labels);
            entry.ports.insert(own, pod_destination(endpoint, protocol, service));
        }
        let elsewhere = Modes { default: modes.default, ports: BTreeMap::new() };
        let template = self.pod_endpoint(Some(workload), ip, 0, Some(&elsewhere));
        entry.other = Other::Pod(template);
    }
}

fn pod_destination(
    endpoint: Endpoint,
    protocol: Protocol,
    service: Option<(String, String, String)>,
) -> Arc<Destination> {
    Arc::new(Destination::Pod(Arc::new(PodDestination { endpoint, protocol, service })))
}
