//! Network namespaces of Linux, each held by a thread that lives in it. A namespace ends with its thread and the
//! processes and sockets in it: nothing is left behind, however the test ends. Needs root.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sched::{CloneFlags, unshare};
use tokio::sync::oneshot;

type Task = Box<dyn FnOnce() + Send>;

/// A namespace; clones are the same one.
#[derive(Clone)]
pub struct Namespace {
    thread: i32,
    tasks: Arc<mpsc::SyncSender<Task>>,
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Namespace").field("thread", &self.thread).finish_non_exhaustive()
    }
}

impl Namespace {
    /// Makes one, with its loopback interface up.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn create() -> Result<Self> {
        let (tasks, queue) = mpsc::sync_channel::<Task>(16);
        let (ready, entered) = mpsc::sync_channel(1);
        thread::Builder::new().name("namespace".to_owned()).spawn(move || {
            // Whoever waits has gone only when the test has ended.
            ready.send(enter_new().map(|()| nix::unistd::gettid().as_raw())).unwrap_or_default();
            while let Ok(task) = queue.recv() {
                task();
            }
        })?;
        let thread = entered.recv().context("the namespace's thread ended")??;
        Ok(Self { thread, tasks: Arc::new(tasks) })
    }

    /// The id of the thread that holds it, by which others name it.
    pub fn thread(&self) -> i32 {
        self.thread
    }

    /// Does something inside: what opens a socket or starts a process does it there.
    ///
    /// # Errors
    /// When the namespace has ended.
    pub async fn run<T: Send + 'static>(&self, task: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let task: Task = Box::new(move || {
            // Whoever asked may have gone.
            answer.send(task()).unwrap_or(());
        });
        self.tasks.send(task).map_err(|_| anyhow!("the namespace has ended"))?;
        answered.await.context("the namespace has ended")
    }
}

/// Puts the calling thread, and all that it starts from now on, into a new namespace.
///
/// # Errors
/// When the system refuses; it wants root.
pub fn enter_new() -> Result<()> {
    let entered = unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
    entered.context("cannot make a network namespace; this needs root (the capability SYS_ADMIN)")?;
    ip("link set lo up")
}

/// Runs `ip` in the namespace of the calling thread.
///
/// # Errors
/// When it fails; with what it said.
pub fn ip(arguments: &str) -> Result<()> {
    run("ip", arguments)
}

/// Runs a network tool (`ip`, `tc`) in the namespace of the calling thread; arguments are separated by spaces.
///
/// # Errors
/// When it fails; with what it said.
pub fn run(program: &str, arguments: &str) -> Result<()> {
    let output = std::process::Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .with_context(|| format!("cannot start {program}; on Debian it is in the package iproute2"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments}: {}", said.trim());
    Ok(())
}
