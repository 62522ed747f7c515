//! The data plane: sidecar and gateway in one binary. Modules stand in the order in which a byte meets them.

pub mod admin;
pub mod app;
pub mod cluster;
pub mod config;
pub mod connect;
pub mod connection;
pub mod cpu;
pub mod http;
pub mod identity;
pub mod listener;
pub mod options;
pub mod own_labels;
pub mod pod;
pub mod redirect;
mod startup;
mod state_dir;
pub mod tcp;
pub mod telemetry;
pub mod tls;
pub mod worker;
pub mod xds;
