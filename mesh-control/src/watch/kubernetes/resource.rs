//! Where the API server has each kind.

use kube::api::{Api, ApiResource, DynamicObject};

use super::Client;
use crate::api::Kind;

/// The ConfigMap of mesh-wide settings, in our own namespace.
pub(super) const MESH_CONFIG: &str = "mesh-config";

/// A kind at the API server.
#[derive(Debug, Clone)]
pub(super) struct Resource {
    pub(super) kind: Kind,
    /// Its name in paths and in RBAC rules.
    pub(super) plural: &'static str,
    /// Only in this namespace.
    pub(super) namespace: Option<String>,
    /// Only these objects.
    pub(super) fields: Option<String>,
    /// The server may not have it: a definition that is not installed, a kind of newer servers.
    pub(super) optional: bool,
}

impl Resource {
    /// `own` is our own namespace.
    pub(super) fn of(kind: Kind, own: &str) -> Self {
        let (plural, optional) = match kind {
            Kind::MeshConfig => ("configmaps", false),
            Kind::Namespace => ("namespaces", false),
            Kind::Node => ("nodes", false),
            Kind::ServiceCidr => ("servicecidrs", true),
            Kind::Pod => ("pods", false),
            Kind::Service => ("services", false),
            Kind::EndpointSlice => ("endpointslices", false),
            Kind::ReferenceGrant => ("referencegrants", true),
            Kind::HttpRoute => ("httproutes", true),
            Kind::PeerAuthentication => ("peerauthentications", true),
        };
        let settings = kind == Kind::MeshConfig;
        Self {
            kind,
            plural,
            namespace: settings.then(|| own.to_owned()),
            fields: settings.then(|| format!("metadata.name={MESH_CONFIG}")),
            optional,
        }
    }

    /// The versions to ask for, the preferred one first.
    pub(super) fn versions(&self) -> &'static [&'static str] {
        match self.kind {
            Kind::MeshConfig => &["v1"],
            kind => kind.versions(),
        }
    }

    /// The API group; empty for core.
    pub(super) fn group(&self) -> &'static str {
        self.versions()[0].split_once('/').map_or("", |(group, _)| group)
    }

    /// The kind in one of its versions.
    pub(super) fn api(&self, client: Client, version: usize) -> Api<DynamicObject> {
        let versions = self.versions();
        let api_version = versions[version % versions.len()];
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let name = if self.kind == Kind::MeshConfig { "ConfigMap" } else { self.kind.name() };
        let resource = ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: api_version.to_owned(),
            kind: name.to_owned(),
            plural: self.plural.to_owned(),
        };
        match &self.namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, &resource),
            None => Api::all_with(client, &resource),
        }
    }

    /// What our service account must be allowed, as people write it in RBAC.
    pub(super) fn rule(&self) -> String {
        let role = match &self.namespace {
            Some(namespace) => format!("a Role in {namespace}"),
            None => "a ClusterRole".to_owned(),
        };
        let (group, plural) = (self.group(), self.plural);
        format!(
            "allow mesh-control's service account to list and watch {plural} (apiGroup {group:?}) by {role}"
        )
    }
}
