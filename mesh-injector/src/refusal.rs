//! Why a pod is not created. It must always say what its author can change.

/// A pod that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// For the metric: one of a few words.
    pub reason: &'static str,
    /// For people: what is wrong with the pod, and what to do.
    pub message: String,
    /// The HTTP status that says the same.
    pub code: u16,
}

impl Refusal {
    /// The author asks for what cannot be.
    pub fn forbidden(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), code: 403 }
    }

    /// What came is not a pod to create.
    pub fn bad(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), code: 400 }
    }

    /// Not the author's fault: the same pod may be created a little later.
    pub fn later(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), code: 503 }
    }
}
