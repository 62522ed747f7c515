//! Tools for tests: certificates, echo servers, clients, worlds of real processes, and the scenarios that
//! show what the mesh does. No part of a running mesh may depend on this crate.

pub mod app;
pub mod binaries;
pub mod certs;
pub mod client;
pub mod envoy;
pub mod fake;
pub mod grpc;
pub mod kube_api;
pub mod load;
pub mod manifest;
pub mod metrics;
pub mod namespace;
pub mod place;
pub mod process;
pub mod relay;
pub mod scenario;
pub mod server;
pub mod slow_wire;
pub mod stranger;
pub mod subnet;
pub mod topology;
pub mod wait;
pub mod wire;
pub mod world;
