//! The trust bundle. A secret that carries a key is refused: keys never travel.

use mesh_common::trust::TrustBundle;
use mesh_common::xds::names::TRUST_BUNDLE;
use mesh_common::xds::proto::config::core::v3::{DataSource, data_source::Specifier};
use mesh_common::xds::proto::extensions::transport_sockets::tls::v3 as pb;

use super::errors::{Errors, take};

/// The trust bundle in a secret.
pub(super) fn bundle(errors: &mut Errors, name: &str, message: pb::Secret) -> Option<TrustBundle> {
    take!(errors, message => pb::Secret {
        used: [r#type],
        ignored: [name],
        unset: [],
    });
    if name != TRUST_BUNDLE {
        return errors.refuse(format_args!("only the secret {TRUST_BUNDLE} is supported"));
    }
    match r#type {
        Some(pb::secret::Type::ValidationContext(context)) => {
            errors.within("validation_context", |errors| validation_context(errors, context))
        }
        Some(_) => errors.refuse("only a validation_context is supported"),
        None => errors.refuse_at("validation_context", "this field must be set"),
    }
}

fn validation_context(errors: &mut Errors, message: pb::CertificateValidationContext) -> Option<TrustBundle> {
    take!(errors, message => pb::CertificateValidationContext {
        used: [trusted_ca],
        ignored: [],
        unset: [
            ca_certificate_provider_instance, system_root_certs, watched_directory, verify_certificate_spki,
            verify_certificate_hash, match_typed_subject_alt_names, match_subject_alt_names,
            require_signed_certificate_timestamp, crl, allow_expired_certificate, trust_chain_verification,
            custom_validator_config, only_verify_leaf_cert_crl, max_verify_depth, suppress_client_ca_list
        ],
    });
    let source = errors.required("trusted_ca", trusted_ca)?;
    errors.within("trusted_ca", |errors| {
        let pem = inline(errors, source)?;
        errors.check("inline_string", TrustBundle::from_pem(&pem))
    })
}

/// The text of an inline data source.
pub(super) fn inline(errors: &mut Errors, message: DataSource) -> Option<String> {
    take!(errors, message => DataSource {
        used: [specifier],
        ignored: [],
        unset: [watched_directory],
    });
    match specifier {
        Some(Specifier::InlineString(text)) => Some(text),
        Some(Specifier::InlineBytes(bytes)) => {
            errors.check("inline_bytes", String::from_utf8(bytes).map_err(|_| "it is not UTF-8"))
        }
        Some(Specifier::Filename(_) | Specifier::EnvironmentVariable(_)) => {
            errors.refuse("only inline_string and inline_bytes are supported")
        }
        None => Some(String::new()),
    }
}
