//! Worlds of real processes: a folder of manifests, mesh-control, a sidecar and an application for each pod.
//! Worlds run side by side. A scenario sees a world through the methods here, which say nothing of
//! forward-proxy ports, so that the same scenario runs on loopback and where traffic is captured.

mod control;
mod folder;
mod network;
mod pod;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::sync::Mutex;

use crate::binaries::binaries;
use crate::client::{Dialer, HttpClient, Names};
use crate::metrics::Metrics;
use crate::place::Place;
use crate::server::Server;
use crate::topology::{App, NAMESPACE, ServiceAddress, Topology};
use crate::wait;

pub use control::ControlAddresses;
pub use network::Way;
pub(crate) use pod::redirect;
pub use pod::{Pod, Sidecar, SidecarAddresses};

use control::Control;
use folder::Folder;
use network::Network;
use pod::Common;

/// The name in DNS of servers outside of the mesh.
pub const OUTSIDE: &str = "localhost";

/// A running world. Everything ends when it is dropped.
#[derive(Debug)]
pub struct World {
    pods: BTreeMap<String, Pod>,
    topology: Topology,
    control: Mutex<Control>,
    addresses: ControlAddresses,
    folder: Folder,
    network: Network,
}

impl World {
    /// Starts everything, and waits until it is ready.
    ///
    /// # Errors
    /// When something does not start; with the end of its log.
    pub async fn start(topology: &Topology, way: Way) -> Result<Self> {
        // cargo may have to build first; that must not stop the runtime.
        tokio::task::spawn_blocking(binaries).await??;
        let network = Network::create(way, topology.families, u8::try_from(topology.pods.len())?)?;
        let folder = Folder::create()?;
        folder.write_topology(topology, &network)?;
        if topology.intermediate {
            folder.make_issuer()?;
        }
        let mut control = Control::new(&folder, topology.leaf_lifetime.as_deref());
        let anywhere = ControlAddresses { xds: network.control(), admin: (Ipv4Addr::LOCALHOST, 0).into() };
        let addresses = control.start(anywhere).await?;
        let names = names(topology, &network);
        let common =
            Common { way, folder: &folder, network: &network, control: addresses.xds, names: &names };
        let mut pods = BTreeMap::new();
        for (host, spec) in (1..).zip(&topology.pods) {
            let pod = Pod::start(spec, &common, host).await;
            let pod = pod.with_context(|| format!("mesh-control said:\n{}", control.log_tail()))?;
            pods.insert(spec.name.clone(), pod);
        }
        let topology = topology.clone();
        Ok(Self { pods, topology, control: Mutex::new(control), addresses, folder, network })
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
    /// When there is no such pod.
    pub fn client(&self, name: &str) -> Result<HttpClient> {
        Ok(HttpClient::with(self.pod(name)?.dialer()))
    }

    /// An application outside of the mesh, on every address of this machine. Every pod finds it at the port of its
    /// address, under the name [`OUTSIDE`].
    ///
    /// # Errors
    /// When it does not start.
    pub async fn outside(&self, app: App) -> Result<Server> {
        Server::start(app, SocketAddr::from(([0, 0, 0, 0], 0)), "outside", "").await
    }

    /// A random address that is outside of the mesh, and reaches [`World::outside`].
    pub fn outside_address(&self) -> Ipv4Addr {
        self.network.outside()
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
        let spec = self.topology.services.iter().find(|s| s.name == service).context("no such service")?;
        let mut selected = Vec::new();
        for pod in self.topology.pods.iter().filter(|pod| spec.selects(pod)) {
            selected.push((pod, self.pod(&pod.name)?.ips().to_vec()));
        }
        let known = |name: &&&str| selected.iter().any(|(pod, _)| pod.name == ***name);
        ensure!(pods.iter().filter(known).count() == pods.len(), "{service} does not select all of {pods:?}");
        self.folder.write_slices(spec, &selected, &|name| pods.contains(&name), self.network.port())
    }

    /// The main virtual address of a service.
    ///
    /// # Errors
    /// When there is no such service.
    pub fn service_ip(&self, service: &str) -> Result<IpAddr> {
        self.service_ips(service)?.first().copied().context("the service has no address")
    }

    /// The virtual addresses of a service, one of each family.
    ///
    /// # Errors
    /// When there is no such service.
    pub fn service_ips(&self, service: &str) -> Result<Vec<IpAddr>> {
        let at = self.topology.services.iter().position(|s| s.name == service).context("no such service")?;
        Ok(folder::cluster_ips(self.topology.families, at))
    }

    /// The port at which every pod is reached.
    pub fn port(&self) -> u16 {
        self.network.port()
    }

    /// The mesh's root, PEM.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn root_pem(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.folder.trust_bundle())?)
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
        self.control.lock().await.start(self.addresses).await.map(drop)
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
        page(&Place::Here, self.addresses.admin, path).await
    }

    /// The metrics of mesh-control.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn control_metrics(&self) -> Result<Metrics> {
        metrics(&Place::Here, self.addresses.admin).await
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

/// What DNS would answer in these pods, in all the forms that people write.
fn names(topology: &Topology, network: &Network) -> Names {
    let outside = IpAddr::V4(network.outside());
    let mut names = BTreeMap::from([(OUTSIDE.to_owned(), outside)]);
    for (at, service) in topology.services.iter().enumerate() {
        let mut add = |name: &str, ip: IpAddr| {
            for domain in ["", ".svc", ".svc.cluster.local"] {
                names.insert(format!("{name}.{}{domain}", service.namespace), ip);
            }
            names.insert(name.to_owned(), ip);
        };
        let virtual_ips = folder::cluster_ips(topology.families, at);
        match &service.address {
            ServiceAddress::Virtual => virtual_ips.iter().take(1).for_each(|&ip| add(&service.name, ip)),
            ServiceAddress::ExternalName(_) => add(&service.name, outside),
            // Each pod has a name of its own; the service's leads to any of them.
            ServiceAddress::Headless => {
                for (host, pod) in (1..).zip(&topology.pods).filter(|(_, pod)| service.selects(pod)) {
                    if let Some(&ip) = network.addresses(host).first() {
                        add(&format!("{}.{}", pod.name, service.name), ip);
                        add(&service.name, ip);
                    }
                }
            }
        }
    }
    names.into()
}

/// The text of an admin page.
pub(crate) async fn text(place: &Place, admin: SocketAddr, path: &str) -> Result<String> {
    let client = HttpClient::with(Dialer::Straight(place.clone(), Names::default()));
    let reply = client.get(&format!("http://{admin}{path}")).await?;
    ensure!(reply.status == 200, "{path}: {reply}");
    Ok(String::from_utf8(reply.body.to_vec())?)
}

pub(crate) async fn page(place: &Place, admin: SocketAddr, path: &str) -> Result<Value> {
    let text = text(place, admin, path).await?;
    serde_json::from_str(&text).with_context(|| format!("{path} is not JSON: {text}"))
}

pub(crate) async fn metrics(place: &Place, admin: SocketAddr) -> Result<Metrics> {
    Metrics::parse(&text(place, admin, "/metrics").await?)
}

pub(crate) async fn is_ready(place: &Place, admin: SocketAddr) -> Option<()> {
    text(place, admin, "/readyz").await.ok().map(drop)
}
