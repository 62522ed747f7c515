//! The programs that make a cluster and put images into it: kind, helm, a container engine.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::{Place, Provider};
use crate::runner::say;

/// The images of the mesh, and that of the applications of the tests.
const IMAGES: [&str; 4] = ["mesh-control", "mesh-injector", "mesh-proxy", "mesh-test-app"];

/// The tag of images built here: never that of a release.
pub(super) const TAG: &str = "e2e";

/// Where the cluster's images come from, among what is kept for later runs.
const REGISTRY: &str = "MESH_E2E_REGISTRY";

/// This machine, and where everything is.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    /// Everything that is made goes here.
    work: PathBuf,
    /// What the programs need.
    environment: BTreeMap<String, String>,
    /// Of the cluster.
    kubeconfig: Option<PathBuf>,
}

impl Machine {
    /// Gets the programs that are missing.
    ///
    /// # Errors
    /// When one cannot be had; with what to do.
    pub(super) fn find(place: &Place) -> Result<Self> {
        let mut machine = Self::known(place)?;
        std::fs::create_dir_all(&machine.work)?;
        let printed = machine.script("tools").output_text()?;
        std::fs::write(machine.work.join("environment"), &printed)?;
        machine.environment = environment(&printed);
        Ok(machine)
    }

    /// The machine as `up` left it.
    ///
    /// # Errors
    /// When the work folder cannot be used.
    pub(super) fn known(place: &Place) -> Result<Self> {
        let work = match &place.work {
            Some(work) => work.clone(),
            None => target()?.join("e2e"),
        };
        let work = std::path::absolute(work)?;
        let kept = std::fs::read_to_string(work.join("environment")).unwrap_or_default();
        let kubeconfig = (place.provider == Provider::Kind).then(|| work.join("kubeconfig"));
        Ok(Self { work, environment: environment(&kept), kubeconfig })
    }

    /// The folder for everything that is made.
    pub(super) fn work(&self) -> &Path {
        &self.work
    }

    /// Where the cluster's images come from, as `up` wrote it down.
    pub(super) fn registry(&self) -> &str {
        self.environment.get(REGISTRY).map_or("localhost", String::as_str)
    }

    /// The kubeconfig of the cluster; none: the user's own.
    pub(super) fn kubeconfig(&self) -> Option<&Path> {
        self.kubeconfig.as_deref()
    }

    /// A program with what it needs.
    pub(super) fn command(&self, program: impl AsRef<OsStr>) -> Program {
        let mut command = Command::new(program);
        command.envs(&self.environment).env("WORK", &self.work).stdin(Stdio::null());
        if let Some(kubeconfig) = &self.kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
        }
        Program(command)
    }

    fn script(&self, name: &str) -> Program {
        self.command(root().join("e2e/cluster").join(name))
    }

    /// Makes a cluster, unless it is there. Whether it was there.
    ///
    /// # Errors
    /// When kind does not.
    pub(super) fn make_cluster(&self, name: &str, node_image: &str) -> Result<bool> {
        let there = self.command("kind").args(["get", "clusters"]).output_text()?;
        if there.lines().any(|line| line == name) {
            say(&format!("the cluster {name} is there"));
            let mut export = self.command("kind");
            export.args(["export", "kubeconfig", "--name", name]).run()?;
            return Ok(true);
        }
        let image = self.script("node-image").env("NODE_IMAGE", node_image).output_text()?;
        say(&format!("making the cluster {name}"));
        let config = root().join("e2e/cluster/kind.yaml");
        let mut kind = self.command("kind");
        kind.args(["create", "cluster", "--wait", "180s", "--name", name, "--config"]).arg(config);
        if !image.trim().is_empty() {
            kind.args(["--image", image.trim()]);
        }
        kind.run()?;
        Ok(false)
    }

    /// Builds the images, and brings them to the cluster.
    ///
    /// # Errors
    /// When one cannot be built or loaded.
    pub(super) fn images(&self, provider: Provider, cluster: &str, registry: &str) -> Result<()> {
        say("building images");
        let kept = std::fs::read_to_string(self.work.join("environment")).unwrap_or_default();
        std::fs::write(self.work.join("environment"), format!("{kept}{REGISTRY}={registry}\n"))?;
        let archive = self.work.join("images");
        let mut build = self.command(root().join("images/build"));
        build.args(["--registry", registry, "--tag", TAG]);
        match provider {
            Provider::Kind => build.arg("--archive").arg(&archive),
            Provider::Existing => build.arg("--push"),
        };
        build.args(IMAGES).run()?;
        if provider == Provider::Kind {
            for image in IMAGES {
                let tar = archive.join(format!("{image}.tar"));
                self.command("kind").args(["load", "image-archive", "--name", cluster]).arg(tar).run()?;
            }
        }
        Ok(())
    }

    /// Deletes the cluster.
    ///
    /// # Errors
    /// When kind does not.
    pub(super) fn delete_cluster(&self, name: &str) -> Result<()> {
        self.command("kind").args(["delete", "cluster", "--name", name]).run()
    }

    /// Says how the cluster is used by hand.
    ///
    /// # Errors
    /// Never; so that it may end a chain.
    pub(super) fn say_how_to_use(&self) -> Result<()> {
        if let Some(kubeconfig) = &self.kubeconfig {
            say(&format!("the cluster is up; use it with: export KUBECONFIG={}", kubeconfig.display()));
        }
        Ok(())
    }
}

/// The folder of the project.
pub(super) fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// Cargo's target folder, that this program stands in.
fn target() -> Result<PathBuf> {
    // TARGET/PROFILE/e2e. Cargo's own mark, CACHEDIR.TAG, is missing where somebody else made the folder.
    let own = std::env::current_exe()?;
    let target = own.parent().and_then(Path::parent);
    Ok(target.context("this program is in no target folder of cargo; give --work")?.to_owned())
}

fn environment(lines: &str) -> BTreeMap<String, String> {
    let pairs = lines.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// A program to run.
pub(super) struct Program(Command);

impl Program {
    /// One more argument.
    pub(super) fn arg(&mut self, argument: impl AsRef<OsStr>) -> &mut Self {
        self.0.arg(argument);
        self
    }

    /// More arguments.
    pub(super) fn args<S: AsRef<OsStr>>(&mut self, arguments: impl IntoIterator<Item = S>) -> &mut Self {
        self.0.args(arguments);
        self
    }

    fn env(&mut self, name: &str, value: &str) -> &mut Self {
        self.0.env(name, value);
        self
    }

    /// Runs it; what it prints is seen.
    ///
    /// # Errors
    /// When it fails.
    pub(super) fn run(&mut self) -> Result<()> {
        let status = self.0.status().with_context(|| format!("cannot start {:?}", self.0.get_program()))?;
        ensure!(status.success(), "{} failed: {status}", self.line());
        Ok(())
    }

    /// Runs it for what it prints.
    ///
    /// # Errors
    /// When it fails.
    pub(super) fn output_text(&mut self) -> Result<String> {
        let output = self.0.stderr(Stdio::inherit()).output();
        let output = output.with_context(|| format!("cannot start {:?}", self.0.get_program()))?;
        ensure!(output.status.success(), "{} failed: {}", self.line(), output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn line(&self) -> String {
        let words = std::iter::once(self.0.get_program()).chain(self.0.get_args());
        words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }
}
