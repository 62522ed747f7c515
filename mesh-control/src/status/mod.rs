//! What became of the objects that users wrote, as conditions. Pure.

pub mod conditions;
pub mod diff;

#[cfg(test)]
mod tests;

use crate::model::ObjectRef;
use crate::model::store::SharedModel;

/// What became of one object.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ObjectStatus {
    /// Such as `HTTPRoute`.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Per parent; one entry without parent for objects that have none (PeerAuthentication).
    pub parents: Vec<ParentStatus>,
}

/// What became of an object at one of its parents.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ParentStatus {
    /// As the user wrote it: `Service shop/reviews:80`; empty when there is no parent.
    pub parent: String,
    /// Whose conditions these are: `mesh/control`.
    #[serde(rename = "controllerName")]
    pub controller: String,
    /// Sorted by type.
    pub conditions: Vec<Condition>,
}

/// A condition, as Kubernetes has it, without the time.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Condition {
    /// `Accepted`, `ResolvedRefs`.
    #[serde(rename = "type")]
    pub kind: String,
    /// True or False.
    pub status: bool,
    /// One word.
    pub reason: String,
    /// A sentence for the user, naming the path in the object.
    pub message: String,
    /// The generation of the object that this is about.
    #[serde(rename = "observedGeneration")]
    pub observed_generation: i64,
}

impl SharedModel {
    /// What became of every object that has a status, sorted by kind, namespace and name.
    pub fn statuses(&self) -> Vec<ObjectStatus> {
        let reader = self.read();
        let mesh = reader.mesh();
        let routes = mesh.route_outcomes();
        let policies = mesh.policy_outcomes();
        drop(reader);
        let routes = routes.iter().map(conditions::of_route);
        routes.chain(policies.iter().map(conditions::of_policy)).collect()
    }
}

impl From<&ObjectRef> for ObjectStatus {
    fn from(object: &ObjectRef) -> Self {
        Self {
            kind: object.kind.to_owned(),
            namespace: object.namespace.clone(),
            name: object.name.clone(),
            parents: Vec::new(),
        }
    }
}
