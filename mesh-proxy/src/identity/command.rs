//! `mesh-proxy certificate`: a certificate in files, for a data plane that is not ours. Once, or kept fresh.

use std::time::SystemTime;

use anyhow::Context as _;
use mesh_common::identity::schedule::{self, Next};
use mesh_common::identity::{Progress, issue};
use mesh_common::process::terminated;
use mesh_common::spiffe::SpiffeId;
use mesh_common::trust::{TrustBundle, WorkloadCertificate};

use super::folder;
use crate::options::CertificateOptions;
use crate::startup;
use crate::tls::TlsContext;
use crate::xds::{self, ControlAddress, ControlTls, Dial};

/// Asks for a certificate and writes it; with `--watch` again and again, until the process is told to stop.
///
/// # Errors
/// When there is none, or it cannot be written; with `--watch` only when the command line cannot be used.
pub async fn run(options: CertificateOptions) -> anyhow::Result<()> {
    let id = SpiffeId::new(&options.trust_domain, &options.namespace, &options.service_account)?;
    let tls = TlsContext::new();
    let mut files = Files { dial: dial(&options, &tls), tls, id, options, held: None };
    if !files.options.watch {
        files.roots()?;
        return files.renew().await;
    }
    tokio::select! {
        () = files.keep() => Ok(()),
        signal = terminated() => {
            tracing::info!(reason = signal?, "stopping; the files stay");
            Ok(())
        }
    }
}

/// What is in the folder, and how it is renewed.
struct Files {
    id: SpiffeId,
    options: CertificateOptions,
    tls: TlsContext,
    dial: Dial,
    held: Option<(WorkloadCertificate, TrustBundle)>,
}

impl Files {
    /// Keeps certificate and roots fresh, for ever.
    async fn keep(&mut self) {
        let mut progress = Progress::default();
        loop {
            if let Err(error) = self.follow_roots() {
                tracing::warn!(error = %format_args!("{error:#}"), "the roots in use stay");
            }
            let facts = self.held.as_ref().map(|(certificate, _)| &certificate.facts);
            match schedule::next(SystemTime::now(), facts, &progress.attempts()) {
                Next::Wait(wait) => tokio::time::sleep(wait).await,
                Next::Ask => {
                    let outcome = self.renew().await;
                    progress.note(outcome.is_ok());
                    if let Err(error) = outcome {
                        tracing::warn!(error = %format_args!("{error:#}"), "no new certificate; trying again");
                    }
                }
            }
        }
    }

    async fn renew(&mut self) -> anyhow::Result<()> {
        let certificate = issue(&self.id, &self.dial).await?;
        let roots = self.tls.bundle().context("there are no roots")?;
        self.write(certificate, TrustBundle::clone(&roots))
    }

    /// The roots are another's file, which may change at any time.
    fn follow_roots(&mut self) -> anyhow::Result<()> {
        self.roots()?;
        match (self.held.clone(), self.tls.bundle()) {
            (Some((certificate, written)), Some(roots)) if written != *roots => {
                self.write(certificate, TrustBundle::clone(&roots))
            }
            _ => Ok(()),
        }
    }

    fn roots(&self) -> anyhow::Result<()> {
        self.tls.set_bundle(startup::read_bundle(&self.options.trust_bundle)?);
        Ok(())
    }

    fn write(&mut self, certificate: WorkloadCertificate, roots: TrustBundle) -> anyhow::Result<()> {
        folder::write(&self.options.out, &certificate, &roots)
            .context("choose a folder that can be written with --out")?;
        tracing::info!(
            identity = %self.id, serial = certificate.facts.serial,
            folder = %self.options.out.display(), "certificate written"
        );
        self.held = Some((certificate, roots));
        Ok(())
    }
}

fn dial(options: &CertificateOptions, tls: &TlsContext) -> Dial {
    let control = ControlAddress {
        address: options.control.clone(),
        name: options.control_name.clone(),
        token_file: options.token_file.clone(),
    };
    let tls = tls.clone();
    // Always by the token: a deleted pod's certificate must not get it another one.
    xds::dial_tls(control, move || {
        Ok(ControlTls { config: tls.control_client_config()?, has_certificate: false })
    })
}
