//! What the command line asks for, made real at start: files read and written, addresses bound. Each failure is
//! one sentence that says what to do.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context as _;
use mesh_common::trust::TrustBundle;
use serde_json::json;
use tokio::net::TcpListener;

use crate::listener::{self, Addresses, Capture};
use crate::options::RunOptions;
use crate::xds::NodeIdentity;

pub(crate) fn read_bundle(path: &Path) -> anyhow::Result<TrustBundle> {
    let hint = "give the mesh's roots with --trust-bundle";
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the trust bundle {}; {hint}", path.display()))?;
    TrustBundle::from_pem(&text).with_context(|| format!("{} is not a trust bundle; {hint}", path.display()))
}

/// Only whether it is there: it is read anew whenever it is used.
pub(crate) fn check_token(path: &Path) -> anyhow::Result<()> {
    std::fs::read_to_string(path).map(drop).with_context(|| {
        format!(
            "cannot read the token file {}; give the service account's token with --token-file",
            path.display()
        )
    })
}

pub(crate) fn listen_options(options: &RunOptions) -> listener::Options {
    listener::Options {
        inbound: options.inbound.clone(),
        outbound: options.outbound,
        capture: options.capture.then(|| Capture {
            inbound: options.inbound_port,
            outbound: options.outbound_port,
            admin: options.admin.port(),
        }),
        propagation: options.drain_propagation.min(options.drain_deadline),
        ..listener::Options::default()
    }
}

pub(crate) async fn bind_admin(options: &RunOptions) -> anyhow::Result<TcpListener> {
    TcpListener::bind(options.admin).await.with_context(|| {
        format!("cannot listen on {} for admin pages; choose another address with --admin", options.admin)
    })
}

pub(crate) fn node(options: &RunOptions) -> NodeIdentity {
    NodeIdentity {
        namespace: options.namespace.clone(),
        pod: options.pod.clone(),
        service_account: options.service_account.clone(),
        pod_ip: options.pod_ip,
        trust_domain: options.trust_domain.clone(),
        cluster: options.cluster.clone(),
        network: options.network.clone(),
        node: options.node.clone(),
        labels: Vec::new(),
    }
}

/// Whole or not at all: whoever waits for the file reads no half of it.
pub(crate) fn write_addresses(path: &Path, admin: SocketAddr, listening: &Addresses) -> anyhow::Result<()> {
    let page = json!({ "admin": admin, "outbound": listening.outbound, "inbound": listening.inbound });
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, format!("{page}\n"))
        .and_then(|()| std::fs::rename(&temporary, path))
        .with_context(|| format!("cannot write {}; choose another --address-file", path.display()))
}
