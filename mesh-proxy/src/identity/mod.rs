//! This workload's certificate: asked for, renewed, kept for the next start. The key never leaves the pod. A
//! certificate that works is never given up for one that does not come: it serves until its last second.

pub mod command;
mod folder;
mod issue;
mod keep;
pub mod schedule;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_common::spiffe::SpiffeId;
use mesh_common::trust::{CertificateFacts, TrustError, WorkloadCertificate};
use tokio::time::Instant;

use crate::telemetry::ProxyMetrics;
use crate::tls::{TlsContext, TlsError};
use crate::xds::connect::{ConnectError, Dial};

pub use keep::KeepError;

use schedule::Next;

/// What is needed to get certificates.
pub struct Identity {
    /// Who this workload is; a certificate for anybody else is refused.
    pub id: SpiffeId,
    /// How the certificate authority is dialled; the token must go along.
    pub dial: Dial,
    /// Where key and certificate are kept for the next start, if anywhere.
    pub dir: Option<PathBuf>,
    /// Where they are put to use.
    pub tls: TlsContext,
    /// Where the outcome is counted.
    pub metrics: ProxyMetrics,
}

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
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
    /// The certificate does not fit our key.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Puts the certificate of an earlier run to use, if it is still good. A broken or foreign one is left alone
/// with a warning: a new one will be asked for.
pub fn load_kept(identity: &Identity) {
    let Some(dir) = &identity.dir else { return };
    match keep::load(dir, &identity.id, SystemTime::now()) {
        Ok(Some(certificate)) => match put_to_use(identity, certificate) {
            Ok(()) => tracing::info!("certificate of an earlier run is in use"),
            Err(error) => tracing::warn!(%error, "the kept certificate cannot be used"),
        },
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "the kept certificate cannot be used"),
    }
}

/// Keeps the certificate fresh, for ever. The caller owns the task and may abort it at any time.
pub async fn run(identity: Identity) {
    let mut progress = Progress::default();
    loop {
        let current = identity.tls.certificate();
        let facts = current.as_deref().map(|certificate| &certificate.facts);
        match schedule::next(SystemTime::now(), facts, &progress.attempts()) {
            Next::Wait(wait) => tokio::time::sleep(wait).await,
            Next::Ask => {
                let outcome = renew(&identity).await;
                progress.note(outcome.is_ok());
                report(&identity, &outcome, current.as_deref(), progress.failures);
            }
        }
    }
}

/// Failures without any certificate before it counts as an error.
const PATIENCE: u32 = 5;

/// What happened so far, for the schedule.
#[derive(Debug)]
struct Progress {
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
    fn note(&mut self, success: bool) {
        self.failures = if success { 0 } else { self.failures.saturating_add(1) };
        self.last = Some(Instant::now());
        self.jitter = rand::random();
    }

    fn attempts(&self) -> schedule::Attempts {
        let since_last = self.last.map(|last| last.elapsed());
        schedule::Attempts { failures: self.failures, since_last, jitter: self.jitter }
    }
}

async fn renew(identity: &Identity) -> Result<(), IdentityError> {
    let certificate = issue::issue(&identity.id, &identity.dial).await?;
    let present = identity.tls.certificate();
    improves(SystemTime::now(), &certificate.facts, present.as_deref().map(|present| &present.facts))?;
    // First: it refuses what cannot be used, and then the kept one must stay.
    put_to_use(identity, certificate.clone())?;
    if let Some(dir) = &identity.dir {
        // Without the file this process still works; only the next start depends on the control plane.
        if let Err(error) = keep::save(dir, &certificate) {
            tracing::warn!(%error, "the certificate cannot be kept for the next start");
        }
    }
    Ok(())
}

/// Whether a new certificate is better than the present one: one that is good is never given up for one that
/// is not.
fn improves(
    now: SystemTime,
    new: &CertificateFacts,
    present: Option<&CertificateFacts>,
) -> Result<(), IdentityError> {
    let is_good = |it: &CertificateFacts| it.not_before <= now && now < it.not_after;
    if let Ok(ago) = now.duration_since(new.not_after) {
        return Err(IdentityError::Expired(ago));
    }
    match new.not_before.duration_since(now) {
        // Without any, one that peers whose clocks are ahead may take is better than none.
        Ok(ahead) if !ahead.is_zero() && present.is_some_and(is_good) => {
            Err(IdentityError::NotYetValid(ahead))
        }
        _ => Ok(()),
    }
}

fn put_to_use(identity: &Identity, certificate: WorkloadCertificate) -> Result<(), TlsError> {
    let not_after = certificate.facts.not_after;
    identity.tls.set_certificate(certificate)?;
    identity.metrics.certificate_expiry(not_after);
    Ok(())
}

fn report(
    identity: &Identity,
    outcome: &Result<(), IdentityError>,
    before: Option<&WorkloadCertificate>,
    failures: u32,
) {
    match outcome {
        Ok(()) => {
            identity.metrics.certificate_renewal("success");
            let serial = identity.tls.certificate().map(|it| it.facts.serial.clone());
            tracing::info!(identity = %identity.id, serial, "certificate issued");
        }
        Err(error) => {
            identity.metrics.certificate_renewal("failure");
            let left = before.and_then(|it| it.facts.not_after.duration_since(SystemTime::now()).ok());
            match left {
                Some(left) => tracing::warn!(
                    %error, failures, seconds_left = left.as_secs(),
                    "certificate cannot be renewed; the present one stays in use"
                ),
                // At first the control plane may just be starting, too.
                None if failures <= PATIENCE => {
                    tracing::warn!(%error, failures, "no certificate yet");
                }
                None => tracing::error!(%error, failures, "no valid certificate; mutual TLS is not possible"),
            }
        }
    }
}

/// A certificate with the key that was just made for it.
fn assemble(
    id: &SpiffeId,
    chain: &[String],
    key: mesh_common::trust::PrivateKey,
) -> Result<WorkloadCertificate, IdentityError> {
    let certificate = WorkloadCertificate::from_chain_pem(chain, Arc::new(key))?;
    if certificate.identity == *id {
        Ok(certificate)
    } else {
        Err(IdentityError::OtherIdentity { asked: id.clone(), signed: certificate.identity })
    }
}
