//! The mesh's mutual TLS as a stock Envoy does it: key, chain and roots are files that `mesh-proxy certificate`
//! writes; Envoy takes them up again whenever they change. A key is never part of a resource.

use std::collections::BTreeSet;

use mesh_common::spiffe::SpiffeId;
use mesh_common::xds::names;
use mesh_common::xds::proto::config::core::v3::{
    ApiVersion, ConfigSource, PathConfigSource, TransportSocket, config_source,
};
use mesh_common::xds::proto::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
    SubjectAltNameMatcher, UpstreamTlsContext, common_tls_context, subject_alt_name_matcher::SanType,
};
use mesh_common::xds::proto::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};

use super::yes;
use crate::translate::proto::{pack, tls_parameters, transport_socket};

/// Toward endpoints that may have any of these identities, and no other.
pub(in crate::translate) fn upstream(
    folder: &str,
    sni: String,
    alpn: &str,
    identities: &BTreeSet<SpiffeId>,
    trust_domain: &str,
) -> TransportSocket {
    let mut peers: Vec<_> = identities.iter().map(|id| MatchPattern::Exact(id.as_str().to_owned())).collect();
    if peers.is_empty() {
        // No condition would mean anybody; this is nobody's name.
        peers.push(MatchPattern::Exact(format!("spiffe://{trust_domain}/")));
    }
    let context = UpstreamTlsContext {
        common_tls_context: Some(common(folder, alpn, peers)),
        sni,
        ..Default::default()
    };
    transport_socket("envoy.transport_sockets.tls", pack(&context))
}

/// From clients that are workloads of the mesh.
pub(in crate::translate) fn downstream(folder: &str, alpn: &str, trust_domain: &str) -> TransportSocket {
    let peers = vec![MatchPattern::Prefix(format!("spiffe://{trust_domain}/ns/"))];
    let context = DownstreamTlsContext {
        common_tls_context: Some(common(folder, alpn, peers)),
        require_client_certificate: yes(),
        ..Default::default()
    };
    transport_socket("envoy.transport_sockets.tls", pack(&context))
}

fn common(folder: &str, alpn: &str, peers: Vec<MatchPattern>) -> CommonTlsContext {
    let matcher = |pattern| SubjectAltNameMatcher {
        san_type: SanType::Uri as i32,
        matcher: Some(StringMatcher { match_pattern: Some(pattern), ignore_case: false }),
        ..Default::default()
    };
    let validation = common_tls_context::CombinedCertificateValidationContext {
        default_validation_context: Some(CertificateValidationContext {
            match_typed_subject_alt_names: peers.into_iter().map(matcher).collect(),
            ..Default::default()
        }),
        validation_context_sds_secret_config: Some(secret(
            folder,
            names::TRUST_BUNDLE,
            names::ENVOY_ROOTS_FILE,
        )),
        ..Default::default()
    };
    CommonTlsContext {
        tls_params: Some(tls_parameters()),
        tls_certificate_sds_secret_configs: vec![secret(
            folder,
            names::OWN_CERTIFICATE,
            names::ENVOY_CERTIFICATE_FILE,
        )],
        alpn_protocols: vec![alpn.to_owned()],
        validation_context_type: Some(common_tls_context::ValidationContextType::CombinedValidationContext(
            validation,
        )),
        ..Default::default()
    }
}

/// Only a secret is read again when its files change; so a file names the files.
fn secret(folder: &str, name: &str, file: &str) -> SdsSecretConfig {
    let path = PathConfigSource { path: format!("{folder}/{file}"), ..Default::default() };
    SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(ConfigSource {
            resource_api_version: ApiVersion::V3 as i32,
            config_source_specifier: Some(config_source::ConfigSourceSpecifier::PathConfigSource(path)),
            ..Default::default()
        }),
    }
}
