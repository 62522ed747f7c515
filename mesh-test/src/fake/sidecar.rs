//! A sidecar without a world: for tests of what it makes of a mesh-control that is not ours.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;

use crate::binaries::binaries;
use crate::metrics::Metrics;
use crate::place::Place;
use crate::process::Process;
use crate::world::SidecarAddresses;

/// The sidecar of pod `web` in namespace `shop`, with the address 127.0.0.1.
#[derive(Debug)]
pub struct LoneSidecar {
    process: Process,
    /// Where it serves.
    pub addresses: SidecarAddresses,
}

impl LoneSidecar {
    /// Starts it, and waits until its ports are open; ready it may never be.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(control: SocketAddr, root_pem: &str, folder: &Path) -> Result<Self> {
        tokio::task::spawn_blocking(binaries).await??;
        let (bundle, token) = (folder.join("lone-root.pem"), folder.join("lone-token"));
        std::fs::write(&bundle, root_pem)?;
        std::fs::write(&token, "a.b.c")?;
        let file = folder.join("lone.json");
        let mut arguments: Vec<OsString> = vec!["run".into()];
        for (flag, value) in [
            ("--control", OsString::from(control.to_string())),
            ("--trust-bundle", bundle.into()),
            ("--token-file", token.into()),
            ("--namespace", "shop".into()),
            ("--pod", "web".into()),
            ("--service-account", "web".into()),
            ("--pod-ip", "127.0.0.1".into()),
            ("--outbound", "127.0.0.1:0".into()),
            ("--admin", "127.0.0.1:0".into()),
            ("--lookup-timeout", "2s".into()),
            ("--address-file", file.clone().into()),
        ] {
            arguments.extend([flag.into(), value]);
        }
        let log = folder.join("lone.log");
        let mut process = Process::start("the lone sidecar", &binaries()?.proxy, arguments, log).await?;
        let read = async || serde_json::from_str(&std::fs::read_to_string(&file).ok()?).ok();
        let (addresses, _) = process.wait(read).await?;
        Ok(Self { process, addresses })
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// When it takes too long.
    pub async fn ready(&mut self) -> Result<()> {
        let admin = self.addresses.admin;
        self.process.wait(async || crate::world::is_ready(&Place::Here, admin).await).await?;
        Ok(())
    }

    /// Whether it is ready now.
    pub async fn is_ready(&self) -> bool {
        crate::world::is_ready(&Place::Here, self.addresses.admin).await.is_some()
    }

    /// Its metrics.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn metrics(&self) -> Result<Metrics> {
        crate::world::metrics(&Place::Here, self.addresses.admin).await
    }

    /// All that it logged.
    pub fn log(&self) -> String {
        self.process.log()
    }
}
