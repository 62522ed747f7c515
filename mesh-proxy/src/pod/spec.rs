//! What the pod was made with: the application's probes, handlers and metrics, as the injector took them out of its
//! manifest. Parsed once, at the start; a field that is not known is refused by name.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue};
use serde::{Deserialize, Deserializer};

/// Pages of probes.
pub(super) const HEALTH: &str = "/app-health/";
/// Pages of lifecycle handlers.
pub(super) const LIFECYCLE: &str = "/app-lifecycle/";

/// Probes and handlers of the application, by the path at which kubelet asks for them.
#[derive(Debug, Clone, Default)]
pub struct AppProbes(Arc<BTreeMap<String, Probe>>);

impl AppProbes {
    /// Parses a JSON object: path to handler, as Kubernetes writes it, with numbers as ports. Empty text is none.
    ///
    /// # Errors
    /// With a sentence when it is something else.
    pub fn from_json(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let raw: BTreeMap<String, RawProbe> =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        let probes = raw.into_iter().map(|(path, raw)| {
            if !path.starts_with(HEALTH) && !path.starts_with(LIFECYCLE) {
                return Err(format!("{path:?} begins with neither {HEALTH} nor {LIFECYCLE}"));
            }
            let probe = raw.parse().map_err(|reason| format!("{path}: {reason}"))?;
            Ok((path, probe))
        });
        Ok(Self(Arc::new(probes.collect::<Result<_, _>>()?)))
    }

    pub(super) fn get(&self, path: &str) -> Option<&Probe> {
        self.0.get(path)
    }

    /// The longest that any of them may take.
    pub(super) fn longest(&self) -> Duration {
        self.0.values().map(|probe| probe.timeout).max().unwrap_or_default()
    }
}

/// One probe or handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Probe {
    pub(super) handler: Handler,
    pub(super) timeout: Duration,
}

/// What is asked of the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Handler {
    /// GET.
    Http(HttpGet),
    /// A connection.
    Tcp { host: Option<String>, port: u16 },
    /// `grpc.health.v1.Health/Check`.
    Grpc { port: u16, service: String },
}

/// A GET of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HttpGet {
    /// Where; the pod itself when it is not said.
    pub(super) host: Option<String>,
    pub(super) port: u16,
    pub(super) path: PathAndQuery,
    pub(super) tls: bool,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
}

/// Where the application serves its metrics.
#[derive(Debug, Clone)]
pub struct AppMetrics {
    pub(super) port: u16,
    pub(super) path: PathAndQuery,
    pub(super) tls: bool,
}

impl AppMetrics {
    /// Parses `{"port":8080,"path":"/metrics","scheme":"http"}`; path and scheme need not be said.
    ///
    /// # Errors
    /// With a sentence when it is something else.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let raw: RawMetrics = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let path = path(raw.path.as_deref().unwrap_or("/metrics"))?;
        Ok(Self { port: raw.port.get(), path, tls: raw.scheme == Scheme::Https })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawProbe {
    http_get: Option<RawHttpGet>,
    tcp_socket: Option<RawTcpSocket>,
    grpc: Option<RawGrpc>,
    timeout_seconds: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawHttpGet {
    path: Option<String>,
    port: NonZeroU16,
    host: Option<String>,
    #[serde(default)]
    scheme: Scheme,
    #[serde(default)]
    http_headers: Vec<RawHeader>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHeader {
    name: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTcpSocket {
    port: NonZeroU16,
    host: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGrpc {
    port: NonZeroU16,
    service: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMetrics {
    port: NonZeroU16,
    path: Option<String>,
    #[serde(default)]
    scheme: Scheme,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    #[default]
    Http,
    Https,
}

impl<'de> Deserialize<'de> for Scheme {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.to_ascii_lowercase().as_str() {
            "" | "http" => Ok(Self::Http),
            "https" => Ok(Self::Https),
            _ => Err(serde::de::Error::custom(format!("{text:?} is neither HTTP nor HTTPS"))),
        }
    }
}

impl RawProbe {
    fn parse(self) -> Result<Probe, String> {
        let Self { http_get, tcp_socket, grpc, timeout_seconds } = self;
        let handler = match (http_get, tcp_socket, grpc) {
            (Some(http), None, None) => Handler::Http(http.parse()?),
            (None, Some(RawTcpSocket { port, host }), None) => {
                Handler::Tcp { host: said(host), port: port.get() }
            }
            (None, None, Some(RawGrpc { port, service })) => {
                Handler::Grpc { port: port.get(), service: service.unwrap_or_default() }
            }
            _ => return Err("it must have exactly one of httpGet, tcpSocket and grpc".to_owned()),
        };
        // Kubernetes' own default.
        let seconds = timeout_seconds.filter(|seconds| *seconds > 0).unwrap_or(1);
        Ok(Probe { handler, timeout: Duration::from_secs(seconds.into()) })
    }
}

impl RawHttpGet {
    fn parse(self) -> Result<HttpGet, String> {
        let Self { path: text, port, host, scheme, http_headers } = self;
        let mut headers = Vec::new();
        for RawHeader { name, value } in http_headers {
            let bad = || format!("{name:?}: {value:?} is not a header");
            let parsed = (HeaderName::try_from(&name), HeaderValue::try_from(&value));
            let (Ok(name), Ok(value)) = parsed else { return Err(bad()) };
            headers.push((name, value));
        }
        let path = path(text.as_deref().unwrap_or("/"))?;
        Ok(HttpGet { host: said(host), port: port.get(), path, tls: scheme == Scheme::Https, headers })
    }
}

fn said(host: Option<String>) -> Option<String> {
    host.filter(|host| !host.is_empty())
}

/// A path with its query; what cannot stand in one is escaped, as kubelet does.
fn path(text: &str) -> Result<PathAndQuery, String> {
    const ESCAPED: &percent_encoding::AsciiSet =
        &percent_encoding::CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'#').add(b'`');
    let escaped = percent_encoding::utf8_percent_encode(text, ESCAPED).to_string();
    let slash = if escaped.starts_with('/') { escaped } else { format!("/{escaped}") };
    PathAndQuery::try_from(slash).map_err(|_| format!("{text:?} is not a path"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_as_kubernetes_writes_them() {
        let text = r#"{
            "/app-health/web/readyz": {"httpGet": {"path": "/ready?x=1", "port": 8080, "scheme": "HTTPS",
                "httpHeaders": [{"name": "A", "value": "b"}]}, "timeoutSeconds": 3},
            "/app-health/web/livez": {"tcpSocket": {"port": 9}},
            "/app-health/web/startupz": {"grpc": {"port": 7, "service": "shop"}, "timeoutSeconds": 0},
            "/app-lifecycle/web/prestop": {"httpGet": {"path": "bye bye", "port": 1, "host": "10.0.0.1"}}
        }"#;
        let probes = AppProbes::from_json(text).unwrap();
        let ready = probes.get("/app-health/web/readyz").unwrap();
        let Handler::Http(get) = &ready.handler else { panic!("{ready:?}") };
        assert_eq!((get.path.as_str(), get.port, get.tls, &get.host), ("/ready?x=1", 8080, true, &None));
        assert_eq!(get.headers, [(HeaderName::from_static("a"), HeaderValue::from_static("b"))]);
        assert_eq!((ready.timeout, probes.longest()), (Duration::from_secs(3), Duration::from_secs(3)));
        let live = probes.get("/app-health/web/livez").unwrap();
        assert_eq!(live.handler, Handler::Tcp { host: None, port: 9 });
        let started = probes.get("/app-health/web/startupz").unwrap();
        assert_eq!(started.handler, Handler::Grpc { port: 7, service: "shop".into() });
        assert_eq!(started.timeout, Duration::from_secs(1));
        let Handler::Http(bye) = &probes.get("/app-lifecycle/web/prestop").unwrap().handler else { panic!() };
        assert_eq!((bye.path.as_str(), bye.host.as_deref()), ("/bye%20bye", Some("10.0.0.1")));
        assert!(AppProbes::from_json(" ").unwrap().get("/app-health/web/readyz").is_none());
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        for (text, words) in [
            ("[]", "expected a map"),
            (r#"{"/metrics": {"tcpSocket": {"port": 1}}}"#, "/app-health/"),
            (r#"{"/app-health/a/livez": {}}"#, "exactly one"),
            (r#"{"/app-health/a/livez": {"tcpSocket": {"port": 1}, "grpc": {"port": 1}}}"#, "exactly one"),
            (r#"{"/app-health/a/livez": {"exec": {"command": []}}}"#, "exec"),
            (r#"{"/app-health/a/livez": {"tcpSocket": {"port": 1}, "periodSeconds": 1}}"#, "periodSeconds"),
            (r#"{"/app-health/a/livez": {"httpGet": {"port": 1, "http3": true}}}"#, "http3"),
            (r#"{"/app-health/a/livez": {"tcpSocket": {"port": 1, "tls": true}}}"#, "tls"),
            (r#"{"/app-health/a/livez": {"grpc": {"port": 1, "tls": true}}}"#, "tls"),
            (r#"{"/app-health/a/livez": {"tcpSocket": {"port": "http"}}}"#, "http"),
            (r#"{"/app-health/a/livez": {"tcpSocket": {"port": 0}}}"#, "nonzero"),
            (r#"{"/app-health/a/livez": {"httpGet": {"port": 1, "scheme": "FTP"}}}"#, "FTP"),
            (
                r#"{"/app-health/a/livez": {"httpGet": {"port": 1, "httpHeaders": [{"name": "a b", "value": ""}]}}}"#,
                "is not a header",
            ),
        ] {
            let error = AppProbes::from_json(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        for text in ["", "{}", r#"{"port":1,"scrape":true}"#, r#"{"port":1,"scheme":"x"}"#] {
            assert!(AppMetrics::from_json(text).is_err(), "{text}");
        }
        let metrics = AppMetrics::from_json(r#"{"port":8080}"#).unwrap();
        assert_eq!((metrics.port, metrics.path.as_str(), metrics.tls), (8080, "/metrics", false));
    }
}
