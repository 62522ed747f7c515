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
    /// `mesh-injector`.
    pub injector: PathBuf,
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

/// A test runs as `<target>/<profile>/deps/<name>`, another program as `<target>/<profile>/<name>`.
fn build() -> Result<Binaries> {
    let own = std::env::current_exe().context("where is this test?")?;
    let beside = own.parent().context("the test is in no folder")?;
    let folder =
        if beside.ends_with("deps") { beside.parent().context("deps is in no folder")? } else { beside };
    let target = folder.parent().context("the test is in no target folder")?;
    // What was built already for those who run us, with the same features: nothing is left to do then, and
    // whoever was started alone still runs today's programs.
    let build: &[&str] = match folder.file_name().and_then(|name| name.to_str()) {
        Some("release") => &["build", "--workspace", "--bins", "--release"],
        _ => &["test", "--workspace", "--no-run"],
    };
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let status = Command::new(env!("CARGO"))
        .args(build)
        .args(["--quiet", "--locked", "--manifest-path"])
        .arg(workspace)
        .arg("--target-dir")
        .arg(target)
        .status()
        .context("cargo cannot be started")?;
    ensure!(status.success(), "the programs of the mesh do not build");
    let path = |name: &str| folder.join(name);
    Ok(Binaries {
        control: path("mesh-control"),
        proxy: path("mesh-proxy"),
        injector: path("mesh-injector"),
        meshctl: path("meshctl"),
    })
}
