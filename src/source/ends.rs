//! The end of a job, which is not the moment of its final status: many runners set that first, and write their last lines a
//! second or two later. A job has ended when it was final and quiet for `source.end_grace`.
//!
//! [`Endings`] is the tail's part: it keeps watched jobs until they are due, and after that as long as they are watched: of a
//! set, others may go on, and so may the job itself. [`Ends`] is what a page of history asks: a job
//! is complete at once where it is sure that the grace is over. These prove it, the first that has an answer:
//!
//! 1. The store's own order of commits. The tail notes at each look how far that had come ([`Ends::note_look`]), so a page
//!    can tell of a row by which look it was there, whatever any clock says ([`Age`]).
//! 2. The memory of this process: it saw the job final, and nothing has changed since, for long enough; or its tail
//!    published the end.
//! 3. Where neither can tell, the newest event's timestamp, if it is older than any clock is likely to be wrong.
//!
//! Otherwise the job may have just ended. Its reader goes live and waits for the end with all others, once.

use crate::event::{JobId, JobStatus};
use jiff::Timestamp;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The age from which an event's timestamp is believed to be older than the grace, however wrong its writer's clock is.
const CLOCK_MARGIN: Duration = Duration::from_secs(10 * 60);
/// The time after the end of a watch in which the next page takes what it sees for what was there at the end.
const RECENT_END: Duration = Duration::from_secs(60);
/// Jobs that are remembered; the one that was noted first is forgotten first.
const MAX_KNOWN: usize = 10_000;
/// Looks that are kept for one grace.
const LOOKS_PER_GRACE: u32 = 8;

/// Watched jobs with a final status. Each is due when it was quiet for the grace. `M` is what a source notes of each end.
#[derive(Clone)]
pub struct Endings<M> {
    grace: Duration,
    jobs: BTreeMap<JobId, Ending<M>>,
}

/// The end of a watched job.
#[derive(Clone)]
pub struct Ending<M> {
    pub status: JobStatus,
    /// When the final status was seen.
    pub seen_at: Instant,
    /// When the final status, or the last event since, was seen.
    quiet_since: Instant,
    /// It was published, and nothing has come since.
    is_published: bool,
    pub mark: M,
}

impl<M> Endings<M> {
    pub fn new(grace: Duration) -> Self {
        Self { grace, jobs: BTreeMap::new() }
    }

    /// Notes a final status. The grace begins now, unless this status has begun it already, or was seen long enough.
    pub fn begin<L, S>(&mut self, ends: &Ends<L, S>, job: &JobId, status: JobStatus, mark: M) {
        let quiet_since = match self.jobs.get(job) {
            Some(known) if known.status == status => return,
            Some(_) => ends.begin_anew(job),
            None => ends.begin(job),
        };
        let ending = Ending { status, seen_at: Instant::now(), quiet_since, is_published: false, mark };
        self.jobs.insert(job.clone(), ending);
    }

    /// Notes that the job has not ended.
    pub fn remove<L, S>(&mut self, ends: &Ends<L, S>, job: &JobId) {
        if self.jobs.remove(job).is_some() {
            ends.forget(job);
        }
    }

    /// Notes that the job is not watched any more.
    pub fn unwatch<L, S>(&mut self, ends: &Ends<L, S>, job: &JobId) {
        if self.jobs.remove(job).is_some() {
            ends.unwatch(job);
        }
    }

    /// Notes that the end is published. It is due no more, unless something comes after it.
    pub fn publish<L, S>(&mut self, ends: &Ends<L, S>, job: &JobId) {
        if let Some(ending) = self.jobs.get_mut(job) {
            ending.is_published = true;
        }
        ends.end(job);
    }

    /// Makes a published end due again, for somebody who has not heard of it.
    pub fn repeat(&mut self, job: &JobId) {
        if let Some(ending) = self.jobs.get_mut(job) {
            ending.is_published = false;
        }
    }

    pub fn clear(&mut self) {
        self.jobs.clear();
    }

    /// Notes events of a job, which begin its grace anew if it is ending.
    pub fn note_events<L, S>(&mut self, ends: &Ends<L, S>, job: &JobId) {
        if let Some(ending) = self.jobs.get_mut(job) {
            (ending.quiet_since, ending.is_published) = (ends.begin_anew(job), false);
        }
    }

    pub fn get(&self, job: &JobId) -> Option<&Ending<M>> {
        self.jobs.get(job)
    }

    /// Tells if no end is to be published.
    pub fn is_empty(&self) -> bool {
        self.jobs.values().all(|ending| ending.is_published)
    }

    pub fn contains(&self, job: &JobId) -> bool {
        self.jobs.contains_key(job)
    }

    /// Returns the jobs that were quiet for the grace at `now`. A read that began then finds all events of the grace.
    pub fn due(&self, now: Instant) -> impl Iterator<Item = (&JobId, &Ending<M>)> {
        self.jobs.iter().filter(move |(_, ending)| ending.is_due(now, self.grace))
    }

    /// Returns the final status of a job that was quiet for the grace at `now`.
    pub fn due_status(&self, job: &JobId, now: Instant) -> Option<JobStatus> {
        self.jobs.get(job).filter(|ending| ending.is_due(now, self.grace)).map(|ending| ending.status)
    }

    /// Returns when the next job is due. A job that was due before, and could not be ended, is left to the poll.
    pub async fn next_due(&self) {
        let now = Instant::now();
        let pending = self.jobs.values().filter(|ending| !ending.is_published);
        let due = pending.filter_map(|ending| ending.quiet_since.checked_add(self.grace));
        match due.filter(|at| *at > now).min() {
            Some(at) => tokio::time::sleep_until(at.into()).await,
            None => std::future::pending().await,
        }
    }
}

impl<M> Ending<M> {
    fn is_due(&self, now: Instant, grace: Duration) -> bool {
        !self.is_published && now.saturating_duration_since(self.quiet_since) >= grace
    }
}

/// The ends of jobs as one process has seen them. `L` is how far a look at the store had come, `S` the state of a job with
/// a final status: it changes with each new event, and when the status is set again.
pub struct Ends<L, S> {
    grace: Duration,
    seen: Mutex<Observations<L, S>>,
}

struct Observations<L, S> {
    /// Looks of the tail, oldest first.
    looks: VecDeque<Look<L>>,
    jobs: HashMap<JobId, Known<S>>,
    /// The same jobs in the order in which they were noted. One that was forgotten meanwhile may still be in here.
    order: VecDeque<JobId>,
}

/// A look of the tail, which the store answered between two moments.
struct Look<L> {
    began: Instant,
    ended: Instant,
    reached: L,
}

/// A job with a final status.
enum Known<S> {
    /// The tail watches it, and waits for the end of its grace. It has seen it in this state, if it said so.
    Ending { state: Option<S> },
    /// The tail has published its end, and has seen nothing new of it since. It watches it still, or did until then.
    Ended { state: Option<S>, watched_until: Option<Instant> },
    /// It was in this state at that time, and since then.
    Final { state: S, since: Instant },
    /// It has ended, in this state.
    Over { state: S },
}

impl<S> Known<S> {
    fn into_state(self) -> Option<S> {
        match self {
            Self::Ending { state } | Self::Ended { state, .. } => state,
            Self::Final { state, .. } | Self::Over { state } => Some(state),
        }
    }
}

/// A job's last changes, compared with a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The look had come past them.
    Before,
    /// They were not begun at the time of the look.
    After,
    /// The store does not tell.
    Unknown,
}

/// The time of a job's last changes, by the store's own order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// Nothing has changed since then.
    QuietSince(Instant),
    /// Something has changed after this.
    ChangedAfter(Instant),
    Unknown,
}

/// Facts that a read of a job with a final status gives of its end.
pub struct Evidence<S> {
    pub state: S,
    pub age: Age,
    /// The time of the newest event, by its writer's clock.
    pub newest_at: Option<Timestamp>,
}

impl<L, S> Ends<L, S> {
    pub fn new(grace: Duration) -> Self {
        let seen = Observations { looks: VecDeque::new(), jobs: HashMap::new(), order: VecDeque::new() };
        Self { grace, seen: Mutex::new(seen) }
    }

    pub fn grace(&self) -> Duration {
        self.grace
    }

    fn seen(&self) -> MutexGuard<'_, Observations<L, S>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- for the tail, by its endings

    /// Notes that the tail has found a job's final status. Returns since when the job is quiet, as far as it is known. A job
    /// that is over stays so: readers were told.
    fn begin(&self, job: &JobId) -> Instant {
        let now = Instant::now();
        let mut seen = self.seen();
        let long_ago = now.checked_sub(self.grace).unwrap_or(now);
        match seen.jobs.get_mut(job) {
            Some(Known::Over { .. }) => long_ago,
            Some(Known::Ended { watched_until, .. }) if watched_until.is_none_or(is_recent) => {
                *watched_until = None;
                long_ago
            }
            _ => match seen.note(job, Known::Ending { state: None }) {
                Some(Known::Final { since, .. }) => since,
                _ => now,
            },
        }
    }

    /// Notes that the tail has found something new of a job with a final status. Returns since when the job is quiet.
    fn begin_anew(&self, job: &JobId) -> Instant {
        self.seen().note(job, Known::Ending { state: None });
        Instant::now()
    }

    /// Notes that the tail has published the end of a job, after its grace.
    fn end(&self, job: &JobId) {
        let mut seen = self.seen();
        let before = seen.note(job, Known::Ended { state: None, watched_until: None });
        if let (Some(before), Some(Known::Ended { state, .. })) = (before, seen.jobs.get_mut(job)) {
            *state = before.into_state();
        }
    }

    /// Notes the state in which the tail sees a job that is ending, or has ended.
    pub fn note_state(&self, job: &JobId, state: S) {
        if let Some(Known::Ending { state: known } | Known::Ended { state: known, .. }) = self.seen().jobs.get_mut(job)
        {
            *known = Some(state);
        }
    }

    /// Notes that a job has not ended.
    fn forget(&self, job: &JobId) {
        self.seen().jobs.remove(job);
    }

    /// Notes that the tail does not watch a job any more.
    fn unwatch(&self, job: &JobId) {
        let mut seen = self.seen();
        match seen.jobs.get_mut(job) {
            Some(Known::Ending { .. }) => drop(seen.jobs.remove(job)),
            Some(Known::Ended { watched_until, .. }) => *watched_until = Some(Instant::now()),
            Some(Known::Over { .. } | Known::Final { .. }) | None => {}
        }
    }
}

impl<L: PartialOrd, S: PartialEq> Ends<L, S> {
    // ---- for the tail

    /// Notes how far a look had come that began at `began` and has just been answered. The oldest that is kept is older
    /// than the grace.
    pub fn note_look(&self, began: Instant, reached: L) {
        let ended = Instant::now();
        let mut seen = self.seen();
        if seen.looks.back().is_some_and(|last| reached < last.reached) {
            // It is another store, or another life of it.
            seen.looks.clear();
        }
        let spacing = self.grace / LOOKS_PER_GRACE;
        if seen.looks.back().is_some_and(|last| ended.saturating_duration_since(last.ended) < spacing) {
            return;
        }
        seen.looks.push_back(Look { began, ended, reached });
        while seen.looks.get(1).is_some_and(|next| ended.saturating_duration_since(next.ended) >= self.grace) {
            seen.looks.pop_front();
        }
    }

    /// Forgets everything: it is another store, or another life of it.
    pub fn clear(&self) {
        let mut seen = self.seen();
        seen.looks.clear();
        seen.jobs.clear();
        seen.order.clear();
    }

    // ---- for pages

    /// Compares a job's last changes with all looks.
    pub fn age(&self, judge: impl Fn(&L) -> Seen) -> Age {
        let seen = self.seen();
        let judged: Vec<(Seen, &Look<L>)> = seen.looks.iter().map(|look| (judge(&look.reached), look)).collect();
        if let Some((_, look)) = judged.iter().find(|(seen, _)| *seen == Seen::Before) {
            return Age::QuietSince(look.ended);
        }
        let after = judged.iter().rev().find(|(seen, _)| *seen == Seen::After);
        after.map_or(Age::Unknown, |(_, look)| Age::ChangedAfter(look.began))
    }

    /// Tells if the grace of a job with a final status is over.
    pub fn is_over(&self, job: &JobId, evidence: Evidence<S>) -> bool {
        self.is_over_for(self.grace, job, evidence)
    }

    /// Tells if a job with a final status was quiet for `window`, or has ended already.
    pub fn is_over_for(&self, window: Duration, job: &JobId, evidence: Evidence<S>) -> bool {
        let Evidence { state, age, newest_at } = evidence;
        let now = Instant::now();
        let is_past = |since: Instant| now.saturating_duration_since(since) >= window;
        if window.is_zero() {
            return true;
        }
        let mut seen = self.seen();
        let mut since = match age {
            Age::QuietSince(since) => since,
            Age::ChangedAfter(_) | Age::Unknown => now,
        };
        let has_just_changed =
            matches!(age, Age::ChangedAfter(after) if now.saturating_duration_since(after) < self.grace);
        let mut is_over = is_past(since);
        match seen.jobs.get(job) {
            Some(Known::Ending { .. }) if !is_over => return false,
            Some(Known::Ended { watched_until, .. }) => {
                is_over |= !has_just_changed && watched_until.is_none_or(is_recent);
            }
            Some(Known::Over { state: known }) => is_over |= *known == state,
            Some(Known::Final { state: known, since: known_since }) if *known == state => {
                since = since.min(*known_since);
                is_over |= is_past(since);
            }
            Some(Known::Final { .. } | Known::Ending { .. }) | None => {}
        }
        is_over |= !has_just_changed && newest_at.is_some_and(|at| is_older_than(at, window + CLOCK_MARGIN));
        seen.note(job, if is_over { Known::Over { state } } else { Known::Final { state, since } });
        is_over
    }

    /// Returns the state in which a job was seen last, if it is remembered.
    pub fn with_state<T>(&self, job: &JobId, look: impl FnOnce(&S) -> T) -> Option<T> {
        match self.seen().jobs.get(job)? {
            Known::Final { state, .. } | Known::Over { state } => Some(look(state)),
            Known::Ending { state } | Known::Ended { state, .. } => state.as_ref().map(look),
        }
    }
}

impl<L, S> Observations<L, S> {
    /// Notes a job, and returns what was known of it.
    fn note(&mut self, job: &JobId, known: Known<S>) -> Option<Known<S>> {
        let before = self.jobs.insert(job.clone(), known);
        if before.is_none() {
            self.order.push_back(job.clone());
            while self.order.len() > MAX_KNOWN {
                if let Some(oldest) = self.order.pop_front() {
                    self.jobs.remove(&oldest);
                }
            }
        }
        before
    }
}

/// Tells if a watch has ended so recently that a page takes what it sees for what was there then.
fn is_recent(watched_until: Instant) -> bool {
    watched_until.elapsed() < RECENT_END
}

fn is_older_than(at: Timestamp, age: Duration) -> bool {
    Duration::try_from(Timestamp::now().duration_since(at)).is_ok_and(|elapsed| elapsed >= age)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn job() -> JobId {
        "job".parse().expect("an id")
    }

    fn is_over(ends: &Ends<u64, u32>, state: u32, age: Age, newest_at: Option<Timestamp>) -> bool {
        ends.is_over(&job(), Evidence { state, age, newest_at })
    }

    #[test]
    fn looks_tell_what_was_there_and_what_was_not_begun() {
        let ends: Ends<u64, u32> = Ends::new(Duration::from_nanos(1));
        assert_eq!(ends.age(|_| Seen::Before), Age::Unknown, "nothing was looked at yet");
        let began = Instant::now();
        ends.note_look(began, 5);
        let judge = |number: u64| move |reached: &u64| if number <= *reached { Seen::Before } else { Seen::After };
        assert!(matches!(ends.age(judge(5)), Age::QuietSince(since) if since >= began));
        assert_eq!(ends.age(judge(6)), Age::ChangedAfter(began));
        ends.note_look(Instant::now(), 4);
        assert!(matches!(ends.age(judge(5)), Age::ChangedAfter(_)), "the store has begun another life");
    }

    #[test]
    fn an_end_is_over_when_it_was_seen_in_the_same_state_for_the_grace() {
        let ends: Ends<u64, u32> = Ends::new(Duration::from_nanos(1));
        assert!(!is_over(&ends, 1, Age::Unknown, None));
        assert!(is_over(&ends, 1, Age::Unknown, None));
        assert!(!is_over(&ends, 2, Age::Unknown, None), "something was written since");
    }

    #[test]
    fn an_old_timestamp_counts_only_where_the_store_does_not_know_better_and_the_tail_is_not_waiting() {
        let ends: Ends<u64, u32> = Ends::new(HOUR);
        let now = Instant::now();
        let at = |age: Duration| Some(Timestamp::now() - jiff::SignedDuration::try_from(age).expect("an age"));
        assert!(!is_over(&ends, 1, Age::Unknown, at(HOUR + CLOCK_MARGIN / 2)));
        assert!(!is_over(&ends, 1, Age::ChangedAfter(now), at(2 * HOUR)));
        ends.begin(&job());
        assert!(!is_over(&ends, 1, Age::Unknown, at(2 * HOUR)));
        ends.unwatch(&job());
        assert!(is_over(&ends, 1, Age::QuietSince(now), at(2 * HOUR)));
    }

    #[test]
    fn a_published_end_is_over_unless_something_has_just_changed() {
        let ends: Ends<u64, u32> = Ends::new(HOUR);
        ends.end(&job());
        assert!(!is_over(&ends, 1, Age::ChangedAfter(Instant::now()), None));
        ends.end(&job());
        assert!(is_over(&ends, 1, Age::Unknown, None));
        assert!(is_over(&ends, 1, Age::Unknown, None), "and stays so");
        assert!(!is_over(&ends, 2, Age::Unknown, None));
    }

    #[test]
    fn the_state_in_which_the_tail_saw_a_job_end_is_remembered_until_something_comes() {
        let ends: Ends<u64, u32> = Ends::new(HOUR);
        let known = || ends.with_state(&job(), |state| *state);
        ends.note_state(&job(), 1);
        assert_eq!(known(), None, "it is not ending");
        let mut endings: Endings<()> = Endings::new(HOUR);
        endings.begin(&ends, &job(), JobStatus::Failed, ());
        ends.note_state(&job(), 2);
        endings.publish(&ends, &job());
        endings.unwatch(&ends, &job());
        assert_eq!(known(), Some(2));
        endings.begin(&ends, &job(), JobStatus::Failed, ());
        endings.note_events(&ends, &job());
        assert_eq!(known(), None);
    }

    #[test]
    fn an_end_that_readers_were_told_stays_one_when_others_begin_and_stop_watching_until_something_comes() {
        let ends: Ends<u64, u32> = Ends::new(HOUR);
        let watch = || {
            let mut endings: Endings<()> = Endings::new(HOUR);
            endings.begin(&ends, &job(), JobStatus::Failed, ());
            endings
        };
        let is_due = |endings: &Endings<()>| endings.due_status(&job(), Instant::now()).is_some();
        let mut first = watch();
        assert!(!is_due(&first) && !is_over(&ends, 1, Age::Unknown, None));
        first.publish(&ends, &job());
        let mut second = watch();
        assert!(is_due(&second), "its grace was over before");
        second.unwatch(&ends, &job());
        assert!(is_over(&ends, 1, Age::Unknown, None), "by the tail");
        let mut third = watch();
        assert!(is_due(&third) && is_over(&ends, 1, Age::Unknown, None), "by a page");
        third.note_events(&ends, &job());
        assert!(!is_due(&third) && !is_over(&ends, 1, Age::Unknown, None));
        third.unwatch(&ends, &job());
        assert!(!is_due(&watch()));
    }

    #[test]
    fn events_begin_the_grace_of_an_ending_anew_and_another_status_too() {
        let ends: Ends<u64, u32> = Ends::new(HOUR);
        let mut endings: Endings<()> = Endings::new(HOUR);
        let due_at = |endings: &Endings<()>| {
            let quiet_since = endings.get(&job()).map(|ending| ending.quiet_since).expect("an ending");
            assert_eq!(endings.due_status(&job(), quiet_since + HOUR / 2), None);
            assert!(endings.due_status(&job(), quiet_since + HOUR).is_some());
            quiet_since + HOUR
        };
        endings.begin(&ends, &job(), JobStatus::Failed, ());
        let first = due_at(&endings);
        endings.begin(&ends, &job(), JobStatus::Failed, ());
        assert_eq!(due_at(&endings), first, "it is the same end");
        endings.note_events(&ends, &job());
        let second = due_at(&endings);
        endings.begin(&ends, &job(), JobStatus::Completed, ());
        assert!(first < second && second < due_at(&endings));
        endings.remove(&ends, &job());
        assert!(!endings.contains(&job()));
    }

    #[test]
    fn a_published_end_is_due_again_when_something_comes_after_it_or_somebody_asks() {
        let ends: Ends<u64, u32> = Ends::new(HOUR);
        let mut endings: Endings<()> = Endings::new(HOUR);
        let is_due = |endings: &Endings<()>| endings.due_status(&job(), Instant::now() + 2 * HOUR).is_some();
        endings.begin(&ends, &job(), JobStatus::Failed, ());
        assert!(is_due(&endings) && !endings.is_empty());
        endings.publish(&ends, &job());
        endings.begin(&ends, &job(), JobStatus::Failed, ());
        assert!(!is_due(&endings) && endings.is_empty());
        endings.note_events(&ends, &job());
        assert!(is_due(&endings));
        endings.publish(&ends, &job());
        endings.repeat(&job());
        assert!(is_due(&endings));
    }
}
