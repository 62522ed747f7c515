//! Finds mesh-control and mesh-proxy beside this program. When cargo runs us they are built first, in the
//! same profile, so that one command is enough on a fresh machine.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use crate::options::DemoOptions;

/// The programs of a mesh.
#[derive(Debug)]
pub(super) struct Binaries {
    pub(super) control: PathBuf,
    pub(super) proxy: PathBuf,
}

/// Why there are none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BinariesError {
    /// The operating system does not say where we are.
    #[error("cannot tell where meshctl itself is ({0}); start it by its full path")]
    Self_(std::io::Error),
    /// Not beside us.
    #[error("{0} is missing; put mesh-control and mesh-proxy into the same folder as meshctl")]
    Missing(PathBuf),
    /// cargo cannot be started.
    #[error("cannot start {cargo} ({reason}); run `cargo build --release` first, then meshctl without cargo")]
    Cargo { cargo: PathBuf, reason: std::io::Error },
    /// cargo failed.
    #[error("cargo could not build mesh-control and mesh-proxy; what it printed above says why")]
    Build,
}

/// Finds the programs, and builds them first under cargo.
pub(super) async fn locate(options: &DemoOptions, quiet: bool) -> Result<Binaries, BinariesError> {
    let own = std::env::current_exe().map_err(BinariesError::Self_)?;
    let folder = own.parent().unwrap_or(Path::new("/"));
    if let (Some(cargo), Some(manifest)) = (&options.cargo, &options.cargo_manifest_dir) {
        build(cargo, manifest, folder, quiet).await?;
    }
    let binaries = Binaries { control: folder.join("mesh-control"), proxy: folder.join("mesh-proxy") };
    for path in [&binaries.control, &binaries.proxy] {
        if !path.is_file() {
            return Err(BinariesError::Missing(path.clone()));
        }
    }
    Ok(binaries)
}

/// The folder of a program is `<target>/<profile>`. The programs are chosen by name and not by package, so
/// that cargo resolves the same features for the dependencies as it did for meshctl, and builds them once.
async fn build(cargo: &Path, manifest: &Path, folder: &Path, quiet: bool) -> Result<(), BinariesError> {
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let workspace = manifest.parent().unwrap_or(manifest).join("Cargo.toml");
    let mut command = Command::new(cargo);
    command.args(["build", "--bin", "mesh-control", "--bin", "mesh-proxy", "--profile", profile]);
    command.arg("--manifest-path").arg(workspace);
    if let Some(target) = folder.parent() {
        command.arg("--target-dir").arg(target);
    }
    if quiet {
        command.arg("--quiet");
    }
    // Standard output is ours alone.
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).status().await;
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(BinariesError::Build),
        Err(reason) => Err(BinariesError::Cargo { cargo: cargo.to_owned(), reason }),
    }
}
