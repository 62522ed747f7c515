//! The authority of a mesh on Kubernetes: key material in Secrets, tokens that the API server vouches for.

pub mod review;
pub mod secret;
