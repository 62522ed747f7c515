//! To whom belongs what the leader makes: to the chart, by way of the webhook's configuration, so that the API server
//! takes it away with the chart. The leader must never make anew what an uninstallation has just taken away.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use tokio::sync::watch;
use tokio::time::Instant;

use super::webhook::WEBHOOK;

/// An uninstallation ends mesh-control within this time of taking the webhook's configuration away.
const UNINSTALLATION: Duration = Duration::from_secs(120);
const KIND: &str = "MutatingWebhookConfiguration";
const API_VERSION: &str = "admissionregistration.k8s.io/v1";

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Nobody has looked.
    Unknown,
    /// There is no such configuration.
    Absent,
    /// Its uid.
    Present(String),
    /// It was there until this moment.
    Gone(Instant),
}

/// Who owns what the leader makes. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Owner(watch::Sender<State>);

impl Default for Owner {
    fn default() -> Self {
        Self(watch::Sender::new(State::Unknown))
    }
}

impl Owner {
    /// The webhook's configuration was looked at: its uid, if it is there. Returns whether that is news.
    pub(super) fn set(&self, uid: Option<String>, now: Instant) -> bool {
        self.0.send_if_modified(|state| {
            let next = match (uid, &*state) {
                (Some(uid), _) => State::Present(uid),
                (None, State::Present(_)) => State::Gone(now),
                (None, State::Gone(since)) => State::Gone(*since),
                (None, State::Unknown | State::Absent) => State::Absent,
            };
            let news = next != *state;
            *state = next;
            news
        })
    }

    /// Whether it was looked at.
    pub(super) fn is_known(&self) -> bool {
        *self.0.borrow() != State::Unknown
    }

    /// Whether new objects may be made: not while the chart is most likely being uninstalled.
    pub(super) fn allows(&self, now: Instant) -> bool {
        !matches!(&*self.0.borrow(), State::Gone(since) if now < *since + UNINSTALLATION)
    }

    /// The reference that objects have to carry, if any.
    pub(super) fn reference(&self) -> Option<OwnerReference> {
        let State::Present(uid) = &*self.0.borrow() else { return None };
        Some(OwnerReference {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            name: WEBHOOK.to_owned(),
            uid: uid.clone(),
            block_owner_deletion: None,
            controller: None,
        })
    }

    /// The references that an object should have, given those that it has.
    pub(super) fn references(&self, known: &[OwnerReference]) -> Vec<OwnerReference> {
        let Some(ours) = self.reference() else { return known.to_vec() };
        if known.contains(&ours) {
            return known.to_vec();
        }
        let others = known.iter().filter(|other| other.kind != KIND || other.name != WEBHOOK).cloned();
        others.chain([ours]).collect()
    }

    /// The metadata with the reference.
    pub(super) fn put_into(&self, mut metadata: ObjectMeta) -> ObjectMeta {
        let references = self.references(&metadata.owner_references.take().unwrap_or_default());
        metadata.owner_references = (!references.is_empty()).then_some(references);
        metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nothing_is_made_anew_while_the_chart_is_uninstalled() {
        let (owner, start) = (Owner::default(), Instant::now());
        assert!(!owner.is_known() && owner.allows(start));
        assert!(owner.set(None, start) && owner.allows(start) && owner.reference().is_none());
        assert!(owner.set(Some("1".to_owned()), start) && owner.allows(start));
        assert!(!owner.set(Some("1".to_owned()), start));
        assert!(owner.set(None, start) && !owner.allows(start));
        assert!(!owner.set(None, start + UNINSTALLATION) && owner.allows(start + UNINSTALLATION));
        assert!(owner.set(Some("2".to_owned()), start) && owner.allows(start));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reference_is_put_once_and_replaces_an_older_one() {
        let owner = Owner::default();
        let other =
            OwnerReference { kind: "Pod".to_owned(), name: "a".to_owned(), ..OwnerReference::default() };
        assert_eq!(owner.references(std::slice::from_ref(&other)), std::slice::from_ref(&other));
        owner.set(Some("1".to_owned()), Instant::now());
        let first = owner.references(std::slice::from_ref(&other));
        assert_eq!((first.len(), first[1].uid.as_str()), (2, "1"));
        assert_eq!(owner.references(&first), first);
        owner.set(Some("2".to_owned()), Instant::now());
        let second = owner.references(&first);
        assert_eq!((second.len(), second[0].kind.as_str(), second[1].uid.as_str()), (2, "Pod", "2"));
    }
}
