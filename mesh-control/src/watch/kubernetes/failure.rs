//! Why a watch broke, and what that means for what is known.

use kube::core::Status;
use tokio::time::error::Elapsed;

use super::resource::Resource;

/// Why a watch ended before its time.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Nobody takes the events any more.
    #[error("the process ends")]
    Stopped,
    /// The API server refused or gave up.
    #[error("the API server answered {} {}: {}", .0.code, .0.reason, .0.message)]
    Refused(Box<Status>),
    /// The API server could not be asked, or its answer not be read.
    #[error("{}", mesh_common::error::in_full(.0))]
    Client(#[source] kube::Error),
    /// Nothing came for longer than the server lets a watch live.
    #[error("the API server was silent for too long")]
    Silent,
    /// A list or a stream of all objects without its end.
    #[error("the API server did not say up to where its list goes")]
    Endless,
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused(status),
            other => Self::Client(other),
        }
    }
}

impl From<Elapsed> for Failure {
    fn from(_: Elapsed) -> Self {
        Self::Silent
    }
}

impl Failure {
    /// The HTTP status, if the server answered with one.
    fn code(&self) -> Option<u16> {
        match self {
            Self::Refused(status) => Some(status.code),
            Self::Stopped | Self::Client(_) | Self::Silent | Self::Endless => None,
        }
    }

    /// The server does not have the kind (in this version).
    pub(super) fn is_absence(&self) -> bool {
        self.code() == Some(404)
    }

    /// The server does not stream lists: it is too old, or told not to.
    pub(super) fn is_about_streaming(&self) -> bool {
        matches!(self.code(), Some(400 | 422)) || matches!(self, Self::Endless)
    }

    /// Where the watch was is of no use any more: everything must be read again. That is so when the server says it, or
    /// says something that cannot be read.
    pub(super) fn forgets(&self) -> bool {
        match self {
            // The client takes any JSON object that is no event for a status, then one without a code.
            Self::Refused(status) => matches!(status.code, 0 | 400 | 404 | 410 | 422),
            Self::Client(error) => matches!(error, kube::Error::SerdeError(_)),
            Self::Endless => true,
            Self::Stopped | Self::Silent => false,
        }
    }

    /// It is in the nature of watches: whoever was away for long reads everything again.
    pub(super) fn is_ordinary(&self) -> bool {
        self.code() == Some(410)
    }

    /// Why it broke, and what the operator can do.
    pub(super) fn sentence(&self, resource: &Resource) -> String {
        let remedy = match self.code() {
            Some(401) => {
                "its service account's token is not taken; see whether the account still exists".to_owned()
            }
            Some(403) => resource.rule(),
            Some(410) => "everything is read again".to_owned(),
            _ => "see whether the API server is healthy and can be reached from here".to_owned(),
        };
        let mut reason = self.to_string();
        truncate(&mut reason, 500);
        format!("{reason}; {remedy}")
    }
}

fn truncate(text: &mut String, length: usize) {
    if text.len() > length {
        let end = (0..=length).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
        text.push_str("...");
    }
}
