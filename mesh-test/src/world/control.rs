//! The process mesh-control of a world, which can be killed and started again.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::folder::Folder;
use crate::binaries::binaries;
use crate::place::Place;
use crate::process::Process;

/// Where mesh-control serves.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct ControlAddresses {
    /// xDS and CA.
    pub xds: SocketAddr,
    /// Admin pages.
    pub admin: SocketAddr,
}

#[derive(Debug)]
pub(super) struct Control {
    manifests: PathBuf,
    state: PathBuf,
    file: PathBuf,
    log: PathBuf,
    leaf_lifetime: Option<String>,
    issuer: Option<(PathBuf, PathBuf)>,
    process: Option<Process>,
}

impl Control {
    pub(super) fn new(folder: &Folder, leaf_lifetime: Option<&str>) -> Self {
        Self {
            manifests: folder.manifests(),
            state: folder.state(),
            file: folder.run("control.json"),
            log: folder.run("mesh-control.log"),
            leaf_lifetime: leaf_lifetime.map(str::to_owned),
            issuer: folder.issuer(),
            process: None,
        }
    }

    /// Starts it at these addresses (port 0: any), and waits until it is ready.
    pub(super) async fn start(&mut self, at: ControlAddresses) -> Result<ControlAddresses> {
        if self.file.exists() {
            std::fs::remove_file(&self.file)?;
        }
        let mut arguments: Vec<OsString> = Vec::new();
        for (flag, value) in [
            ("--config-dir", OsString::from(&self.manifests)),
            ("--state-dir", OsString::from(&self.state)),
            ("--xds-address", at.xds.to_string().into()),
            ("--admin-address", at.admin.to_string().into()),
            ("--address-file", OsString::from(&self.file)),
        ] {
            arguments.extend([flag.into(), value]);
        }
        if let Some(lifetime) = &self.leaf_lifetime {
            arguments.extend(["--leaf-lifetime".into(), lifetime.into()]);
        }
        if let Some((chain, key)) = &self.issuer {
            arguments.extend(["--ca-cert-chain".into(), chain.into(), "--ca-key".into(), key.into()]);
        }
        let mut process =
            Process::start("mesh-control", &binaries()?.control, arguments, self.log.clone()).await?;
        let file = &self.file;
        let (addresses, _) = process
            .wait(async || {
                serde_json::from_str::<ControlAddresses>(&std::fs::read_to_string(file).ok()?).ok()
            })
            .await?;
        process.wait(async || super::is_ready(&Place::Here, addresses.admin).await).await?;
        self.process = Some(process);
        Ok(addresses)
    }

    pub(super) async fn kill(&mut self) -> Result<()> {
        self.process.take().context("mesh-control does not run")?.kill().await
    }

    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(super) fn log_tail(&self) -> String {
        self.process.as_ref().map(Process::log_tail).unwrap_or_default()
    }
}
