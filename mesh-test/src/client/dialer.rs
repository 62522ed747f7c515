//! How an application in a pod reaches others: through its sidecar's forward-proxy port, or as it would without
//! any mesh, where its traffic is captured.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::net::TcpStream;

use super::tunnel;
use crate::place::Place;

/// The names that an application knows, as its cluster's DNS would answer them.
pub type Names = Arc<BTreeMap<String, IpAddr>>;

/// The way out of a pod; clones are the same.
#[derive(Debug, Clone)]
pub enum Dialer {
    /// By the forward-proxy port at this address.
    Forward(SocketAddr),
    /// Straight from the pod.
    Straight(Place, Names),
}

impl Dialer {
    /// Connects to a host, by name or address.
    ///
    /// # Errors
    /// When the proxy refuses, or nobody answers.
    pub async fn dial(&self, host: &str, port: u16) -> Result<TcpStream> {
        match self {
            Self::Forward(proxy) => tunnel::socks5(*proxy, host, port).await,
            Self::Straight(place, names) => place.connect(SocketAddr::new(resolve(names, host)?, port)).await,
        }
    }
}

pub(super) fn resolve(names: &Names, host: &str) -> Result<IpAddr> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.parse() {
        Ok(ip) => Ok(ip),
        Err(_) => names.get(host).copied().with_context(|| format!("nobody has the name {host}")),
    }
}
