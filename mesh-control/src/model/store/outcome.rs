//! What became of routes and policies: computed from the model when somebody asks, never stored.

use std::sync::Arc;

use super::Mesh;
use super::input::{Problem, RouteInput};
use crate::model::ObjectRef;
use crate::model::policy::Policy;

/// What became of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteOutcome {
    /// The object.
    pub source: ObjectRef,
    /// The generation this is about.
    pub generation: i64,
    /// Per parent, in the order of the object.
    pub parents: Vec<ParentOutcome>,
}

/// What became of a route at one parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentOutcome {
    /// As the status shows it.
    pub parent: String,
    /// Why it is not accepted, if it is not.
    pub refused: Option<Problem>,
    /// Which references do not resolve, if any.
    pub unresolved: Option<Problem>,
}

/// What became of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyOutcome {
    /// The object.
    pub source: ObjectRef,
    /// The generation this is about.
    pub generation: i64,
    /// Why it is not (wholly) in force, if it is not.
    pub refused: Option<Problem>,
}

impl Mesh {
    /// What became of every route with a service as parent.
    pub fn route_outcomes(&self) -> Vec<RouteOutcome> {
        self.input
            .routes
            .values()
            .filter(|route| !route.parents.is_empty())
            .map(|route| RouteOutcome {
                source: route.source.clone(),
                generation: route.generation,
                parents: self.parent_outcomes(route),
            })
            .collect()
    }

    fn parent_outcomes(&self, route: &RouteInput) -> Vec<ParentOutcome> {
        let unresolved = self.unresolved(route);
        let outcome = |parent: &super::input::RouteParent| ParentOutcome {
            parent: parent.text.clone(),
            refused: self.attach(parent).err().or_else(|| joined(route.problems.clone())),
            unresolved: unresolved.clone(),
        };
        route.parents.iter().map(outcome).collect()
    }

    fn unresolved(&self, route: &RouteInput) -> Option<Problem> {
        let problem = |backend: &super::input::RouteBackend| {
            let problem = match &backend.target {
                Ok((service, port)) => self.find_backend(service, *port).err()?,
                Err(problem) => problem.clone(),
            };
            Some(Problem { message: format!("{}: {}", backend.path, problem.message), ..problem })
        };
        joined(route.backends.iter().filter_map(problem).collect())
    }

    /// What became of every policy.
    pub fn policy_outcomes(&self) -> Vec<PolicyOutcome> {
        let outcome = |policy: &Arc<Policy>| {
            let source = policy.source.clone();
            if let Some((generation, problem)) = self.input.refused.get(&source).cloned() {
                return PolicyOutcome { source, generation, refused: Some(problem) };
            }
            let refused = self.winner_over(policy).map(|winner| Problem {
                reason: "Conflicted",
                message: format!("{} is older and applies to the same workloads", winner.source),
            });
            PolicyOutcome { source, generation: policy.generation, refused }
        };
        let mut outcomes: Vec<_> = self.input.policies.iter().map(outcome).collect();
        outcomes.sort_by(|a, b| a.source.cmp(&b.source));
        outcomes
    }

    /// An older policy that holds where this one would.
    fn winner_over(&self, policy: &Policy) -> Option<&Arc<Policy>> {
        let policies = &self.input.policies;
        let other = |winner: &&Arc<Policy>| winner.source != policy.source;
        if policy.selector.is_empty() {
            return policies.namespace_policy(&policy.source.namespace).filter(other);
        }
        let mut pods = self.made.workloads.values();
        pods.find_map(|pod| {
            let applies = pod.key.namespace == policy.source.namespace && policy.selects(&pod.labels);
            policies.workload_policy(&pod.key.namespace, &pod.labels).filter(|_| applies).filter(other)
        })
    }
}

/// One problem out of many: the reason of the first, the messages of all.
fn joined(problems: Vec<Problem>) -> Option<Problem> {
    let reason = problems.first()?.reason;
    let messages: Vec<String> = problems.into_iter().map(|problem| problem.message).collect();
    Some(Problem { reason, message: messages.join("; ") })
}
