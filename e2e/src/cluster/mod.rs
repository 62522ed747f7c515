//! The mesh on a real Kubernetes: a cluster made by kind, or one that is there; images and chart as users have them.

mod client;
mod dump;
mod install;
mod machine;
mod space;
mod tests;

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};

use crate::runner;
use machine::Machine;

/// Where the cluster comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Provider {
    /// kind makes it, in containers on this machine.
    Kind,
    /// It is there: the current context of the kubeconfig.
    Existing,
}

/// Which cluster.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// Where the cluster comes from.
    #[arg(long, default_value = "kind")]
    provider: Provider,
    /// Folder for everything that is made; by default `e2e` in cargo's target folder.
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
}

/// How the mesh gets into the cluster.
#[derive(Debug, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    place: Place,
    /// The nodes' image: `published` is kind's own, `built` is made here, `auto` builds where kind's cannot be pulled.
    #[arg(long, default_value = "auto", value_name = "auto|published|built|IMAGE")]
    node_image: String,
    /// A cluster of its own name, beside others.
    #[arg(long, default_value = "mesh-e2e")]
    name: String,
    /// Where an existing cluster pulls images from; they are pushed there.
    #[arg(long, value_name = "REGISTRY", required_if_eq("provider", "existing"))]
    registry: Option<String>,
    /// Only the cluster, without the mesh: to follow the README in it.
    #[arg(long)]
    bare: bool,
}

/// Which tests run.
#[derive(Debug, Args)]
pub(crate) struct Test {
    #[command(flatten)]
    place: Place,
    /// Names of tests; all without any.
    names: Vec<String>,
    /// Only name them.
    #[arg(long)]
    list: bool,
    /// Without injection: every test must fail but those that the table names with their reason.
    #[arg(long)]
    no_mesh: bool,
    /// How many run at the same time.
    #[arg(long, default_value = "4", value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: u16,
    /// Keep the namespaces of failed tests.
    #[arg(long)]
    keep: bool,
}

/// What is removed.
#[derive(Debug, Args)]
pub(crate) struct Down {
    #[command(flatten)]
    place: Place,
    /// The cluster's name.
    #[arg(long, default_value = "mesh-e2e")]
    name: String,
}

/// Makes the cluster and installs the mesh.
///
/// # Errors
/// With the step that failed.
pub(crate) fn up(options: &Up) -> Result<()> {
    let machine = Machine::find(&options.place)?;
    let (there, registry) = match options.place.provider {
        Provider::Kind => (machine.make_cluster(&options.name, &options.node_image)?, "localhost"),
        Provider::Existing => (true, options.registry.as_deref().context("--registry is needed")?),
    };
    if options.bare {
        return machine.say_how_to_use();
    }
    machine.images(options.place.provider, &options.name, registry)?;
    install::install(&machine, registry)?;
    if there {
        install::restart(&machine)?;
    }
    machine.say_how_to_use()
}

/// Runs the tests. Whether all passed; without the mesh: whether all failed that must.
///
/// # Errors
/// When nothing can be run.
pub(crate) fn test(options: &Test) -> Result<bool> {
    if options.list {
        runner::list(&tests::all());
        return Ok(true);
    }
    let machine = Machine::known(&options.place)?;
    let settings = tests::Settings::new(&machine, !options.no_mesh, options.keep)?;
    let chosen = runner::choose(tests::with(settings), &options.names, "e2e test --list")?;
    ensure!(!chosen.is_empty(), "no test was chosen");
    // Those that disturb the whole mesh run by themselves, last.
    let (alone, beside): (Vec<_>, Vec<_>) = chosen.into_iter().partition(tests::Case::alone);
    let mut failed = runner::run_all(&beside, options.jobs.into());
    failed.extend(runner::run_all(&alone, 1));
    let all = beside.len() + alone.len();
    runner::count(all, failed.len());
    if !options.no_mesh {
        return Ok(failed.is_empty());
    }
    let passed: Vec<_> =
        beside.iter().chain(&alone).filter(|case| !failed.contains(&runner::Named::name(*case))).collect();
    let wrong: Vec<_> = passed.iter().filter(|case| case.passes_without_the_mesh().is_none()).collect();
    for case in &wrong {
        runner::say(&format!("{} passes without the mesh, so it shows nothing", runner::Named::name(**case)));
    }
    Ok(wrong.is_empty())
}

/// Removes the cluster, or the mesh from an existing one.
///
/// # Errors
/// With the step that failed.
pub(crate) fn down(options: &Down) -> Result<()> {
    let machine = Machine::known(&options.place)?;
    match options.place.provider {
        Provider::Kind => machine.delete_cluster(&options.name),
        Provider::Existing => install::uninstall(&machine),
    }
}
