//! Worlds of real processes on loopback: a folder of manifests, mesh-control, a sidecar and an application
//! for each pod. Worlds run side by side. A scenario sees a world through the methods here, which say
//! nothing of forward-proxy ports, so that the same scenario can run where traffic is captured.

mod control;
mod folder;
mod pod;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::sync::Mutex;

use crate::binaries::binaries;
use crate::client::HttpClient;
use crate::manifest;
use crate::metrics::Metrics;
use crate::subnet::Subnet;
use crate::topology::{NAMESPACE, ServiceSpec, Topology};
use crate::wait;

pub use control::ControlAddresses;
pub use pod::{Pod, Sidecar, SidecarAddresses};

use control::Control;
use folder::Folder;

/// A running world. Everything ends when it is dropped.
#[derive(Debug)]
pub struct World {
    pods: BTreeMap<String, Pod>,
    services: Vec<ServiceSpec>,
    control: Mutex<Control>,
    addresses: ControlAddresses,
    folder: Folder,
    subnet: Subnet,
}

impl World {
    /// Starts everything, and waits until it is ready.
    ///
    /// # Errors
    /// When something does not start; with the end of its log.
    pub async fn start(topology: &Topology) -> Result<Self> {
        // cargo may have to build first; that must not stop the runtime.
        tokio::task::spawn_blocking(binaries).await??;
        let subnet = Subnet::claim(u8::try_from(topology.pods.len())?)?;
        let folder = Folder::create()?;
        folder.write_topology(topology, &subnet)?;
        let mut control = Control::new(&folder, topology.leaf_lifetime.as_deref());
        let addresses = control.start(None).await?;
        let mut pods = BTreeMap::new();
        for (host, spec) in (1..).zip(&topology.pods) {
            let pod = Pod::start(spec, &folder, &subnet, host, addresses.xds).await;
            let pod = pod.with_context(|| format!("mesh-control said:\n{}", control.log_tail()))?;
            pods.insert(spec.name.clone(), pod);
        }
        let services = topology.services.clone();
        Ok(Self { pods, services, control: Mutex::new(control), addresses, folder, subnet })
    }

    /// A pod.
    ///
    /// # Errors
    /// When the topology has none of this name.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.pods.get(name).with_context(|| format!("this world has no pod {name}"))
    }

    /// An HTTP client in the pod `name`.
    ///
    /// # Errors
    /// When there is no such pod, or it has no sidecar.
    pub fn client(&self, name: &str) -> Result<HttpClient> {
        Ok(HttpClient::new(self.pod(name)?.sidecar()?.addresses.outbound))
    }

    /// Replaces a file in the folder of manifests, at once and whole.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn edit(&self, file: &str, text: &str) -> Result<()> {
        self.folder.edit(file, text)
    }

    /// Removes a file from the folder of manifests.
    ///
    /// # Errors
    /// When there is none.
    pub fn remove(&self, file: &str) -> Result<()> {
        Ok(std::fs::remove_file(self.folder.manifests().join(file))?)
    }

    /// Puts exactly these pods behind a service.
    ///
    /// # Errors
    /// When there is no such service or pod.
    pub fn set_endpoints(&self, service: &str, pods: &[&str]) -> Result<()> {
        let spec = self.services.iter().find(|s| s.name == service).context("no such service")?;
        let mut endpoints = Vec::new();
        for name in pods {
            endpoints.push((*name, self.pod(name)?.ip()));
        }
        let text = manifest::endpoint_slice(&folder::service(spec, 0), self.subnet.port(), &endpoints);
        self.edit(&format!("slice-{service}.yaml"), &text)
    }

    /// The virtual address of a service.
    ///
    /// # Errors
    /// When there is no such service.
    pub fn service_ip(&self, service: &str) -> Result<Ipv4Addr> {
        let at = self.services.iter().position(|s| s.name == service).context("no such service")?;
        Ok(folder::cluster_ip(at))
    }

    /// The port at which every pod is reached.
    pub fn port(&self) -> u16 {
        self.subnet.port()
    }

    /// Where mesh-control serves.
    pub fn addresses(&self) -> ControlAddresses {
        self.addresses
    }

    /// The state folder of mesh-control.
    pub fn state(&self) -> PathBuf {
        self.folder.state()
    }

    /// The folder of manifests.
    pub fn manifests(&self) -> PathBuf {
        self.folder.manifests()
    }

    /// A folder for the scenario's own files.
    pub fn scratch(&self) -> &Path {
        self.folder.scratch()
    }

    /// Kills mesh-control.
    ///
    /// # Errors
    /// When the system refuses.
    pub async fn kill_control(&self) -> Result<()> {
        self.control.lock().await.kill().await
    }

    /// Starts mesh-control again, where it was.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart_control(&self) -> Result<()> {
        self.control.lock().await.start(Some(self.addresses)).await.map(drop)
    }

    /// All that mesh-control logged.
    pub async fn control_log(&self) -> String {
        self.control.lock().await.log()
    }

    /// An admin page of mesh-control, as JSON.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn control_page(&self, path: &str) -> Result<Value> {
        page(self.addresses.admin, path).await
    }

    /// The metrics of mesh-control.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn control_metrics(&self) -> Result<Metrics> {
        metrics(self.addresses.admin).await
    }

    /// Runs meshctl, and returns what it wrote to standard output.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub async fn meshctl(&self, arguments: &[&str]) -> Result<String> {
        let output = tokio::process::Command::new(&binaries()?.meshctl).args(arguments).output().await?;
        ensure!(
            output.status.success(),
            "meshctl {arguments:?} failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// A token for any pod and any audience, as `meshctl token` mints it.
    ///
    /// # Errors
    /// When meshctl fails.
    pub async fn token(&self, pod: &str, service_account: &str, audience: &str) -> Result<String> {
        let state = self.state();
        let state = state.to_str().context("the folder has a strange name")?;
        let arguments = [
            "token",
            "--state-dir",
            state,
            "--namespace",
            NAMESPACE,
            "--pod",
            pod,
            "--service-account",
            service_account,
            "--audience",
            audience,
        ];
        Ok(self.meshctl(&arguments).await?.trim().to_owned())
    }

    /// Waits until the sum of a metric of a pod's sidecar is `expected`, exactly; it must not pass it.
    ///
    /// # Errors
    /// When it is another number in the end.
    pub async fn counted(&self, pod: &str, name: &str, labels: &[(&str, &str)], expected: u64) -> Result<()> {
        let sidecar = self.pod(pod)?.sidecar()?;
        let what = format!("{name}{labels:?} of {pod} is {expected}");
        wait::until_ok(&what, Duration::from_secs(10), async || {
            let metrics = sidecar.metrics().await?;
            let found = metrics.sum(name, labels);
            let all: Vec<_> = metrics.select(name, &[]).collect();
            ensure!(found == expected as f64, "it is {found}; all series: {all:#?}");
            Ok(())
        })
        .await
    }
}

/// The text of an admin page.
pub(crate) async fn text(admin: SocketAddr, path: &str) -> Result<String> {
    let reply = HttpClient::new(admin).get(&format!("http://{admin}{path}")).await?;
    ensure!(reply.status == 200, "{path}: {reply}");
    Ok(String::from_utf8(reply.body.to_vec())?)
}

pub(crate) async fn page(admin: SocketAddr, path: &str) -> Result<Value> {
    let text = text(admin, path).await?;
    serde_json::from_str(&text).with_context(|| format!("{path} is not JSON: {text}"))
}

pub(crate) async fn metrics(admin: SocketAddr) -> Result<Metrics> {
    Metrics::parse(&text(admin, "/metrics").await?)
}

pub(crate) async fn is_ready(admin: SocketAddr) -> Option<()> {
    text(admin, "/readyz").await.ok().map(drop)
}
