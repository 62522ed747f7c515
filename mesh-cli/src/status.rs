//! `meshctl status`: who is connected to mesh-control, what each holds, and whether it took it.

use serde_json::Value;

use crate::admin::{self, AdminError};
use crate::options::ControlOptions;
use crate::output::{Output, Table, cell};

/// Fetches and shows the streams.
pub(crate) async fn run(options: &ControlOptions, out: &mut Output) -> Result<(), AdminError> {
    let page = admin::json(options.control_admin, "/debug/streams").await?;
    if out.is_json() {
        out.json(&page);
    } else {
        out.text(&table(&page));
    }
    Ok(())
}

/// The streams of the page.
pub(crate) fn streams(page: &Value) -> &[Value] {
    page.as_array().map_or(&[], Vec::as_slice)
}

/// What a stream holds, by the type's short name.
pub(crate) fn types(stream: &Value) -> impl Iterator<Item = (&String, &Value)> {
    stream["types"].as_object().into_iter().flatten()
}

/// The names that a stream asked for of one type, each with the versions sent and acknowledged.
pub(crate) fn names(held: &Value) -> &[Value] {
    held["names"].as_array().map_or(&[], Vec::as_slice)
}

/// `web-1.shop`.
pub(crate) fn pod_of(stream: &Value) -> String {
    format!("{}.{}", cell(&stream["pod"]), cell(&stream["namespace"]))
}

fn table(page: &Value) -> String {
    let streams = streams(page);
    if streams.is_empty() {
        return "No proxy is connected.\n".to_owned();
    }
    let mut table = Table::new(&["PROXY", "CALLER", "SINCE", "HOLDS", "STATE"]);
    let mut refusals = String::new();
    for stream in streams {
        let pod = pod_of(stream);
        let (mut holds, mut behind, mut refused) = (Vec::new(), 0, Vec::new());
        for (kind, held) in types(stream) {
            let names = names(held);
            holds.push(format!("{} {kind}", names.len()));
            behind += names.iter().filter(|name| name["sent"] != name["acked"]).count();
            let nack = cell(&held["lastNack"]);
            if !nack.is_empty() {
                refused.push(kind.as_str());
                refusals.push_str(&format!("\n{pod} refused {kind}: {nack}\n"));
            }
        }
        let state = match (refused.as_slice(), behind) {
            ([], 0) => "ACK".to_owned(),
            ([], behind) => format!("{behind} sent, not answered yet"),
            (refused, _) => format!("NACK {}", refused.join(", ")),
        };
        let since = cell(&stream["since"]);
        table.row(vec![pod, cell(&stream["caller"]), since, holds.join(", "), state]);
    }
    table.render() + &refusals
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_refusal_is_seen() {
        let stream = |nack: Value| {
            json!([{
                "node": "sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local",
                "pod": "web-1",
                "namespace": "shop",
                "caller": "spiffe://cluster.local/ns/shop/sa/web",
                "since": "2026-11-23T06:00:00Z",
                "types": {
                    "cds": { "names": [{ "name": "a", "sent": "1", "acked": "1" },
                                       { "name": "b", "sent": null, "acked": null }], "lastNack": null },
                    "lds": { "names": [{ "name": "c", "sent": "2", "acked": null }], "lastNack": nack },
                },
            }])
        };
        let text = table(&stream(json!("c: filter x is unknown")));
        assert!(text.contains("web-1.shop   spiffe://cluster.local/ns/shop/sa/web"), "{text}");
        assert!(text.contains("2 cds, 1 lds   NACK lds"), "{text}");
        assert!(text.ends_with("web-1.shop refused lds: c: filter x is unknown\n"), "{text}");
        let text = table(&stream(Value::Null));
        assert!(text.contains("1 sent, not answered yet"), "{text}");
        assert_eq!(table(&json!([])), "No proxy is connected.\n");
    }
}
