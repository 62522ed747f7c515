//! A pod of a world: its application, its sidecar, and the wire before it.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use super::folder::Folder;
use crate::binaries::binaries;
use crate::client;
use crate::metrics::Metrics;
use crate::process::Process;
use crate::relay::Relay;
use crate::server::Server;
use crate::subnet::Subnet;
use crate::topology::{NAMESPACE, PodSpec};

/// A pod.
#[derive(Debug)]
pub struct Pod {
    address: SocketAddr,
    ip: Ipv4Addr,
    server: Option<Server>,
    relay: Option<Relay>,
    sidecar: Option<Sidecar>,
}

/// A pod's proxy.
#[derive(Debug)]
pub struct Sidecar {
    /// Where it serves.
    pub addresses: SidecarAddresses,
    /// From the start of the process until it was ready.
    pub ready: Duration,
    process: Mutex<Process>,
}

/// Where a sidecar serves.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct SidecarAddresses {
    /// Admin pages.
    pub admin: SocketAddr,
    /// The forward-proxy port.
    pub outbound: SocketAddr,
}

/// What a sidecar is told at its start.
#[derive(Debug)]
struct Start<'a> {
    spec: &'a PodSpec,
    ip: Ipv4Addr,
    control: SocketAddr,
    /// Where it listens, and where its application does.
    inbound: Option<(SocketAddr, SocketAddr)>,
}

impl Pod {
    pub(super) async fn start(
        spec: &PodSpec,
        folder: &Folder,
        subnet: &Subnet,
        host: u8,
        control: SocketAddr,
    ) -> Result<Self> {
        let ip = subnet.address(host);
        let address = SocketAddr::from((ip, subnet.port()));
        let app_address = if spec.sidecar { SocketAddr::from(([127, 0, 0, 1], 0)) } else { address };
        let server = match spec.serves {
            Some(app) => Some(Server::start(app, app_address, &spec.name, &spec.version).await?),
            None => None,
        };
        let mut listen = address;
        let relay = if spec.relayed {
            listen.set_port(subnet.port() + 1);
            Some(Relay::start(address, listen).await?)
        } else {
            None
        };
        let inbound = server.as_ref().map(|server| (listen, server.address()));
        let start = Start { spec, ip, control, inbound };
        let sidecar = if spec.sidecar { Some(Sidecar::start(&start, folder).await?) } else { None };
        Ok(Self { address, ip, server, relay, sidecar })
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
        self.server.as_ref().context("this pod has no application")
    }

    /// The wire before its sidecar.
    ///
    /// # Errors
    /// When it is not looked at.
    pub fn relay(&self) -> Result<&Relay> {
        self.relay.as_ref().context("this pod has no relay")
    }

    /// Its address and the port it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its address.
    pub fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// Opens a TCP connection from inside the pod.
    ///
    /// # Errors
    /// When its sidecar refuses.
    pub async fn dial(&self, host: &str, port: u16) -> Result<TcpStream> {
        client::socks5(self.sidecar()?.addresses.outbound, host, port).await
    }
}

impl Sidecar {
    async fn start(start: &Start<'_>, folder: &Folder) -> Result<Self> {
        let name = &start.spec.name;
        let token = token(start.spec, folder).await?;
        let token_file = folder.run(&format!("{name}.token"));
        std::fs::write(&token_file, token)?;
        let file = folder.run(&format!("{name}.json"));
        let mut arguments: Vec<OsString> = vec!["run".into()];
        for (flag, value) in [
            ("--control", OsString::from(start.control.to_string())),
            ("--trust-bundle", folder.state().join("root-cert.pem").into()),
            ("--token-file", token_file.into()),
            ("--namespace", NAMESPACE.into()),
            ("--pod", name.into()),
            ("--service-account", (&start.spec.service_account).into()),
            ("--pod-ip", start.ip.to_string().into()),
            ("--outbound", format!("{}:0", start.ip).into()),
            ("--admin", "127.0.0.1:0".into()),
            ("--address-file", file.clone().into()),
        ] {
            arguments.extend([flag.into(), value]);
        }
        if let Some((listen, app)) = start.inbound {
            arguments.extend(["--inbound".into(), format!("{listen}={app}").into()]);
        }
        arguments.extend(start.spec.arguments.iter().map(OsString::from));
        let log = folder.run(&format!("{name}.log"));
        let what = format!("the sidecar of {name}");
        let mut process = Process::start(&what, &binaries()?.proxy, arguments, log)?;
        let (addresses, _) = process
            .wait(async || {
                serde_json::from_str::<SidecarAddresses>(&std::fs::read_to_string(&file).ok()?).ok()
            })
            .await?;
        let ((), ready) = process.wait(async || super::is_ready(addresses.admin).await).await?;
        Ok(Self { addresses, ready, process: Mutex::new(process) })
    }

    /// Its metrics.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn metrics(&self) -> Result<Metrics> {
        super::metrics(self.addresses.admin).await
    }

    /// An admin page, as JSON.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn page(&self, path: &str) -> Result<Value> {
        super::page(self.addresses.admin, path).await
    }

    /// Sends SIGTERM.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn terminate(&self) -> Result<()> {
        self.process.lock().await.terminate().await
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

async fn token(spec: &PodSpec, folder: &Folder) -> Result<String> {
    let output = tokio::process::Command::new(&binaries()?.meshctl)
        .args(["token", "--namespace", NAMESPACE, "--pod", &spec.name])
        .args(["--service-account", &spec.service_account, "--state-dir"])
        .arg(folder.state())
        .output()
        .await?;
    anyhow::ensure!(output.status.success(), "no token: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
