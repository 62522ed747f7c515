//! What two binaries of the mesh must agree on, and nothing else.

pub mod ca;
pub mod capture;
pub mod error;
pub mod identity;
pub mod last_words;
pub mod listen;
pub mod maker;
pub mod options;
pub mod process;
pub mod spiffe;
pub mod telemetry;
pub mod trust;
pub mod workload;
pub mod xds;
