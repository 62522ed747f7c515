//! Who leads: the protocol of a Lease, as Kubernetes' own controllers have it. Pure: answers and the time are
//! arguments, requests are what it returns. It must never say that we lead when another may already do so, whatever
//! the clocks of the machines say: the age of another's record is judged by when we saw it change.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// What a Lease says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// Who holds it; empty: nobody.
    pub(super) holder: String,
    /// How long it stands after each renewal.
    pub(super) duration: Duration,
    /// When its holder got it: for people.
    pub(super) acquired: Option<Timestamp>,
    /// When its holder renewed it, by the holder's clock: for people.
    pub(super) renewed: Option<Timestamp>,
    /// How often it changed hands.
    pub(super) transitions: i32,
}

/// A record with its resource version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    /// The record.
    pub(super) record: Record,
    /// What a change of it must name.
    pub(super) version: String,
}

/// The times of an election. `renew` is shorter than `lease`: who cannot renew stops before others may begin.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    /// A record that did not change for this long has no holder any more.
    pub(super) lease: Duration,
    /// Who did not renew for this long does not lead any more.
    pub(super) renew: Duration,
    /// Between two tries.
    pub(super) retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { lease: seconds(15), renew: seconds(10), retry: seconds(2) }
    }
}

/// What to ask the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Read the Lease.
    Read,
    /// Make it; somebody else's is not to be overwritten.
    Create(Record),
    /// Change it from this version; any other is not to be overwritten.
    Update(Record, String),
    /// Somebody holds it.
    Wait,
}

/// Records of others stand at most this long, whatever they say.
const LONGEST_LEASE: Duration = Duration::from_secs(300);

/// A Lease that was there and is not any more goes away with the whole mesh, most likely: it is not made anew before
/// whoever would do so has ended.
const UNINSTALLATION: Duration = Duration::from_secs(60);

/// One candidate.
#[derive(Debug)]
pub(super) struct Election {
    identity: String,
    timing: Timing,
    /// The last record seen, and when it was seen to change.
    seen: Option<(Stored, Instant)>,
    /// When the last renewal that went through was sent, while we lead.
    renewed: Option<Instant>,
    /// Since when a Lease is missed that was there.
    missed: Option<Instant>,
}

impl Election {
    /// A candidate of this name, which no other has.
    pub(super) fn new(identity: String, timing: Timing) -> Self {
        Self { identity, timing, seen: None, renewed: None, missed: None }
    }

    /// The times.
    pub(super) fn timing(&self) -> Timing {
        self.timing
    }

    /// Until when we lead, if nothing is renewed.
    pub(super) fn leads_until(&self) -> Option<Instant> {
        self.renewed.map(|renewed| renewed + self.timing.renew)
    }

    /// Whether we lead.
    pub(super) fn leads(&self, now: Instant) -> bool {
        self.leads_until().is_some_and(|until| now < until)
    }

    /// Who holds the Lease, as far as we know.
    pub(super) fn holder(&self) -> Option<&str> {
        self.seen
            .as_ref()
            .map(|(stored, _)| stored.record.holder.as_str())
            .filter(|holder| !holder.is_empty())
    }

    /// The first question of a round: whoever leads renews what he knows.
    pub(super) fn begin(&mut self, now: Instant, wall: Timestamp) -> Step {
        if !self.leads(now) {
            self.renewed = None;
            return Step::Read;
        }
        match &self.seen {
            Some((stored, _)) => Step::Update(self.mine(&stored.record, wall), stored.version.clone()),
            None => Step::Read,
        }
    }

    /// The Lease was read; `None`: there is none. The second question of a round.
    pub(super) fn read(&mut self, found: Option<Stored>, now: Instant, wall: Timestamp) -> Step {
        let Some(found) = found else {
            if self.seen.take().is_some() {
                self.missed = Some(now);
            }
            self.renewed = None;
            if self.missed.is_some_and(|since| now < since + UNINSTALLATION) {
                return Step::Wait;
            }
            return Step::Create(Record {
                holder: self.identity.clone(),
                duration: self.timing.lease,
                acquired: Some(wall),
                renewed: Some(wall),
                transitions: 0,
            });
        };
        let since = match &self.seen {
            Some((known, since)) if known.record == found.record => *since,
            _ => now,
        };
        self.seen = Some((found.clone(), since));
        self.missed = None;
        let Stored { record, version } = found;
        if record.holder != self.identity {
            self.renewed = None;
        }
        let stands = match record.duration {
            Duration::ZERO => self.timing.lease,
            duration => duration.min(LONGEST_LEASE),
        };
        let free = record.holder.is_empty() || record.holder == self.identity || now >= since + stands;
        if free { Step::Update(self.mine(&record, wall), version) } else { Step::Wait }
    }

    /// Our record was taken. `sent` is when it was sent: others may count from then on.
    pub(super) fn written(&mut self, stored: Stored, sent: Instant) {
        self.renewed = (stored.record.holder == self.identity).then_some(sent);
        self.seen = Some((stored, sent));
    }

    /// Somebody else changed or made the Lease first: it has to be read.
    pub(super) fn beaten(&mut self) {
        self.renewed = None;
    }

    /// What to write when we stop, so that others need not wait.
    pub(super) fn release(&mut self, now: Instant, wall: Timestamp) -> Option<(Record, String)> {
        let leads = self.leads(now);
        self.renewed = None;
        let (stored, _) = self.seen.as_ref().filter(|_| leads)?;
        let duration = Duration::from_secs(1);
        let record = Record { holder: String::new(), duration, renewed: Some(wall), ..stored.record.clone() };
        Some((record, stored.version.clone()))
    }

    fn mine(&self, known: &Record, wall: Timestamp) -> Record {
        let kept = known.holder == self.identity;
        Record {
            holder: self.identity.clone(),
            duration: self.timing.lease,
            acquired: known.acquired.filter(|_| kept).or(Some(wall)),
            renewed: Some(wall),
            transitions: if kept { known.transitions } else { known.transitions.saturating_add(1) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wall(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn record(holder: &str, renewed: i64, transitions: i32) -> Record {
        Record {
            holder: holder.to_owned(),
            duration: Duration::from_secs(15),
            acquired: Some(wall(0)),
            renewed: Some(wall(renewed)),
            transitions,
        }
    }

    fn stored(record: Record, version: u32) -> Stored {
        Stored { record, version: version.to_string() }
    }

    fn election() -> Election {
        Election::new("a".to_owned(), Timing::default())
    }

    fn after(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    /// Leads since `start`.
    fn leader(start: Instant) -> Election {
        let mut election = election();
        let Step::Create(mine) = election.read(None, start, wall(0)) else { panic!("it makes the lease") };
        election.written(stored(mine, 1), start);
        assert!(election.leads(start));
        election
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_found_decides_what_is_asked() {
        let start = Instant::now();
        let ours = |transitions| Record { acquired: Some(wall(9)), ..record("a", 9, transitions) };
        // A container that was started anew in the same pod holds the lease still.
        let again = Record { acquired: Some(wall(0)), ..record("a", 9, 4) };
        for (what, found, step) in [
            ("no lease", None, Step::Create(ours(0))),
            ("released", Some(record("", 3, 4)), Step::Update(ours(5), "7".to_owned())),
            ("our own", Some(record("a", 3, 4)), Step::Update(again, "7".to_owned())),
            ("another's", Some(record("b", 3, 4)), Step::Wait),
            // Their clocks: an hour behind, an hour ahead. Both say nothing.
            ("another's, old", Some(record("b", -3600, 4)), Step::Wait),
            ("another's, of the future", Some(record("b", 3600, 4)), Step::Wait),
        ] {
            let mut election = election();
            assert_eq!(election.begin(start, wall(9)), Step::Read, "{what}");
            assert_eq!(election.read(found.map(|record| stored(record, 7)), start, wall(9)), step, "{what}");
            assert!(!election.leads(start), "{what}: nothing is written yet");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn another_is_gone_when_its_record_did_not_change_for_its_duration() {
        let start = Instant::now();
        let mut election = election();
        let mut at = |seconds: f64, renewed: i64, version: u32| {
            let found = Some(stored(record("b", renewed, 0), version));
            election.read(found, after(start, seconds), wall(1_000_000)) != Step::Wait
        };
        assert!(!at(0.0, 0, 1));
        assert!(!at(14.9, 0, 1));
        // It renewed: the time begins anew.
        assert!(!at(14.95, 1, 2));
        // Somebody put a label on the object: that is no renewal.
        assert!(!at(29.0, 1, 3));
        assert!(at(29.95, 1, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_record_without_sense_does_not_stand_for_ever() {
        let start = Instant::now();
        for (duration, stands) in [(0, 15), (3, 3), (40, 40), (1_000_000, 300)] {
            let mut election = election();
            let found = || {
                let record = Record { duration: Duration::from_secs(duration), ..record("b", 0, 0) };
                Some(stored(record, 1))
            };
            assert_eq!(election.read(found(), start, wall(0)), Step::Wait, "{duration}");
            let before = after(start, stands as f64 - 0.1);
            assert_eq!(election.read(found(), before, wall(0)), Step::Wait, "{duration}");
            let step = election.read(found(), after(start, stands as f64), wall(0));
            assert!(matches!(step, Step::Update(..)), "{duration}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_stops_before_its_lease_may_be_taken() {
        let start = Instant::now();
        let mut election = leader(start);
        // Renewals that fail or hang change nothing: what counts is when the last good one was sent.
        assert!(matches!(election.begin(after(start, 9.9), wall(0)), Step::Update(..)));
        assert!(election.leads(after(start, 9.9)));
        assert!(!election.leads(after(start, 10.0)));
        assert_eq!(election.begin(after(start, 10.0), wall(0)), Step::Read);
        let timing = election.timing();
        assert!(timing.renew + timing.retry < timing.lease);
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_counts_from_when_it_was_sent() {
        let start = Instant::now();
        let mut election = leader(start);
        let Step::Update(record, version) = election.begin(after(start, 2.0), wall(2)) else {
            panic!("it renews what it knows")
        };
        assert_eq!((record.transitions, record.acquired, version.as_str()), (0, Some(wall(0)), "1"));
        election.written(stored(record, 2), after(start, 2.0));
        assert_eq!(election.leads_until(), Some(after(start, 12.0)));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_beaten_does_not_lead() {
        let start = Instant::now();
        let mut election = leader(start);
        election.beaten();
        assert!(!election.leads(start));
        assert_eq!(election.begin(start, wall(0)), Step::Read);
        // As it turns out it was only a label: we lead again at once.
        let step = election.read(Some(stored(record("a", 0, 0), 5)), start, wall(1));
        assert!(matches!(step, Step::Update(_, version) if version == "5"));

        let mut election = leader(start);
        assert_eq!(election.read(Some(stored(record("b", 1, 1), 6)), start, wall(1)), Step::Wait);
        assert!(!election.leads(start) && election.holder() == Some("b"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_was_taken_away_is_not_made_anew_soon() {
        let start = Instant::now();
        let mut election = leader(start);
        assert_eq!(election.read(None, start, wall(1)), Step::Wait);
        assert!(!election.leads(start));
        assert_eq!(election.read(None, after(start, 59.9), wall(1)), Step::Wait);
        assert!(matches!(election.read(None, after(start, 60.0), wall(1)), Step::Create(_)));
        // Another made it meanwhile.
        let mut election = leader(start);
        assert_eq!(election.read(None, start, wall(1)), Step::Wait);
        assert_eq!(election.read(Some(stored(record("b", 1, 1), 9)), after(start, 1.0), wall(1)), Step::Wait);
        assert_eq!(election.holder(), Some("b"));
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_leader_releases() {
        let start = Instant::now();
        assert_eq!(election().release(start, wall(0)), None);
        let mut late = leader(start);
        assert_eq!(late.release(after(start, 10.0), wall(0)), None, "it may be another's by now");
        let mut election = leader(start);
        let (record, version) = election.release(start, wall(3)).unwrap();
        assert_eq!(
            (record.holder.as_str(), record.duration, version.as_str()),
            ("", Duration::from_secs(1), "1")
        );
        assert!(!election.leads(start));
    }
}
