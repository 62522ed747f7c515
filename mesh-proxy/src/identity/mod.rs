//! This workload's certificate: asked for, renewed, kept for the next start. The key never leaves the pod. A
//! certificate that works is never given up for one that does not come: it serves until its last second.

pub mod command;
mod folder;
mod keep;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::SystemTime;

use mesh_common::identity::schedule::{self, Next};
use mesh_common::identity::{IssueError, Progress, improves, issue};
use mesh_common::spiffe::SpiffeId;
use mesh_common::trust::WorkloadCertificate;

use crate::telemetry::ProxyMetrics;
use crate::tls::{TlsContext, TlsError};
use crate::xds::connect::Dial;

pub use keep::KeepError;

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
    /// None was issued that is good.
    #[error(transparent)]
    Issue(#[from] IssueError),
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
                report(&identity, &outcome, current.as_deref(), progress.failures());
            }
        }
    }
}

/// Failures without any certificate before it counts as an error.
const PATIENCE: u32 = 5;

async fn renew(identity: &Identity) -> Result<(), IdentityError> {
    let certificate = issue(&identity.id, &identity.dial).await?;
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
