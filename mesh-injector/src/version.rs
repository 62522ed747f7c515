//! Whether the cluster has native sidecars (Kubernetes 1.29 and later), as the API server's version says; asked again
//! now and then, because clusters are upgraded under us.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kube::Client;
use mesh_common::process::Condition;

const NATIVE_SINCE: (u32, u32) = (1, 29);
const AGAIN: Duration = Duration::from_secs(600);
const AFTER_FAILURE: Duration = Duration::from_secs(2);

/// What is known of the cluster's version.
#[derive(Debug, Clone, Default)]
pub struct Version {
    native: Arc<AtomicBool>,
}

impl Version {
    /// Whether the cluster has native sidecars.
    pub fn has_native_sidecars(&self) -> bool {
        self.native.load(Ordering::Relaxed)
    }

    /// Asks for ever. `known` is met with the first answer.
    pub async fn follow(self, client: Client, known: Condition) {
        loop {
            let wait = match client.apiserver_version().await.map(|it| (parse(&it.major, &it.minor), it)) {
                Ok((Some(version), info)) => {
                    let native = version >= NATIVE_SINCE;
                    if self.native.swap(native, Ordering::Relaxed) != native {
                        tracing::info!(version = info.git_version, native, "version of the API server");
                    }
                    known.met();
                    AGAIN
                }
                Ok((None, info)) => {
                    tracing::error!(
                        major = info.major,
                        minor = info.minor,
                        "the API server's version cannot be read; set nativeSidecar to always or never"
                    );
                    AFTER_FAILURE
                }
                Err(error) => {
                    tracing::warn!(%error, "the API server does not tell its version");
                    AFTER_FAILURE
                }
            };
            tokio::time::sleep(wait).await;
        }
    }
}

/// Providers write minor versions such as `27+`.
fn parse(major: &str, minor: &str) -> Option<(u32, u32)> {
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().ok();
    Some((number(major)?, number(minor)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_versions_have_native_sidecars() {
        for (minor, native) in [("28", false), ("28+", false), ("29", true), ("29+", true), ("35", true)] {
            assert_eq!(parse("1", minor).unwrap() >= NATIVE_SINCE, native, "{minor}");
        }
        assert_eq!(parse("", ""), None);
    }
}
