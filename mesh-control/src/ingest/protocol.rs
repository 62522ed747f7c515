//! What is spoken on a port, as far as its declaration tells: `appProtocol`, the port's name, or a well-known
//! number, read as Istio reads them.

use crate::model::service::Protocol;

/// SMTP, DNS, MySQL and MongoDB: servers speak first or clients speak something that looks like nothing, and
/// nobody runs HTTP there.
const OPAQUE_PORTS: [u16; 4] = [25, 53, 3306, 27017];

pub(super) fn declared(app_protocol: Option<&str>, name: &str, port: u16) -> Protocol {
    match app_protocol {
        Some("kubernetes.io/h2c") => return Protocol::Http2,
        Some("kubernetes.io/ws") => return Protocol::Http,
        Some("kubernetes.io/wss") => return Protocol::Tcp,
        _ => {}
    }
    let name = app_protocol.filter(|text| !text.is_empty()).unwrap_or(name).to_ascii_lowercase();
    if name.starts_with("grpc-web") {
        return Protocol::Http2;
    }
    match name.split('-').next().unwrap_or_default() {
        "http" => Protocol::Http,
        "http2" | "grpc" => Protocol::Http2,
        "https" | "tls" | "tcp" | "mongo" | "redis" | "mysql" => Protocol::Tcp,
        _ if OPAQUE_PORTS.contains(&port) => Protocol::Tcp,
        _ => Protocol::Detect,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_istio_reads_them() {
        let cases = [
            (None, "", 80, Protocol::Detect),
            (None, "web", 80, Protocol::Detect),
            (None, "http", 80, Protocol::Http),
            (None, "HTTP-admin", 80, Protocol::Http),
            (None, "httpx", 80, Protocol::Detect),
            (None, "http2-a", 80, Protocol::Http2),
            (None, "grpc", 80, Protocol::Http2),
            (None, "grpc-web-ui", 80, Protocol::Http2),
            (None, "https", 443, Protocol::Tcp),
            (None, "tls-x", 443, Protocol::Tcp),
            (None, "redis", 6379, Protocol::Tcp),
            (None, "db", 3306, Protocol::Tcp),
            (None, "http", 3306, Protocol::Http),
            (Some("http"), "tcp", 80, Protocol::Http),
            (Some("kubernetes.io/h2c"), "http", 80, Protocol::Http2),
            (Some("kubernetes.io/ws"), "tcp", 80, Protocol::Http),
            (Some("kubernetes.io/wss"), "http", 80, Protocol::Tcp),
            (Some("example.com/own"), "http", 80, Protocol::Detect),
        ];
        for (app, name, port, expected) in cases {
            assert_eq!(declared(app, name, port), expected, "{app:?} {name:?} {port}");
        }
    }
}
