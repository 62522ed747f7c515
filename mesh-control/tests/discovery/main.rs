//! The real server on a real folder, over TLS: what clients are told, what they are not, and who is refused.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod certificates;
mod client;
mod everything;
mod form;
mod hostile;
mod outlived;
mod refused;
mod resources;
mod restart;
mod storm;
mod world;
