//! A child process with a log file, killed when dropped.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::wait::PATIENCE;

/// A process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    started: Instant,
}

impl Process {
    /// Starts a program; what it prints is appended to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, program: &Path, arguments: Vec<OsString>, log: PathBuf) -> Result<Self> {
        let file = std::fs::File::options().create(true).append(true).open(&log)?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { name: name.to_owned(), child, log, started: Instant::now() })
    }

    /// Waits for an answer of `probe`; returns it with the time since the start.
    ///
    /// # Errors
    /// When the process ends first, or it takes too long; with the end of the log.
    pub async fn wait<T>(&mut self, mut probe: impl AsyncFnMut() -> Option<T>) -> Result<(T, Duration)> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}:\n{}", self.name, self.log_tail());
            }
            if let Some(answer) = probe().await {
                return Ok((answer, self.started.elapsed()));
            }
            if self.started.elapsed() > PATIENCE {
                bail!("{} is not ready after {PATIENCE:?}:\n{}", self.name, self.log_tail());
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
        let id = self.child.id().with_context(|| format!("{} has ended", self.name))?;
        let status = Command::new("sh").arg("-c").arg(format!("kill -TERM {id}")).status().await?;
        if !status.success() {
            bail!("{} cannot be sent SIGTERM", self.name);
        }
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it takes longer than `deadline`.
    pub async fn ended(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let ended = tokio::time::timeout(deadline, self.child.wait()).await;
        Ok(ended.with_context(|| format!("{} did not end:\n{}", self.name, self.log_tail()))??)
    }

    /// Resident memory in megabytes.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn resident_mb(&self) -> Result<f64> {
        let id = self.child.id().with_context(|| format!("{} has ended", self.name))?;
        let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kilobytes / 1024.0)
    }

    /// All that it printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last lines that it printed.
    pub fn log_tail(&self) -> String {
        let text = self.log();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}
