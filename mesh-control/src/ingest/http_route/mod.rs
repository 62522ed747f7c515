//! HTTPRoute with services as parents. What cannot be done becomes a problem with its path, and its rule is broken:
//! it answers 500 rather than doing half of what is written.

mod backends;
mod filters;
mod matches;

use gateway_api::Duration;
use gateway_api::experimental::httproutes::{
    HttpRoute, HttpRouteParentRefs, HttpRouteRules, HttpRouteRulesTimeouts, HttpRouteSpec,
};

use self::filters::Filters;
use super::{created, key_in_domain};
use crate::api::InvalidObject;
use crate::model::ObjectRef;
use crate::model::route::{HeaderChanges, RouteAction, RouteMatch, RouteRule};
use crate::model::store::input::{Problem, RouteBackend, RouteInput, RouteParent};

const UNSUPPORTED: &str = "UnsupportedValue";
const INCOMPATIBLE: &str = "IncompatibleFilters";

/// `unread` is what is written in the object but not known: the rules concerned are broken.
pub(super) fn route(
    source: ObjectRef,
    domain: &str,
    object: &HttpRoute,
    unread: &[InvalidObject],
) -> RouteInput {
    let HttpRoute { metadata, spec, status: _ } = object;
    let HttpRouteSpec {
        parent_refs,
        rules,
        // A service is matched by its address, not by Host.
        hostnames: _,
        // About gateways.
        use_default_gateways: _,
    } = spec;
    let namespace = source.namespace.clone();
    let mut context =
        Context { namespace, domain: domain.to_owned(), problems: Vec::new(), backends: Vec::new() };
    let parents = parent_refs.iter().flatten();
    let parents = parents.filter_map(|parent| context.parent(parent)).collect();
    // As the API server fills it in: one rule that matches everything and goes nowhere.
    let default = [HttpRouteRules::default()];
    let rules = match rules.as_deref() {
        None | Some([]) => &default,
        Some(rules) => rules,
    };
    let problem = |error: &InvalidObject| Problem { reason: UNSUPPORTED, message: error.to_string() };
    context.problems.extend(unread.iter().map(problem));
    let rule = |(i, rule)| context.rule(&source, i, rule, unread_in(unread, i));
    let rules = rules.iter().enumerate().flat_map(rule).collect();
    RouteInput {
        source,
        generation: metadata.generation.unwrap_or_default(),
        created: created(metadata),
        parents,
        rules,
        backends: context.backends,
        problems: context.problems,
    }
}

/// What is collected while a route is taken apart.
struct Context {
    namespace: String,
    domain: String,
    problems: Vec<Problem>,
    backends: Vec<RouteBackend>,
}

/// The first thing in a rule that cannot be done; the sentence is also what clients see.
type Broken = Option<String>;

/// What is not known in a rule, or outside of all rules.
fn unread_in(unread: &[InvalidObject], i: usize) -> Broken {
    let own = format!("/spec/rules/{i}");
    let concerns = |error: &&InvalidObject| {
        let of_rules = error.pointer.strip_prefix("/spec/rules/").is_some_and(|rest| !rest.is_empty());
        let rest = error.pointer.strip_prefix(&own);
        !of_rules || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    unread.iter().find(concerns).map(ToString::to_string)
}

impl Context {
    /// Notes what cannot be done; the rule that it is part of is broken.
    fn refuse(&mut self, broken: &mut Broken, reason: &'static str, path: &str, what: &str) {
        let message = format!("{path}: {what}");
        broken.get_or_insert_with(|| message.clone());
        self.problems.push(Problem { reason, message });
    }

    /// `None` for parents that are not the mesh's: gateways and others' kinds.
    fn parent(&mut self, parent: &HttpRouteParentRefs) -> Option<RouteParent> {
        let HttpRouteParentRefs { group, kind, name, namespace, port, section_name } = parent;
        if kind.as_deref() != Some("Service") {
            return None;
        }
        let namespace = namespace.clone().unwrap_or_else(|| self.namespace.clone());
        let refused = |message: &str| Some(Problem { reason: UNSUPPORTED, message: message.to_owned() });
        let number = port.map(u16::try_from).transpose();
        let problem = match (group.as_deref(), &number) {
            (Some("" | "core"), Ok(_)) => None,
            (_, Err(_)) => refused("spec.parentRefs: this is not a port"),
            _ => refused("spec.parentRefs: a Service is of the group \"\", which has to be written"),
        };
        let suffix = match (port, section_name) {
            (Some(port), _) => format!(":{port}"),
            (None, Some(section)) => format!(":{section}"),
            (None, None) => String::new(),
        };
        Some(RouteParent {
            service: key_in_domain(&namespace, name, &self.domain),
            text: format!("Service {namespace}/{name}{suffix}"),
            port: number.unwrap_or(None),
            section: section_name.clone(),
            problem,
        })
    }

    fn rule(
        &mut self,
        source: &ObjectRef,
        i: usize,
        rule: &HttpRouteRules,
        mut broken: Broken,
    ) -> Vec<RouteRule> {
        let HttpRouteRules { backend_refs, filters, matches, name, retry, session_persistence, timeouts } =
            rule;
        let path = format!("spec.rules[{i}]");
        if retry.is_some() {
            self.refuse(&mut broken, UNSUPPORTED, &format!("{path}.retry"), "retries are not supported");
        }
        if session_persistence.is_some() {
            let path = format!("{path}.sessionPersistence");
            self.refuse(&mut broken, UNSUPPORTED, &path, "session persistence is not supported");
        }
        let (timeout_ms, backend_timeout_ms) = self.timeouts(&path, timeouts.as_ref(), &mut broken);
        let filters = self.filters(&path, filters.iter().flatten(), &mut broken);
        let backends = self.backends(&path, backend_refs.iter().flatten());
        if filters.redirect.is_some() && !backends.is_empty() {
            let what = "a rule that redirects cannot have backends";
            self.refuse(&mut broken, INCOMPATIBLE, &format!("{path}.backendRefs"), what);
        }
        let matches = self.matches(&path, matches.as_deref().unwrap_or_default(), &filters, &mut broken);
        let Filters { request_headers, response_headers, redirect, path: rewrite, host, .. } = filters;
        let action = redirect.unwrap_or(RouteAction::Forward { backends, path: rewrite, host });
        let rule = |matches: RouteMatch| RouteRule {
            source: source.clone(),
            rule: name.clone().unwrap_or_else(|| i.to_string()),
            matches,
            action: action.clone(),
            request_headers: request_headers.clone(),
            response_headers: response_headers.clone(),
            timeout_ms,
            backend_timeout_ms,
        };
        let rules = matches.into_iter().map(rule);
        match broken {
            None => rules.collect(),
            Some(reason) => rules.map(|rule| fail_closed(rule, &reason)).collect(),
        }
    }

    fn timeouts(
        &mut self,
        path: &str,
        timeouts: Option<&HttpRouteRulesTimeouts>,
        broken: &mut Broken,
    ) -> (Option<u64>, Option<u64>) {
        let Some(HttpRouteRulesTimeouts { request, backend_request }) = timeouts else { return (None, None) };
        let mut millis = |name: &str, text: &Option<String>| {
            let text = text.as_ref()?;
            let parsed = text.parse::<Duration>().ok();
            let millis = parsed.and_then(|duration| u64::try_from(duration.as_millis()).ok());
            if millis.is_none() {
                let what = format!("{text:?} is not a duration; write it like 500ms, 10s or 1m30s");
                self.refuse(broken, UNSUPPORTED, &format!("{path}.timeouts.{name}"), &what);
            }
            millis
        };
        let (request, backend) = (millis("request", request), millis("backendRequest", backend_request));
        if let (Some(1..), Some(whole), Some(part)) = (request, request, backend)
            && part > whole
        {
            let path = format!("{path}.timeouts.backendRequest");
            self.refuse(broken, UNSUPPORTED, &path, "it cannot be longer than timeouts.request");
        }
        (request, backend)
    }
}

fn fail_closed(rule: RouteRule, reason: &str) -> RouteRule {
    RouteRule {
        action: RouteAction::Broken(reason.to_owned()),
        request_headers: HeaderChanges::default(),
        response_headers: HeaderChanges::default(),
        timeout_ms: None,
        backend_timeout_ms: None,
        ..rule
    }
}
