//! Tests in network namespaces: the table of scenarios that runs on loopback too, and what only captured traffic
//! can show. Each has a thread and a namespace of its own, in which the pods' namespaces are joined.

mod broken;
mod own;
mod stranger;
mod strict;
mod table;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_test::binaries::binaries;
use mesh_test::namespace;

use crate::runner;
use table::Test;

/// Which tests run.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Names of tests; all without any.
    names: Vec<String>,
    /// Only name them.
    #[arg(long)]
    list: bool,
    /// How many run at the same time.
    #[arg(long, default_value = "3", value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: u16,
}

/// A test that takes longer than any may is hung.
const DEADLINE: Duration = Duration::from_secs(400);

/// Runs them. Whether all passed.
///
/// # Errors
/// When nothing can be run.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let all = table::all();
    if options.list {
        runner::list(&all);
        return Ok(true);
    }
    let chosen = runner::choose(all, &options.names, "e2e netns --list")?;
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: run this as root, or with sudo");
    binaries()?;
    let failed = runner::run_all(&chosen, options.jobs.into());
    runner::count(chosen.len(), failed.len());
    Ok(failed.is_empty())
}

impl runner::Named for Test {
    fn name(&self) -> &'static str {
        self.name
    }

    fn shows(&self) -> &'static str {
        self.shows
    }

    fn play(&self) -> Result<()> {
        in_a_namespace(self)
    }
}

fn in_a_namespace(test: &Test) -> Result<()> {
    namespace::enter_new()?;
    // Its threads start in this thread's namespace.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(async {
        let played = tokio::time::timeout(DEADLINE, (test.play)());
        played.await.with_context(|| format!("it did not end within {DEADLINE:?}"))?
    });
    runtime.shutdown_background();
    outcome.with_context(|| test.shows)
}
