//! The certificate authority: the mesh's root, the certificates signed with it, and who may have one. What is
//! signed is decided by who was proven to ask, never by what the request says.

pub mod caller;
pub mod kubernetes;
pub mod names;
pub mod rate;
pub mod root;

pub mod serve;
pub mod sign;
pub mod token;

#[cfg(test)]
mod tests;
