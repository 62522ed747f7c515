//! Why a stream is refused or ends, what its client is told, and what is counted. What a client sent must never come
//! back to it, or into the log, in full length.

use std::time::Duration;

use tonic::Status;

use super::binding::Broken;
use super::delta::Refusal;
use super::node::NodeError;
use crate::ca::caller::CallerError;

/// How long a stream waits for its own first request.
pub(super) const OPENING: Duration = Duration::from_secs(15);
/// Answers in a row to responses that are not the last one.
pub(super) const MAX_STALE: u32 = 1_000;
/// The longest reason, in bytes.
const MAX_REASON: usize = 1024;

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    /// The client closed it or went away.
    #[error("the client closed the stream")]
    Client,
    /// We stop.
    #[error("mesh-control is shutting down")]
    Draining,
    /// The model is still being read.
    #[error("the configuration has not been read yet; ask again")]
    NotSynced,
    /// Nothing came.
    #[error("no request came within {} s", OPENING.as_secs())]
    Silent,
    /// The caller is nobody.
    #[error(transparent)]
    Caller(#[from] CallerError),
    /// The caller is not who the node says.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A request that cannot be read or served.
    #[error("{}", .0.message())]
    Request(Status),
    /// A request that asks for too much.
    #[error(transparent)]
    Refusal(#[from] Refusal),
    /// Too many streams of one caller wait for their first request.
    #[error("{0} streams of {1} have not sent their first request; send it, or close some")]
    Opening(usize, String),
    /// The pod has too many streams.
    #[error("the pod {1} has {0} streams, as many as --max-streams-per-pod allows; close one first")]
    PodStreams(usize, String),
    /// There are too many streams.
    #[error("mesh-control has {0} streams, as many as --max-streams allows; ask again later")]
    Streams(usize),
    /// What it stood on does not hold any more.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// It does not read or answer.
    #[error("the client did not answer a response in time; it is cut so that it cannot hold memory")]
    Slow,
    /// It answers what nobody asked.
    #[error("{MAX_STALE} requests in a row answered a response (response_nonce) that is not the last one")]
    Stale,
}

impl End {
    /// For the metric.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Draining => "draining",
            Self::NotSynced => "not_synced",
            Self::Silent => "silent",
            Self::Caller(_) => "caller",
            Self::Node(error) => error.label(),
            Self::Request(_) => "bad_request",
            Self::Refusal(_) => "limits",
            Self::Opening(..) => "too_many_opening",
            Self::PodStreams(..) => "too_many_of_pod",
            Self::Streams(_) => "too_many",
            Self::Broken(Broken::Expired(_)) => "expired",
            Self::Broken(Broken::Replaced { .. }) => "pod_replaced",
            Self::Broken(Broken::Gone(_)) => "pod_gone",
            Self::Broken(Broken::Changed(_)) => "pod_changed",
            Self::Broken(Broken::Moved) => "moved",
            Self::Slow => "slow",
            Self::Stale => "stale_answers",
        }
    }

    /// For the client; `None` if there is nobody to be told.
    pub(super) fn status(&self) -> Option<Status> {
        let text = self.reason();
        Some(match self {
            Self::Client => return None,
            Self::Draining | Self::NotSynced | Self::Broken(Broken::Moved) => Status::unavailable(text),
            Self::Silent | Self::Slow => Status::deadline_exceeded(text),
            Self::Caller(error) => error.status(text),
            Self::Broken(Broken::Expired(_) | Broken::Replaced { .. }) => Status::unauthenticated(text),
            Self::Node(
                NodeError::Absent | NodeError::Id(_) | NodeError::Metadata(_) | NodeError::Disagrees(_),
            ) => Status::invalid_argument(text),
            Self::Node(NodeError::ClientKind(_)) => Status::unimplemented(text),
            Self::Node(_) | Self::Broken(Broken::Gone(_) | Broken::Changed(_)) => {
                Status::permission_denied(text)
            }
            // The codec calls what it cannot read an internal error; it is the client's.
            Self::Request(status) if status.code() == tonic::Code::Internal => {
                Status::invalid_argument(format!("the request cannot be read: {text}"))
            }
            Self::Request(status) => Status::new(status.code(), text),
            Self::Refusal(Refusal::Wildcard(_)) | Self::Stale => Status::invalid_argument(text),
            Self::Refusal(_) | Self::Opening(..) | Self::PodStreams(..) | Self::Streams(_) => {
                Status::resource_exhausted(text)
            }
        })
    }

    /// The reason, of a length that fits into a header and a line.
    pub(super) fn reason(&self) -> String {
        let mut text = self.to_string();
        if text.len() > MAX_REASON {
            let end = (0..=MAX_REASON).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
            text.truncate(end);
            text.push_str("...");
        }
        text
    }
}
