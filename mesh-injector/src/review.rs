//! `AdmissionReview`, version 1, both ways. What comes is taken apart here, once; whoever cannot be answered in the
//! API's own form (nobody knows for which request) gets a plain refusal.

use base64::Engine as _;
use json_patch::Patch;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::refusal::Refusal;

const VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// The API server sends warnings as headers: longer ones are cut, and all together are bounded.
const WARNING_BYTES: usize = 512;
const WARNINGS_BYTES: usize = 4096;

/// A request of the API server.
#[derive(Debug, Clone)]
pub struct Request {
    /// Its mark, which the answer repeats.
    pub uid: String,
    /// The namespace of the object.
    pub namespace: String,
    /// Whether nothing will be stored.
    pub dry_run: bool,
    /// The object, if it is one that this webhook is for; else why not.
    pub pod: Result<Value, Refusal>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    request: Option<Raw>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    uid: String,
    kind: Option<Kind>,
    sub_resource: Option<String>,
    #[serde(default)]
    operation: String,
    namespace: Option<String>,
    dry_run: Option<bool>,
    object: Option<Value>,
}

#[derive(Deserialize, PartialEq)]
struct Kind {
    #[serde(default)]
    group: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    kind: String,
}

/// Reads a review.
///
/// # Errors
/// With a sentence, when it is none that can be answered.
pub fn parse(body: &[u8]) -> Result<Request, String> {
    let review: Review =
        serde_json::from_slice(body).map_err(|error| format!("the body is not an {KIND}: {error}"))?;
    if review.kind != KIND || review.api_version != VERSION {
        return Err(format!(
            "the body is {} {}, not {VERSION} {KIND}; set admissionReviewVersions: [v1]",
            review.api_version, review.kind
        ));
    }
    let Some(raw) = review.request else { return Err(format!("the {KIND} has no request")) };
    if raw.uid.is_empty() || raw.uid.len() > 256 {
        return Err("the request has no uid".to_owned());
    }
    let namespace = raw.namespace.clone().unwrap_or_default();
    let (uid, dry_run) = (raw.uid.clone(), raw.dry_run.unwrap_or(false));
    Ok(Request { uid, namespace, dry_run, pod: pod(raw) })
}

fn pod(raw: Raw) -> Result<Value, Refusal> {
    let refuse = |what: String| {
        let hint =
            "this webhook is for CREATE of pods; look at the rules of its MutatingWebhookConfiguration";
        Err(Refusal::bad("not_for_us", format!("{what}: {hint}")))
    };
    let kind = raw.kind.unwrap_or(Kind { group: String::new(), version: String::new(), kind: String::new() });
    if !(kind.group.is_empty() && kind.version == "v1" && kind.kind == "Pod") {
        return refuse(format!("{}/{} {} is not a pod", kind.group, kind.version, kind.kind));
    }
    if let Some(part) = raw.sub_resource.filter(|part| !part.is_empty()) {
        return refuse(format!("the request is about the pod's {part}"));
    }
    if raw.operation != "CREATE" {
        return refuse(format!("the operation is {}", raw.operation));
    }
    if raw.namespace.is_none_or(|it| it.is_empty()) {
        return refuse("the request has no namespace".to_owned());
    }
    match raw.object {
        Some(object @ Value::Object(_)) => Ok(object),
        _ => Err(Refusal::bad("pod", "the request has no object")),
    }
}

/// An answer that lets the object pass, changed by `patch`.
pub fn allowed(uid: &str, patch: &Patch, warnings: &[String]) -> Value {
    let mut response = json!({ "uid": uid, "allowed": true });
    if !patch.0.is_empty() {
        let text = json!(patch).to_string();
        response["patchType"] = json!("JSONPatch");
        response["patch"] = json!(base64::engine::general_purpose::STANDARD.encode(text));
    }
    answer(response, warnings)
}

/// An answer that refuses it.
pub fn refused(uid: &str, refusal: &Refusal, warnings: &[String]) -> Value {
    let reason = match refusal.code {
        400 => "BadRequest",
        403 => "Forbidden",
        _ => "ServiceUnavailable",
    };
    let status = json!({
        "status": "Failure", "code": refusal.code, "reason": reason,
        "message": format!("mesh-injector: {}", refusal.message),
    });
    answer(json!({ "uid": uid, "allowed": false, "status": status }), warnings)
}

fn answer(mut response: Value, warnings: &[String]) -> Value {
    if !warnings.is_empty() {
        response["warnings"] = json!(bounded(warnings));
    }
    json!({ "apiVersion": VERSION, "kind": KIND, "response": response })
}

fn bounded(warnings: &[String]) -> Vec<String> {
    let mut left = WARNINGS_BYTES;
    let mut kept = Vec::new();
    for warning in warnings {
        let clean: String = warning.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let mut end = clean.len().min(WARNING_BYTES).min(left);
        while !clean.is_char_boundary(end) {
            end -= 1;
        }
        if end == 0 {
            break;
        }
        left -= end;
        kept.push(clean[..end].to_owned());
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_bounded() {
        let many = vec!["ä\n".repeat(400); 100];
        let kept = bounded(&many);
        assert!(kept.iter().map(String::len).sum::<usize>() <= WARNINGS_BYTES);
        assert!(kept.iter().all(|it| it.len() <= WARNING_BYTES && !it.contains('\n')));
        assert_eq!(bounded(&["one".to_owned()]), ["one"]);
    }
}
