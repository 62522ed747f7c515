//! The fixed table of DNS names: which service accounts stand for a service of the mesh itself. Pure. It must never
//! give a name to anybody outside of the mesh's own namespace.

use mesh_common::spiffe::SpiffeId;

use crate::model::Settings;

/// Service accounts of the mesh's namespace that serve by the name of their service.
const SERVICES: [&str; 2] = ["mesh-control", "mesh-injector"];

/// The DNS names of an identity's certificates, besides its URI name; none for workloads. `namespace` is the mesh's own.
pub fn service_names(identity: &SpiffeId, settings: &Settings, namespace: &str) -> Vec<String> {
    names(identity, &settings.trust_domain, &settings.domain, namespace)
}

fn names(identity: &SpiffeId, trust_domain: &str, domain: &str, namespace: &str) -> Vec<String> {
    let own = identity.trust_domain() == trust_domain && identity.namespace() == namespace;
    let Some(service) = SERVICES.into_iter().find(|service| own && identity.service_account() == *service)
    else {
        return Vec::new();
    };
    let name = format!("{service}.{namespace}.svc");
    vec![format!("{name}.{domain}"), name]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_meshs_own_services_have_names() {
        let none: &[&str] = &[];
        for (identity, names) in [
            (
                "cluster.local/ns/mesh-system/sa/mesh-injector",
                &["mesh-injector.mesh-system.svc.example.test", "mesh-injector.mesh-system.svc"][..],
            ),
            (
                "cluster.local/ns/mesh-system/sa/mesh-control",
                &["mesh-control.mesh-system.svc.example.test", "mesh-control.mesh-system.svc"],
            ),
            ("cluster.local/ns/mesh-system/sa/default", none),
            ("cluster.local/ns/mesh-system/sa/mesh-injector.x", none),
            ("cluster.local/ns/shop/sa/mesh-injector", none),
            ("cluster.local/ns/shop/sa/mesh-control", none),
            ("other.test/ns/mesh-system/sa/mesh-control", none),
        ] {
            let identity: SpiffeId = format!("spiffe://{identity}").parse().unwrap();
            let given = super::names(&identity, "cluster.local", "example.test", "mesh-system");
            assert_eq!(given, names, "{identity}");
        }
        // Another namespace of the mesh: the names follow it.
        let identity: SpiffeId = "spiffe://cluster.local/ns/infra/sa/mesh-control".parse().unwrap();
        let given = super::names(&identity, "cluster.local", "cluster.local", "infra");
        assert_eq!(given[1], "mesh-control.infra.svc");
    }
}
