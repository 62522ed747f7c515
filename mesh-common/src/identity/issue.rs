//! One signing request: a fresh key, a request that names us, the token as proof. The key must never be sent.

use std::sync::Arc;
use std::time::Duration;

use tonic::metadata::MetadataValue;

use super::IssueError;
use super::connect::{self, Dial};
use crate::ca::IstioCertificateRequest;
use crate::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use crate::spiffe::SpiffeId;
use crate::trust::{PrivateKey, WorkloadCertificate};

/// Limit of the whole exchange.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Asks for a certificate with a new key.
///
/// # Errors
/// When the certificate authority cannot be reached, refuses, or signs for somebody else.
pub async fn issue(id: &SpiffeId, dial: &Dial) -> Result<WorkloadCertificate, IssueError> {
    match tokio::time::timeout(TIMEOUT, exchange(id, dial)).await {
        Ok(result) => result,
        Err(_) => Err(IssueError::Timeout(TIMEOUT)),
    }
}

async fn exchange(id: &SpiffeId, dial: &Dial) -> Result<WorkloadCertificate, IssueError> {
    let key = PrivateKey::generate()?;
    // How long it is valid is the certificate authority's to say: 0 asks for nothing.
    let message = IstioCertificateRequest { csr: key.signing_request(id)?, ..Default::default() };
    let (channel, token) = connect::channel(Dial::clone(dial)).await?;
    let mut request = tonic::Request::new(message);
    if let Some(token) = token {
        let mut bearer: MetadataValue<_> =
            format!("Bearer {token}").parse().map_err(|_| IssueError::Token)?;
        bearer.set_sensitive(true);
        request.metadata_mut().insert("authorization", bearer);
    }
    let answer = IstioCertificateServiceClient::new(channel)
        .create_certificate(request)
        .await
        .map_err(|status| IssueError::Refused { code: status.code(), message: status.message().into() })?;
    assemble(id, &answer.into_inner().cert_chain, key)
}

/// A certificate with the key that was just made for it.
fn assemble(id: &SpiffeId, chain: &[String], key: PrivateKey) -> Result<WorkloadCertificate, IssueError> {
    let certificate = WorkloadCertificate::from_chain_pem(chain, Arc::new(key))?;
    if certificate.identity == *id {
        Ok(certificate)
    } else {
        Err(IssueError::OtherIdentity { asked: id.clone(), signed: certificate.identity })
    }
}
