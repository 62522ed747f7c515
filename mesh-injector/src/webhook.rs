//! One request from beginning to end: the namespace's labels, the pure decision, the patch, what is told to whom. It
//! must answer everything that has a uid; an answer is never a reason to try the same again in vain.

use std::sync::Arc;

use arc_swap::ArcSwap;
use serde_json::Value;

use crate::decide::{Namespace, Skip};
use crate::difference::difference;
use crate::events::{Events, Notice, owner};
use crate::inject::{Facts, Outcome, inject};
use crate::metrics::Metrics;
use crate::namespaces::Namespaces;
use crate::refusal::Refusal;
use crate::review::{self, Request};
use crate::roots::Roots;
use crate::settings::Settings;
use crate::version::Version;

/// What judging a pod takes.
pub struct Webhook {
    /// The settings in force.
    pub settings: Arc<ArcSwap<Settings>>,
    /// Labels of namespaces.
    pub namespaces: Namespaces,
    /// The mesh's roots.
    pub roots: Roots,
    /// The cluster's version.
    pub version: Version,
    /// Where events go.
    pub events: Events,
    /// Where answers are counted.
    pub metrics: Metrics,
    /// Where mesh-control is, `host:port`.
    pub control: String,
    /// The DNS name of its certificate.
    pub control_name: String,
    /// The mesh's own namespace.
    pub own_namespace: String,
}

/// An answer, and how it is counted.
pub struct Answer {
    /// The `AdmissionReview`.
    pub review: Value,
    /// What became of the pod.
    pub outcome: &'static str,
    /// Why.
    pub reason: &'static str,
}

impl Webhook {
    /// Judges one pod.
    pub async fn answer(&self, request: Request) -> Answer {
        let refused = |refusal: &Refusal| {
            tracing::info!(
                namespace = request.namespace,
                reason = refusal.reason,
                message = refusal.message,
                "pod refused"
            );
            let outcome = if refusal.code == 503 { "failed" } else { "refused" };
            Answer { review: review::refused(&request.uid, refusal, &[]), outcome, reason: refusal.reason }
        };
        let pod = match &request.pod {
            Ok(pod) => pod,
            Err(refusal) => return refused(refusal),
        };
        match self.judge(pod, &request.namespace).await {
            Ok(outcome) => self.passed(&request, pod, outcome),
            Err(refusal) => refused(&refusal),
        }
    }

    async fn judge(&self, pod: &Value, namespace: &str) -> Result<Outcome, Refusal> {
        let settings = self.settings.load_full();
        let facts = self.facts()?;
        let known = self.namespaces.get(namespace).await?;
        let outcome = inject(pod, &known, &settings, &facts)?;
        let Outcome::Skipped(skip) = &outcome else { return Ok(outcome) };
        if !skip.depends_on_namespace() {
            return Ok(outcome);
        }
        // The API server called because of a label. Where the watch does not know of it, it may be behind.
        let now: Arc<Namespace> = self.namespaces.live(namespace).await?;
        if now == known { Ok(outcome) } else { inject(pod, &now, &settings, &facts) }
    }

    fn facts(&self) -> Result<Facts, Refusal> {
        let later =
            || Refusal::later("no_roots", "the mesh's roots are not known yet; is mesh-control running?");
        Ok(Facts {
            control: self.control.clone(),
            control_name: self.control_name.clone(),
            namespace: self.own_namespace.clone(),
            roots: self.roots.bundle().ok_or_else(later)?.to_pem(),
            native: self.version.has_native_sidecars(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    fn passed(&self, request: &Request, original: &Value, outcome: Outcome) -> Answer {
        match outcome {
            Outcome::Injected { pod, warnings } => {
                let patch = difference(original, &pod);
                let outcome = if patch.0.is_empty() { "unchanged" } else { "injected" };
                if !warnings.is_empty() {
                    self.tell(request, original, "MeshInjection", warnings.join("; "));
                }
                Answer {
                    review: review::allowed(&request.uid, &patch, &warnings),
                    outcome,
                    reason: "enabled",
                }
            }
            Outcome::Skipped(skip) => self.skipped(request, original, &skip),
        }
    }

    fn skipped(&self, request: &Request, original: &Value, skip: &Skip) -> Answer {
        let warnings: Vec<String> = skip.warning().into_iter().collect();
        for warning in &warnings {
            self.tell(request, original, "MeshInjectionSkipped", warning.clone());
        }
        let review = review::allowed(&request.uid, &json_patch::Patch(Vec::new()), &warnings);
        Answer { review, outcome: "skipped", reason: skip.reason() }
    }

    /// Nothing is written for a dry run.
    fn tell(&self, request: &Request, pod: &Value, reason: &'static str, message: String) {
        tracing::info!(
            namespace = request.namespace,
            reason,
            message,
            dry_run = request.dry_run,
            "remark on a pod"
        );
        if !request.dry_run {
            self.events.tell(Notice { about: owner(pod, &request.namespace), reason, message });
        }
    }
}
