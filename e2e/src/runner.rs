//! Chooses tests by name, runs several at a time, counts them.

use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Result, bail};
use tokio::time::Instant;

/// Something with a name that can be played.
pub(crate) trait Named: Sync {
    /// Its name.
    fn name(&self) -> &'static str;
    /// What it shows.
    fn shows(&self) -> &'static str;
    /// Plays it, on a thread of its own.
    ///
    /// # Errors
    /// With why it failed.
    fn play(&self) -> Result<()>;
}

/// Those with the given names, in the order of the table; all if none is given.
///
/// # Errors
/// When a name is not in the table.
pub(crate) fn choose<T: Named>(all: Vec<T>, names: &[String], list: &str) -> Result<Vec<T>> {
    if let Some(unknown) = names.iter().find(|name| !all.iter().any(|test| test.name() == **name)) {
        bail!("there is no test {unknown}; `{list}` names them all");
    }
    Ok(all
        .into_iter()
        .filter(|test| names.is_empty() || names.iter().any(|name| name == test.name()))
        .collect())
}

/// Prints the table.
pub(crate) fn list<T: Named>(all: &[T]) {
    all.iter().for_each(|test| say(&format!("{}: {}", test.name(), test.shows())));
}

/// Plays them, so many at a time. The names of those that failed.
pub(crate) fn run_all<T: Named>(tests: &[T], jobs: usize) -> Vec<&'static str> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(test) = tests.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if !run_one(test)
                        && let Ok(mut failed) = failed.lock()
                    {
                        failed.push(test.name());
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_default()
}

/// Counts them in the last line.
pub(crate) fn count(chosen: usize, failed: usize) {
    say(&format!("{} passed, {failed} failed", chosen - failed));
}

fn run_one<T: Named>(test: &T) -> bool {
    let started = Instant::now();
    // A thread for each test: what it does to its thread ends with it.
    let outcome = thread::scope(|scope| scope.spawn(|| test.play()).join());
    let took = started.elapsed().as_secs_f32();
    match outcome {
        Ok(Ok(())) => {
            say(&format!("ok      {:<44} {took:>6.1} s", test.name()));
            true
        }
        Ok(Err(error)) => {
            say(&format!("FAILED  {:<44} {took:>6.1} s\n        {error:#}", test.name()));
            false
        }
        Err(_) => {
            say(&format!("FAILED  {:<44} {took:>6.1} s\nit panicked\n", test.name()));
            false
        }
    }
}

/// Prints a line; nobody may be reading.
pub(crate) fn say(line: &str) {
    writeln!(std::io::stdout().lock(), "{line}").unwrap_or_default();
}

/// Prints a figure.
pub(crate) fn figure(name: &str, value: impl std::fmt::Display) {
    say(&format!("figure: {name}: {value}"));
}
