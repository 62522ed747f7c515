//! What the control plane translates, the proxy's decoder accepts: every golden case, without an error.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]
#![allow(dead_code)] // the world has tools for other tests, too

#[path = "../../mesh-control/tests/translate/cases/mod.rs"]
mod cases;
#[path = "../../mesh-control/tests/translate/world.rs"]
mod world;

use mesh_common::xds::ResourceType;
use mesh_control::translate::client::ClientKind;
use mesh_control::translate::{Request, translate};
use mesh_proxy::xds::decode::decode;

use cases::Case;

#[test]
fn every_golden_translation_is_accepted() {
    let root = rcgen::generate_simple_self_signed(vec!["root".to_owned()]).unwrap().cert.pem();
    let mut refused = Vec::new();
    let mut accepted = 0;
    for Case { name, kind, resource, mut world, client } in cases::all() {
        if client.kind != ClientKind::MeshProxy {
            continue;
        }
        if kind == ResourceType::Secret && !world.bundle.trim().is_empty() {
            world.bundle.clone_from(&root);
        }
        let Ok(Some(any)) = translate(Request { kind, name: &resource }, &client, &world) else {
            continue;
        };
        accepted += 1;
        if let Err(errors) = decode(kind, &resource, &any) {
            refused.push(format!("{name}: {}", errors.join("; ")));
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
    assert!(accepted > 50, "only {accepted} cases give a resource");
}
