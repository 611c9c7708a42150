//! Sweeps: now and then every watched job is read whole, where looks go by number or timestamp and may miss a row.

use super::{Changes, PostgresTail, Session};
use crate::event::JobId;
use crate::source::postgres::tables::XidSource;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Sweeps are apart by so many times the time that the last one took.
const REST: u32 = 10;

/// The last sweep, and what is left of it.
pub struct Sweep {
    began: Instant,
    /// Time that its reads have taken.
    took: Duration,
    /// Transactions have ended since.
    is_needed: bool,
    /// Jobs whose next read is of all their rows.
    left: BTreeSet<JobId>,
}

impl Default for Sweep {
    fn default() -> Self {
        Self { began: Instant::now(), took: Duration::ZERO, is_needed: true, left: BTreeSet::new() }
    }
}

impl Sweep {
    /// Returns true if the next read of the job is of all its rows.
    pub fn has_left(&self, job: &JobId) -> bool {
        self.left.contains(job)
    }

    /// Has these jobs read whole before the next sweep.
    pub fn add(&mut self, jobs: impl IntoIterator<Item = JobId>) {
        self.left.extend(jobs);
    }

    /// Takes over that reads of such jobs took so long, and which jobs remain.
    pub fn go_on(&mut self, took: Duration, remains: impl Fn(&JobId) -> bool) {
        self.took += took;
        self.left.retain(remains);
    }

    pub fn remove(&mut self, job: &JobId) {
        self.left.remove(job);
    }

    /// Least time between the beginning of this sweep and the next, by the setting: all of them together take a tenth of the
    /// tail's time at most.
    fn interval(&self, setting: Duration) -> Duration {
        setting.max(self.took.saturating_mul(REST))
    }
}

impl PostgresTail {
    /// Makes all watched jobs pending if looks go by number or timestamp and `source.postgres.sweep` has passed.
    pub(super) fn sweep_if_due(&mut self, session: &Session<'_>, changes: &Changes) {
        self.sweep.is_needed |= changes.found.is_some();
        let is_due =
            self.sweep.is_needed && self.sweep.began.elapsed() >= self.sweep.interval(self.store.settings.sweep);
        if is_due && session.tables.best.xids == XidSource::System {
            let left = self.positions.keys().cloned().collect();
            self.sweep = Sweep { is_needed: false, left, ..Sweep::default() };
            self.reaches.begin_sweep();
            self.pending.extend(self.positions.keys().cloned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweeps_take_a_tenth_of_the_time_at_most_however_long_the_jobs_are() {
        let after = |seconds| {
            let mut sweep = Sweep::default();
            // Its jobs are read in two reads.
            (0..2).for_each(|_| sweep.go_on(Duration::from_secs(seconds) / 2, |_| false));
            sweep.interval(Duration::from_secs(30)).as_secs()
        };
        assert_eq!((after(0), after(3), after(4), after(60)), (30, 30, 40, 600));
    }
}
