//! The webhook's certificate: from mesh-control, as any workload's, with the Service's DNS name; renewed at half life
//! and shown to the next connection, without a restart. A certificate that works is never given up for one that does
//! not come.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use mesh_common::identity::connect::Dial;
use mesh_common::identity::schedule::{self, Next};
use mesh_common::identity::{IssueError, Progress, improves, issue};
use mesh_common::process::Condition;
use mesh_common::spiffe::SpiffeId;
use mesh_common::trust::{self, CertificateFacts, WorkloadCertificate};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::metrics::Metrics;

/// Failures without any certificate before it counts as an error: at first mesh-control may just be starting, too.
const PATIENCE: u32 = 5;

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// None was issued that is good.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// It lacks the name that the API server calls.
    #[error(
        "the certificate has the names {names:?}, not {wanted}, by which the API server calls; do mesh-control and \
         mesh-injector have the same --namespace, and does this pod run as the service account mesh-injector?"
    )]
    Name {
        /// The name of the Service.
        wanted: String,
        /// Those in the certificate.
        names: Vec<String>,
    },
    /// The key does not fit.
    #[error("the certificate cannot be used: {0}")]
    Key(#[from] rustls::Error),
}

/// What the webhook shows to the API server.
#[derive(Debug, Default)]
pub struct ServingCertificate {
    current: ArcSwapOption<CertifiedKey>,
    facts: ArcSwapOption<CertificateFacts>,
}

impl ServingCertificate {
    /// New connections are shown this one.
    ///
    /// # Errors
    /// When the key does not fit; the old one stays.
    pub fn set(&self, certificate: &WorkloadCertificate) -> Result<(), rustls::Error> {
        let chain = certificate.chain.clone();
        let key = CertifiedKey::from_der(chain, certificate.key.to_der(), &trust::provider())?;
        self.current.store(Some(Arc::new(key)));
        self.facts.store(Some(Arc::new(certificate.facts.clone())));
        Ok(())
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.load_full()
    }
}

/// How the webhook speaks TLS: 1.2 too, for the sake of old API servers.
///
/// # Errors
/// When the provider lacks what these versions need.
pub fn server_config(certificate: Arc<ServingCertificate>) -> Result<rustls::ServerConfig, rustls::Error> {
    let mut config = rustls::ServerConfig::builder_with_provider(trust::provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // A resumed session would hide a renewed certificate for as long as its ticket lives.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// What keeping the certificate takes.
pub struct Keeper {
    /// Who this webhook is.
    pub id: SpiffeId,
    /// The DNS name by which the API server calls.
    pub name: String,
    /// The way to mesh-control; the token must go along.
    pub dial: Dial,
    /// Where it is put to use.
    pub serving: Arc<ServingCertificate>,
    /// Where the outcome is counted.
    pub metrics: Metrics,
}

impl Keeper {
    /// Keeps the certificate fresh, for ever. `first` is met once there is one.
    pub async fn run(self, first: Condition) {
        let mut progress = Progress::default();
        loop {
            let present = self.serving.facts.load_full();
            match schedule::next(SystemTime::now(), present.as_deref(), &progress.attempts()) {
                Next::Wait(wait) => tokio::time::sleep(wait).await,
                Next::Ask => {
                    let outcome = self.renew(present.as_deref()).await;
                    progress.note(outcome.is_ok());
                    self.report(outcome, present.as_deref(), progress.failures(), &first);
                }
            }
        }
    }

    async fn renew(
        &self,
        present: Option<&CertificateFacts>,
    ) -> Result<WorkloadCertificate, CertificateError> {
        let certificate = issue(&self.id, &self.dial).await?;
        improves(SystemTime::now(), &certificate.facts, present)?;
        if !certificate.facts.dns.contains(&self.name) {
            let names = certificate.facts.dns;
            return Err(CertificateError::Name { wanted: self.name.clone(), names });
        }
        self.serving.set(&certificate)?;
        Ok(certificate)
    }

    fn report(
        &self,
        outcome: Result<WorkloadCertificate, CertificateError>,
        before: Option<&CertificateFacts>,
        failures: u32,
        first: &Condition,
    ) {
        match outcome {
            Ok(certificate) => {
                first.met();
                self.metrics.renewal("success");
                self.metrics.certificate_expiry(certificate.facts.not_after);
                tracing::info!(identity = %self.id, serial = certificate.facts.serial, "certificate issued");
            }
            Err(error) => {
                self.metrics.renewal("failure");
                if before.is_some() {
                    tracing::warn!(%error, failures, "certificate cannot be renewed; the present one stays in use");
                } else if failures <= PATIENCE {
                    tracing::warn!(%error, failures, "no certificate yet");
                } else {
                    tracing::error!(%error, failures, "no certificate; the API server cannot call");
                }
            }
        }
    }
}
