//! The objects that users write, as types: Kubernetes', the Gateway API's and our own. A field that the types do
//! not have is an error with its path, never silently dropped.

pub mod crd;
mod fields;
pub mod mesh_config;
mod object;
pub mod peer_authentication;
mod server;

pub use fields::vanished;
pub use object::{InvalidObject, Kind, Object, ObjectId};
pub use server::Unusable;
