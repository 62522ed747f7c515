//! Mesh-wide settings, with the field names of Istio's MeshConfig. There is one for the mesh.

use serde::{Deserialize, Serialize};

/// The settings as they are written; every field may be absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshConfig {
    /// The trust domain of identities: `cluster.local`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust_domain: Option<String>,
    /// The namespace of mesh-wide policies: `istio-system`, or here `mesh-system`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_namespace: Option<String>,
    /// What happens to destinations outside of the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    /// Where access logs go: empty (nowhere) or `/dev/stdout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_log_file: Option<String>,
    /// `TEXT` or `JSON`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_log_encoding: Option<AccessLogEncoding>,
    /// How long to wait for a client's first bytes: `5s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol_detection_timeout: Option<String>,
    /// How long a connection to an endpoint may take: `10s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<String>,
}

/// `outboundTrafficPolicy`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OutboundTrafficPolicy {
    /// `ALLOW_ANY` (the default) or `REGISTRY_ONLY`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<OutboundMode>,
}

/// `outboundTrafficPolicy.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundMode {
    /// They are dialled as they are.
    AllowAny,
    /// They are refused.
    RegistryOnly,
}

/// `accessLogEncoding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AccessLogEncoding {
    /// A line of text.
    Text,
    /// A JSON object.
    Json,
}
