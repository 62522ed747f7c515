//! A pod of a world: its application, its sidecar, and the wire before it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

use super::folder::Folder;
use super::network::{Network, Way};
use crate::binaries::binaries;
use crate::client::{Dialer, Names};
use crate::metrics::Metrics;
use crate::place::Place;
use crate::process::{PROXY_UID, Process, Start};
use crate::relay::Relay;
use crate::server::Server;
use crate::topology::PodSpec;
use crate::wire::{Packets, Wire};

/// A pod.
#[derive(Debug)]
pub struct Pod {
    place: Place,
    names: Names,
    address: SocketAddr,
    ips: Vec<IpAddr>,
    /// By port; the main one is the one of `address`.
    servers: BTreeMap<u16, Server>,
    wire: Option<Wire>,
    sidecar: Option<Sidecar>,
}

/// A pod's proxy.
#[derive(Debug)]
pub struct Sidecar {
    /// Where it serves.
    pub addresses: SidecarAddresses,
    /// From the start of the process until it was ready.
    pub ready: Duration,
    place: Place,
    process: Mutex<Process>,
    /// How it is started, but for the addresses that it may choose itself.
    start: Start,
    folder: PathBuf,
    /// The address that its application reaches it at, unless traffic is captured.
    beside: Option<IpAddr>,
}

/// Where a sidecar serves.
#[derive(Debug, Clone, Deserialize)]
pub struct SidecarAddresses {
    /// Admin pages.
    pub admin: SocketAddr,
    /// The forward-proxy port; none where traffic is captured.
    pub outbound: Option<SocketAddr>,
    /// Merged metrics, probes and handlers.
    pub status: Vec<SocketAddr>,
    /// Readiness.
    pub ready: Vec<SocketAddr>,
    /// Its own metrics.
    pub stats: Vec<SocketAddr>,
}

/// What all pods of a world have in common.
#[derive(Debug)]
pub(super) struct Common<'a> {
    pub(super) way: Way,
    pub(super) folder: &'a Folder,
    pub(super) network: &'a Network,
    pub(super) control: SocketAddr,
    pub(super) names: &'a Names,
}

impl Pod {
    pub(super) async fn start(spec: &PodSpec, common: &Common<'_>, host: u8) -> Result<Self> {
        let (ips, port) = (common.network.addresses(host), common.network.port());
        let ip = *ips.first().context("the pod has no address")?;
        let (place, address) = (common.network.place(host)?, SocketAddr::from((ip, port + spec.at)));
        let mut servers = BTreeMap::new();
        let serves = spec.serves.map(|app| (spec.at, app)).into_iter().chain(spec.also.iter().copied());
        for (distance, app) in serves {
            let own = SocketAddr::from((ip, port + distance));
            // Where traffic is captured the application knows of no proxy, and listens where it always does.
            let beside = spec.sidecar && common.way == Way::Loopback;
            let listen = match (beside, ips.len()) {
                (true, _) => SocketAddr::from(([127, 0, 0, 1], 0)),
                (false, 1) => own,
                (false, _) => SocketAddr::from(([0; 16], own.port())),
            };
            let server = Server::start_in(&place, app, listen, &spec.name, &spec.version).await?;
            servers.insert(own.port(), server);
        }
        let mut inbound: Vec<_> =
            servers.iter().map(|(port, server)| (SocketAddr::from((ip, *port)), server.address())).collect();
        let wire = match (spec.relayed, common.way) {
            (false, _) => None,
            (true, Way::Namespaces) => Some(Wire::Packets(Packets::of(ip)?)),
            (true, Way::Loopback) => {
                let behind = SocketAddr::from((ip, address.port() + 1));
                inbound = vec![(behind, servers[&address.port()].address())];
                Some(Wire::Relay(Relay::start(address, behind).await?))
            }
        };
        let sidecar = match spec.sidecar {
            true => Some(Sidecar::start(spec, common, host, &inbound).await?),
            false => None,
        };
        Ok(Self { place, names: common.names.clone(), address, ips, servers, wire, sidecar })
    }

    /// Its sidecar.
    ///
    /// # Errors
    /// When it has none.
    pub fn sidecar(&self) -> Result<&Sidecar> {
        self.sidecar.as_ref().context("this pod has no sidecar")
    }

    /// Its application.
    ///
    /// # Errors
    /// When it has none.
    pub fn server(&self) -> Result<&Server> {
        self.server_at(self.address.port())
    }

    /// Its application at this port.
    ///
    /// # Errors
    /// When it has none.
    pub fn server_at(&self, port: u16) -> Result<&Server> {
        self.servers.get(&port).context("this pod has no application")
    }

    /// The wire before its sidecar.
    ///
    /// # Errors
    /// When it is not looked at.
    pub fn wire(&self) -> Result<&Wire> {
        self.wire.as_ref().context("nobody looks at the wire of this pod")
    }

    /// Its address and the port it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its main address.
    pub fn ip(&self) -> IpAddr {
        self.address.ip()
    }

    /// Its addresses, one of each family.
    pub fn ips(&self) -> &[IpAddr] {
        &self.ips
    }

    /// Where its sockets are opened.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The way out of the pod, as its application has it.
    pub fn dialer(&self) -> Dialer {
        match self.sidecar.as_ref().and_then(|sidecar| sidecar.addresses.outbound) {
            Some(proxy) => Dialer::Forward(proxy),
            None => Dialer::Straight(self.place.clone(), self.names.clone()),
        }
    }

    /// Opens a TCP connection from inside the pod.
    ///
    /// # Errors
    /// When its sidecar refuses.
    pub async fn dial(&self, host: &str, port: u16) -> Result<TcpStream> {
        self.dialer().dial(host, port).await
    }

    /// Listens where the pod is reached, in the place of an application.
    ///
    /// # Errors
    /// When an application does.
    pub async fn listen(&self) -> Result<TcpListener> {
        self.place.listen(self.address).await
    }
}

impl Sidecar {
    async fn start(
        spec: &PodSpec,
        common: &Common<'_>,
        host: u8,
        inbound: &[(SocketAddr, SocketAddr)],
    ) -> Result<Self> {
        let (name, ips, place) = (&spec.name, common.network.addresses(host), common.network.place(host)?);
        let ip = *ips.first().context("the pod has no address")?;
        let folder = common.folder.pod(name)?;
        std::fs::write(folder.join("token"), token(spec, common.folder).await?)?;
        std::fs::copy(common.folder.trust_bundle(), folder.join("root-cert.pem"))?;
        let mut arguments: Vec<OsString> = vec!["run".into()];
        for (flag, value) in [
            ("--control", OsString::from(common.control.to_string())),
            ("--trust-bundle", folder.join("root-cert.pem").into()),
            ("--token-file", folder.join("token").into()),
            ("--namespace", (&spec.namespace).into()),
            ("--pod", name.into()),
            ("--service-account", (&spec.service_account).into()),
            ("--pod-ip", ip.to_string().into()),
            ("--address-file", folder.join("addresses.json").into()),
            ("--state-dir", folder.join("state").into()),
        ] {
            arguments.extend([flag.into(), value]);
        }
        let mut start = Start::new(&format!("the sidecar of {name}"), &binaries()?.proxy);
        let beside = match common.way {
            Way::Loopback => {
                arguments.extend(["--status-port=0", "--ready-port=0", "--stats-port=0"].map(OsString::from));
                for (listen, app) in inbound {
                    arguments.extend(["--inbound".into(), format!("{listen}={app}").into()]);
                }
                Some(ip)
            }
            Way::Namespaces => {
                redirect(&place, &spec.redirect).await?;
                arguments.push("--capture".into());
                start = start.place(&place).user(PROXY_UID);
                None
            }
        };
        let port = (common.network.port() + spec.at).to_string();
        arguments.extend(spec.arguments.iter().map(|argument| argument.replace("PORT", &port).into()));
        let start = start.arguments(arguments).log(folder.join("log"));
        let (process, addresses, ready) = run(&start, &place, &folder, beside, None).await?;
        Ok(Self { addresses, ready, place, process: Mutex::new(process), start, folder, beside })
    }

    /// Starts it again after its end, where it was. Returns the time from the start until it was ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn restart(&self) -> Result<Duration> {
        let mut process = self.process.lock().await;
        let again = run(&self.start, &self.place, &self.folder, self.beside, Some(&self.addresses)).await?;
        *process = again.0;
        Ok(again.2)
    }

    /// The folder with what it keeps for the next start.
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Whether it is ready now.
    pub async fn is_ready(&self) -> bool {
        super::is_ready(&self.place, self.addresses.admin).await.is_some()
    }

    /// Sends SIGKILL.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn kill(&self) -> Result<()> {
        self.process.lock().await.kill().await
    }

    /// Its metrics.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn metrics(&self) -> Result<Metrics> {
        super::metrics(&self.place, self.addresses.admin).await
    }

    /// An admin page, as JSON.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn page(&self, path: &str) -> Result<Value> {
        super::page(&self.place, self.addresses.admin, path).await
    }

    /// Sends SIGTERM.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn terminate(&self) -> Result<()> {
        self.process.lock().await.terminate().await
    }

    /// Runs `mesh-proxy` beside it with this command, as kubelet does for a handler, and returns what it said.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub async fn command(&self, words: &[&str]) -> Result<String> {
        let program = binaries()?.proxy.clone();
        let mut arguments: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        arguments.push(format!("--admin={}", self.addresses.admin));
        let mut command = tokio::process::Command::new(program);
        command.args(arguments).stdin(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
        let child = self.place.run(move || command.spawn()).await??;
        let output = child.wait_with_output().await?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        anyhow::ensure!(output.status.success(), "mesh-proxy {words:?} failed: {said}");
        Ok(said)
    }

    /// Waits for its end; `true` when it says that all went well.
    ///
    /// # Errors
    /// When it takes too long.
    pub async fn ended(&self, deadline: Duration) -> Result<bool> {
        Ok(self.process.lock().await.ended(deadline).await?.success())
    }

    /// Resident memory in megabytes.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn resident_mb(&self) -> Result<f64> {
        self.process.lock().await.resident_mb()
    }

    /// All that it logged.
    pub async fn log(&self) -> String {
        self.process.lock().await.log()
    }
}

/// Starts a sidecar, on free ports or where it was, and waits until it is ready.
async fn run(
    start: &Start,
    place: &Place,
    folder: &Path,
    beside: Option<IpAddr>,
    at: Option<&SidecarAddresses>,
) -> Result<(Process, SidecarAddresses, Duration)> {
    let file = folder.join("addresses.json");
    if file.exists() {
        std::fs::remove_file(&file)?;
    }
    let mut start = start.clone();
    if let Some(ip) = beside {
        let any = || (([127, 0, 0, 1], 0).into(), Some((ip, 0).into()));
        let (admin, outbound) = at.map_or_else(any, |at| (at.admin, at.outbound));
        start = start.argument(format!("--admin={admin}"));
        if let Some(outbound) = outbound {
            start = start.argument(format!("--outbound={outbound}"));
        }
    }
    let mut process = start.spawn().await?;
    let (addresses, _) = process
        .wait(async || serde_json::from_str::<SidecarAddresses>(&std::fs::read_to_string(&file).ok()?).ok())
        .await?;
    let ((), ready) = process.wait(async || super::is_ready(place, addresses.admin).await).await?;
    Ok((process, addresses, ready))
}

async fn token(spec: &PodSpec, folder: &Folder) -> Result<String> {
    let output = tokio::process::Command::new(&binaries()?.meshctl)
        .args(["token", "--namespace", &spec.namespace, "--pod", &spec.name])
        .args(["--service-account", &spec.service_account, "--state-dir"])
        .arg(folder.state())
        .output()
        .await?;
    anyhow::ensure!(output.status.success(), "no token: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Writes the rules of capture, and proves that they work.
pub(crate) async fn redirect(place: &Place, arguments: &[String]) -> Result<()> {
    let program = binaries()?.proxy.clone();
    let arguments = arguments.to_vec();
    let output = place
        .run(move || {
            std::process::Command::new(program).args(["redirect", "--verify"]).args(arguments).output()
        })
        .await??;
    anyhow::ensure!(output.status.success(), "not captured: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
