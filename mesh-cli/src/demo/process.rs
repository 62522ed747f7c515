//! Child processes: each writes to its own log file, is watched, and ends with us, also when we are killed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::time::Instant;

/// How long a process may take to be ready.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// How long a process may take to end when asked.
const STOP_DEADLINE: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(2);

/// A process of the mesh.
#[derive(Debug)]
pub(super) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    started: Instant,
}

/// Why a process is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    /// It could not be started.
    #[error("cannot start {program} ({reason})")]
    Start { program: PathBuf, reason: std::io::Error },
    /// It ended by itself.
    #[error("{name} ended with {status}; the last it said: {said}")]
    Ended { name: String, status: ExitStatus, said: String },
    /// It is not ready in time.
    #[error("{name} was not ready within 20 seconds; the last it said: {said}")]
    NotReady { name: String, said: String },
    /// Its state cannot be read.
    #[error("cannot watch {name} ({reason})")]
    Watch { name: String, reason: std::io::Error },
}

impl Process {
    /// Starts `program`; what it prints goes to `log`.
    pub(super) fn start(
        name: &str,
        program: &Path,
        arguments: Vec<OsString>,
        log: PathBuf,
    ) -> Result<Self, ProcessError> {
        let failed = |reason| ProcessError::Start { program: program.to_owned(), reason };
        let file = std::fs::File::create(&log).map_err(failed)?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file.try_clone().map_err(failed)?)
            .stderr(file)
            // A group of its own: Ctrl-C in the terminal reaches us alone, and we end things in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        Ok(Self { name: name.to_owned(), child, log, started: Instant::now() })
    }

    /// The process id, while it runs.
    pub(super) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Fails when the process has ended.
    pub(super) fn check(&mut self) -> Result<(), ProcessError> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                Err(ProcessError::Ended { name: self.name.clone(), status, said: self.last_line() })
            }
            Err(reason) => Err(ProcessError::Watch { name: self.name.clone(), reason }),
        }
    }

    /// Asks `probe` again and again until it has an answer. Returns it with the time since the start.
    pub(super) async fn wait<T>(
        &mut self,
        mut probe: impl AsyncFnMut() -> Option<T>,
    ) -> Result<(T, Duration), ProcessError> {
        loop {
            self.check()?;
            if let Some(answer) = probe().await {
                return Ok((answer, self.started.elapsed()));
            }
            if self.started.elapsed() > START_DEADLINE {
                return Err(ProcessError::NotReady { name: self.name.clone(), said: self.last_line() });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Resident memory in megabytes.
    pub(super) fn resident_mb(&self) -> Option<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
        Some(kilobytes / 1024.0)
    }

    /// Waits until the process has ended, which it was asked to; kills it when it takes too long.
    pub(super) async fn ended(mut self) {
        if tokio::time::timeout(STOP_DEADLINE, self.child.wait()).await.is_err() {
            // It is gone either way: a process that cannot be killed has ended already.
            self.child.kill().await.unwrap_or_default();
        }
    }

    fn last_line(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing").to_owned()
    }
}

/// Asks processes to end (SIGTERM). Through a shell, which every system has, since this program holds no
/// unsafe code.
pub(super) async fn terminate(processes: &[Process]) {
    let ids: Vec<String> = processes.iter().filter_map(Process::id).map(|id| id.to_string()).collect();
    if !ids.is_empty() {
        let script = format!("kill -TERM {}", ids.join(" "));
        let asked = Command::new("sh").arg("-c").arg(script).stderr(Stdio::null()).status().await;
        // Whoever was not asked is killed a little later.
        asked.map(drop).unwrap_or_default();
    }
}

/// Ends the processes and removes the folder when this program dies without doing so: a shell that waits
/// for the end of a pipe that only we hold open.
#[derive(Debug)]
pub(super) struct Guardian {
    _shell: Child,
}

impl Guardian {
    pub(super) fn start(processes: &[&Process], folder: Option<&Path>) -> Result<Self, ProcessError> {
        let ids: Vec<String> = processes.iter().filter_map(|p| p.id()).map(|id| id.to_string()).collect();
        let script = format!("read end; kill -KILL {}; test -z \"$1\" || rm -rf -- \"$1\"", ids.join(" "));
        let shell = Command::new("sh")
            .args(["-c", &script, "mesh-demo-guardian"])
            .arg(folder.unwrap_or(Path::new("")))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|reason| ProcessError::Start { program: "sh".into(), reason })?;
        Ok(Self { _shell: shell })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, log: PathBuf) -> Process {
        Process::start("test", Path::new("sh"), vec!["-c".into(), script.into()], log).unwrap()
    }

    #[tokio::test]
    async fn an_early_end_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let mut process = shell("echo port taken >&2; exit 3", folder.path().join("log"));
        let error = process.wait(async || None::<()>).await.unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.ends_with("port taken"), "{error}");
    }

    #[tokio::test]
    async fn asked_to_end() {
        let folder = tempfile::tempdir().unwrap();
        let process = shell("exec sleep 60", folder.path().join("log"));
        assert!(process.resident_mb().unwrap() > 0.0);
        let processes = [process];
        terminate(&processes).await;
        let [process] = processes;
        let before = Instant::now();
        process.ended().await;
        assert!(before.elapsed() < STOP_DEADLINE);
    }

    #[tokio::test]
    async fn the_guardian_ends_what_we_left() {
        let folder = tempfile::tempdir().unwrap();
        let (state, log) = (folder.path().join("state"), folder.path().join("log"));
        std::fs::create_dir(&state).unwrap();
        let mut process = shell("exec sleep 60", log);
        let mut guardian = Guardian::start(&[&process], Some(&state)).unwrap();
        drop(guardian._shell.stdin.take());
        process.wait(async || None::<()>).await.unwrap_err();
        let removed = tokio::time::timeout(STOP_DEADLINE, guardian._shell.wait()).await;
        assert!(removed.is_ok() && !state.exists());
    }
}
