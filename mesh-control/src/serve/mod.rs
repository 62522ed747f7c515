//! Serving: what clients subscribe to, translated once, kept for as long as somebody watches it, and sent
//! when it changes. It sees the model through facts only, and never Kubernetes.

pub mod binding;
pub mod cache;
pub mod delta;
pub mod discovery;
mod end;
pub mod inspect;
pub mod limit;
pub mod metrics;
pub mod node;
pub mod protocol;
pub mod recorder;
pub mod server;
pub mod sotw;
pub mod stream;
mod subscribed;
pub mod throttle;
pub mod tls;
pub mod wildcard;
pub mod wire;

#[cfg(test)]
pub(crate) mod tests;
