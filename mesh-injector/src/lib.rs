//! The mutating webhook: a pod in, the same pod with its proxy out. The core is pure ([`inject::inject`]) and can be
//! used without a cluster; the rest serves it to the API server.

pub mod annotations;
pub mod app;
pub mod certificate;
pub mod conflicts;
pub mod decide;
pub mod difference;
pub mod events;
pub mod inject;
pub mod metrics;
pub mod metrics_merge;
pub mod names;
pub mod namespaces;
pub mod options;
pub mod places;
pub mod probes;
pub mod quantity;
pub mod refusal;
pub mod review;
pub mod roots;
pub mod serve;
pub mod settings;
pub mod settings_file;
pub mod version;
pub mod webhook;
