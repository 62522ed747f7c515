//! One signing request: a fresh key, a request that names us, the token as proof. The key must never be sent.

use std::time::Duration;

use mesh_common::ca::IstioCertificateRequest;
use mesh_common::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use mesh_common::spiffe::SpiffeId;
use mesh_common::trust::{PrivateKey, WorkloadCertificate};
use tonic::metadata::MetadataValue;

use super::{IdentityError, assemble};
use crate::xds::connect::{self, Dial};

/// Limit of the whole exchange.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Asks for a certificate with a new key.
pub(super) async fn issue(id: &SpiffeId, dial: &Dial) -> Result<WorkloadCertificate, IdentityError> {
    match tokio::time::timeout(TIMEOUT, exchange(id, dial)).await {
        Ok(result) => result,
        Err(_) => Err(IdentityError::Timeout(TIMEOUT)),
    }
}

async fn exchange(id: &SpiffeId, dial: &Dial) -> Result<WorkloadCertificate, IdentityError> {
    let key = PrivateKey::generate()?;
    // How long it is valid is the certificate authority's to say: 0 asks for nothing.
    let message = IstioCertificateRequest { csr: key.signing_request(id)?, ..Default::default() };
    let (channel, token) = connect::channel(Dial::clone(dial)).await?;
    let mut request = tonic::Request::new(message);
    if let Some(token) = token {
        let mut bearer: MetadataValue<_> =
            format!("Bearer {token}").parse().map_err(|_| IdentityError::Token)?;
        bearer.set_sensitive(true);
        request.metadata_mut().insert("authorization", bearer);
    }
    let answer = IstioCertificateServiceClient::new(channel)
        .create_certificate(request)
        .await
        .map_err(|status| IdentityError::Refused { code: status.code(), message: status.message().into() })?;
    assemble(id, &answer.into_inner().cert_chain, key)
}
