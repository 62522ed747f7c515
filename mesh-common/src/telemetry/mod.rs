//! What every binary says of itself: logs on standard error, metrics and health over HTTP.

pub mod admin;
pub mod log;
pub mod process;
