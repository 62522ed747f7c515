//! The objects, their versions, and the history that watches read.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::patch;
use super::path::Target;

/// Resources whose status is written through its own door only.
const WITH_STATUS: [&str; 6] =
    ["httproutes", "peerauthentications", "pods", "services", "namespaces", "nodes"];

/// (plural, namespace, name).
type Key = (String, String, String);

/// An answer that is not a success.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: u16,
    pub(super) reason: &'static str,
    pub(super) message: String,
    pub(super) details: Value,
}

impl Failure {
    pub(super) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: json!({}) }
    }

    /// As for a resource that nobody defines.
    pub(super) fn no_page() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    pub(super) fn injected(code: u16, target: &Target) -> Self {
        let (verb, resource) = (target.verb, target.resource());
        match code {
            403 => Self::new(
                code,
                "Forbidden",
                format!("{resource} is forbidden: the user cannot {verb} resource {resource:?}"),
            ),
            404 => Self::new(code, "NotFound", format!("{resource} {:?} not found", target.name)),
            409 => Self::new(code, "Conflict", "the object has been modified"),
            422 => Self::new(code, "Invalid", "the object is invalid"),
            429 => Self::new(code, "TooManyRequests", "too many requests, try again"),
            _ => Self::new(code, "InternalError", "an error on the server"),
        }
    }
}

/// One change.
struct Change {
    version: u64,
    kind: &'static str,
    key: Key,
    object: Value,
}

/// The objects.
#[derive(Default)]
pub(super) struct Store {
    version: u64,
    uids: u64,
    objects: BTreeMap<Key, Value>,
    history: Vec<Change>,
    /// Watches from before this are too old.
    oldest: u64,
}

/// `HTTPRoute` -> `httproutes`.
pub fn plural_of(kind: &str) -> String {
    let lower = kind.to_lowercase();
    match lower.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None if lower.ends_with('s') => lower,
        None => format!("{lower}s"),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn key_of(target: &Target) -> Key {
    (target.plural.clone(), target.namespace.clone(), target.name.clone())
}

fn stated_version(object: &Value) -> Option<&str> {
    object["metadata"]["resourceVersion"].as_str().filter(|version| !version.is_empty())
}

impl Store {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn find(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.objects.get(&(plural.to_owned(), namespace.to_owned(), name.to_owned())).cloned()
    }

    pub(super) fn get(&self, target: &Target) -> Result<Value, Failure> {
        self.objects.get(&key_of(target)).cloned().ok_or_else(|| {
            Failure::new(404, "NotFound", format!("{} {:?} not found", target.plural, target.name))
        })
    }

    pub(super) fn list(&self, target: &Target) -> Value {
        let wanted = self
            .objects
            .iter()
            .filter(|((plural, namespace, name), object)| target.wants(plural, namespace, name, object));
        let limit = if target.limit == 0 { usize::MAX } else { target.limit };
        let mut rest = wanted.map(|(_, object)| object.clone()).skip(target.skip);
        let items: Vec<Value> = rest.by_ref().take(limit).collect();
        let mut metadata = json!({ "resourceVersion": self.version.to_string() });
        if rest.next().is_some() {
            metadata["continue"] = json!((target.skip + limit).to_string());
        }
        json!({ "apiVersion": target.api_version, "kind": "List", "metadata": metadata, "items": items })
    }

    pub(super) fn put(&mut self, mut object: Value) -> Value {
        let plural = plural_of(&text(&object["kind"]));
        let metadata = &object["metadata"];
        let key = (plural, text(&metadata["namespace"]), text(&metadata["name"]));
        if let Some(fields) = object["metadata"].as_object_mut() {
            fields.remove("resourceVersion");
        }
        match self.objects.get(&key).cloned() {
            Some(old) => self.change(key, &old, object, true),
            None => self.insert(key, object),
        }
    }

    pub(super) fn create(&mut self, target: &Target, mut object: Value) -> Result<Value, Failure> {
        let name = text(&object["metadata"]["name"]);
        if name.is_empty() {
            return Err(Failure::new(422, "Invalid", "metadata.name is required"));
        }
        if stated_version(&object).is_some() {
            return Err(Failure::new(
                400,
                "BadRequest",
                "resourceVersion should not be set on objects to be created",
            ));
        }
        let key = (target.plural.clone(), target.namespace.clone(), name.clone());
        if self.objects.contains_key(&key) {
            let message = format!("{} {name:?} already exists", target.plural);
            return Err(Failure::new(409, "AlreadyExists", message));
        }
        let namespace = self.find("namespaces", "", &target.namespace);
        if namespace.is_some_and(|namespace| !namespace["metadata"]["deletionTimestamp"].is_null()) {
            let message = format!("namespace {} is being terminated", target.namespace);
            let mut failure = Failure::new(403, "Forbidden", message);
            failure.details = json!({ "causes": [{ "reason": "NamespaceTerminating" }] });
            return Err(failure);
        }
        if !target.namespace.is_empty() {
            object["metadata"]["namespace"] = json!(target.namespace);
        }
        Ok(self.insert(key, object))
    }

    pub(super) fn replace(&mut self, target: &Target, object: Value) -> Result<Value, Failure> {
        let old = self.get(target)?;
        check_version(&old, &object)?;
        let new = through_its_door(target, &old, object);
        Ok(self.change(key_of(target), &old, new, target.subresource.is_empty()))
    }

    pub(super) fn patch(&mut self, target: &Target, wanted: &Value) -> Result<Value, Failure> {
        let old = self.get(target)?;
        check_version(&old, wanted)?;
        let mut new = old.clone();
        patch::apply(&mut new, wanted, target.strategic);
        let new = through_its_door(target, &old, new);
        Ok(self.change(key_of(target), &old, new, target.subresource.is_empty()))
    }

    pub(super) fn delete(&mut self, target: &Target) -> Result<Value, Failure> {
        let old = self.get(target)?;
        self.remove(&target.plural, &target.namespace, &target.name);
        Ok(old)
    }

    pub(super) fn remove(&mut self, plural: &str, namespace: &str, name: &str) {
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        if let Some(mut object) = self.objects.remove(&key) {
            self.version += 1;
            object["metadata"]["resourceVersion"] = json!(self.version.to_string());
            self.record("DELETED", key, object);
        }
    }

    pub(super) fn forget_history(&mut self) {
        self.oldest = self.version + 1;
        self.version += 1;
        self.history.clear();
    }

    /// Everything that is there, as the begin of a watch, with the mark of its end.
    pub(super) fn initial_events(&self, target: &Target) -> Vec<Value> {
        let all = self.list(&Target { limit: 0, skip: 0, ..target.clone() });
        let added = |object: &Value| json!({ "type": "ADDED", "object": target.shaped(object.clone()) });
        let mut events: Vec<Value> = all["items"].as_array().into_iter().flatten().map(added).collect();
        let metadata = json!({
            "resourceVersion": self.version.to_string(),
            "annotations": { "k8s.io/initial-events-end": "true" },
        });
        events.push(json!({
            "type": "BOOKMARK",
            "object": { "apiVersion": target.api_version, "kind": "Bookmark", "metadata": metadata },
        }));
        events
    }

    /// The first change after a version that a watch wants, and its version.
    pub(super) fn next_event(&self, target: &Target, from: u64) -> Option<(u64, Value)> {
        if from < self.oldest {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410,
                "message": "too old resource version", "metadata": {},
            });
            // Once is enough: the client begins anew.
            return Some((u64::MAX, json!({ "type": "ERROR", "object": status })));
        }
        let change = self.history.iter().find(
            |Change { version, key: (plural, namespace, name), object, .. }| {
                *version > from && target.wants(plural, namespace, name, object)
            },
        )?;
        let object = target.shaped(change.object.clone());
        Some((change.version, json!({ "type": change.kind, "object": object })))
    }

    fn insert(&mut self, key: Key, mut object: Value) -> Value {
        self.version += 1;
        self.uids += 1;
        let metadata = &mut object["metadata"];
        if metadata["uid"].is_null() {
            metadata["uid"] = json!(format!("uid-{}", self.uids));
        }
        if metadata["generation"].is_null() {
            metadata["generation"] = json!(1);
        }
        if metadata["creationTimestamp"].is_null() {
            metadata["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        metadata["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(key.clone(), object.clone());
        self.record("ADDED", key, object.clone());
        object
    }

    /// Stores an object over an older one. What changes nothing has no version of its own.
    fn change(&mut self, key: Key, old: &Value, mut new: Value, spec: bool) -> Value {
        for field in ["uid", "resourceVersion", "creationTimestamp", "generation"] {
            new["metadata"][field] = old["metadata"][field].clone();
        }
        if new == *old {
            return new;
        }
        if spec && new["spec"] != old["spec"] {
            new["metadata"]["generation"] = json!(old["metadata"]["generation"].as_i64().unwrap_or(0) + 1);
        }
        self.version += 1;
        new["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(key.clone(), new.clone());
        self.record("MODIFIED", key, new.clone());
        new
    }

    fn record(&mut self, kind: &'static str, key: Key, object: Value) {
        self.history.push(Change { version: self.version, kind, key, object });
    }
}

fn check_version(old: &Value, new: &Value) -> Result<(), Failure> {
    match stated_version(new) {
        Some(version) if old["metadata"]["resourceVersion"] != json!(version) => {
            let message =
                "the object has been modified; please apply your changes to the latest version and try again";
            Err(Failure::new(409, "Conflict", message))
        }
        _ => Ok(()),
    }
}

/// The status changes by its subresource only, and nothing else does by that.
fn through_its_door(target: &Target, old: &Value, mut new: Value) -> Value {
    if target.subresource == "status" {
        let mut object = old.clone();
        object["status"] = new["status"].take();
        return object;
    }
    if WITH_STATUS.contains(&target.plural.as_str()) {
        match old.get("status") {
            Some(status) => new["status"] = status.clone(),
            None => {
                if let Some(fields) = new.as_object_mut() {
                    fields.remove("status");
                }
            }
        }
    }
    new
}
