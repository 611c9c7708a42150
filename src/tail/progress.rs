//! The tail's progress, for those who ask how far behind it is while it cannot answer itself: it waits for a read, or for the
//! next attempt.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The beginning of the oldest work that the tail has not finished; cheap to clone.
#[derive(Clone, Debug)]
pub struct Progress(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    created: Instant,
    /// Microseconds from `created` to that beginning; [`NOTHING`] while there is no such work.
    behind_since: AtomicU64,
}

const NOTHING: u64 = u64::MAX;

impl Default for Progress {
    fn default() -> Self {
        Self(Arc::new(Inner { created: Instant::now(), behind_since: AtomicU64::new(NOTHING) }))
    }
}

impl Progress {
    /// Notes that a read begins. Where an earlier one has left work over, that one counts.
    pub fn begin(&self, now: Instant) {
        let at = now.saturating_duration_since(self.0.created).as_micros() as u64;
        self.0.behind_since.fetch_min(at, Ordering::Relaxed);
    }

    /// Notes that nothing is left to do.
    pub fn finish(&self) {
        self.0.behind_since.store(NOTHING, Ordering::Relaxed);
    }

    /// Returns the age of the oldest unfinished work; zero where there is none.
    pub fn lag(&self, now: Instant) -> Duration {
        match self.0.behind_since.load(Ordering::Relaxed) {
            NOTHING => Duration::ZERO,
            at => now.saturating_duration_since(self.0.created).saturating_sub(Duration::from_micros(at)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_grows_from_the_first_unfinished_read_until_one_finishes() {
        let progress = Progress::default();
        let at = |seconds| progress.0.created + Duration::from_secs(seconds);
        assert_eq!(progress.lag(at(5)), Duration::ZERO);
        progress.begin(at(5));
        progress.begin(at(7));
        assert_eq!(progress.lag(at(9)), Duration::from_secs(4));
        progress.finish();
        assert_eq!(progress.lag(at(9)), Duration::ZERO);
        progress.begin(at(10));
        assert_eq!(progress.lag(at(12)), Duration::from_secs(2));
    }
}
