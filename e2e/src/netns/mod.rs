//! Tests in network namespaces: the table of scenarios that runs on loopback too, and what only captured traffic
//! can show. Each has a thread and a namespace of its own, in which the pods' namespaces are joined.

mod broken;
mod own;
mod strict;
mod table;

use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use mesh_test::binaries::binaries;
use mesh_test::namespace;

use table::Test;
use tokio::time::Instant;

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
        all.iter().for_each(|test| say(&format!("{}: {}", test.name, test.shows)));
        return Ok(true);
    }
    if let Some(unknown) = options.names.iter().find(|name| !all.iter().any(|test| test.name == **name)) {
        bail!("there is no test {unknown}; `e2e netns --list` names them all");
    }
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: run this as root, or with sudo");
    binaries()?;
    let chosen: Vec<Test> = all
        .into_iter()
        .filter(|test| options.names.is_empty() || options.names.iter().any(|name| name == test.name))
        .collect();
    let failed = run_all(&chosen, options.jobs.into());
    say(&format!("{} passed, {} failed", chosen.len() - failed.len(), failed.len()));
    Ok(failed.is_empty())
}

/// The names of those that failed.
fn run_all(tests: &[Test], jobs: usize) -> Vec<&'static str> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(test) = tests.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if !run_one(test)
                        && let Ok(mut failed) = failed.lock()
                    {
                        failed.push(test.name);
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_default()
}

fn run_one(test: &Test) -> bool {
    let started = Instant::now();
    // A thread for each test: the namespace is the thread's, and ends with it.
    let outcome = thread::scope(|scope| scope.spawn(|| in_a_namespace(test)).join());
    let took = started.elapsed().as_secs_f32();
    match outcome {
        Ok(Ok(())) => {
            say(&format!("ok      {:<44} {took:>6.1} s", test.name));
            true
        }
        Ok(Err(error)) => {
            say(&format!("FAILED  {:<44} {took:>6.1} s\n        {error:#}", test.name));
            false
        }
        Err(_) => {
            say(&format!("FAILED  {:<44} {took:>6.1} s\nit panicked\n", test.name));
            false
        }
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

/// Prints a line; nobody may be reading.
pub(crate) fn say(line: &str) {
    writeln!(std::io::stdout().lock(), "{line}").unwrap_or_default();
}
