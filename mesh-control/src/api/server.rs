//! Objects as an API server gives them. Kubernetes' own kinds were checked by the server, and may have fields of a
//! newer version than ours. What a user's rule says must be understood whole, or the rule is not in force.

use std::sync::Arc;

use gateway_api::experimental::httproutes::{HttpRoute, HttpRouteParentRefs};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::object::{mesh_config_id, pointer, typed};
use super::peer_authentication::PeerAuthentication;
use super::{InvalidObject, Kind, Object, ObjectId};

/// An object that is there, but cannot be used as it is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Unusable {
    /// What could be read of it: enough to know whom it concerns, never enough to act on it.
    pub known: Option<Object>,
    /// Everything that is wrong with it.
    pub errors: Vec<InvalidObject>,
}

impl ObjectId {
    /// The name of the mesh-wide settings.
    pub fn mesh_config() -> Self {
        mesh_config_id()
    }
}

impl Object {
    /// Reads an object without server-side metadata and status. HTTPRoute and ReferenceGrant carry `apiVersion` (v1) and
    /// `kind`, others need not.
    ///
    /// # Errors
    /// When it has another form; of users' rules also when it has a field that is not known.
    pub fn from_server(kind: Kind, object: &Value) -> Result<Self, Unusable> {
        match kind {
            Kind::MeshConfig => strict(object, Self::MeshConfig, |_| None),
            Kind::Namespace => lenient(object, Self::Namespace),
            Kind::Node => lenient(object, Self::Node),
            Kind::ServiceCidr => lenient(object, Self::ServiceCidr),
            Kind::Pod => lenient(object, Self::Pod),
            Kind::Service => lenient(object, Self::Service),
            Kind::EndpointSlice => lenient(object, Self::EndpointSlice),
            Kind::ReferenceGrant => strict(object, Self::ReferenceGrant, |_| None),
            Kind::HttpRoute => strict(object, Self::HttpRoute, known_route),
            Kind::PeerAuthentication => strict(object, Self::PeerAuthentication, known_policy),
        }
    }
}

fn lenient<T: DeserializeOwned>(value: &Value, object: fn(Arc<T>) -> Object) -> Result<Object, Unusable> {
    let read = serde_path_to_error::deserialize(value);
    read.map(|typed| object(Arc::new(typed))).map_err(|error: serde_path_to_error::Error<_>| Unusable {
        known: None,
        errors: vec![InvalidObject { pointer: pointer(error.path()), reason: error.inner().to_string() }],
    })
}

fn strict<T: Serialize + DeserializeOwned>(
    value: &Value,
    object: fn(Arc<T>) -> Object,
    known: fn(&Value) -> Option<T>,
) -> Result<Object, Unusable> {
    typed(value)
        .map(object)
        .map_err(|errors| Unusable { known: known(value).map(|typed| object(Arc::new(typed))), errors })
}

/// The route without what is not known; or only its parents, each that can be read.
fn known_route(value: &Value) -> Option<HttpRoute> {
    read(value).or_else(|| {
        let parents = value.pointer("/spec/parentRefs").and_then(Value::as_array);
        let readable = |parent: &&Value| read::<HttpRouteParentRefs>(parent).is_some();
        let parents: Vec<&Value> = parents.into_iter().flatten().filter(readable).collect();
        read(&with_spec(value, json!({ "parentRefs": parents })))
    })
}

/// The policy without what is not known; or only whom it selects, or else everybody.
fn known_policy(value: &Value) -> Option<PeerAuthentication> {
    let selector = value.pointer("/spec/selector").cloned().unwrap_or_default();
    let only_selector = || read(&with_spec(value, json!({ "selector": selector })));
    read(value).or_else(only_selector).or_else(|| read(&with_spec(value, json!({}))))
}

fn with_spec(value: &Value, spec: Value) -> Value {
    let mut value = value.clone();
    if let Some(fields) = value.as_object_mut() {
        fields.insert("spec".to_owned(), spec);
    }
    value
}

fn read<T: DeserializeOwned>(value: &Value) -> Option<T> {
    T::deserialize(value).ok()
}
