//! MeshConfig, over the settings that hold without one.

use mesh_common::options;
use mesh_common::spiffe::{is_kubernetes_name, is_trust_domain};

use super::invalid;
use crate::api::InvalidObject;
use crate::api::mesh_config::{
    AccessLogEncoding as Encoding, MeshConfig, OutboundMode, OutboundTrafficPolicy as Policy,
};
use crate::model::{AccessLogEncoding, OutboundTrafficPolicy, Settings};

pub(super) fn settings(base: &Settings, config: &MeshConfig) -> Result<Settings, InvalidObject> {
    let MeshConfig {
        trust_domain,
        root_namespace,
        outbound_traffic_policy,
        access_log_file,
        access_log_encoding,
        protocol_detection_timeout,
        connect_timeout,
    } = config;
    let mut settings = base.clone();
    if let Some(domain) = trust_domain {
        if !is_trust_domain(domain) {
            let reason = format!("{domain:?} is not a trust domain; write it like cluster.local");
            return Err(invalid("/trustDomain", reason));
        }
        settings.trust_domain.clone_from(domain);
    }
    if let Some(namespace) = root_namespace {
        if !is_kubernetes_name(namespace) {
            return Err(invalid("/rootNamespace", format!("{namespace:?} is not the name of a namespace")));
        }
        settings.root_namespace.clone_from(namespace);
    }
    if let Some(Policy { mode: Some(mode) }) = outbound_traffic_policy {
        settings.outbound = match mode {
            OutboundMode::AllowAny => OutboundTrafficPolicy::AllowAny,
            OutboundMode::RegistryOnly => OutboundTrafficPolicy::RegistryOnly,
        };
    }
    let encoding = match access_log_encoding {
        Some(Encoding::Json) => AccessLogEncoding::Json,
        Some(Encoding::Text) | None => AccessLogEncoding::Text,
    };
    settings.access_log = match access_log_file.as_deref() {
        None => base.access_log.map(|known| access_log_encoding.map_or(known, |_| encoding)),
        Some("") => None,
        Some("/dev/stdout") => Some(encoding),
        Some(other) => {
            let reason = format!("{other:?} is not possible; write /dev/stdout, or leave it out");
            return Err(invalid("/accessLogFile", reason));
        }
    };
    if let Some(text) = protocol_detection_timeout {
        settings.detection_timeout_ms = millis("/protocolDetectionTimeout", text)?;
    }
    if let Some(text) = connect_timeout {
        settings.connect_timeout_ms = millis("/connectTimeout", text)?;
    }
    Ok(settings)
}

fn millis(pointer: &str, text: &str) -> Result<u64, InvalidObject> {
    let duration = options::duration(text).map_err(|reason| invalid(pointer, reason))?;
    u64::try_from(duration.as_millis()).map_err(|_| invalid(pointer, format!("{text} is too long")))
}
