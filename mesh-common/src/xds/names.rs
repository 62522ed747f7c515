//! The grammar of resource names: what a listener or cluster name means. Both ends print and parse
//! names here only, so that they cannot disagree.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// The secret that holds the mesh's trust bundle.
pub const TRUST_BUNDLE: &str = "ROOTCA";
/// The secret that stands for a workload's own key and certificate. Its content never travels.
pub const OWN_CERTIFICATE: &str = "default";
/// In the folder that `mesh-proxy certificate` writes, Envoy's secret [`OWN_CERTIFICATE`]: it names the files.
pub const ENVOY_CERTIFICATE_FILE: &str = "envoy-certificate.json";
/// In the same folder, Envoy's secret [`TRUST_BUNDLE`].
pub const ENVOY_ROOTS_FILE: &str = "envoy-roots.json";
/// The cluster that dials the address the client asked for, in plaintext.
pub const PASSTHROUGH_CLUSTER: &str = "PassthroughCluster";
/// The cluster that refuses every connection.
pub const BLACK_HOLE_CLUSTER: &str = "BlackHoleCluster";
/// The filter chain of `virtualOutbound` whose prefix ranges are the mesh's own addresses.
pub const MESH_ADDRESSES_CHAIN: &str = "mesh-addresses";
/// ALPN between two sidecars: HTTP/1.1, HTTP/2, anything else.
pub const ALPN_HTTP1: &str = "istio-http/1.1";
/// See [`ALPN_HTTP1`].
pub const ALPN_HTTP2: &str = "istio-h2";
/// See [`ALPN_HTTP1`].
pub const ALPN_TCP: &str = "istio";
/// The audience of tokens for the mesh's CA and xDS server.
pub const TOKEN_AUDIENCE: &str = "mesh-ca";
/// The label, stamped at injection, that says an endpoint takes mutual TLS.
pub const TLS_MODE_LABEL: &str = "security.istio.io/tlsMode";

/// The name of a listener resource.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ListenerName {
    /// `inbound/<namespace>/<pod>`: everything a sidecar needs for its own pod.
    Inbound {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        pod: String,
    },
    /// `virtualOutbound`: the traffic policy and the ranges worth a look-up.
    VirtualOutbound,
    /// `10.96.3.4:80` or `[fd00::1]:80`: what this address means to this client.
    Address(SocketAddr),
    /// `host/<name>:<port>`: what this host means to this client.
    Host {
        /// As the client wrote it, lower case: a full name or one relative to the client's namespace.
        host: String,
        /// The port the client asked for.
        port: u16,
    },
}

/// A name that follows none of the forms.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a {1}")]
pub struct InvalidName(String, &'static str);

impl fmt::Display for ListenerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inbound { namespace, pod } => write!(f, "inbound/{namespace}/{pod}"),
            Self::VirtualOutbound => f.write_str("virtualOutbound"),
            Self::Address(address) => write!(f, "{address}"),
            Self::Host { host, port } => write!(f, "host/{host}:{port}"),
        }
    }
}

impl FromStr for ListenerName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidName(text.to_owned(), "listener");
        if text == "virtualOutbound" {
            return Ok(Self::VirtualOutbound);
        }
        if let Some(rest) = text.strip_prefix("inbound/") {
            return match rest.split_once('/') {
                Some((namespace, pod)) if !namespace.is_empty() && !pod.is_empty() && !pod.contains('/') => {
                    Ok(Self::Inbound { namespace: namespace.to_owned(), pod: pod.to_owned() })
                }
                _ => Err(invalid()),
            };
        }
        if let Some(rest) = text.strip_prefix("host/") {
            let (host, port) = rest.rsplit_once(':').ok_or_else(invalid)?;
            let port = parse_port(port).ok_or_else(invalid)?;
            if !is_host(host) {
                return Err(invalid());
            }
            return Ok(Self::Host { host: host.to_owned(), port });
        }
        text.parse().map(Self::Address).map_err(|_| invalid())
    }
}

/// The name of a cluster resource.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClusterName {
    /// `outbound|<port>|<subset>|<host>`.
    Outbound {
        /// The service's port, or the pod's own port for `<pod>.<namespace>.pod.<domain>`.
        port: u16,
        /// The subset, empty for the whole service.
        subset: String,
        /// The service's full name.
        host: String,
    },
    /// `inbound|<port>||`: the application beside the proxy.
    Inbound {
        /// The port the application listens on.
        port: u16,
    },
    /// `PassthroughCluster`.
    Passthrough,
    /// `BlackHoleCluster`.
    BlackHole,
}

impl ClusterName {
    /// The cluster of a whole service's port.
    pub fn outbound(port: u16, host: &str) -> Self {
        Self::Outbound { port, subset: String::new(), host: host.to_owned() }
    }

    /// The TLS server name under which sidecars dial this cluster, if they do:
    /// `outbound_.80_.v1_.reviews.default.svc.cluster.local`.
    pub fn sni(&self) -> Option<String> {
        match self {
            Self::Outbound { port, subset, host } => Some(format!("outbound_.{port}_.{subset}_.{host}")),
            Self::Inbound { .. } | Self::Passthrough | Self::BlackHole => None,
        }
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outbound { port, subset, host } => write!(f, "outbound|{port}|{subset}|{host}"),
            Self::Inbound { port } => write!(f, "inbound|{port}||"),
            Self::Passthrough => f.write_str(PASSTHROUGH_CLUSTER),
            Self::BlackHole => f.write_str(BLACK_HOLE_CLUSTER),
        }
    }
}

impl FromStr for ClusterName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidName(text.to_owned(), "cluster");
        match text {
            PASSTHROUGH_CLUSTER => return Ok(Self::Passthrough),
            BLACK_HOLE_CLUSTER => return Ok(Self::BlackHole),
            _ => {}
        }
        let parts: Vec<&str> = text.split('|').collect();
        match parts.as_slice() {
            ["outbound", port, subset, host] if is_host(host) => Ok(Self::Outbound {
                port: parse_port(port).ok_or_else(invalid)?,
                subset: (*subset).to_owned(),
                host: (*host).to_owned(),
            }),
            ["inbound", port, "", ""] => Ok(Self::Inbound { port: parse_port(port).ok_or_else(invalid)? }),
            _ => Err(invalid()),
        }
    }
}

/// The name of a service's route configuration: `<host>:<port>`.
pub fn route_name(host: &str, port: u16) -> String {
    format!("{host}:{port}")
}

/// Splits what [`route_name`] made.
///
/// # Errors
/// When the name has another form.
pub fn parse_route_name(text: &str) -> Result<(&str, u16), InvalidName> {
    let invalid = || InvalidName(text.to_owned(), "route configuration");
    let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
    if !is_host(host) {
        return Err(invalid());
    }
    Ok((host, parse_port(port).ok_or_else(invalid)?))
}

/// A port without sign, leading zeros or spaces: one spelling for one port.
fn parse_port(text: &str) -> Option<u16> {
    if text.starts_with('0') || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

fn is_host(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listener_names_print_as_parsed() {
        for text in [
            "inbound/shop/reviews-1",
            "virtualOutbound",
            "10.96.3.4:80",
            "[fd00::1]:80",
            "host/reviews.default.svc.cluster.local:80",
            "host/reviews:80",
        ] {
            assert_eq!(text.parse::<ListenerName>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "inbound/",
            "inbound/a",
            "inbound/a/b/c",
            "host/:80",
            "host/a:080",
            "host/A:80",
            "a:80",
            "host/a",
        ] {
            assert!(text.parse::<ListenerName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn cluster_names_print_as_parsed() {
        for text in [
            "outbound|80||reviews.default.svc.cluster.local",
            "outbound|80|v1|reviews.default.svc.cluster.local",
            "inbound|8080||",
            "PassthroughCluster",
            "BlackHoleCluster",
        ] {
            assert_eq!(text.parse::<ClusterName>().unwrap().to_string(), text);
        }
        for text in
            ["", "outbound|x||h", "outbound|80|h", "inbound|80|v1|", "outbound|80||", "outbound|+80||h"]
        {
            assert!(text.parse::<ClusterName>().is_err(), "{text:?}");
        }
    }
}
