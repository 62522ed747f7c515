//! backendRefs of a rule.

use gateway_api::experimental::httproutes::{HttpRouteRulesBackendRefs, HttpRouteRulesFilters};
use serde_json::Value;

use super::{Context, INCOMPATIBLE, UNSUPPORTED};
use crate::ingest::key_in_domain;
use crate::model::ServiceKey;
use crate::model::route::{Backend, BackendTarget};
use crate::model::store::input::{Problem, RouteBackend};

const MAX_WEIGHT: i32 = 1_000_000;

impl Context {
    pub(super) fn backends<'a>(
        &mut self,
        rule: &str,
        backends: impl Iterator<Item = &'a HttpRouteRulesBackendRefs>,
    ) -> Vec<Backend> {
        let backends = backends.enumerate();
        backends.map(|(i, backend)| self.backend(&format!("{rule}.backendRefs[{i}]"), backend)).collect()
    }

    fn backend(&mut self, path: &str, backend: &HttpRouteRulesBackendRefs) -> Backend {
        let HttpRouteRulesBackendRefs { filters, group, kind, name, namespace, port, weight } = backend;
        // A backend that cannot be done as written takes its share and answers 500; its siblings go on.
        let mut broken = None;
        let weight = weight.unwrap_or(1);
        if !(0..=MAX_WEIGHT).contains(&weight) {
            let what = format!("{weight} is not a weight; weights are 0 to {MAX_WEIGHT}");
            self.refuse(&mut broken, UNSUPPORTED, &format!("{path}.weight"), &what);
        }
        let converted: Vec<HttpRouteRulesFilters> =
            filters.iter().flatten().filter_map(as_rule_filter).collect();
        let filters = self.filters(path, converted.iter(), &mut broken);
        if filters.redirect.is_some() || filters.path.is_some() || filters.host.is_some() {
            let what = "only header modifiers are supported at a single backend";
            self.refuse(&mut broken, INCOMPATIBLE, &format!("{path}.filters"), what);
        }
        let target = self.target(group.as_deref(), kind.as_deref(), name, namespace.as_ref(), *port);
        self.backends.push(RouteBackend { path: path.to_owned(), target: target.clone() });
        let target = match (broken, target) {
            (Some(reason), _) => BackendTarget::Invalid(reason),
            (None, Err(problem)) => BackendTarget::Invalid(problem.message),
            (None, Ok((service, port))) => BackendTarget::Service(service, port),
        };
        Backend {
            target,
            weight: u32::try_from(weight.clamp(0, MAX_WEIGHT)).unwrap_or_default(),
            request_headers: filters.request_headers,
            response_headers: filters.response_headers,
        }
    }

    /// Backends in other namespaces need no grant where the parent is a service: the client could dial them itself.
    fn target(
        &self,
        group: Option<&str>,
        kind: Option<&str>,
        name: &str,
        namespace: Option<&String>,
        port: Option<i32>,
    ) -> Result<(ServiceKey, u16), Problem> {
        let (group, kind) = (group.unwrap_or_default(), kind.unwrap_or("Service"));
        if !(matches!(group, "" | "core") && kind == "Service") {
            let message = format!("the kind {group}/{kind} cannot be a backend; only core Services can");
            return Err(Problem { reason: "InvalidKind", message });
        }
        let number = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
        let number = number.ok_or_else(|| Problem {
            reason: "BackendNotFound",
            message: format!("the Service {name} needs a port, 1 to 65535"),
        })?;
        let namespace = namespace.unwrap_or(&self.namespace);
        Ok((key_in_domain(namespace, name, &self.domain), number))
    }
}

/// The types of the two kinds of filters are generated apart, but they are one in the API.
fn as_rule_filter(filter: &impl serde::Serialize) -> Option<HttpRouteRulesFilters> {
    let value: Value = serde_json::to_value(filter).ok()?;
    serde_json::from_value(value).ok()
}
