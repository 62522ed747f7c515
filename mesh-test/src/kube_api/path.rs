//! What a request is about: resource, namespace, name, verb. Pure.

use http::request::Parts;
use serde_json::{Value, json};

/// What a request is about.
#[derive(Debug, Clone, Default)]
pub(super) struct Target {
    /// `v1`, `gateway.networking.k8s.io/v1`.
    pub(super) api_version: String,
    /// `configmaps`.
    pub(super) plural: String,
    /// Empty: of all namespaces, or of none.
    pub(super) namespace: String,
    /// Empty: all of them.
    pub(super) name: String,
    /// `status`, or empty.
    pub(super) subresource: String,
    /// As RBAC calls it.
    pub(super) verb: &'static str,
    pub(super) watch: bool,
    pub(super) from_version: u64,
    /// The watch begins with everything that is there.
    pub(super) initial: bool,
    /// The watch ends after this.
    pub(super) seconds: u64,
    /// Objects of one page of a list; 0: all.
    pub(super) limit: usize,
    /// Objects on the pages before.
    pub(super) skip: usize,
    /// `metadata.name=...` of the field selector.
    pub(super) only_name: Option<String>,
    /// `key=value` pairs of the label selector.
    pub(super) labels: Vec<(String, String)>,
    /// Only the metadata is asked for.
    pub(super) metadata_only: bool,
    /// The patch is a strategic merge: lists are merged by name.
    pub(super) strategic: bool,
}

impl Target {
    /// As RBAC writes it: `httproutes/status`.
    pub(super) fn resource(&self) -> String {
        if self.subresource.is_empty() {
            self.plural.clone()
        } else {
            format!("{}/{}", self.plural, self.subresource)
        }
    }

    /// Whether an object is among those that a list or watch is about.
    pub(super) fn wants(&self, plural: &str, namespace: &str, name: &str, object: &Value) -> bool {
        let labelled = |(key, value): &(String, String)| object["metadata"]["labels"][key] == json!(value);
        self.plural == plural
            && (self.namespace.is_empty() || self.namespace == namespace)
            && self.only_name.as_deref().is_none_or(|wanted| wanted == name)
            && self.labels.iter().all(labelled)
    }

    /// An object or a list in the form that was asked for.
    pub(super) fn shaped(&self, object: Value) -> Value {
        if !self.metadata_only {
            return object;
        }
        let partial = |object: &Value| json!({ "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": object["metadata"] });
        match object["items"].as_array() {
            Some(items) => json!({
                "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList",
                "metadata": object["metadata"], "items": items.iter().map(partial).collect::<Value>(),
            }),
            None => partial(&object),
        }
    }
}

/// Takes a request apart; `None` when its path is not one of objects.
pub(super) fn parse(parts: &Parts) -> Option<Target> {
    let segments: Vec<&str> = parts.uri.path().split('/').filter(|segment| !segment.is_empty()).collect();
    let (api_version, rest) = match segments.as_slice() {
        ["api", version, rest @ ..] => ((*version).to_owned(), rest),
        ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
        _ => return None,
    };
    let mut target = Target { api_version, ..Target::default() };
    let rest = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => {
            target.namespace = (*namespace).to_owned();
            rest
        }
        rest => rest,
    };
    let text = |index: usize| rest.get(index).map(|text| (*text).to_owned()).unwrap_or_default();
    (target.plural, target.name, target.subresource) = (text(0), text(1), text(2));
    if target.plural.is_empty() {
        return None;
    }
    for (key, value) in pairs(parts.uri.query().unwrap_or_default()) {
        match key.as_str() {
            "watch" => target.watch = value == "true" || value == "1",
            "sendInitialEvents" => target.initial = value == "true",
            "timeoutSeconds" => target.seconds = value.parse().unwrap_or(0),
            "limit" => target.limit = value.parse().unwrap_or(0),
            "continue" => target.skip = value.parse().unwrap_or(0),
            "resourceVersion" => target.from_version = value.parse().unwrap_or(0),
            "fieldSelector" => target.only_name = value.strip_prefix("metadata.name=").map(str::to_owned),
            "labelSelector" => target.labels = value.split(',').filter_map(equality).collect(),
            _ => {}
        }
    }
    let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    target.metadata_only = header(http::header::ACCEPT).contains("as=PartialObjectMetadata");
    target.strategic = header(http::header::CONTENT_TYPE).contains("strategic-merge-patch");
    target.verb = match (parts.method.as_str(), target.name.is_empty()) {
        ("GET", true) if target.watch => "watch",
        ("GET", true) => "list",
        ("GET", false) => "get",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        _ => "delete",
    };
    Some(target)
}

fn equality(text: &str) -> Option<(String, String)> {
    let (key, value) = text.split_once('=')?;
    Some((key.to_owned(), value.trim_start_matches('=').to_owned()))
}

fn pairs(query: &str) -> Vec<(String, String)> {
    let pair = |text: &str| {
        let (key, value) = text.split_once('=')?;
        Some((key.to_owned(), decoded(value)))
    };
    query.split('&').filter_map(pair).collect()
}

/// Percent-decoded.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (first, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            (byte, _) => {
                bytes.push(if byte == b'+' { b' ' } else { byte });
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
