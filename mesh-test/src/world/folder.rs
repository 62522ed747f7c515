//! The temporary folder of a world: manifests, state, logs, tokens.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::net::Ipv4Addr;
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use super::network::Network;
use crate::certs::Authority;
use crate::manifest;
use crate::process::PROXY_UID;
use crate::topology::{Families, NAMESPACE, PodSpec, ServiceAddress, ServiceSpec, Topology};

/// The root of a mesh whose mesh-control is given a CA.
const OWN_ROOT: &str = "own-root.pem";

#[derive(Debug)]
pub(super) struct Folder {
    folder: TempDir,
    edits: AtomicU64,
}

impl Folder {
    pub(super) fn create() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("mesh-test-").tempdir()?;
        // Proxies run as another user where they may.
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
        let folder = Self { folder, edits: AtomicU64::new(0) };
        for path in [folder.manifests(), folder.state(), folder.run("")] {
            std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        Ok(folder)
    }

    pub(super) fn manifests(&self) -> PathBuf {
        self.folder.path().join("manifests")
    }

    pub(super) fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub(super) fn run(&self, name: &str) -> PathBuf {
        self.folder.path().join("run").join(name)
    }

    /// A folder for a pod's sidecar, which may run as another user.
    pub(super) fn pod(&self, name: &str) -> Result<PathBuf> {
        let path = self.run(&format!("pod-{name}"));
        std::fs::create_dir(&path)?;
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(PROXY_UID), Some(PROXY_UID))?;
        }
        Ok(path)
    }

    pub(super) fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// Writes beside the folder, then renames: a reader sees the old file or the new one.
    pub(super) fn edit(&self, file: &str, text: &str) -> Result<()> {
        let number = self.edits.fetch_add(1, Ordering::Relaxed);
        let temporary = self.run(&format!("edit-{number}"));
        std::fs::write(&temporary, text)?;
        let path = self.manifests().join(file);
        std::fs::rename(&temporary, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Where sidecars read the mesh's root.
    pub(super) fn trust_bundle(&self) -> PathBuf {
        match self.issuer() {
            Some(_) => self.run(OWN_ROOT),
            None => self.state().join("root-cert.pem"),
        }
    }

    /// Chain and key of the CA that mesh-control is given, if it is given one.
    pub(super) fn issuer(&self) -> Option<(PathBuf, PathBuf)> {
        let (chain, key) = (self.run("issuer-chain.pem"), self.run("issuer-key.pem"));
        chain.exists().then_some((chain, key))
    }

    /// Makes a root, and a CA below it.
    pub(super) fn make_issuer(&self) -> Result<()> {
        let root = Authority::new("the root")?;
        let issuer = root.intermediate("the issuer")?;
        std::fs::write(self.run("issuer-chain.pem"), issuer.pem)?;
        std::fs::write(self.run("issuer-key.pem"), issuer.key_pem)?;
        Ok(std::fs::write(self.run(OWN_ROOT), root.root_pem())?)
    }

    pub(super) fn write_topology(&self, topology: &Topology, network: &Network) -> Result<()> {
        let namespaces: BTreeSet<&str> = topology.pods.iter().map(|pod| pod.namespace.as_str()).collect();
        for namespace in namespaces.into_iter().chain([NAMESPACE]) {
            self.edit(&format!("namespace-{namespace}.yaml"), &manifest::namespace(namespace))?;
        }
        let pods: Vec<(&PodSpec, Vec<IpAddr>)> =
            topology.pods.iter().zip((1..).map(|host| network.addresses(host))).collect();
        for (spec, ips) in pods.iter().filter(|(spec, _)| spec.known) {
            let pod = manifest::Pod {
                namespace: &spec.namespace,
                name: &spec.name,
                app: &spec.app,
                version: &spec.version,
                service_account: &spec.service_account,
                ips,
                meshed: spec.meshed,
            };
            self.edit(&format!("pod-{}.yaml", spec.name), &manifest::pod(&pod))?;
        }
        for (at, spec) in topology.services.iter().enumerate() {
            self.edit(
                &format!("service-{}.yaml", spec.name),
                &service(spec, &cluster_ips(topology.families, at)),
            )?;
            let selected: Vec<_> = pods.iter().filter(|(pod, _)| spec.selects(pod)).cloned().collect();
            self.write_slices(spec, &selected, &|_| true, network.port())?;
        }
        for (name, text) in &topology.files {
            self.edit(name, text)?;
        }
        Ok(())
    }

    /// One slice for all addresses of a family of the pods that have the service's ports at the same numbers, with the pods that are
    /// `ready`. Pods without any are a slice, too: it says that there are none.
    pub(super) fn write_slices(
        &self,
        spec: &ServiceSpec,
        selected: &[(&PodSpec, Vec<IpAddr>)],
        ready: &dyn Fn(&str) -> bool,
        base: u16,
    ) -> Result<()> {
        if !spec.selector {
            return Ok(());
        }
        let mut slices: BTreeMap<_, Vec<(&str, IpAddr)>> = BTreeMap::new();
        for (pod, ips) in selected {
            for &ip in ips {
                let slice = slices.entry((spec.endpoint_ports(pod, base), ip.is_ipv6())).or_default();
                if ready(&pod.name) {
                    slice.push((pod.name.as_str(), ip));
                }
            }
        }
        for (number, ((ports, _), pods)) in slices.into_iter().enumerate() {
            let name = format!("{}-{number}", spec.name);
            let text = manifest::endpoint_slice((&spec.namespace, &spec.name), &name, &ports, &pods);
            self.edit(&format!("slice-{name}.yaml"), &text)?;
        }
        Ok(())
    }
}

/// The manifest of a service, with these addresses if it has virtual ones.
fn service(spec: &ServiceSpec, ips: &[IpAddr]) -> String {
    let ports: Vec<_> = spec.ports.iter().map(|port| (port.name.as_str(), port.port)).collect();
    manifest::service(&manifest::Service {
        namespace: &spec.namespace,
        name: &spec.name,
        ports: &ports,
        address: match &spec.address {
            ServiceAddress::Virtual => manifest::Address::Virtual(ips),
            ServiceAddress::Headless => manifest::Address::Headless,
            ServiceAddress::ExternalName(host) => manifest::Address::ExternalName(host),
        },
    })
}

/// The virtual addresses of the service at this place of the topology.
pub(super) fn cluster_ips(families: Families, at: usize) -> Vec<IpAddr> {
    let number = at as u16 + 1;
    let v4 = Ipv4Addr::from(0x0a60_0000 + u32::from(number));
    families.choose(v4.into(), Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, number).into())
}
