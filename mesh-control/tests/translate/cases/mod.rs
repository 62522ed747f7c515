//! The golden cases: a world, a client, a name. Add a row, not a function.

pub mod destinations;
mod inbound;
mod others;
pub mod routes;

use mesh_common::xds::ResourceType;

use super::world::{Client, World};

/// One resource for one client.
pub struct Case {
    pub name: &'static str,
    pub kind: ResourceType,
    pub resource: String,
    pub world: World,
    pub client: Client,
}

/// All cases.
pub fn all() -> Vec<Case> {
    [destinations::cases(), inbound::cases(), routes::cases(), others::cases()].concat()
}

impl Clone for Case {
    fn clone(&self) -> Self {
        Self {
            name: self.name,
            kind: self.kind,
            resource: self.resource.clone(),
            world: self.world.clone(),
            client: self.client.clone(),
        }
    }
}

fn case(name: &'static str, kind: ResourceType, resource: &str, world: &World) -> Case {
    Case { name, kind, resource: resource.to_owned(), world: world.clone(), client: Client::new() }
}
