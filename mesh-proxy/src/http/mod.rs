//! The HTTP filter: a downstream connection in, requests out to clusters by route. It must never answer a
//! request without counting it, nor count one twice.

pub(crate) mod body;
pub(crate) mod clock;
pub(crate) mod connection;
mod downstream;
mod exchange;
mod forward;
pub(crate) mod grpc;
pub mod headers;
pub mod path;
pub(crate) mod record;
mod reply;
pub mod rewrite;
pub mod route;
mod serve;
mod upgrade;
pub(crate) mod upstream;

use std::sync::Arc;

use crate::config::listener::{FilterChain, Listener};

pub use body::{BodyError, ResponseBody};
pub(crate) use connection::Connections;
pub use serve::serve;

/// What decides where a connection's requests go.
#[derive(Debug, Clone)]
pub enum Scope {
    /// A chosen filter chain, whose filter is `NetworkFilter::Http`.
    Chain {
        /// The listener it is part of.
        listener: Arc<Listener>,
        /// The chain.
        chain: Arc<FilterChain>,
    },
    /// Plain HTTP to the forward-proxy port: the absolute URI or Host of each request is looked up.
    Forward,
}

/// Runs hyper's tasks on the worker that the connection lives on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LocalExec;

impl<F> hyper::rt::Executor<F> for LocalExec
where
    F: Future<Output: 'static> + 'static,
{
    fn execute(&self, future: F) {
        // As it is: a block that awaits it would be twice as large, and be moved about with each request.
        tokio::task::spawn_local(future);
    }
}

#[cfg(test)]
mod tests;
