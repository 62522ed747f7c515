//! From events about objects to changes of the model. Takes every spec apart: a field that nothing acts on is
//! named here, with the reason why it may be passed over, or is refused.

mod endpoint_slice;
mod http_route;
mod mesh_config;
mod peer_authentication;
mod pod;
mod protocol;
mod service;
mod service_cidr;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::api::{InvalidObject, Kind, Object, ObjectId};
use crate::model::facts::Facts;
use crate::model::store::Mesh;
use crate::model::store::input::{NodeInput, Problem};
use crate::model::{ObjectRef, ServiceKey, WorkloadKey};

/// What a source tells. A folder and an API server tell the same.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The object is there, and looks like this.
    Apply(ObjectId, Object),
    /// The object is gone.
    Delete(ObjectId),
    /// The object is there, but cannot be used as it is written. What could be read of it, and what is wrong.
    Refuse(ObjectId, Option<Object>, Vec<InvalidObject>),
    /// These are all objects of the kind: others are gone.
    Reset(Kind, Vec<(ObjectId, Object)>),
    /// These are the names of all objects of the kind, each told before: others are gone.
    Retain(Kind, BTreeSet<ObjectId>),
}

/// Takes an event into the model. Commit afterwards.
///
/// # Errors
/// Each object that cannot be taken, and why. What the model held of it stays.
pub fn ingest(mesh: &mut Mesh, event: &Event) -> Result<(), Vec<(ObjectId, InvalidObject)>> {
    let apply_to = |mesh: &mut Mesh, id: &ObjectId, object: &Object| {
        apply(mesh, id, object).map_err(|error| (id.clone(), error))
    };
    match event {
        Event::Apply(id, object) => apply_to(mesh, id, object).map_err(|error| vec![error]),
        Event::Delete(id) => {
            delete(mesh, id);
            Ok(())
        }
        Event::Refuse(id, known, errors) => {
            refuse(mesh, id, known.as_ref(), errors);
            Err(errors.iter().map(|error| (id.clone(), error.clone())).collect())
        }
        Event::Retain(kind, present) => {
            let known = known_ids(mesh, *kind);
            known.iter().filter(|id| !present.contains(id)).for_each(|id| delete(mesh, id));
            Ok(())
        }
        Event::Reset(kind, objects) => {
            let present: BTreeSet<&ObjectId> = objects.iter().map(|(id, _)| id).collect();
            let known = known_ids(mesh, *kind);
            known.iter().filter(|id| !present.contains(id)).for_each(|id| delete(mesh, id));
            let errors = objects.iter().filter_map(|(id, object)| apply_to(mesh, id, object).err());
            let errors: Vec<_> = errors.collect();
            if errors.is_empty() { Ok(()) } else { Err(errors) }
        }
    }
}

fn apply(mesh: &mut Mesh, id: &ObjectId, object: &Object) -> Result<(), InvalidObject> {
    match object {
        Object::MeshConfig(config) => {
            let settings = mesh_config::settings(mesh.base_settings(), config)?;
            mesh.put_settings(settings);
        }
        // No rule of the mesh reads a namespace's labels or a grant yet: services as parents need no grant, and the
        // injector looks at labels itself.
        Object::Namespace(_) | Object::ReferenceGrant(_) => {}
        Object::Node(node) => {
            let label = |name: &str| node.metadata.labels.as_ref()?.get(name).cloned();
            let zone = label("topology.kubernetes.io/zone").unwrap_or_default();
            let region = label("topology.kubernetes.io/region").unwrap_or_default();
            mesh.put_node(&id.name, Some(NodeInput { zone, region }));
        }
        Object::ServiceCidr(cidr) => {
            let ranges = service_cidr::ranges(cidr)?;
            mesh.put_ranges(&id.name, ranges);
        }
        Object::Pod(pod) => {
            let key = workload_key(mesh, id);
            let pod = pod::pod(&key, pod)?;
            mesh.put_pod(&key, Some(pod));
        }
        Object::Service(service) => {
            let key = service_key(mesh, &id.namespace, &id.name);
            let service = service::service(key.clone(), &id.name, service)?;
            mesh.put_service(&key, Some(service));
        }
        Object::EndpointSlice(slice) => {
            let domain = &mesh.settings().domain;
            let slice = endpoint_slice::slice(&id.namespace, domain, slice)?;
            mesh.put_slice(&id.namespace, &id.name, slice);
        }
        Object::HttpRoute(route) => {
            let source = object_ref(id);
            let route = http_route::route(source.clone(), &mesh.settings().domain, route, &[]);
            mesh.put_route(&source, Some(route));
        }
        Object::PeerAuthentication(policy) => {
            let source = object_ref(id);
            match peer_authentication::policy(source.clone(), policy) {
                Ok(policy) => mesh.put_policy(&source, Some(policy)),
                Err(error) => {
                    refuse(mesh, id, Some(object), std::slice::from_ref(&error));
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// A route answers 500 where it is not understood; a policy keeps its last good form, or closes what it concerns.
fn refuse(mesh: &mut Mesh, id: &ObjectId, known: Option<&Object>, errors: &[InvalidObject]) {
    let source = object_ref(id);
    match known {
        Some(Object::HttpRoute(route)) => {
            let route = http_route::route(source.clone(), &mesh.settings().domain, route, errors);
            mesh.put_route(&source, Some(route));
        }
        Some(Object::PeerAuthentication(policy)) => {
            let messages: Vec<String> = errors.iter().map(ToString::to_string).collect();
            let closed = peer_authentication::closed(source, policy);
            mesh.refuse_policy(closed, Problem { reason: "Invalid", message: messages.join("; ") });
        }
        _ => {}
    }
}

fn delete(mesh: &mut Mesh, id: &ObjectId) {
    match id.kind {
        Kind::MeshConfig => mesh.put_settings(mesh.base_settings().clone()),
        Kind::Namespace | Kind::ReferenceGrant => {}
        Kind::Node => mesh.put_node(&id.name, None),
        Kind::ServiceCidr => mesh.put_ranges(&id.name, Vec::new()),
        Kind::Pod => mesh.put_pod(&workload_key(mesh, id), None),
        Kind::Service => mesh.put_service(&service_key(mesh, &id.namespace, &id.name), None),
        Kind::EndpointSlice => mesh.put_slice(&id.namespace, &id.name, None),
        Kind::HttpRoute => mesh.put_route(&object_ref(id), None),
        Kind::PeerAuthentication => mesh.put_policy(&object_ref(id), None),
    }
}

fn known_ids(mesh: &Mesh, kind: Kind) -> Vec<ObjectId> {
    let id = |(namespace, name): (String, String)| ObjectId { kind, namespace, name };
    let of_ref = |source: ObjectRef| id((source.namespace, source.name));
    match kind {
        Kind::MeshConfig => vec![id((String::new(), "mesh".to_owned()))],
        Kind::Namespace | Kind::ReferenceGrant => Vec::new(),
        Kind::Node => mesh.node_names().into_iter().map(|name| id((String::new(), name))).collect(),
        Kind::ServiceCidr => mesh.range_names().into_iter().map(|name| id((String::new(), name))).collect(),
        Kind::Pod => mesh.pod_keys().into_iter().map(|key| id((key.namespace, key.name))).collect(),
        Kind::Service => {
            let name = |key: &ServiceKey| key.hostname.split('.').next().unwrap_or_default().to_owned();
            mesh.service_keys().into_iter().map(|key| id((key.namespace.clone(), name(&key)))).collect()
        }
        Kind::EndpointSlice => mesh.slice_names().into_iter().map(id).collect(),
        Kind::HttpRoute => mesh.route_refs().into_iter().map(of_ref).collect(),
        Kind::PeerAuthentication => mesh.policy_refs().into_iter().map(of_ref).collect(),
    }
}

fn object_ref(id: &ObjectId) -> ObjectRef {
    ObjectRef { kind: id.kind.name(), namespace: id.namespace.clone(), name: id.name.clone() }
}

fn workload_key(mesh: &Mesh, id: &ObjectId) -> WorkloadKey {
    let cluster = mesh.settings().cluster.clone();
    WorkloadKey { cluster, namespace: id.namespace.clone(), name: id.name.clone() }
}

fn service_key(mesh: &Mesh, namespace: &str, name: &str) -> ServiceKey {
    key_in_domain(namespace, name, &mesh.settings().domain)
}

fn key_in_domain(namespace: &str, name: &str, domain: &str) -> ServiceKey {
    ServiceKey { namespace: namespace.to_owned(), hostname: format!("{name}.{namespace}.svc.{domain}") }
}

/// Creation time in seconds; 0 for manifests that no API server has seen.
fn created(metadata: &ObjectMeta) -> i64 {
    metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second())
}

fn invalid(pointer: impl Into<String>, reason: impl Into<String>) -> InvalidObject {
    InvalidObject { pointer: pointer.into(), reason: reason.into() }
}

fn port_number(pointer: &str, port: i32) -> Result<u16, InvalidObject> {
    let number = u16::try_from(port).ok().filter(|port| *port != 0);
    number.ok_or_else(|| invalid(pointer, format!("{port} is not a port; ports are 1 to 65535")))
}
