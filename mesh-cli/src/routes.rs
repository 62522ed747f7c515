//! `meshctl routes`: the conditions of each object that has some, for each of its parents, as mesh-control computed them.

use serde_json::Value;

use crate::admin::{self, AdminError};
use crate::options::ControlOptions;
use crate::output::{Output, Table, cell};

/// Fetches and shows the routes, and what of the manifests could not be read.
pub(crate) async fn run(options: &ControlOptions, out: &mut Output) -> Result<(), AdminError> {
    let page = admin::json(options.control_admin, "/debug/routes").await?;
    if out.is_json() {
        out.json(&page);
        return Ok(());
    }
    let errors = admin::json(options.control_admin, "/debug/config-errors").await?;
    out.text(&(table(&page) + &complaints(&errors)));
    Ok(())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn table(page: &Value) -> String {
    let objects = list(page);
    if objects.is_empty() {
        return "There is no HTTPRoute.\n".to_owned();
    }
    let mut table = Table::new(&["OBJECT", "PARENT", "CONDITION", "STATUS", "REASON", "MESSAGE"]);
    for object in objects {
        let name =
            format!("{} {}/{}", cell(&object["kind"]), cell(&object["namespace"]), cell(&object["name"]));
        for parent in list(&object["parents"]) {
            for condition in list(&parent["conditions"]) {
                table.row(vec![
                    name.clone(),
                    cell(&parent["parent"]),
                    cell(&condition["type"]),
                    if condition["status"] == true { "True" } else { "False" }.to_owned(),
                    cell(&condition["reason"]),
                    cell(&condition["message"]),
                ]);
            }
        }
    }
    table.render()
}

fn complaints(page: &Value) -> String {
    let mut text = String::new();
    for error in list(page) {
        let at = match cell(&error["line"]) {
            line if line.is_empty() => cell(&error["file"]),
            line => format!("{}:{line}", cell(&error["file"])),
        };
        text.push_str(&format!("\n{at}: {}\n", cell(&error["reason"])));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn conditions_and_complaints() {
        let page = json!([{
            "kind": "HTTPRoute", "namespace": "shop", "name": "split",
            "parents": [{
                "parent": "Service shop/reviews:80",
                "conditions": [{ "type": "Accepted", "status": true, "reason": "Accepted", "message": "" }],
            }],
        }]);
        let text = table(&page);
        let row = "HTTPRoute shop/split   Service shop/reviews:80   Accepted    True     Accepted   -";
        assert!(text.contains(row), "{text}");
        let errors = json!([{ "file": "a.yaml", "line": 3, "reason": "unknown field x" }]);
        assert_eq!(complaints(&errors), "\na.yaml:3: unknown field x\n");
        assert_eq!(table(&json!([])), "There is no HTTPRoute.\n");
    }
}
