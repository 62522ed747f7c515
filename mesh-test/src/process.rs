//! A child process with a log file, killed when dropped.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::place::Place;
use crate::wait::PATIENCE;

/// The user that a pod's proxy runs as.
pub const PROXY_UID: u32 = 1337;

/// How a process is started.
#[derive(Debug, Clone)]
pub struct Start {
    name: String,
    program: PathBuf,
    arguments: Vec<OsString>,
    log: PathBuf,
    place: Place,
    user: Option<u32>,
}

/// A process.
#[derive(Debug)]
pub struct Process {
    start: Start,
    child: Child,
    started: Instant,
}

impl Start {
    /// A program.
    pub fn new(name: &str, program: &Path) -> Self {
        Self {
            name: name.to_owned(),
            program: program.to_owned(),
            arguments: Vec::new(),
            log: PathBuf::from("/dev/null"),
            place: Place::Here,
            user: None,
        }
    }

    /// Its arguments.
    #[must_use]
    pub fn arguments(mut self, arguments: Vec<OsString>) -> Self {
        self.arguments = arguments;
        self
    }

    /// One more argument.
    #[must_use]
    pub fn argument(mut self, argument: String) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// The file that what it prints is appended to.
    #[must_use]
    pub fn log(mut self, log: PathBuf) -> Self {
        self.log = log;
        self
    }

    /// The network it lives in.
    #[must_use]
    pub fn place(mut self, place: &Place) -> Self {
        self.place = place.clone();
        self
    }

    /// The user it runs as.
    #[must_use]
    pub fn user(mut self, user: u32) -> Self {
        self.user = Some(user);
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn spawn(self) -> Result<Process> {
        let file = std::fs::File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true);
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        let spawned = self.place.run(move || command.spawn()).await?;
        let child = spawned.with_context(|| format!("cannot start {}", self.program.display()))?;
        Ok(Process { start: self, child, started: Instant::now() })
    }
}

impl Process {
    /// Starts a program here; what it prints is appended to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start(name: &str, program: &Path, arguments: Vec<OsString>, log: PathBuf) -> Result<Self> {
        Start::new(name, program).arguments(arguments).log(log).spawn().await
    }

    /// Waits for an answer of `probe`; returns it with the time since the start.
    ///
    /// # Errors
    /// When the process ends first, or it takes too long; with the end of the log.
    pub async fn wait<T>(&mut self, mut probe: impl AsyncFnMut() -> Option<T>) -> Result<(T, Duration)> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}:\n{}", self.start.name, self.log_tail());
            }
            if let Some(answer) = probe().await {
                return Ok((answer, self.started.elapsed()));
            }
            if self.started.elapsed() > PATIENCE {
                bail!("{} is not ready after {PATIENCE:?}:\n{}", self.start.name, self.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Sends SIGKILL and waits.
    ///
    /// # Errors
    /// When the system refuses.
    pub async fn kill(&mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Sends SIGTERM.
    ///
    /// # Errors
    /// When the process has ended already.
    pub async fn terminate(&self) -> Result<()> {
        let id = self.child.id().with_context(|| format!("{} has ended", self.start.name))?;
        let status = Command::new("sh").arg("-c").arg(format!("kill -TERM {id}")).status().await?;
        if !status.success() {
            bail!("{} cannot be sent SIGTERM", self.start.name);
        }
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it takes longer than `deadline`.
    pub async fn ended(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let ended = tokio::time::timeout(deadline, self.child.wait()).await;
        Ok(ended.with_context(|| format!("{} did not end:\n{}", self.start.name, self.log_tail()))??)
    }

    /// Resident memory in megabytes.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn resident_mb(&self) -> Result<f64> {
        let id = self.child.id().with_context(|| format!("{} has ended", self.start.name))?;
        let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kilobytes / 1024.0)
    }

    /// All that it printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.start.log).unwrap_or_default()
    }

    /// The last lines that it printed.
    pub fn log_tail(&self) -> String {
        let text = self.log();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}
