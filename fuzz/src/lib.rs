//! What strangers may send, as functions of random bytes: each holds what must be true whatever they send, and
//! panics when it is not. `fuzz/run` gives them a fuzzer's bytes, the tests give them the corpus.
// A panic is how a finding is told.
#![allow(clippy::panic, clippy::unwrap_used)]

pub mod csr;
pub mod delta_client;
pub mod delta_server;
pub mod first_bytes;
pub mod resource_decode;
pub mod sotw_server;
pub mod spiffe_id;

use mesh_common::xds::ResourceType;

/// A target: random bytes in, a panic if something is wrong.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also the folder of its corpus.
pub const TARGETS: [(&str, Target); 7] = [
    ("csr", csr::run),
    ("delta_client", delta_client::run),
    ("delta_server", delta_server::run),
    ("first_bytes", first_bytes::run),
    ("resource_decode", resource_decode::run),
    ("sotw_server", sotw_server::run),
    ("spiffe_id", spiffe_id::run),
];

/// A type of resources.
fn kind(number: u8) -> ResourceType {
    ResourceType::ALL[usize::from(number) % ResourceType::ALL.len()]
}

/// One of few names, so that steps meet; some that are special.
fn name(number: u8) -> String {
    ["a", "b", "c", "d", "", "*"][usize::from(number) % 6].to_owned()
}
