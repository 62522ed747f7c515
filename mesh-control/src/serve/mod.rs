//! Serving: what clients subscribe to, translated once, kept for as long as somebody watches it, and sent
//! when it changes. It sees the model through facts only, and never Kubernetes.

pub mod cache;
pub mod delta;
pub mod discovery;
pub mod inspect;
pub mod metrics;
pub mod node;
pub mod recorder;
pub mod server;
pub mod stream;
pub mod throttle;
pub mod tls;
pub mod wire;

#[cfg(test)]
pub(crate) mod tests;
