//! What the command line asks for, made real at start: files read and written, addresses bound. Each failure is
//! one sentence that says what to do.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, anyhow};
use mesh_common::trust::TrustBundle;
use serde_json::json;
use tokio::net::TcpListener;

use crate::listener::{self, Addresses, Capture};
use crate::options::RunOptions;
use crate::pod::{Port, Ports};
use crate::xds::NodeIdentity;

const HINT: &str = "give the mesh's roots with --trust-bundle";

pub(crate) fn read_bundle(path: &Path) -> anyhow::Result<TrustBundle> {
    bundle_of(path, &read_roots(path)?)
}

/// The roots of the file and those that the pod was made with, together. The file may not be there yet as long as
/// there are others.
pub(crate) fn roots(options: &RunOptions) -> anyhow::Result<TrustBundle> {
    let given = options.trust_bundle_pem.as_deref().filter(|given| !given.trim().is_empty());
    let given = given.map(TrustBundle::from_pem).transpose().context(
        "MESH_TRUST_BUNDLE (or --trust-bundle-pem) is not a trust bundle; it must hold the mesh's roots as PEM",
    )?;
    match (&options.trust_bundle, given) {
        (None, None) => Err(anyhow!("there are no roots to trust; {HINT}")),
        (None, Some(given)) => Ok(given),
        (Some(path), None) => read_bundle(path),
        (Some(path), Some(given)) => {
            let text = if path.exists() { read_roots(path)? } else { String::new() };
            if text.trim().is_empty() {
                tracing::info!(file = %path.display(), "no roots in the file yet, those of MESH_TRUST_BUNDLE count");
                return Ok(given);
            }
            bundle_of(path, &text)?;
            bundle_of(path, &(given.to_pem() + &text))
        }
    }
}

fn read_roots(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the trust bundle {}; {HINT}", path.display()))
}

fn bundle_of(path: &Path, text: &str) -> anyhow::Result<TrustBundle> {
    TrustBundle::from_pem(text).with_context(|| format!("{} is not a trust bundle; {HINT}", path.display()))
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
        linger: options.drain_linger.min(options.drain_deadline),
        ..listener::Options::default()
    }
}

pub(crate) async fn bind_admin(options: &RunOptions) -> anyhow::Result<TcpListener> {
    TcpListener::bind(options.admin).await.with_context(|| {
        format!("cannot listen on {} for admin pages; choose another address with --admin", options.admin)
    })
}

/// The ports that kubelet and Prometheus ask at; those of Istio where traffic is captured.
pub(crate) fn bind_ports(options: &RunOptions) -> anyhow::Result<Ports> {
    let usual = |port: u16| options.capture.then_some(port);
    let ports = [
        (Port::Status, options.status_port.or(usual(15020))),
        (Port::Ready, options.ready_port.or(usual(15021))),
        (Port::Stats, options.stats_port.or(usual(15090))),
    ];
    let only = (!options.capture).then_some(options.pod_ip);
    Ok(Ports::bind(ports.into_iter().filter_map(|(port, number)| Some((port, number?))), only)?)
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
pub(crate) fn write_addresses(
    path: &Path,
    admin: SocketAddr,
    listening: &Addresses,
    pod: &[(Port, SocketAddr)],
) -> anyhow::Result<()> {
    let at = |port: Port| {
        let all = pod.iter().filter(|(kind, _)| *kind == port);
        all.map(|(_, address)| address.to_string()).collect::<Vec<_>>()
    };
    let page = json!({
        "admin": admin,
        "outbound": listening.outbound,
        "inbound": listening.inbound,
        "status": at(Port::Status),
        "ready": at(Port::Ready),
        "stats": at(Port::Stats),
    });
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, format!("{page}\n"))
        .and_then(|()| std::fs::rename(&temporary, path))
        .with_context(|| format!("cannot write {}; choose another --address-file", path.display()))
}
