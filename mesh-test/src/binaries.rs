//! The mesh's own programs, built once per test process into the folder of the test itself. A test must
//! never run programs that somebody built some other day.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, anyhow, ensure};

/// The programs.
#[derive(Debug)]
pub struct Binaries {
    /// `mesh-control`.
    pub control: PathBuf,
    /// `mesh-proxy`.
    pub proxy: PathBuf,
    /// `meshctl`.
    pub meshctl: PathBuf,
}

/// Builds the programs in the profile of the running test, and says where they are.
///
/// # Errors
/// When cargo cannot build them.
pub fn binaries() -> Result<&'static Binaries> {
    static BUILT: OnceLock<Result<Binaries, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    built.as_ref().map_err(|error| anyhow!("{error}"))
}

/// A test runs as `<target>/<profile>/deps/<name>`.
fn build() -> Result<Binaries> {
    let own = std::env::current_exe().context("where is this test?")?;
    let folder = own.ancestors().nth(2).context("the test is in no folder")?;
    let target = folder.parent().context("the test is in no target folder")?;
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => None,
        Some(name) => Some(name),
    };
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    // What `cargo test --workspace` builds, with the same features: nothing is left to do when the test was
    // started so, and a test that was started alone still runs today's programs.
    let status = Command::new(env!("CARGO"))
        .args(["test", "--workspace", "--no-run", "--quiet", "--locked"])
        .args(profile.map(|name| format!("--profile={name}")))
        .arg("--manifest-path")
        .arg(workspace)
        .arg("--target-dir")
        .arg(target)
        .status()
        .context("cargo cannot be started")?;
    ensure!(status.success(), "the programs of the mesh do not build");
    let path = |name: &str| folder.join(name);
    Ok(Binaries { control: path("mesh-control"), proxy: path("mesh-proxy"), meshctl: path("meshctl") })
}
