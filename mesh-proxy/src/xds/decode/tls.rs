//! Transport sockets. There is one kind of TLS: the mesh's own, mutual, 1.3, with the workload's certificate
//! and the trust bundle. Anything else is refused, never weakened.

use mesh_common::xds::names::TRUST_BUNDLE;
use mesh_common::xds::proto::config::core::v3 as core;
use mesh_common::xds::proto::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use mesh_common::xds::proto::extensions::transport_sockets::tls::v3 as pb;
use prost::Name;
use rustls_pki_types::DnsName;

use super::errors::{Errors, take};
use crate::config::cluster::MeshTls;
use crate::config::listener::DownstreamTls;

/// The secret that stands for the workload's own certificate.
const WORKLOAD_CERTIFICATE: &str = "default";

/// The `Any` of a transport socket.
fn typed_config(
    errors: &mut Errors,
    message: core::TransportSocket,
) -> Option<mesh_common::xds::protobuf::Any> {
    let core::TransportSocket { name: _, config_type } = message;
    let core::transport_socket::ConfigType::TypedConfig(any) =
        errors.required("typed_config", config_type)?;
    Some(any)
}

/// The transport socket of a filter chain.
pub(super) fn downstream(errors: &mut Errors, message: core::TransportSocket) -> Option<DownstreamTls> {
    let any = typed_config(errors, message)?;
    errors.within("typed_config", |errors| {
        let message = errors.message(&any)?;
        downstream_context(errors, message)
    })
}

fn downstream_context(errors: &mut Errors, message: pb::DownstreamTlsContext) -> Option<DownstreamTls> {
    take!(errors, message => pb::DownstreamTlsContext {
        used: [common_tls_context, require_client_certificate],
        ignored: [],
        unset: [
            require_sni, disable_stateful_session_resumption, session_timeout, ocsp_staple_policy,
            full_scan_certs_on_sni_mismatch, prefer_client_ciphers, session_ticket_keys_type
        ],
    });
    if !require_client_certificate.is_some_and(|required| required.value) {
        errors.refuse_at::<()>("require_client_certificate", "it must be true: only mutual TLS is supported");
    }
    let common = errors.required("common_tls_context", common_tls_context)?;
    let alpn = errors.within("common_tls_context", |errors| common_context(errors, common))?;
    if alpn.is_empty() {
        return errors.refuse_at("common_tls_context.alpn_protocols", "at least one must be offered");
    }
    Some(DownstreamTls { alpn })
}

/// The transport socket of a cluster's endpoints; `None` inside for plaintext.
#[allow(clippy::option_option)] // outer: usable; inner: TLS or plaintext
pub(super) fn upstream(errors: &mut Errors, message: core::TransportSocket) -> Option<Option<MeshTls>> {
    let any = typed_config(errors, message)?;
    errors.within("typed_config", |errors| {
        if any.type_url == RawBuffer::type_url() {
            let RawBuffer {} = errors.message(&any)?;
            return Some(None);
        }
        let message = errors.message(&any)?;
        upstream_context(errors, message).map(Some)
    })
}

fn upstream_context(errors: &mut Errors, message: pb::UpstreamTlsContext) -> Option<MeshTls> {
    take!(errors, message => pb::UpstreamTlsContext {
        used: [common_tls_context, sni],
        ignored: [],
        unset: [
            auto_host_sni, auto_sni_san_validation, allow_renegotiation, max_session_keys,
            enforce_rsa_key_usage
        ],
    });
    let common = errors.required("common_tls_context", common_tls_context)?;
    // ALPN goes by what the connection carries, not by this list.
    errors.within("common_tls_context", |errors| common_context(errors, common))?;
    if DnsName::try_from(sni.as_str()).is_err() {
        return errors.refuse_at("sni", format_args!("{sni:?} is not a server name"));
    }
    Some(MeshTls { sni })
}

fn common_context(errors: &mut Errors, message: pb::CommonTlsContext) -> Option<Vec<String>> {
    take!(errors, message => pb::CommonTlsContext {
        used: [tls_params, tls_certificate_sds_secret_configs, alpn_protocols, validation_context_type],
        ignored: [],
        unset: [
            tls_certificates, tls_certificate_provider_instance, custom_tls_certificate_selector,
            tls_certificate_certificate_provider, tls_certificate_certificate_provider_instance,
            custom_handshaker, key_log
        ],
    });
    let params = errors.required("tls_params", tls_params)?;
    errors.within("tls_params", |errors| tls_1_3(errors, params));
    let certificates =
        errors.all("tls_certificate_sds_secret_configs", tls_certificate_sds_secret_configs, secret_name)?;
    if certificates != [WORKLOAD_CERTIFICATE] {
        errors.refuse_at::<()>(
            "tls_certificate_sds_secret_configs",
            format_args!("exactly the secret {WORKLOAD_CERTIFICATE:?} is supported"),
        );
    }
    match validation_context_type {
        Some(pb::common_tls_context::ValidationContextType::ValidationContextSdsSecretConfig(config)) => {
            errors.within("validation_context_sds_secret_config", |errors| {
                let name = secret_name(errors, config)?;
                if name == TRUST_BUNDLE {
                    return Some(());
                }
                errors.refuse_at("name", format_args!("it is {name:?}, not {TRUST_BUNDLE:?}"))
            })?;
        }
        _ => return errors.refuse_at("validation_context_sds_secret_config", "this field must be set"),
    }
    Some(alpn_protocols)
}

fn tls_1_3(errors: &mut Errors, message: pb::TlsParameters) {
    take!(errors, message => pb::TlsParameters {
        used: [tls_minimum_protocol_version, tls_maximum_protocol_version],
        ignored: [],
        unset: [cipher_suites, ecdh_curves, signature_algorithms, compliance_policies],
    });
    use pb::tls_parameters::TlsProtocol::{TlSv13, TlsAuto};
    if tls_minimum_protocol_version != TlSv13 as i32 {
        errors.refuse_at::<()>("tls_minimum_protocol_version", "it must be TLSv1_3");
    }
    if tls_maximum_protocol_version != TlSv13 as i32 && tls_maximum_protocol_version != TlsAuto as i32 {
        errors.refuse_at::<()>("tls_maximum_protocol_version", "it must be TLSv1_3");
    }
}

fn secret_name(errors: &mut Errors, message: pb::SdsSecretConfig) -> Option<String> {
    let pb::SdsSecretConfig { name, sds_config } = message;
    if let Some(source) = sds_config {
        errors.within("sds_config", |errors| ads(errors, source))?;
    }
    Some(name)
}

/// A configuration source, which must be the stream that this resource came on.
pub(super) fn ads(errors: &mut Errors, message: core::ConfigSource) -> Option<()> {
    take!(errors, message => core::ConfigSource {
        used: [config_source_specifier],
        ignored: [initial_fetch_timeout, resource_api_version],
        unset: [authorities],
    });
    match config_source_specifier {
        Some(core::config_source::ConfigSourceSpecifier::Ads(core::AggregatedConfigSource {})) => Some(()),
        _ => errors.refuse_at("ads", "only this source of configuration is supported"),
    }
}
