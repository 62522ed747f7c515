//! The temporary folder of a world: manifests, state, logs, tokens.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::manifest;
use crate::subnet::Subnet;
use crate::topology::{NAMESPACE, ServiceSpec, Topology};

#[derive(Debug)]
pub(super) struct Folder {
    folder: TempDir,
    edits: AtomicU64,
}

impl Folder {
    pub(super) fn create() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("mesh-test-").tempdir()?;
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

    pub(super) fn write_topology(&self, topology: &Topology, subnet: &Subnet) -> Result<()> {
        self.edit("namespace.yaml", &manifest::namespace(NAMESPACE))?;
        let pods = || (1..).zip(&topology.pods).map(|(host, pod)| (subnet.address(host), pod));
        for (ip, spec) in pods() {
            let pod = manifest::Pod {
                namespace: NAMESPACE,
                name: &spec.name,
                app: &spec.app,
                version: &spec.version,
                service_account: &spec.service_account,
                ip,
                meshed: spec.meshed,
            };
            self.edit(&format!("pod-{}.yaml", spec.name), &manifest::pod(&pod))?;
        }
        for (at, spec) in topology.services.iter().enumerate() {
            let service = service(spec, at);
            let selected = pods().filter(|(_, pod)| spec.selects(pod));
            let endpoints: Vec<(&str, Ipv4Addr)> =
                selected.map(|(ip, pod)| (pod.name.as_str(), ip)).collect();
            let slice = manifest::endpoint_slice(&service, subnet.port(), &endpoints);
            self.edit(&format!("service-{}.yaml", spec.name), &manifest::service(&service))?;
            self.edit(&format!("slice-{}.yaml", spec.name), &slice)?;
        }
        for (name, text) in &topology.files {
            self.edit(name, text)?;
        }
        Ok(())
    }
}

/// The manifest of the service at this place of the topology.
pub(super) fn service(spec: &ServiceSpec, at: usize) -> manifest::Service<'_> {
    manifest::Service {
        namespace: NAMESPACE,
        name: &spec.name,
        port_name: &spec.port_name,
        port: spec.port,
        cluster_ip: Some(cluster_ip(at)),
    }
}

pub(super) fn cluster_ip(at: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0a60_0001 + at as u32)
}
