//! What a pod asks of its proxy beside carrying traffic: kubelet its probes and lifecycle handlers, Prometheus its
//! metrics, all on the control thread. Anybody in the cluster reaches these ports: nothing here changes the proxy, and
//! only what the pod was made with is relayed to the application.

mod check;
pub mod command;
mod exchange;
mod exposition;
mod merge;
mod pages;
mod patience;
mod ports;
mod redirect;
mod spec;

pub(crate) use check::Reach;
pub(crate) use pages::Pages;
pub(crate) use patience::{LateBundle, until_ready};
pub(crate) use ports::Ports;
pub use ports::{Port, PortError};
pub use spec::{AppMetrics, AppProbes};

#[cfg(test)]
mod tests;
