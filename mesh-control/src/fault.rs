//! What an answer of the API server means that is not a success: whose fault it is, whether a retry helps, what the
//! operator can do. It must never call a refusal a success, nor the other way round.

use std::fmt;
use std::time::Duration;

use mesh_common::error::in_full;

/// What was asked of the API server, in RBAC's words.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// `get`, `create`, `patch`.
    pub verb: &'static str,
    /// The API group, empty for the core.
    pub group: &'static str,
    /// `secrets`, `httproutes/status`.
    pub resource: &'static str,
    /// Empty for what is cluster-wide.
    pub namespace: &'a str,
    /// Empty for all.
    pub name: &'a str,
}

impl fmt::Display for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        match (self.namespace, self.name) {
            ("", "") => Ok(()),
            ("", name) | (name, "") => write!(f, " {name}"),
            (namespace, name) => write!(f, " {namespace}/{name}"),
        }
    }
}

/// Why the API server did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The object (or its namespace, or its kind) is not there.
    #[error("the API server knows no such object: {0}")]
    NotFound(String),
    /// It was to be made, and is there.
    #[error("somebody else made it first")]
    Exists,
    /// Somebody else changed it meanwhile.
    #[error("somebody else changed it meanwhile")]
    Conflict,
    /// Our service account may not: a rule is missing.
    #[error(
        "mesh-control's service account may not {asked}; it needs the RBAC rule apiGroups [{group:?}], resources \
         [{resource:?}], verbs [{verb:?}], which the helm chart brings: install it again (the API server says: \
         {message})"
    )]
    Forbidden {
        /// What was asked.
        asked: String,
        /// Of the rule.
        group: &'static str,
        /// Of the rule.
        resource: &'static str,
        /// Of the rule.
        verb: &'static str,
        /// The API server's words.
        message: String,
    },
    /// The namespace is being deleted.
    #[error("the namespace is being deleted")]
    Terminating,
    /// A quota, an admission webhook or a schema is against it.
    #[error("the API server refuses it until something is changed: {0}")]
    Refused(String),
    /// It does not answer, or not now.
    #[error("the API server cannot be asked now: {0}; this is tried again")]
    Unavailable(String),
}

impl Fault {
    /// For metrics: one of a few words.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "not_found",
            Self::Exists => "exists",
            Self::Conflict => "conflict",
            Self::Forbidden { .. } => "forbidden",
            Self::Terminating => "terminating",
            Self::Refused(_) => "refused",
            Self::Unavailable(_) => "unavailable",
        }
    }

    /// Whether trying again may help without anybody changing anything.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Conflict | Self::Exists | Self::Unavailable(_))
    }

    /// What an error of the client means.
    pub fn of(asked: Asked<'_>, error: &kube::Error) -> Self {
        let kube::Error::Api(status) = error else { return Self::Unavailable(shortened(&in_full(error))) };
        let message = shortened(&status.message);
        let terminating = |details: &kube::core::response::StatusDetails| {
            details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating")
        };
        match status.code {
            404 => Self::NotFound(message),
            409 if status.is_already_exists() => Self::Exists,
            409 => Self::Conflict,
            403 if status.details.as_ref().is_some_and(terminating) => Self::Terminating,
            // Quotas and admission are "forbidden" too, but no rule helps against them.
            403 if message.contains(" cannot ") => {
                let Asked { verb, group, resource, .. } = asked;
                Self::Forbidden { asked: asked.to_string(), group, resource, verb, message }
            }
            400 | 403 | 405 | 413 | 415 | 422 => Self::Refused(message),
            code => Self::Unavailable(format!("{code} {message}")),
        }
    }
}

/// Asks, for at most this long.
///
/// # Errors
/// When the API server refuses, or does not answer in time.
pub async fn ask<T>(
    asked: Asked<'_>,
    patience: Duration,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, Fault> {
    match tokio::time::timeout(patience, call).await {
        Ok(answer) => answer.map_err(|error| Fault::of(asked, &error)),
        Err(_) => {
            Err(Fault::Unavailable(format!("no answer to \"{asked}\" within {} s", patience.as_secs())))
        }
    }
}

/// At most 512 bytes of a text that somebody else wrote.
pub(crate) fn shortened(text: &str) -> String {
    const MAX: usize = 512;
    if text.len() <= MAX {
        return text.to_owned();
    }
    let end = (0..=MAX).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    format!("{}...", &text[..end])
}

#[cfg(test)]
mod tests {
    use kube::core::Status;
    use kube::core::response::{StatusCause, StatusDetails};

    use super::*;

    const ASKED: Asked<'_> = Asked {
        verb: "create",
        group: "",
        resource: "configmaps",
        namespace: "shop",
        name: "mesh-root-cert",
    };

    fn of(code: u16, reason: &str, message: &str) -> Fault {
        let status = Status::failure(message, reason).with_code(code);
        Fault::of(ASKED, &kube::Error::Api(status.boxed()))
    }

    #[test]
    fn each_answer_says_whether_a_retry_helps() {
        let cannot = "configmaps is forbidden: User \"x\" cannot create resource \"configmaps\"";
        for (code, reason, message, label, passes) in [
            (404, "NotFound", "namespaces \"shop\" not found", "not_found", false),
            (409, "AlreadyExists", "", "exists", true),
            (409, "Conflict", "", "conflict", true),
            (403, "Forbidden", cannot, "forbidden", false),
            (403, "Forbidden", "exceeded quota: objects", "refused", false),
            (422, "Invalid", "", "refused", false),
            (400, "BadRequest", "", "refused", false),
            (401, "Unauthorized", "", "unavailable", true),
            (429, "TooManyRequests", "", "unavailable", true),
            (500, "InternalError", "", "unavailable", true),
            (503, "", "", "unavailable", true),
            (504, "Timeout", "", "unavailable", true),
        ] {
            let fault = of(code, reason, message);
            assert_eq!((fault.label(), fault.passes()), (label, passes), "{code} {message}");
        }
    }

    #[test]
    fn a_missing_rule_is_named() {
        let sentence = of(403, "Forbidden", "the user cannot create resource").to_string();
        for part in ["may not create configmaps shop/mesh-root-cert", "[\"configmaps\"]", "[\"create\"]"] {
            assert!(sentence.contains(part), "{sentence}");
        }
    }

    #[test]
    fn a_namespace_that_goes_away_is_no_missing_rule() {
        let cause = StatusCause {
            reason: "NamespaceTerminating".to_owned(),
            message: String::new(),
            field: String::new(),
        };
        let details = StatusDetails {
            name: String::new(),
            group: String::new(),
            kind: String::new(),
            uid: String::new(),
            causes: vec![cause],
            retry_after_seconds: 0,
        };
        let status = Status::failure("it cannot", "Forbidden").with_code(403).with_details(details);
        assert_eq!(Fault::of(ASKED, &kube::Error::Api(status.boxed())), Fault::Terminating);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_unavailable() {
        let fault = ask::<()>(ASKED, Duration::from_secs(4), std::future::pending()).await.unwrap_err();
        assert!(fault.passes() && fault.to_string().contains("within 4 s"), "{fault}");
    }
}
