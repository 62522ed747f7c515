//! Mutual TLS modes: which one holds for a port of a workload. Pure; the most specific rule wins, the oldest of equals.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ObjectRef;

/// `PeerAuthentication.mtls.mode`, resolved: no UNSET.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MtlsMode {
    /// Plaintext only.
    Disable,
    /// Both.
    Permissive,
    /// Mutual TLS only.
    Strict,
}

/// A PeerAuthentication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The object.
    pub source: ObjectRef,
    /// `metadata.generation`.
    pub generation: i64,
    /// Creation time in seconds.
    pub created: i64,
    /// `selector.matchLabels`; empty selects the whole namespace, or the mesh in the root namespace.
    pub selector: BTreeMap<String, String>,
    /// `mtls.mode`; `None` is UNSET: inherited.
    pub mode: Option<MtlsMode>,
    /// `portLevelMtls`; `None` is UNSET: as the workload.
    pub ports: BTreeMap<u16, Option<MtlsMode>>,
}

/// The modes of a workload's ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Modes {
    /// Of every port that is not in `ports`.
    pub default: MtlsMode,
    /// Of ports with a mode of their own.
    pub ports: BTreeMap<u16, MtlsMode>,
}

impl Modes {
    /// The mode of a port.
    pub fn of(&self, port: u16) -> MtlsMode {
        self.ports.get(&port).copied().unwrap_or(self.default)
    }
}

/// All policies of the mesh.
#[derive(Debug, Default)]
pub struct Policies {
    /// By namespace, then by age and name: the first that applies wins.
    by_namespace: BTreeMap<String, BTreeMap<(i64, String), Arc<Policy>>>,
}

impl Policies {
    /// Adds a policy, or replaces the one of the same name.
    pub fn put(&mut self, policy: Policy) {
        self.remove(&policy.source);
        let namespace = self.by_namespace.entry(policy.source.namespace.clone()).or_default();
        namespace.insert((policy.created, policy.source.name.clone()), Arc::new(policy));
    }

    /// Takes a policy away.
    pub fn remove(&mut self, source: &ObjectRef) {
        if let Some(namespace) = self.by_namespace.get_mut(&source.namespace) {
            namespace.retain(|(_, name), _| *name != source.name);
            if namespace.is_empty() {
                self.by_namespace.remove(&source.namespace);
            }
        }
    }

    /// The policy of this name.
    pub fn get(&self, source: &ObjectRef) -> Option<&Arc<Policy>> {
        self.by_namespace.get(&source.namespace)?.values().find(|policy| policy.source.name == source.name)
    }

    /// All, sorted by namespace, age and name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.by_namespace.values().flat_map(BTreeMap::values)
    }

    /// The modes of a workload with these labels: its own policy, then its namespace's, then the mesh's, then
    /// PERMISSIVE.
    pub fn resolve(&self, root: &str, namespace: &str, labels: &BTreeMap<String, String>) -> Modes {
        let mode = |policy: Option<&Arc<Policy>>| policy.and_then(|policy| policy.mode);
        let own = self.workload_policy(namespace, labels);
        let default = mode(own)
            .or_else(|| mode(self.namespace_policy(namespace)))
            .or_else(|| mode(self.namespace_policy(root)))
            .unwrap_or(MtlsMode::Permissive);
        let ports = own.map(|policy| &policy.ports).into_iter().flatten();
        Modes { default, ports: ports.map(|(port, mode)| (*port, mode.unwrap_or(default))).collect() }
    }

    /// The oldest policy of a namespace without a selector.
    pub fn namespace_policy(&self, namespace: &str) -> Option<&Arc<Policy>> {
        self.by_namespace.get(namespace)?.values().find(|policy| policy.selector.is_empty())
    }

    /// The oldest policy whose selector has these labels.
    pub fn workload_policy(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Option<&Arc<Policy>> {
        self.by_namespace.get(namespace)?.values().find(|policy| policy.selects(labels))
    }
}

impl Policy {
    /// Whether it has a selector, and the selector has these labels.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        !self.selector.is_empty() && self.selector.iter().all(|(name, value)| labels.get(name) == Some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::MtlsMode::{Disable, Permissive, Strict};
    use super::*;

    fn policy(namespace: &str, name: &str, created: i64, app: &str, mode: Option<MtlsMode>) -> Policy {
        let selector =
            if app.is_empty() { BTreeMap::new() } else { [("app".to_owned(), app.to_owned())].into() };
        Policy {
            source: ObjectRef {
                kind: "PeerAuthentication",
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            },
            generation: 1,
            created,
            selector,
            mode,
            ports: BTreeMap::new(),
        }
    }

    #[test]
    fn the_most_specific_wins_and_unset_inherits() {
        let root = || policy("root", "mesh", 1, "", Some(Strict));
        let cases = [
            (vec![], Permissive),
            (vec![root()], Strict),
            (vec![root(), policy("shop", "ns", 1, "", Some(Disable))], Disable),
            (vec![root(), policy("shop", "ns", 1, "", None)], Strict),
            (vec![root(), policy("other", "ns", 1, "", Some(Disable))], Strict),
            (vec![root(), policy("shop", "w", 1, "reviews", Some(Permissive))], Permissive),
            (vec![root(), policy("shop", "w", 1, "ratings", Some(Permissive))], Strict),
            // A selector in the root namespace selects in the root namespace only.
            (vec![policy("root", "w", 1, "reviews", Some(Strict))], Permissive),
            (
                vec![
                    policy("shop", "a", 2, "", Some(Disable)),
                    policy("shop", "b", 1, "", Some(Strict)),
                    policy("shop", "w", 1, "reviews", None),
                ],
                Strict,
            ),
        ];
        for (policies, expected) in cases {
            let mut all = Policies::default();
            policies.iter().for_each(|policy| all.put(policy.clone()));
            let labels = [("app".to_owned(), "reviews".to_owned())].into();
            assert_eq!(all.resolve("root", "shop", &labels).of(80), expected, "{policies:?}");
        }
    }

    #[test]
    fn ports_have_their_own_mode() {
        let mut own = policy("shop", "w", 1, "reviews", Some(Strict));
        own.ports = [(80, Some(Disable)), (81, None)].into();
        let mut all = Policies::default();
        all.put(own.clone());
        let modes = all.resolve("root", "shop", &[("app".to_owned(), "reviews".to_owned())].into());
        assert_eq!((modes.of(80), modes.of(81), modes.of(82)), (Disable, Strict, Strict));
        all.remove(&own.source);
        assert_eq!(all.iter().count(), 0);
    }
}
