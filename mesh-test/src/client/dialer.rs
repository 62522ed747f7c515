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
    /// As any program of this machine does: by the names that its system knows.
    System,
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
            Self::System => Place::Here.connect(self.address(host, port).await?).await,
        }
    }

    /// Where a connection to a host goes to.
    pub(super) async fn address(&self, host: &str, port: u16) -> Result<SocketAddr> {
        match self {
            Self::Forward(proxy) => Ok(*proxy),
            Self::Straight(_, names) => Ok(SocketAddr::new(resolve(names, host)?, port)),
            Self::System => {
                let mut found = tokio::net::lookup_host((host.trim_matches(['[', ']']), port)).await?;
                found.next().with_context(|| format!("the name {host} has no address"))
            }
        }
    }

    /// Where connections begin.
    pub(super) fn place(&self) -> &Place {
        match self {
            Self::Straight(place, _) => place,
            Self::Forward(_) | Self::System => &Place::Here,
        }
    }
}

fn resolve(names: &Names, host: &str) -> Result<IpAddr> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.parse() {
        Ok(ip) => Ok(ip),
        Err(_) => names.get(host).copied().with_context(|| format!("nobody has the name {host}")),
    }
}
