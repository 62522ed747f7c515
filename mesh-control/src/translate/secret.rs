//! The trust bundle, and nothing else: a key is never a resource of this server.

use mesh_common::xds::names;
use mesh_common::xds::proto::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, secret,
};

use super::TranslateError;
use super::proto::inline;
use crate::model::facts::Facts;

/// `ROOTCA`.
///
/// # Errors
/// When there is no bundle: an empty one would tell every proxy to trust nobody.
pub(super) fn secret(name: &str, facts: &dyn Facts) -> Result<Option<Secret>, TranslateError> {
    if name != names::TRUST_BUNDLE {
        return Ok(None);
    }
    let bundle = facts.trust_bundle();
    if bundle.trim().is_empty() {
        return Err(TranslateError::NoTrustBundle);
    }
    let context = CertificateValidationContext {
        trusted_ca: Some(inline(bundle.as_str().to_owned())),
        ..Default::default()
    };
    Ok(Some(Secret { name: name.to_owned(), r#type: Some(secret::Type::ValidationContext(context)) }))
}
