//! Listeners: sockets are bound here, connections accepted, handed out evenly over the data workers, and taken
//! to their filter chain. No connection is ever sent on in plaintext because configuration is late.

mod accept;
mod captured;
pub mod chain;
mod detect;
pub mod http_connect;
mod inbound;
pub mod inspect;
mod outbound;
mod refuse;
mod resolve;
pub mod socks5;

use std::net::SocketAddr;
use std::time::Duration;

pub use accept::{Accepted, Acceptor, Listeners, serve};
pub(crate) use accept::{bind as bind_one, bind_everywhere};
pub use captured::Capture;
pub use resolve::{Refused, Resolved, resolve};

/// What is listened on.
#[derive(Debug, Clone)]
pub struct Options {
    /// Explicit inbound ports.
    pub inbound: Vec<InboundPort>,
    /// The forward-proxy port.
    pub outbound: Option<SocketAddr>,
    /// Where the pod's network rules send its connections.
    pub capture: Option<Capture>,
    /// Connections that may be open at the same time, all listeners together.
    pub max_connections: usize,
    /// How long inbound listeners still accept after drain began, so that clients learn of it first.
    pub propagation: Duration,
    /// How long after the application's last connection new ones are still accepted when the process is to end.
    pub linger: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            inbound: Vec::new(),
            outbound: None,
            capture: None,
            max_connections: 65_536,
            propagation: Duration::from_secs(5),
            linger: Duration::from_secs(1),
        }
    }
}

/// `LISTEN=APP`: connections to `listen` are for the application at `app`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InboundPort {
    /// Where the proxy listens.
    pub listen: SocketAddr,
    /// Where the application listens.
    pub app: SocketAddr,
}

/// The addresses that were bound, in the order of [`Options`]; port 0 is replaced by the real one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Inbound listeners.
    pub inbound: Vec<SocketAddr>,
    /// The forward-proxy port.
    pub outbound: Option<SocketAddr>,
}

/// Why a listener cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process has it.
    #[error("cannot listen on {0}: another process has this port; stop it or choose another address")]
    Taken(SocketAddr),
    /// A port below 1024, without the right to it.
    #[error("cannot listen on {0}: ports below 1024 need privileges; choose a higher port")]
    Denied(SocketAddr),
    /// It is not an address of this machine.
    #[error("cannot listen on {0}: it is not an address of this machine")]
    NotLocal(SocketAddr),
    /// The application's address is the listener's own: every connection would come back.
    #[error("cannot listen on {0} for an application at the same address; they must differ")]
    Loop(SocketAddr),
    /// Anything else.
    #[error("cannot listen on {address}: {source}")]
    Io {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

#[cfg(test)]
mod tests;
