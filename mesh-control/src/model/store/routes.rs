//! Routing tables of services' ports: which routes attach, in which order their rules are tried, and which
//! backends exist. A rule is never left out because it cannot be done: it fails closed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Mesh;
use super::input::{Problem, RouteInput, RouteParent};
use crate::model::ServiceKey;
use crate::model::facts::FactKey;
use crate::model::route::{BackendTarget, PathMatch, PortRoutes, RouteAction, RouteRule, RouteTable};
use crate::model::service::{Protocol, Service, ServiceKind};

impl Mesh {
    pub(super) fn make_routes(&mut self, key: &ServiceKey) {
        let new = self.routes_of(key);
        let old = self.made.routes.get(key).cloned().unwrap_or_default();
        let ports: BTreeSet<u16> = old.keys().chain(new.keys()).copied().collect();
        let changed = ports.into_iter().filter(|port| old.get(port) != new.get(port));
        self.dirty.changed.extend(changed.map(|port| FactKey::Routes(key.clone(), port)));
        super::replace(&mut self.made.routes, key.clone(), (!new.is_empty()).then_some(new));
        // A route declares that its port speaks HTTP.
        self.dirty.services.insert(key.clone());
    }

    fn routes_of(&self, key: &ServiceKey) -> BTreeMap<u16, Arc<PortRoutes>> {
        // port -> namespace -> routes
        let mut attached: BTreeMap<u16, BTreeMap<&str, Vec<&RouteInput>>> = BTreeMap::new();
        for route in self.routes_with_parent(key) {
            let ports = route.parents.iter().filter(|parent| parent.service == *key);
            let ports: BTreeSet<u16> = ports.flat_map(|p| self.attach(p).unwrap_or_default()).collect();
            for port in ports {
                let namespaces = attached.entry(port).or_default();
                namespaces.entry(&route.source.namespace).or_default().push(route);
            }
        }
        let of_port = |namespaces: BTreeMap<&str, Vec<&RouteInput>>| {
            let mut routes = PortRoutes::default();
            for (namespace, inputs) in namespaces {
                let table = Some(Arc::new(self.table(&inputs)));
                if namespace == key.namespace {
                    routes.producer = table;
                } else {
                    routes.consumers.extend(table.map(|table| (namespace.to_owned(), table)));
                }
            }
            Arc::new(routes)
        };
        attached.into_iter().map(|(port, namespaces)| (port, of_port(namespaces))).collect()
    }

    pub(super) fn routes_with_parent(&self, key: &ServiceKey) -> impl Iterator<Item = &RouteInput> {
        let sources = self.index.routes_of_parent.of(key);
        sources.filter_map(|source| self.input.routes.get(source)).map(|route| &**route)
    }

    /// The ports of its parent that a route attaches to, or why there is none.
    pub(super) fn attach(&self, parent: &RouteParent) -> Result<Vec<u16>, Problem> {
        if let Some(problem) = &parent.problem {
            return Err(problem.clone());
        }
        let no_match = |message: String| Problem { reason: "NoMatchingParent", message };
        let Some(service) = self.input.services.get(&parent.service) else {
            return Err(no_match(format!("{} does not exist", parent.text)));
        };
        let refused = |message: String| Err(Problem { reason: "UnsupportedValue", message });
        match &service.kind {
            ServiceKind::Cluster => {}
            ServiceKind::Headless => {
                return refused(format!(
                    "{} is headless: there is no virtual address to attach to",
                    parent.text
                ));
            }
            ServiceKind::ExternalName(_) => {
                return refused(format!("{} is of type ExternalName: it cannot be a parent", parent.text));
            }
        }
        let meant: Vec<_> = service
            .ports
            .iter()
            .filter(|port| parent.port.is_none_or(|number| number == port.port))
            .filter(|port| parent.section.as_ref().is_none_or(|name| *name == port.name))
            .collect();
        if meant.is_empty() {
            return Err(no_match(format!("{} has no such TCP port", parent.text)));
        }
        let http = meant.iter().filter(|port| port.protocol != Protocol::Tcp).map(|port| port.port);
        let http: Vec<u16> = http.collect();
        if http.is_empty() {
            return Err(no_match(format!(
                "{} is declared not to speak HTTP, by appProtocol or by the port's name",
                parent.text
            )));
        }
        Ok(http)
    }

    /// Ports that routes of the service's own namespace name: they speak HTTP. Consumers have no say in what a
    /// service speaks.
    pub(super) fn protocols_declared_by_routes(&self, key: &ServiceKey) -> BTreeSet<u16> {
        self.routes_with_parent(key)
            .filter(|route| route.source.namespace == key.namespace)
            .flat_map(|route| &route.parents)
            .filter(|parent| parent.service == *key && (parent.port.is_some() || parent.section.is_some()))
            .flat_map(|parent| self.attach(parent).unwrap_or_default())
            .collect()
    }

    fn table(&self, routes: &[&RouteInput]) -> RouteTable {
        let mut rules: Vec<(&RouteInput, usize, &RouteRule)> = Vec::new();
        for route in routes {
            rules.extend(route.rules.iter().enumerate().map(|(position, rule)| (*route, position, rule)));
        }
        rules.sort_by_cached_key(|(route, position, rule)| {
            (precedence(rule), route.created, route.source.clone(), *position)
        });
        RouteTable { rules: rules.into_iter().map(|(_, _, rule)| self.resolved(rule)).collect() }
    }

    fn resolved(&self, rule: &RouteRule) -> RouteRule {
        let mut rule = rule.clone();
        if let RouteAction::Forward { backends, .. } = &mut rule.action {
            for backend in backends {
                if let BackendTarget::Service(key, port) = &backend.target
                    && let Err(problem) = self.find_backend(key, *port)
                {
                    let (service, port) = (key.clone(), *port);
                    backend.target = BackendTarget::Missing { service, port, reason: problem.message };
                }
            }
        }
        rule
    }

    /// Whether a backend's service and port exist.
    pub(super) fn find_backend(&self, key: &ServiceKey, port: u16) -> Result<&Arc<Service>, Problem> {
        let missing = |message| Problem { reason: "BackendNotFound", message };
        let name = key.hostname.split('.').next().unwrap_or_default();
        let service = self
            .input
            .services
            .get(key)
            .ok_or_else(|| missing(format!("the service {}/{name} does not exist", key.namespace)))?;
        if service.ports.iter().any(|known| known.port == port) {
            Ok(service)
        } else {
            Err(missing(format!("the service {}/{name} has no TCP port {port}", key.namespace)))
        }
    }
}

/// The order of the Gateway API: exact path, then (where it leaves the choice) regular expression, then the
/// longest prefix; then method, most headers, most query parameters.
fn precedence(rule: &RouteRule) -> impl Ord + use<> {
    let (kind, length) = match &rule.matches.path {
        PathMatch::Exact(path) => (0_u8, path.len()),
        PathMatch::Regex(pattern) => (1, pattern.len()),
        PathMatch::Prefix(path) => (2, path.len()),
    };
    let any_method = rule.matches.method.is_none();
    (
        kind,
        Reverse(length),
        any_method,
        Reverse(rule.matches.headers.len()),
        Reverse(rule.matches.query.len()),
    )
}
