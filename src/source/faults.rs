//! Watched jobs whose own rows cannot be read now. Each waits longer after every failure, and the others go on.

use crate::backoff::Backoff;
use crate::error::SourceError;
use crate::event::JobId;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Wait after the first failure of a job. It doubles up to [`MAX_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Longest wait of a job whose rows stay unreadable.
const MAX_WAIT: Duration = Duration::from_secs(15);

/// The jobs that failed at their last attempt.
#[derive(Default)]
pub struct Faults(BTreeMap<JobId, Fault>);

struct Fault {
    error: SourceError,
    backoff: Backoff,
    retry_at: Instant,
}

impl Faults {
    /// Notes one more failure of a job.
    pub fn add(&mut self, job: JobId, error: SourceError) {
        let now = Instant::now();
        let new = || Fault { error: error.clone(), backoff: Backoff::new(FIRST_WAIT, MAX_WAIT), retry_at: now };
        let fault = self.0.entry(job).or_insert_with(new);
        fault.retry_at = now + fault.backoff.failed();
        fault.error = error;
    }

    pub fn remove(&mut self, job: &JobId) {
        self.0.remove(job);
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn contains(&self, job: &JobId) -> bool {
        self.0.contains_key(job)
    }

    /// Returns true for a job whose next attempt is still to be waited for.
    pub fn is_waiting(&self, job: &JobId) -> bool {
        self.0.get(job).is_some_and(|fault| Instant::now() < fault.retry_at)
    }

    /// The jobs that are to be read again now.
    pub fn due(&self) -> impl Iterator<Item = &JobId> {
        let now = Instant::now();
        self.0.iter().filter(move |(_, fault)| fault.retry_at <= now).map(|(job, _)| job)
    }

    /// All of them, for the news.
    pub fn to_news(&self) -> Vec<(JobId, SourceError)> {
        self.0.iter().map(|(job, fault)| (job.clone(), fault.error.clone())).collect()
    }
}
