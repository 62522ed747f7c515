//! Where objects come from. Each source ends in the same events: a folder is not a second code path.

pub mod error;
pub mod files;
pub mod folder;
pub mod health;
pub mod kubernetes;
pub mod last_good;
pub mod manifests;
pub mod yaml;

#[cfg(test)]
mod tests;
