//! How a program gets its own certificate from mesh-control and keeps it fresh: the way there, one signing request,
//! and when to ask. A certificate that is good is never given up for one that is not.

pub mod connect;
mod issue;
pub mod schedule;

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::spiffe::SpiffeId;
use crate::trust::{CertificateFacts, TrustError};
use connect::ConnectError;

pub use issue::issue;

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// No connection to the certificate authority.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It refused to sign.
    #[error("the certificate authority refused: {message} ({code:?})")]
    Refused {
        /// The gRPC code.
        code: tonic::Code,
        /// What it said.
        message: String,
    },
    /// The token cannot be sent.
    #[error("the token holds characters that no token has")]
    Token,
    /// It took too long.
    #[error("the certificate authority did not answer within {0:?}")]
    Timeout(Duration),
    /// What it answered cannot be used.
    #[error("the certificate authority's answer cannot be used: {0}")]
    Answer(#[from] TrustError),
    /// It signed something else.
    #[error("the certificate authority signed {signed}, asked was {asked}")]
    OtherIdentity {
        /// Who we are.
        asked: SpiffeId,
        /// Whose certificate came.
        signed: SpiffeId,
    },
    /// It has run out already.
    #[error(
        "the certificate that was signed ended {0:?} ago; look at the clocks of this machine and mesh-control's"
    )]
    Expired(Duration),
    /// It is for later, and there is one that is good now.
    #[error(
        "the certificate that was signed begins in {0:?}; look at the clocks of this machine and mesh-control's"
    )]
    NotYetValid(Duration),
}

/// Whether a new certificate is better than the present one: one that is good is never given up for one that
/// is not.
///
/// # Errors
/// When it is not, with why.
pub fn improves(
    now: SystemTime,
    new: &CertificateFacts,
    present: Option<&CertificateFacts>,
) -> Result<(), IssueError> {
    let is_good = |it: &CertificateFacts| it.not_before <= now && now < it.not_after;
    if let Ok(ago) = now.duration_since(new.not_after) {
        return Err(IssueError::Expired(ago));
    }
    match new.not_before.duration_since(now) {
        // Without any, one that peers whose clocks are ahead may take is better than none.
        Ok(ahead) if !ahead.is_zero() && present.is_some_and(is_good) => Err(IssueError::NotYetValid(ahead)),
        _ => Ok(()),
    }
}

/// What happened so far, for the schedule.
#[derive(Debug)]
pub struct Progress {
    failures: u32,
    last: Option<Instant>,
    jitter: f64,
}

impl Default for Progress {
    fn default() -> Self {
        Self { failures: 0, last: None, jitter: rand::random() }
    }
}

impl Progress {
    /// Notes the end of an attempt.
    pub fn note(&mut self, success: bool) {
        self.failures = if success { 0 } else { self.failures.saturating_add(1) };
        self.last = Some(Instant::now());
        self.jitter = rand::random();
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// As the schedule takes it.
    pub fn attempts(&self) -> schedule::Attempts {
        let since_last = self.last.map(|last| last.elapsed());
        schedule::Attempts { failures: self.failures, since_last, jitter: self.jitter }
    }
}
