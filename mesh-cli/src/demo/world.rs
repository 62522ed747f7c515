//! The mesh of the demo: mesh-control on a folder of manifests, and a sidecar beside each pod, as ordinary
//! processes. Everything a pod knows of the mesh it gets the way it would on a cluster.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_common::xds::names::TOKEN_AUDIENCE;
use serde::Deserialize;
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::DemoError;
use super::binaries::Binaries;
use super::manifests::{self, NAMESPACE, PODS, Pod};
use super::process::{self, Guardian, Process};
use super::subnet::Subnet;
use crate::{admin, token};

const TOKEN_SECONDS: u64 = 7 * 24 * 3600;

/// The running mesh.
#[derive(Debug)]
pub(super) struct World {
    sidecars: Vec<Sidecar>,
    control: Process,
    control_admin: SocketAddr,
    subnet: Subnet,
    guardian: Guardian,
    folder: Folder,
}

/// A pod's proxy, and the listener of the pod's application until that is started.
#[derive(Debug)]
struct Sidecar {
    pod: &'static Pod,
    process: Process,
    addresses: SidecarAddresses,
    app: Option<TcpListener>,
    /// From the start of the process until it was ready.
    ready: Duration,
    /// Resident memory when it was ready, before any traffic.
    idle_mb: f64,
}

#[derive(Debug, Deserialize)]
struct SidecarAddresses {
    admin: SocketAddr,
    outbound: SocketAddr,
}

#[derive(Debug, Deserialize)]
struct ControlAddresses {
    xds: SocketAddr,
    admin: SocketAddr,
}

/// Requests that the servers' own proxies counted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct ServerCounts {
    pub(super) requests: f64,
    pub(super) mutual_tls: f64,
}

#[derive(Debug)]
struct Folder {
    path: PathBuf,
    /// Removes the folder when dropped, unless it is to be kept.
    temporary: Option<TempDir>,
}

impl World {
    /// Writes the manifests, starts mesh-control, then the sidecars one after the other.
    pub(super) async fn start(binaries: &Binaries, keep: bool) -> Result<Self, DemoError> {
        let folder = Folder::create(keep)?;
        let subnet = Subnet::claim(manifests::LAST_HOST)?;
        for (name, text) in manifests::all(&subnet) {
            folder.write(&format!("manifests/{name}"), &text)?;
        }
        let mut control = folder.start_control(binaries)?;
        let file = folder.path.join("run/control.json");
        let (addresses, _) = control.wait(async || read_json::<ControlAddresses>(&file)).await?;
        control.wait(async || is_ready(addresses.admin).await).await?;
        let mut sidecars = Vec::new();
        for pod in PODS {
            sidecars.push(folder.start_sidecar(binaries, &subnet, pod, addresses.xds).await?);
        }
        let mut processes: Vec<&Process> = sidecars.iter().map(|sidecar| &sidecar.process).collect();
        processes.push(&control);
        let removed = folder.temporary.as_ref().map(TempDir::path);
        let guardian = Guardian::start(&processes, removed)?;
        Ok(Self { sidecars, control, control_admin: addresses.admin, subnet, guardian, folder })
    }

    /// Fails when a process of the mesh has ended.
    pub(super) fn check(&mut self) -> Result<(), DemoError> {
        self.control.check()?;
        for sidecar in &mut self.sidecars {
            sidecar.process.check()?;
        }
        Ok(())
    }

    /// The forward-proxy port of the pod that sends the traffic.
    pub(super) fn client_proxy(&self) -> SocketAddr {
        self.sidecars[0].addresses.outbound
    }

    /// Each pod with its forward-proxy port and the listener of its application; once.
    pub(super) fn take_apps(&mut self) -> Vec<(&'static Pod, SocketAddr, TcpListener)> {
        let apps = self.sidecars.iter_mut();
        apps.filter_map(|s| Some((s.pod, s.addresses.outbound, s.app.take()?))).collect()
    }

    /// What the proxies of the servers counted since the start.
    pub(super) async fn server_counts(&self) -> ServerCounts {
        let mut counts = ServerCounts::default();
        for sidecar in &self.sidecars {
            // A proxy that does not answer is found by `check`; a picture with a gap is better than none.
            if let Ok(text) = admin::text(sidecar.addresses.admin, "/metrics").await {
                counts.add(&text);
            }
        }
        counts
    }

    /// The folder of the manifests.
    pub(super) fn manifests(&self) -> PathBuf {
        self.folder.path.join("manifests")
    }

    /// The admin address of mesh-control.
    pub(super) fn control_admin(&self) -> SocketAddr {
        self.control_admin
    }

    /// The admin address of the proxy of the pod that sends the traffic.
    pub(super) fn client_admin(&self) -> SocketAddr {
        self.sidecars[0].addresses.admin
    }

    /// The network of the pods.
    pub(super) fn range(&self) -> String {
        self.subnet.range()
    }

    /// The folder, when it stays.
    pub(super) fn kept(&self) -> Option<&Path> {
        self.folder.temporary.is_none().then_some(&*self.folder.path)
    }

    /// The slowest start and the largest idle memory (MB) of all sidecars, and the largest memory now.
    pub(super) fn figures(&self) -> (Duration, f64, f64) {
        let ready = self.sidecars.iter().map(|s| s.ready).max().unwrap_or_default();
        let idle = self.sidecars.iter().map(|s| s.idle_mb).fold(0.0, f64::max);
        let now = self.sidecars.iter().filter_map(|s| s.process.resident_mb()).fold(0.0, f64::max);
        (ready, idle, now)
    }

    /// Ends every process and removes the folder.
    pub(super) async fn stop(self) {
        let mut processes: Vec<Process> = self.sidecars.into_iter().map(|sidecar| sidecar.process).collect();
        process::terminate(&processes).await;
        for process in processes.drain(..) {
            process.ended().await;
        }
        let control = [self.control];
        process::terminate(&control).await;
        let [control] = control;
        control.ended().await;
        drop(self.guardian);
        drop(self.folder);
    }
}

impl Folder {
    fn create(keep: bool) -> Result<Self, DemoError> {
        let failed = |reason| DemoError::Write { path: std::env::temp_dir(), reason };
        let temporary = tempfile::Builder::new().prefix("mesh-demo-").tempdir().map_err(failed)?;
        let path = temporary.path().to_owned();
        let folder = if keep {
            Self { path: temporary.keep(), temporary: None }
        } else {
            Self { path, temporary: Some(temporary) }
        };
        for name in ["manifests", "state", "run"] {
            let path = folder.path.join(name);
            std::fs::create_dir(&path).map_err(|reason| DemoError::Write { path, reason })?;
        }
        Ok(folder)
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf, DemoError> {
        let path = self.path.join(name);
        match std::fs::write(&path, text) {
            Ok(()) => Ok(path),
            Err(reason) => Err(DemoError::Write { path, reason }),
        }
    }

    fn start_control(&self, binaries: &Binaries) -> Result<Process, DemoError> {
        let arguments: Vec<OsString> = vec![
            "--config-dir".into(),
            self.path.join("manifests").into(),
            "--state-dir".into(),
            self.path.join("state").into(),
            "--xds-address=127.0.0.1:0".into(),
            "--admin-address=127.0.0.1:0".into(),
            "--address-file".into(),
            self.path.join("run/control.json").into(),
        ];
        let log = self.path.join("run/mesh-control.log");
        Ok(Process::start("mesh-control", &binaries.control, arguments, log)?)
    }

    async fn start_sidecar(
        &self,
        binaries: &Binaries,
        subnet: &Subnet,
        pod: &'static Pod,
        control: SocketAddr,
    ) -> Result<Sidecar, DemoError> {
        let system = |reason| DemoError::System { what: "listen on 127.0.0.1", reason };
        let app = TcpListener::bind("127.0.0.1:0").await.map_err(system)?;
        let app_address = app.local_addr().map_err(system)?;
        let ip = subnet.address(pod.host);
        let inbound = format!("{ip}:{}={app_address}", subnet.port());
        let file = self.path.join(format!("run/{}.json", pod.name));
        let mut arguments: Vec<OsString> = vec!["run".into()];
        for (flag, value) in [
            ("--control", OsString::from(control.to_string())),
            ("--trust-bundle", self.path.join("state/root-cert.pem").into()),
            ("--token-file", self.token(pod)?.into()),
            ("--namespace", NAMESPACE.into()),
            ("--pod", pod.name.into()),
            ("--service-account", pod.app.into()),
            ("--pod-ip", ip.to_string().into()),
            ("--inbound", inbound.into()),
            ("--outbound", format!("{ip}:0").into()),
            ("--admin", "127.0.0.1:0".into()),
            ("--address-file", file.clone().into()),
            ("--workers", "1".into()),
        ] {
            arguments.extend([flag.into(), value]);
        }
        let log = self.path.join(format!("run/{}.log", pod.name));
        let name = format!("the sidecar of {}", pod.name);
        let mut process = Process::start(&name, &binaries.proxy, arguments, log)?;
        let (addresses, _) = process.wait(async || read_json::<SidecarAddresses>(&file)).await?;
        let ((), ready) = process.wait(async || is_ready(addresses.admin).await).await?;
        let idle_mb = process.resident_mb().unwrap_or_default();
        Ok(Sidecar { pod, process, addresses, app: Some(app), ready, idle_mb })
    }

    fn token(&self, pod: &Pod) -> Result<PathBuf, DemoError> {
        let subject =
            token::Subject { namespace: NAMESPACE, pod: pod.name, pod_uid: "", service_account: pod.app };
        let now = jiff::Timestamp::now().as_second();
        let text = token::mint(&self.path.join("state"), subject, TOKEN_AUDIENCE, now, TOKEN_SECONDS)?;
        self.write(&format!("run/{}.token", pod.name), &text)
    }
}

impl ServerCounts {
    fn add(&mut self, metrics: &str) {
        for line in metrics.lines() {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            if series.starts_with("istio_requests_total{")
                && series.contains("reporter=\"destination\"")
                && let Ok(value) = value.parse::<f64>()
            {
                self.requests += value;
                if series.contains("connection_security_policy=\"mutual_tls\"") {
                    self.mutual_tls += value;
                }
            }
        }
    }

    /// The share with mutual TLS, 0 to 1.
    pub(super) fn share(self) -> f64 {
        if self.requests > 0.0 { self.mutual_tls / self.requests } else { 0.0 }
    }
}

fn read_json<T: serde::de::DeserializeOwned>(file: &Path) -> Option<T> {
    serde_json::from_str(&std::fs::read_to_string(file).ok()?).ok()
}

async fn is_ready(address: SocketAddr) -> Option<()> {
    matches!(admin::get(address, "/readyz").await, Ok((200, _))).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_counts() {
        let mut counts = ServerCounts::default();
        counts.add(
            "# TYPE istio_requests counter\n\
             istio_requests_total{reporter=\"destination\",connection_security_policy=\"mutual_tls\"} 3\n\
             istio_requests_total{reporter=\"destination\",connection_security_policy=\"none\"} 1\n\
             istio_requests_total{reporter=\"source\",connection_security_policy=\"unknown\"} 9\n",
        );
        assert_eq!(counts, ServerCounts { requests: 4.0, mutual_tls: 3.0 });
        assert!((counts.share() - 0.75).abs() < f64::EPSILON);
    }
}
