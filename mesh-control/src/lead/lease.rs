//! The Lease object: asks the API server what [`super::election`] wants to know. It must never hold up whoever has
//! to stop: each question is bounded, and until when we lead is told at once.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};
use tokio::sync::watch;
use tokio::time::Instant;

use super::election::{Election, Record, Step, Stored, Timing};
use super::metrics::LeadMetrics;
use super::owner::Owner;
use super::view::View;
use crate::fault::{Asked, Fault, ask};

/// The Lease.
pub const LEASE: &str = "mesh-control-leader";
/// For one question. Less than what is left of a lease when its holder stops to lead.
const REQUEST: Duration = Duration::from_secs(4);
/// For the last one.
const RELEASE: Duration = Duration::from_secs(2);

/// Takes part in the election.
pub(super) struct Elector {
    api: Api<Lease>,
    namespace: String,
    election: Election,
    /// The object as it was seen last: what others wrote into it stays.
    object: Option<Lease>,
    owner: Owner,
    leads_until: watch::Sender<Option<Instant>>,
    metrics: LeadMetrics,
    view: View,
    /// What was said last of a failure, so that it is not said again and again.
    failing: Option<&'static str>,
}

impl Elector {
    pub(super) fn new(
        client: kube::Client,
        namespace: &str,
        identity: &str,
        owner: Owner,
        metrics: LeadMetrics,
        view: View,
    ) -> (Self, watch::Receiver<Option<Instant>>) {
        let (leads_until, receiver) = watch::channel(None);
        let elector = Self {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            election: Election::new(identity.to_owned(), Timing::default()),
            object: None,
            owner,
            leads_until,
            metrics,
            view,
            failing: None,
        };
        (elector, receiver)
    }

    /// Takes part until it is dropped.
    pub(super) async fn run(&mut self) {
        loop {
            let begin = Instant::now();
            let outcome = self.round().await;
            self.tell(outcome.err());
            // Not all replicas at the same moment.
            let pause = self.election.timing().retry.mul_f64(rand::random_range(0.9..1.1));
            // That we do not lead any more is told at once, not with the next try.
            let over = self.election.leads_until().filter(|until| *until > Instant::now());
            tokio::time::sleep_until(over.map_or(begin + pause, |over| over.min(begin + pause))).await;
        }
    }

    /// Gives the Lease back, so that another leads at once.
    pub(super) async fn release(&mut self) {
        let released = self.election.release(Instant::now(), Timestamp::now());
        self.tell(None);
        let Some((record, version)) = released else { return };
        match ask(self.asked("update"), RELEASE, self.update(&record, &version)).await {
            Ok(_) => tracing::info!(lease = LEASE, "gave the lead back"),
            Err(error) => {
                tracing::warn!(lease = LEASE, %error, "the lead cannot be given back; another takes it when the lease ends");
            }
        }
    }

    /// Who is beaten once looks again at once: most likely somebody put a label on the object.
    async fn round(&mut self) -> Result<(), Fault> {
        if !self.attempt().await? {
            self.attempt().await?;
        }
        Ok(())
    }

    /// Returns whether nobody was quicker.
    async fn attempt(&mut self) -> Result<bool, Fault> {
        let mut step = self.election.begin(Instant::now(), Timestamp::now());
        if step == Step::Read {
            let found = ask(self.asked("get"), REQUEST, self.api.get_opt(LEASE)).await?;
            self.object.clone_from(&found);
            step = self.election.read(found.as_ref().map(stored), Instant::now(), Timestamp::now());
        }
        let sent = Instant::now();
        let written = match step {
            Step::Read | Step::Wait => return Ok(true),
            Step::Create(record) => {
                let lease = self.filled(Lease::default(), &record, None);
                ask(self.asked("create"), REQUEST, self.api.create(&PostParams::default(), &lease)).await
            }
            Step::Update(record, version) => {
                match ask(self.asked("update"), REQUEST, self.update(&record, &version)).await {
                    Err(Fault::NotFound(_)) => Err(Fault::Conflict),
                    written => written,
                }
            }
        };
        match written {
            Ok(lease) => {
                self.election.written(stored(&lease), sent);
                self.object = Some(lease);
                Ok(true)
            }
            Err(Fault::Conflict | Fault::Exists) => {
                self.election.beaten();
                Ok(false)
            }
            Err(fault) => Err(fault),
        }
    }

    fn leading(&self) -> bool {
        self.election.leads(Instant::now())
    }

    async fn update(&self, record: &Record, version: &str) -> kube::Result<Lease> {
        let known = self.object.clone().unwrap_or_default();
        let lease = self.filled(known, record, Some(version));
        self.api.replace(LEASE, &PostParams::default(), &lease).await
    }

    fn filled(&self, mut lease: Lease, record: &Record, version: Option<&str>) -> Lease {
        let Record { holder, duration, acquired, renewed, transitions } = record;
        let metadata = ObjectMeta {
            name: Some(LEASE.to_owned()),
            namespace: Some(self.namespace.clone()),
            resource_version: version.map(str::to_owned),
            ..lease.metadata
        };
        lease.metadata = self.owner.put_into(metadata);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(holder.clone()),
            lease_duration_seconds: i32::try_from(duration.as_secs()).ok(),
            acquire_time: acquired.map(MicroTime),
            renew_time: renewed.map(MicroTime),
            lease_transitions: Some(*transitions),
            ..lease.spec.unwrap_or_default()
        });
        lease
    }

    fn asked(&self, verb: &'static str) -> Asked<'_> {
        let group = "coordination.k8s.io";
        Asked { verb, group, resource: "leases", namespace: &self.namespace, name: LEASE }
    }

    /// Tells whoever wants to know: the writers, the metric, the page, the log.
    fn tell(&mut self, fault: Option<Fault>) {
        let leads = self.leading();
        self.leads_until.send_replace(self.election.leads_until());
        self.metrics.leader(leads);
        let holder = self.election.holder().unwrap_or_default().to_owned();
        let news = self.view.election(leads, holder.clone(), fault.as_ref().map(ToString::to_string));
        match news {
            Some(true) => tracing::info!(
                lease = LEASE,
                "leads from now on: writes status, ConfigMaps and the webhook's caBundle"
            ),
            Some(false) => tracing::info!(lease = LEASE, holder, "does not lead any more"),
            None => {}
        }
        let label = fault.as_ref().map(Fault::label);
        if let Some(error) = fault.filter(|_| label != self.failing) {
            tracing::warn!(lease = LEASE, %error, leads, "the lease cannot be read or renewed; serving goes on");
        }
        self.failing = label;
    }
}

fn stored(lease: &Lease) -> Stored {
    let spec = lease.spec.clone().unwrap_or_default();
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    Stored {
        record: Record {
            holder: spec.holder_identity.unwrap_or_default(),
            duration: Duration::from_secs(seconds.unwrap_or(0)),
            acquired: spec.acquire_time.map(|MicroTime(time)| time),
            renewed: spec.renew_time.map(|MicroTime(time)| time),
            transitions: spec.lease_transitions.unwrap_or(0),
        },
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
    }
}
