//! When to ask for a certificate. Pure: time and chance are arguments. It must never let a certificate that
//! could be renewed run out, and never ask in a tight loop, whatever the clocks say.

use std::time::{Duration, SystemTime};

use crate::trust::CertificateFacts;

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Ask now.
    Ask,
    /// Come back after this time. The wall clock may jump meanwhile, so it is never long.
    Wait(Duration),
}

/// What was tried so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attempts {
    /// Failures since the last success.
    pub failures: u32,
    /// Time since the last attempt, by a clock that does not jump.
    pub since_last: Option<Duration>,
    /// In 0.0..1.0, drawn anew with each attempt.
    pub jitter: f64,
}

/// The wall clock is read again at least this often: a suspended machine or a set clock must not cost the
/// certificate.
const CLOCK_CHECK: Duration = Duration::from_secs(60);
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_LAST: Duration = Duration::from_secs(30);

/// What to do at `now` with this certificate, if there is one.
pub fn next(now: SystemTime, certificate: Option<&CertificateFacts>, attempts: &Attempts) -> Next {
    let due_in = certificate.map_or(Duration::ZERO, |it| until(now, renew_at(it, attempts.jitter)));
    let wait = due_in.max(pause(now, certificate, attempts));
    if wait.is_zero() { Next::Ask } else { Next::Wait(wait.min(CLOCK_CHECK)) }
}

/// Half of the lifetime, moved by up to a twentieth either way, so that a thousand pods that started together
/// do not renew together.
fn renew_at(certificate: &CertificateFacts, jitter: f64) -> SystemTime {
    certificate.not_before + lifetime(certificate).mul_f64(0.45 + 0.1 * jitter.clamp(0.0, 1.0))
}

/// The least time between two attempts that is still to pass.
fn pause(now: SystemTime, certificate: Option<&CertificateFacts>, attempts: &Attempts) -> Duration {
    let Some(since_last) = attempts.since_last else { return Duration::ZERO };
    let least = match attempts.failures {
        // A clock that is ahead makes each new certificate look old: then this alone keeps the pace.
        0 => certificate.map_or(BACKOFF_FIRST, |it| (lifetime(it) / 8).max(BACKOFF_FIRST)),
        failures => {
            let left = certificate.map_or(Duration::ZERO, |it| until(now, it.not_after));
            let backoff = backoff(failures, attempts.jitter);
            // Several more attempts must fit into what is left of the certificate.
            if left.is_zero() { backoff } else { backoff.min(left / 4).max(BACKOFF_FIRST) }
        }
    };
    least.saturating_sub(since_last)
}

fn backoff(failures: u32, jitter: f64) -> Duration {
    let doubled = BACKOFF_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(10));
    let full = doubled.min(BACKOFF_LAST);
    full.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0)).max(BACKOFF_FIRST)
}

fn lifetime(certificate: &CertificateFacts) -> Duration {
    until(certificate.not_before, certificate.not_after)
}

fn until(now: SystemTime, then: SystemTime) -> Duration {
    then.duration_since(now).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(lifetime: u64) -> CertificateFacts {
        CertificateFacts {
            not_before: at(0),
            not_after: at(lifetime),
            serial: String::new(),
            uris: Vec::new(),
            dns: Vec::new(),
        }
    }

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + second)
    }

    fn attempts(failures: u32, since_last: Option<u64>) -> Attempts {
        Attempts { failures, since_last: since_last.map(Duration::from_secs), jitter: 0.5 }
    }

    const DAY: u64 = 86_400;

    #[test]
    fn when_to_ask() {
        let wait = |seconds: u64| Next::Wait(Duration::from_secs(seconds));
        for (what, now, lifetime, tried, expected) in [
            ("none yet", 0, None, attempts(0, None), Next::Ask),
            ("fresh: the clock is read again within a minute", 0, Some(DAY), attempts(0, Some(0)), wait(60)),
            ("just before half life", DAY / 2 - 10, Some(DAY), attempts(0, Some(40_000)), wait(10)),
            ("at half life", DAY / 2, Some(DAY), attempts(0, Some(40_000)), Next::Ask),
            ("loaded from a file, past half life", DAY - 5, Some(DAY), attempts(0, None), Next::Ask),
            ("a minute's leaf", 29, Some(60), attempts(0, Some(29)), wait(1)),
            ("a minute's leaf at half life", 30, Some(60), attempts(0, Some(29)), Next::Ask),
            ("our clock is ahead: no tight loop", DAY * 2, Some(DAY), attempts(0, Some(0)), wait(60)),
            ("our clock is behind", 0, Some(DAY), attempts(0, Some(100_000)), wait(60)),
            (
                "failed, long to go",
                DAY / 2,
                Some(DAY),
                attempts(20, Some(0)),
                Next::Wait(Duration::from_millis(22_500)),
            ),
            ("failed, little to go", 56, Some(60), attempts(20, Some(0)), wait(1)),
            ("failed, that time is over", 56, Some(60), attempts(20, Some(2)), Next::Ask),
            (
                "failed without certificate",
                0,
                None,
                attempts(1, Some(0)),
                Next::Wait(Duration::from_millis(500)),
            ),
            (
                "failed after the end",
                70,
                Some(60),
                attempts(20, Some(0)),
                Next::Wait(Duration::from_millis(22_500)),
            ),
        ] {
            let facts = lifetime.map(certificate);
            assert_eq!(next(at(now), facts.as_ref(), &tried), expected, "{what}");
        }
    }

    #[test]
    fn backs_off_between_half_a_second_and_thirty() {
        for failures in 1..100 {
            for jitter in [0.0, 0.3, 1.0] {
                let pause = backoff(failures, jitter);
                assert!((BACKOFF_FIRST..=BACKOFF_LAST).contains(&pause), "{failures} {jitter}: {pause:?}");
            }
        }
        assert_eq!(backoff(40, 1.0), BACKOFF_LAST);
    }
}
