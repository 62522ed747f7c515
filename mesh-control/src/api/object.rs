//! One object of any kind that the mesh reads, parsed. Another kind is an error with its name, never skipped in
//! silence.

use std::fmt;
use std::sync::Arc;

use gateway_api::experimental::httproutes::HttpRoute;
use gateway_api::referencegrants::ReferenceGrant;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::mesh_config::MeshConfig;
use super::peer_authentication::PeerAuthentication;
use super::vanished;

/// The kinds that the mesh reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Mesh-wide settings; first, since others are read in their light.
    MeshConfig,
    /// core/v1.
    Namespace,
    /// core/v1.
    Node,
    /// networking.k8s.io/v1. Where services' addresses are taken from; clusters below 1.33 have none.
    ServiceCidr,
    /// core/v1.
    Pod,
    /// core/v1.
    Service,
    /// discovery.k8s.io/v1.
    EndpointSlice,
    /// gateway.networking.k8s.io/v1.
    ReferenceGrant,
    /// gateway.networking.k8s.io/v1. The experimental channel's type: what is new there must be refused by name.
    HttpRoute,
    /// security.istio.io/v1.
    PeerAuthentication,
}

impl Kind {
    /// In the order in which they are read.
    pub const ALL: [Self; 10] = [
        Self::MeshConfig,
        Self::Namespace,
        Self::Node,
        Self::ServiceCidr,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::ReferenceGrant,
        Self::HttpRoute,
        Self::PeerAuthentication,
    ];

    /// The name of the kind, as manifests write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::MeshConfig => "MeshConfig",
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::HttpRoute => "HTTPRoute",
            Self::PeerAuthentication => "PeerAuthentication",
        }
    }

    /// The versions that it is read in, the preferred one first.
    pub fn versions(self) -> &'static [&'static str] {
        match self {
            Self::MeshConfig => &[""],
            Self::Namespace | Self::Node | Self::Pod | Self::Service => &["v1"],
            Self::ServiceCidr => &["networking.k8s.io/v1"],
            Self::EndpointSlice => &["discovery.k8s.io/v1"],
            Self::ReferenceGrant | Self::HttpRoute => {
                &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"]
            }
            Self::PeerAuthentication => &["security.istio.io/v1", "security.istio.io/v1beta1"],
        }
    }

    /// Whether its objects are in namespaces.
    pub fn namespaced(self) -> bool {
        !matches!(self, Self::MeshConfig | Self::Namespace | Self::Node | Self::ServiceCidr)
    }
}

/// Names an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace, empty for cluster-wide kinds.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind.name(), self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind.name(), self.name),
        }
    }
}

/// An object, parsed. Cheap to clone.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "each is the kind of the same name")]
pub enum Object {
    MeshConfig(Arc<MeshConfig>),
    Namespace(Arc<Namespace>),
    Node(Arc<Node>),
    ServiceCidr(Arc<ServiceCIDR>),
    Pod(Arc<Pod>),
    Service(Arc<Service>),
    EndpointSlice(Arc<EndpointSlice>),
    ReferenceGrant(Arc<ReferenceGrant>),
    HttpRoute(Arc<HttpRoute>),
    PeerAuthentication(Arc<PeerAuthentication>),
}

/// Why a manifest is not an object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{reason}", if pointer.is_empty() { String::new() } else { format!("{}: ", dotted(pointer)) })]
pub struct InvalidObject {
    /// JSON pointer to the field; empty when it is about the whole object.
    pub pointer: String,
    /// What is wrong, and what to do.
    pub reason: String,
}

impl Object {
    /// Parses a manifest, and names every field that it has too much.
    ///
    /// # Errors
    /// With one entry per thing that is wrong.
    pub fn parse(manifest: &Value) -> Result<(ObjectId, Self), Vec<InvalidObject>> {
        let kind = kind_of(manifest).map_err(|error| vec![error])?;
        let object = match kind {
            Kind::MeshConfig => Self::MeshConfig(typed(&mesh_config_fields(manifest))?),
            Kind::Namespace => Self::Namespace(typed(manifest)?),
            Kind::Node => Self::Node(typed(manifest)?),
            Kind::ServiceCidr => Self::ServiceCidr(typed(manifest)?),
            Kind::Pod => Self::Pod(typed(manifest)?),
            Kind::Service => Self::Service(typed(manifest)?),
            Kind::EndpointSlice => Self::EndpointSlice(typed(manifest)?),
            Kind::ReferenceGrant => Self::ReferenceGrant(typed(&as_v1(manifest))?),
            Kind::HttpRoute => Self::HttpRoute(typed(&as_v1(manifest))?),
            Kind::PeerAuthentication => Self::PeerAuthentication(typed(&without_type(manifest))?),
        };
        let id = object.id().map_err(|error| vec![error])?;
        Ok((id, object))
    }

    /// The settings of a file that holds nothing else, without `kind`.
    ///
    /// # Errors
    /// As [`Object::parse`].
    pub fn parse_mesh_config(fields: &Value) -> Result<(ObjectId, Self), Vec<InvalidObject>> {
        Ok((mesh_config_id(), Self::MeshConfig(typed(fields)?)))
    }

    fn id(&self) -> Result<ObjectId, InvalidObject> {
        match self {
            Self::MeshConfig(_) => Ok(mesh_config_id()),
            Self::Namespace(object) => named(Kind::Namespace, &object.metadata),
            Self::Node(object) => named(Kind::Node, &object.metadata),
            Self::ServiceCidr(object) => named(Kind::ServiceCidr, &object.metadata),
            Self::Pod(object) => named(Kind::Pod, &object.metadata),
            Self::Service(object) => named(Kind::Service, &object.metadata),
            Self::EndpointSlice(object) => named(Kind::EndpointSlice, &object.metadata),
            Self::ReferenceGrant(object) => named(Kind::ReferenceGrant, &object.metadata),
            Self::HttpRoute(object) => named(Kind::HttpRoute, &object.metadata),
            Self::PeerAuthentication(object) => named(Kind::PeerAuthentication, &object.metadata),
        }
    }
}

fn kind_of(manifest: &Value) -> Result<Kind, InvalidObject> {
    let text = |name: &str| manifest.get(name).and_then(Value::as_str).unwrap_or_default();
    let error = |pointer: &str, reason| InvalidObject { pointer: pointer.to_owned(), reason };
    let name = text("kind");
    if name.is_empty() {
        return Err(error("", "a manifest needs a kind".to_owned()));
    }
    let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.name() == name) else {
        let known: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        let reason = format!("the kind {name} is not known; known are {}", known.join(", "));
        return Err(error("/kind", reason));
    };
    let version = text("apiVersion");
    // Settings are no resource of an API server: a version says nothing.
    if kind != Kind::MeshConfig && !kind.versions().contains(&version) {
        let reason = format!("{name} is read as {}, not as {version:?}", kind.versions().join(" or "));
        return Err(error("/apiVersion", reason));
    }
    Ok(kind)
}

fn named(kind: Kind, metadata: &ObjectMeta) -> Result<ObjectId, InvalidObject> {
    let name = metadata.name.clone().unwrap_or_default();
    if name.is_empty() {
        let reason = format!("a {} needs a name", kind.name());
        return Err(InvalidObject { pointer: "/metadata/name".to_owned(), reason });
    }
    let namespace = metadata.namespace.clone().filter(|namespace| !namespace.is_empty());
    let namespace =
        if kind.namespaced() { namespace.unwrap_or_else(|| "default".to_owned()) } else { String::new() };
    Ok(ObjectId { kind, namespace, name })
}

/// There is one for the mesh.
pub(super) fn mesh_config_id() -> ObjectId {
    ObjectId { kind: Kind::MeshConfig, namespace: String::new(), name: "mesh".to_owned() }
}

pub(super) fn typed<T: Serialize + DeserializeOwned>(manifest: &Value) -> Result<Arc<T>, Vec<InvalidObject>> {
    let object: T = serde_path_to_error::deserialize(manifest).map_err(|error| {
        vec![InvalidObject { pointer: pointer(error.path()), reason: error.inner().to_string() }]
    })?;
    let again = serde_json::to_value(&object)
        .map_err(|error| vec![InvalidObject { pointer: String::new(), reason: error.to_string() }])?;
    let unknown = vanished(manifest, &again);
    if unknown.is_empty() {
        return Ok(Arc::new(object));
    }
    let reason = "this field is not known; check its spelling and place";
    Err(unknown.into_iter().map(|pointer| InvalidObject { pointer, reason: reason.to_owned() }).collect())
}

pub(super) fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let mut pointer = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => pointer.push_str(&format!("/{index}")),
            Segment::Map { key } => {
                pointer.push_str(&format!("/{}", key.replace('~', "~0").replace('/', "~1")));
            }
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    pointer
}

/// `/spec/rules/0/name` as people write it: `spec.rules[0].name`.
fn dotted(pointer: &str) -> String {
    let mut text = String::new();
    for part in pointer.split('/').skip(1) {
        let part = part.replace("~1", "/").replace("~0", "~");
        match part.parse::<usize>() {
            Ok(index) => text.push_str(&format!("[{index}]")),
            Err(_) if text.is_empty() => text.push_str(&part),
            Err(_) => text.push_str(&format!(".{part}")),
        }
    }
    text
}

/// The generated types of the Gateway API insist on the version they were made for; the older one has the same fields.
fn as_v1(manifest: &Value) -> Value {
    let mut manifest = manifest.clone();
    if let Some(version) = manifest.get_mut("apiVersion") {
        *version = Value::String("gateway.networking.k8s.io/v1".to_owned());
    }
    manifest
}

fn without_type(manifest: &Value) -> Value {
    let mut manifest = manifest.clone();
    if let Some(fields) = manifest.as_object_mut() {
        fields.remove("apiVersion");
        fields.remove("kind");
    }
    manifest
}

/// Settings stand beside `kind`, or under `spec`.
fn mesh_config_fields(manifest: &Value) -> Value {
    let mut manifest = without_type(manifest);
    let Some(fields) = manifest.as_object_mut() else { return manifest };
    fields.remove("metadata");
    match fields.len() {
        1 => fields.remove("spec").unwrap_or(manifest),
        _ => manifest,
    }
}
