//! The webhook over real TLS, before a Kubernetes API in memory.
#![allow(clippy::unwrap_used, clippy::panic)] // test code, outside of test functions

mod api;
mod drain;
mod pods;
mod strangers;
mod whole;
mod world;
