//! Probes and lifecycle handlers that dial the application are sent through the proxy, which dials it in the kubelet's
//! place: so they work whatever the policy asks of clients. Periods and thresholds stay. A probe must never be lost:
//! one that cannot be moved stays as it is, with a warning.

use http::{HeaderName, HeaderValue};
use serde_json::{Map, Value, json};

use crate::names::{MERGED_PORT, is_ours, is_reserved};

/// What the proxy is told: path to the original handler.
pub type Probes = Map<String, Value>;

/// Handlers that dial; `exec` and `sleep` do not.
const DIALLING: [&str; 3] = ["httpGet", "tcpSocket", "grpc"];
const PROBES: [(&str, &str); 3] =
    [("livenessProbe", "livez"), ("readinessProbe", "readyz"), ("startupProbe", "startupz")];
const HANDLERS: [(&str, &str); 2] = [("postStart", "poststart"), ("preStop", "prestop")];
/// The kubelet sets no limit to a postStart handler; the proxy has one.
const POST_START_SECONDS: i64 = 300;

/// Moves every probe and handler of the pod's own containers. `kept` is what an earlier run noted of this pod. Returns
/// what the proxy has to know of all of them, and warnings.
pub fn rewrite(pod: &mut Value, kept: &Probes) -> (Probes, Vec<String>) {
    let grace = pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(30);
    let mut moved = Moved { kept, probes: Probes::new(), warnings: Vec::new() };
    for list in ["/spec/initContainers", "/spec/containers"] {
        for container in pod.pointer_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            moved.container(container, grace);
        }
    }
    (moved.probes, moved.warnings)
}

struct Moved<'a> {
    kept: &'a Probes,
    probes: Probes,
    warnings: Vec<String>,
}

/// Where a handler goes, and what is said of it.
struct Place<'a> {
    container: &'a str,
    what: &'a str,
    path: String,
    seconds: i64,
}

impl Moved<'_> {
    fn container(&mut self, container: &mut Value, grace: i64) {
        let name = container["name"].as_str().unwrap_or_default().to_owned();
        if is_ours(&name) {
            return;
        }
        let ports = container.get("ports").cloned().unwrap_or_default();
        for (what, end) in PROBES {
            let Some(probe) = container.get_mut(what).and_then(Value::as_object_mut) else { continue };
            let seconds = probe.get("timeoutSeconds").and_then(Value::as_i64).unwrap_or(1);
            let path = format!("/app-health/{name}/{end}");
            self.handler(probe, &ports, &Place { container: &name, what, path, seconds });
        }
        for (what, end) in HANDLERS {
            let handler = container.get_mut("lifecycle").and_then(|it| it.get_mut(what));
            let Some(handler) = handler.and_then(Value::as_object_mut) else { continue };
            let seconds = if what == "preStop" { grace.max(1) } else { POST_START_SECONDS };
            let path = format!("/app-lifecycle/{name}/{end}");
            self.handler(handler, &ports, &Place { container: &name, what, path, seconds });
        }
    }

    fn handler(&mut self, holder: &mut Map<String, Value>, ports: &Value, place: &Place<'_>) {
        let Some(kind) = DIALLING.into_iter().find(|kind| holder.get(*kind).is_some_and(Value::is_object))
        else {
            return;
        };
        if kind == "httpGet" && holder[kind] == moved_to(&place.path) {
            match self.kept.get(&place.path).filter(|it| is_entry(it)) {
                Some(known) => _ = self.probes.insert(place.path.clone(), known.clone()),
                None => self.warn(place, "goes to the proxy already, but nothing says where it came from"),
            }
            return;
        }
        let mut original = holder[kind].clone();
        let Some(port) = number(&original["port"], ports) else {
            return self
                .warn(place, &format!("stays as it is: the container has no port {}", original["port"]));
        };
        if is_reserved(port) {
            return self.warn(place, &format!("stays as it is: {port} is a port of the mesh's proxy"));
        }
        if let Err(why) = carried(kind, &original) {
            return self.warn(place, &format!("stays as it is: {why}"));
        }
        original["port"] = json!(port);
        self.probes.insert(place.path.clone(), json!({ kind: original, "timeoutSeconds": place.seconds }));
        holder.remove(kind);
        holder.insert("httpGet".to_owned(), moved_to(&place.path));
    }

    fn warn(&mut self, place: &Place<'_>, why: &str) {
        self.warnings.push(format!("the {} of the container {} {why}", place.what, place.container));
    }
}

fn moved_to(path: &str) -> Value {
    json!({ "path": path, "port": MERGED_PORT, "scheme": "HTTP" })
}

/// A port as the kubelet finds it: by number, by name in the same container, or by a number written as text.
fn number(port: &Value, ports: &Value) -> Option<i64> {
    let name = match port {
        Value::Number(number) => return number.as_i64().filter(|it| (1..=65535).contains(it)),
        Value::String(name) => name,
        _ => return None,
    };
    let named = ports.as_array().into_iter().flatten().find(|it| it["name"] == name.as_str());
    let found = named.and_then(|it| it["containerPort"].as_i64()).or_else(|| name.parse().ok());
    found.filter(|it| (1..=65535).contains(it))
}

/// Whether the proxy can do what the handler says. It refuses to start with one that it does not know, and the pod
/// would never run.
fn carried(kind: &str, handler: &Value) -> Result<(), String> {
    let known: &[&str] = match kind {
        "httpGet" => &["path", "port", "host", "scheme", "httpHeaders"],
        "tcpSocket" => &["port", "host"],
        _ => &["port", "service"],
    };
    let mut fields = handler.as_object().into_iter().flatten();
    if let Some((field, _)) = fields.find(|(field, _)| !known.contains(&field.as_str())) {
        return Err(format!("the proxy knows no {kind}.{field}"));
    }
    let headers = handler.get("httpHeaders").and_then(Value::as_array).into_iter().flatten();
    for header in headers {
        let (name, value) = (header["name"].as_str().unwrap_or_default(), header["value"].as_str());
        let fits =
            HeaderName::try_from(name).is_ok() && value.is_some_and(|it| HeaderValue::try_from(it).is_ok());
        if !fits {
            return Err(format!("its header {name:?} is none that HTTP has"));
        }
    }
    Ok(())
}

fn is_entry(value: &Value) -> bool {
    DIALLING.iter().any(|kind| value.get(kind).is_some_and(Value::is_object))
}
