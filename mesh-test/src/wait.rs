//! Waiting for a condition, bounded, with a sentence about what was waited for. The only waiting that tests
//! do; they never sleep for a time and hope.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;

const POLL: Duration = Duration::from_millis(10);

/// How long anything on this machine may take when many tests run at once.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks `probe` until it answers.
///
/// # Errors
/// When it did not within `deadline`.
pub async fn until<T>(
    what: &str,
    deadline: Duration,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(answer) = probe().await {
            return Ok(answer);
        }
        if started.elapsed() > deadline {
            bail!("waited {deadline:?} in vain: {what}");
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Asks `probe` until it succeeds; its last error is part of ours.
///
/// # Errors
/// When it did not within `deadline`.
pub async fn until_ok<T>(
    what: &str,
    deadline: Duration,
    mut probe: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        match probe().await {
            Ok(answer) => return Ok(answer),
            Err(error) if started.elapsed() > deadline => {
                return Err(error.context(format!("waited {deadline:?} in vain: {what}")));
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}
