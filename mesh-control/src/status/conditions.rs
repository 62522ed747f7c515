//! From outcomes to conditions.

use super::{Condition, ObjectStatus, ParentStatus};
use crate::model::store::input::Problem;
use crate::model::store::{ParentOutcome, PolicyOutcome, RouteOutcome};

/// Whose conditions these are.
pub const CONTROLLER: &str = "mesh/control";

/// The status of an HTTPRoute: `Accepted` and `ResolvedRefs` per parent.
pub fn of_route(outcome: &RouteOutcome) -> ObjectStatus {
    let RouteOutcome { source, generation, parents } = outcome;
    let parent = |parent: &ParentOutcome| {
        let ParentOutcome { parent, refused, unresolved } = parent;
        let conditions = vec![
            condition("Accepted", refused.as_ref(), *generation),
            condition("ResolvedRefs", unresolved.as_ref(), *generation),
        ];
        ParentStatus { parent: parent.clone(), controller: CONTROLLER.to_owned(), conditions }
    };
    ObjectStatus { parents: parents.iter().map(parent).collect(), ..ObjectStatus::from(source) }
}

/// The status of a PeerAuthentication.
pub fn of_policy(outcome: &PolicyOutcome) -> ObjectStatus {
    let PolicyOutcome { source, generation, refused } = outcome;
    let conditions = vec![condition("Accepted", refused.as_ref(), *generation)];
    let whole = ParentStatus { parent: String::new(), controller: CONTROLLER.to_owned(), conditions };
    ObjectStatus { parents: vec![whole], ..ObjectStatus::from(source) }
}

/// A condition that holds unless there is a problem; its reason is its own name then.
fn condition(kind: &str, problem: Option<&Problem>, observed_generation: i64) -> Condition {
    Condition {
        kind: kind.to_owned(),
        status: problem.is_none(),
        reason: problem.map_or(kind, |problem| problem.reason).to_owned(),
        message: problem.map(|problem| problem.message.clone()).unwrap_or_default(),
        observed_generation,
    }
}
