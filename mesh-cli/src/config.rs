//! `meshctl config`: what a proxy holds, from the proxy itself; or, for a pod's name, what mesh-control
//! says it sent there.

use std::net::SocketAddr;

use mesh_common::xds::ResourceType;
use serde_json::Value;

use crate::admin::{self, AdminError};
use crate::options::ConfigOptions;
use crate::output::{Output, Table, cell};
use crate::status::{names, pod_of, streams, types};

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The page could not be read.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// No stream has this name.
    #[error("no proxy {0:?} is connected; `meshctl status` lists them, or give the proxy's admin address")]
    Unknown(String),
}

/// Fetches and shows the configuration.
pub(crate) async fn run(options: &ConfigOptions, out: &mut Output) -> Result<(), ConfigError> {
    if let Ok(address) = options.proxy.parse::<SocketAddr>() {
        let page = admin::json(address, "/config_dump").await?;
        if out.is_json() {
            out.json(&page);
        } else {
            out.text(&dump(&page));
        }
        return Ok(());
    }
    let page = admin::json(options.control.control_admin, "/debug/streams").await?;
    let matches = |stream: &&Value| stream["node"] == options.proxy || pod_of(stream) == options.proxy;
    let stream =
        streams(&page).iter().find(matches).ok_or_else(|| ConfigError::Unknown(options.proxy.clone()))?;
    if out.is_json() {
        out.json(stream);
    } else {
        out.text(&sent(stream));
    }
    Ok(())
}

/// What the proxy holds by name and version, what it refused, and the endpoints of its clusters. The rest of
/// the page is for programs.
fn dump(page: &Value) -> String {
    let mut text = format!("{}, {}\n\n", cell(&page["node"]), connection(page));
    let mut table = Table::new(&["TYPE", "NAME", "VERSION", "STATE"]);
    let mut refusals = String::new();
    for kind in ResourceType::ALL.map(ResourceType::short) {
        for (name, held) in page[kind].as_object().into_iter().flatten() {
            let state = match (cell(&held["refused"]), &held["missing"]) {
                (reason, _) if !reason.is_empty() => format!("refused: {reason}"),
                (_, Value::Bool(true)) => "does not exist".to_owned(),
                _ => "in use".to_owned(),
            };
            table.row(vec![kind.to_owned(), name.clone(), cell(&held["version"]), state]);
        }
        let nack = cell(&page[format!("{kind}_last_nack")]);
        if !nack.is_empty() {
            refusals.push_str(&format!("\nlast refused {kind}: {nack}\n"));
        }
    }
    text.push_str(&table.render());
    text + &refusals + "\n" + &endpoints(page)
}

fn connection(page: &Value) -> String {
    match (&page["connected"], cell(&page["last_error"])) {
        (Value::Bool(true), _) => format!("connected since {}", cell(&page["connected_since"])),
        (_, error) if error.is_empty() => "not connected".to_owned(),
        (_, error) => format!("not connected: {error}"),
    }
}

fn endpoints(page: &Value) -> String {
    let mut table = Table::new(&["CLUSTER", "ENDPOINT", "HEALTH", "DIALLED"]);
    for cluster in page["clusters"].as_array().into_iter().flatten() {
        for endpoint in cluster["endpoints"].as_array().into_iter().flatten() {
            let field = |name: &str| cell(&endpoint[name]);
            let dialled = match (field("mutual_tls"), field("refused")) {
                (_, reason) if !reason.is_empty() => format!("refused: {reason}"),
                (identity, _) if identity.is_empty() => "in plaintext".to_owned(),
                (identity, _) => format!("mutual TLS, {identity}"),
            };
            table.row(vec![cell(&cluster["name"]), field("address"), field("health"), dialled]);
        }
    }
    table.render()
}

fn sent(stream: &Value) -> String {
    let mut table = Table::new(&["TYPE", "NAME", "SENT", "ACKED"]);
    for (kind, held) in types(stream) {
        for name in names(held) {
            table.row(vec![kind.clone(), cell(&name["name"]), cell(&name["sent"]), cell(&name["acked"])]);
        }
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_dump_says_what_is_in_use() {
        let text = dump(&json!({
            "node": "sidecar~1", "connected": false, "last_error": "refused",
            "cds": {
                "outbound|80||reviews": { "version": "1a", "missing": false, "refused": null },
                "outbound|80||ghost": { "version": null, "missing": true, "refused": null },
            },
            "cds_last_nack": "x: bad",
            "clusters": [{ "name": "outbound|80||reviews", "endpoints": [{ "address": "10.0.0.1:80" }] }],
        }));
        assert!(text.starts_with("sidecar~1, not connected: refused\n"), "{text}");
        assert!(text.contains("cds    outbound|80||reviews   1a        in use"), "{text}");
        assert!(text.contains("cds    outbound|80||ghost     -         does not exist"), "{text}");
        assert!(text.contains("last refused cds: x: bad"), "{text}");
        assert!(text.contains("outbound|80||reviews   10.0.0.1:80"), "{text}");
    }

    #[test]
    fn what_was_sent() {
        let text = sent(&json!({ "types": { "cds": { "names": [
            { "name": "a", "sent": "v2", "acked": "v1" },
            { "name": "b", "sent": null, "acked": null },
        ] } } }));
        assert_eq!(text, "TYPE   NAME   SENT   ACKED\ncds    a      v2     v1\ncds    b      -      -\n");
    }
}
