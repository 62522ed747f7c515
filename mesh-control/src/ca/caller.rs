//! Who is asking: by token or by client certificate. Every decision about a caller begins here, and nothing
//! that the caller merely claims counts.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::AUTHORIZATION;
use mesh_common::spiffe::SpiffeId;
use tokio::time::Instant;
use tonic::Status;

use super::kubernetes::review::TokenReviewer;
use super::token::{Claimed, Pods, TokenError, TokenIdentity, TokenVerifier};
use crate::model::workload::Workload;

/// A caller, proven.
#[derive(Debug, Clone)]
pub enum Caller {
    /// By a token: one pod.
    Token(TokenIdentity),
    /// By a client certificate: any pod of an identity.
    Certificate(PeerCertificate),
}

/// A client certificate whose chain TLS has verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Its one URI name, of our trust domain.
    pub identity: SpiffeId,
    /// When it ends.
    pub not_after: SystemTime,
}

impl Caller {
    /// Whether this caller may speak for a pod.
    pub fn is(&self, pod: &Workload) -> bool {
        match self {
            Self::Token(token) => {
                token.pod.key == pod.key && token.pod.service_account == pod.service_account
            }
            Self::Certificate(certificate) => pod.identity.as_ref() == Some(&certificate.identity),
        }
    }

    /// When what proved it ends: nothing that it asked for may last longer.
    pub fn not_after(&self) -> SystemTime {
        match self {
            Self::Token(token) => token.not_after,
            Self::Certificate(certificate) => certificate.not_after,
        }
    }

    /// What proved it, in a word.
    pub fn credential(&self) -> &'static str {
        match self {
            Self::Token(_) => "token",
            Self::Certificate(_) => "certificate",
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(token) => token.fmt(f),
            Self::Certificate(certificate) => certificate.identity.fmt(f),
        }
    }
}

/// Why a caller is nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallerError {
    /// Neither token nor certificate.
    #[error(
        "the call carries no service-account token (authorization: Bearer ...) and no client certificate"
    )]
    Nothing,
    /// A signing request without token.
    #[error("signing requests need a service-account token (authorization: Bearer ...)")]
    NoToken,
    /// Another scheme, or not text.
    #[error("the authorization header is not \"Bearer <token>\", once")]
    Header,
    /// The token is not good.
    #[error(transparent)]
    Token(#[from] TokenError),
}

impl CallerError {
    /// What the client is told.
    pub(crate) fn status(&self, text: String) -> Status {
        match self {
            Self::Token(TokenError::TooOften) => Status::resource_exhausted(text),
            // The caller may be right: what could tell it does not answer now.
            Self::Token(error) if error.passes() => Status::unavailable(text),
            _ => Status::unauthenticated(text),
        }
    }
}

/// Who can say whose a token is.
pub enum Verifier {
    /// We ourselves: tokens of a standalone mesh.
    Signed(TokenVerifier),
    /// The API server.
    Reviewed(TokenReviewer),
}

impl From<TokenVerifier> for Verifier {
    fn from(verifier: TokenVerifier) -> Self {
        Self::Signed(verifier)
    }
}

impl From<TokenReviewer> for Verifier {
    fn from(reviewer: TokenReviewer) -> Self {
        Self::Reviewed(reviewer)
    }
}

/// How long a caller waits whose pod the API server knows and the model does not yet: watches are not that late.
const LAG: Duration = Duration::from_secs(3);
/// How often the model is looked at meanwhile.
const LAG_STEP: Duration = Duration::from_millis(20);

/// Proves callers.
#[derive(Clone)]
pub struct Authenticator {
    verifier: Arc<Verifier>,
    pods: Arc<dyn Pods>,
}

impl Authenticator {
    /// Tokens are verified against these pods.
    pub fn new(verifier: impl Into<Verifier>, pods: Arc<dyn Pods>) -> Self {
        Self { verifier: Arc::new(verifier.into()), pods }
    }

    /// The caller of a stream: its certificate once it has one, else its token.
    ///
    /// # Errors
    /// When it has neither, or a token that is not good.
    pub async fn stream(
        &self,
        headers: &http::HeaderMap,
        from: IpAddr,
        certificate: Option<PeerCertificate>,
    ) -> Result<Caller, CallerError> {
        match certificate {
            Some(certificate) => Ok(Caller::Certificate(certificate)),
            None if headers.contains_key(AUTHORIZATION) => self.token(headers, from).await.map(Caller::Token),
            None => Err(CallerError::Nothing),
        }
    }

    /// The caller of a signing request: its token, always, so that a deleted pod cannot renew. `from` is the address
    /// that asks.
    ///
    /// # Errors
    /// When there is none or it is not good.
    pub async fn token(&self, headers: &http::HeaderMap, from: IpAddr) -> Result<TokenIdentity, CallerError> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let first = values.next().ok_or(CallerError::NoToken)?;
        if values.next().is_some() {
            return Err(CallerError::Header);
        }
        let (scheme, token) =
            first.to_str().ok().and_then(|text| text.split_once(' ')).ok_or(CallerError::Header)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(CallerError::Header);
        }
        match &*self.verifier {
            Verifier::Signed(verifier) => Ok(verifier.verify(token.trim(), &*self.pods)?),
            Verifier::Reviewed(reviewer) => {
                let claimed = reviewer.review(token.trim(), from).await?;
                Ok(self.known(&claimed).await?)
            }
        }
    }

    /// The pod of a token that the API server has vouched for just now: it exists, so if the model does not have it,
    /// the model is late.
    async fn known(&self, claimed: &Claimed) -> Result<TokenIdentity, TokenError> {
        let patience = Instant::now() + LAG;
        loop {
            match claimed.bind(&*self.pods) {
                Err(error) if error.may_be_lag() && Instant::now() < patience => {
                    tokio::time::sleep(LAG_STEP).await;
                }
                Err(error) if error.may_be_lag() => {
                    tracing::warn!(%error, "the API server knows a pod that its watch has not told us");
                    let Claimed { namespace, pod, .. } = claimed.clone();
                    return Err(TokenError::NotYet { namespace, pod });
                }
                answer => return answer,
            }
        }
    }
}
