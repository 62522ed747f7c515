//! The control plane: discovery, translation to xDS, certificates. Modules stand in the order in which an
//! object meets them.

pub mod admin;
pub mod api;
pub mod app;
pub mod ca;
pub mod fault;
pub mod ingest;
pub mod lead;
pub mod model;
pub mod options;
pub mod serve;
pub mod status;
pub mod translate;
pub mod watch;
