//! What the demo says at its end: figures of the whole run, for people and for programs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::load::Load;
use super::world::World;

/// How often the servers' counters are read again until all requests are in them: the server side counts a
/// request up to a second after its answer, when it has learnt who the client is.
const SETTLE: (u32, Duration) = (15, Duration::from_millis(100));

/// The figures.
#[derive(Debug)]
pub(super) struct Summary {
    pub(super) requests: u64,
    pub(super) failures: u64,
    shares: BTreeMap<String, f64>,
    mtls_share: f64,
    p50_ms: f64,
    p99_ms: f64,
    sidecar_ready: Duration,
    sidecar_idle_mb: f64,
    sidecar_busy_mb: f64,
    kept: Option<PathBuf>,
}

impl Summary {
    /// Takes the figures, while the mesh still runs.
    pub(super) async fn take(world: &World, load: &Load) -> Self {
        let total = load.total();
        let mut counts = world.server_counts().await;
        for _ in 0..SETTLE.0 {
            tokio::time::sleep(SETTLE.1).await;
            let again = world.server_counts().await;
            if again == counts && counts.requests >= total.requests as f64 {
                break;
            }
            counts = again;
        }
        let (sidecar_ready, sidecar_idle_mb, sidecar_busy_mb) = world.figures();
        Self {
            requests: total.requests,
            failures: total.failures,
            shares: total.shares(),
            mtls_share: counts.share(),
            p50_ms: total.latency.percentile_ms(0.5),
            p99_ms: total.latency.percentile_ms(0.99),
            sidecar_ready,
            sidecar_idle_mb,
            sidecar_busy_mb,
            kept: world.kept().map(Into::into),
        }
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        let round = |value: f64| (value * 1000.0).round() / 1000.0;
        let shares: BTreeMap<&str, f64> =
            self.shares.iter().map(|(version, share)| (version.as_str(), round(*share))).collect();
        json!({
            "requests": self.requests,
            "failures": self.failures,
            "shares": shares,
            "mtls_share": self.mtls_share,
            "p50_ms": round(self.p50_ms),
            "p99_ms": round(self.p99_ms),
            "sidecar_rss_mb": round(self.sidecar_idle_mb),
            "sidecar_rss_busy_mb": round(self.sidecar_busy_mb),
            "sidecar_ready_ms": self.sidecar_ready.as_millis(),
        })
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let shares: Vec<String> =
            self.shares.iter().map(|(version, share)| format!("{version} {:.1} %", share * 100.0)).collect();
        let mut text = format!(
            "\n{} requests, {} failed; {}; mutual TLS {:.1} %; p50 {:.1} ms, p99 {:.1} ms.\n\
             Each request passes up to four pairs of sidecars. The largest sidecar had {:.1} MB when idle and \
             has {:.1} MB now; the slowest was ready after {} ms.\n",
            self.requests,
            self.failures,
            shares.join(", "),
            self.mtls_share * 100.0,
            self.p50_ms,
            self.p99_ms,
            self.sidecar_idle_mb,
            self.sidecar_busy_mb,
            self.sidecar_ready.as_millis(),
        );
        if let Some(folder) = &self.kept {
            text.push_str(&format!("Manifests, state and logs stay in {}.\n", folder.display()));
        }
        text
    }
}
