//! Who made a pod, as people know it: the Deployment, not its ReplicaSet; the CronJob, not its Job.

/// What stands behind the owner that a pod names as its controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maker<'a> {
    /// A Deployment, or anything else that keeps pods alive.
    Workload(&'a str),
    /// A CronJob.
    CronJob(&'a str),
    /// A Job that no CronJob made.
    Job(&'a str),
}

impl<'a> Maker<'a> {
    /// Looks behind an owner. `template_hash` is the pod's label `pod-template-hash`.
    pub fn of(kind: &str, name: &'a str, template_hash: Option<&str>) -> Self {
        match kind {
            "ReplicaSet" => {
                let deployment = template_hash.and_then(|hash| name.strip_suffix(hash)?.strip_suffix('-'));
                Self::Workload(deployment.unwrap_or(name))
            }
            "Job" => match name.rsplit_once('-') {
                // The CronJob controller appends the minute at which the run was due.
                Some((cron, run))
                    if (8..=10).contains(&run.len()) && run.bytes().all(|b| b.is_ascii_digit()) =>
                {
                    Self::CronJob(cron)
                }
                _ => Self::Job(name),
            },
            _ => Self::Workload(name),
        }
    }

    /// Its name.
    pub fn name(self) -> &'a str {
        match self {
            Self::Workload(name) | Self::CronJob(name) | Self::Job(name) => name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_stands_behind_an_owner() {
        for (kind, name, expected) in [
            ("ReplicaSet", "reviews-v1-abc12", Maker::Workload("reviews-v1")),
            ("ReplicaSet", "standalone", Maker::Workload("standalone")),
            ("ReplicaSet", "reviewsabc12", Maker::Workload("reviewsabc12")),
            ("StatefulSet", "db", Maker::Workload("db")),
            ("StatefulSet", "db-abc12", Maker::Workload("db-abc12")),
            ("Job", "once", Maker::Job("once")),
            ("Job", "backup-28371234", Maker::CronJob("backup")),
            ("Job", "backup-2837123x", Maker::Job("backup-2837123x")),
            ("Job", "backup-2026", Maker::Job("backup-2026")),
        ] {
            assert_eq!(Maker::of(kind, name, Some("abc12")), expected, "{kind} {name}");
        }
        assert_eq!(Maker::of("ReplicaSet", "reviews-v1-abc12", None), Maker::Workload("reviews-v1-abc12"));
    }
}
