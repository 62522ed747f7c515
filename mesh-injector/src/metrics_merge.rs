//! Prometheus' annotations are pointed at the proxy, which serves the application's metrics together with its own: so
//! a scraper without a certificate of the mesh gets both. Annotations that are not clear stay as they are, with a
//! warning.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodSpec;
use serde_json::{Value, json};

use crate::names::{MERGED_PORT, METRICS_PATH, is_ours, is_reserved};

const SCRAPE: &str = "prometheus.io/scrape";
const PORT: &str = "prometheus.io/port";
const PATH: &str = "prometheus.io/path";
const SCHEME: &str = "prometheus.io/scheme";

/// What is done about a pod's metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Merged {
    /// What the proxy is told of the application's metrics.
    pub application: Option<Value>,
    /// Annotations to set.
    pub annotations: BTreeMap<&'static str, String>,
    /// What could not be merged, and why.
    pub warning: Option<String>,
}

/// Decides it. `kept` is what an earlier run noted of this pod.
pub fn merge(annotations: &BTreeMap<String, String>, spec: &PodSpec, kept: Option<&Value>) -> Merged {
    let get = |name: &str| annotations.get(name).map(|value| value.trim());
    let names = [SCRAPE, PORT, PATH, SCHEME];
    if get(SCRAPE) == Some("false") || !names.iter().any(|name| annotations.contains_key(*name)) {
        return Merged::default();
    }
    let own = MERGED_PORT.to_string();
    if get(PORT) == Some(&own) && get(PATH) == Some(METRICS_PATH) {
        return Merged { application: kept.cloned(), ..Merged::default() };
    }
    match target(&get, spec) {
        Ok(application) => {
            let mut wanted =
                BTreeMap::from([(SCRAPE, "true".to_owned()), (PORT, own), (PATH, METRICS_PATH.to_owned())]);
            if annotations.contains_key(SCHEME) {
                wanted.insert(SCHEME, "http".to_owned());
            }
            Merged { application: Some(application), annotations: wanted, warning: None }
        }
        Err(why) => Merged { warning: Some(format!("metrics are not merged: {why}")), ..Merged::default() },
    }
}

fn target<'a>(get: &impl Fn(&str) -> Option<&'a str>, spec: &PodSpec) -> Result<Value, String> {
    match get(SCRAPE) {
        None | Some("true") => {}
        Some(other) => return Err(format!("{SCRAPE} is {other:?}, neither \"true\" nor \"false\"")),
    }
    let port = match get(PORT) {
        Some(port) => port.parse::<u16>().ok().filter(|it| *it > 0).map(i64::from),
        None => Some(
            only_port(spec).ok_or(format!("the pod has not exactly one port; say which one by {PORT}"))?,
        ),
    };
    let port = port.ok_or(format!("{PORT} is no port"))?;
    if is_reserved(port) {
        return Err(format!("{PORT} {port} is a port of the mesh's proxy"));
    }
    let path = get(PATH).unwrap_or("/metrics");
    if !path.starts_with('/') {
        return Err(format!("{PATH} {path:?} does not begin with /"));
    }
    let scheme = get(SCHEME).unwrap_or("http");
    if !matches!(scheme, "http" | "https") {
        return Err(format!("{SCHEME} {scheme:?} is neither http nor https"));
    }
    Ok(json!({ "port": port, "path": path, "scheme": scheme }))
}

/// The port that can only be meant.
fn only_port(spec: &PodSpec) -> Option<i64> {
    let containers = spec.containers.iter().filter(|container| !is_ours(&container.name));
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let mut tcp = ports.filter(|port| port.protocol.as_deref().is_none_or(|it| it == "TCP"));
    match (tcp.next(), tcp.next()) {
        (Some(one), None) => Some(one.container_port.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> PodSpec {
        serde_json::from_value(json!({ "containers": [
            { "name": "mesh-proxy", "ports": [{ "containerPort": 15020 }] },
            { "name": "web", "ports": [{ "containerPort": 8080 }, { "containerPort": 53, "protocol": "UDP" }] },
        ] }))
        .unwrap()
    }

    fn merged(annotations: &[(&str, &str)]) -> Merged {
        let annotations = annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        merge(&annotations.collect(), &spec(), None)
    }

    #[test]
    fn the_one_port_of_the_application_is_meant() {
        let expected = json!({ "port": 8080, "path": "/metrics", "scheme": "http" });
        assert_eq!(merged(&[(SCRAPE, "true")]).application, Some(expected));
    }

    #[test]
    fn what_is_not_clear_stays_as_it_is() {
        for (annotations, words) in [
            (&[(SCRAPE, "yes")][..], "\"yes\", neither"),
            (&[(PORT, "0")], "is no port"),
            (&[(PORT, "65536")], "is no port"),
            (&[(PORT, "15090")], "15090 is a port of the mesh's proxy"),
            (&[(PATH, "metrics")], "\"metrics\" does not begin with /"),
            (&[(SCHEME, "ftp")], "\"ftp\" is neither"),
        ] {
            let Merged { application, annotations: changed, warning } = merged(annotations);
            assert!(application.is_none() && changed.is_empty(), "{annotations:?}");
            assert!(warning.as_ref().is_some_and(|it| it.contains(words)), "{annotations:?}: {warning:?}");
        }
    }
}
