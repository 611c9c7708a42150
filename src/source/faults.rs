//! Watched jobs whose own rows cannot be read now, and statements that some row makes fail. Each waits longer after every
//! failure, and the others go on.

use crate::backoff::Backoff;
use crate::error::SourceError;
use crate::event::JobId;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Wait after the first failure. It doubles up to [`MAX_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Longest wait while the rows stay unreadable.
const MAX_WAIT: Duration = Duration::from_secs(15);

/// The jobs that failed at their last attempt.
#[derive(Default)]
pub struct Faults(BTreeMap<JobId, Fault>);

struct Fault {
    error: SourceError,
    pause: Pause,
}

/// The wait after the last failure.
struct Pause {
    backoff: Backoff,
    retry_at: Instant,
}

impl Pause {
    fn new() -> Self {
        Self { backoff: Backoff::new(FIRST_WAIT, MAX_WAIT), retry_at: Instant::now() }
    }

    fn lengthen(&mut self) {
        self.retry_at = Instant::now() + self.backoff.failed();
    }

    fn is_over(&self) -> bool {
        self.retry_at <= Instant::now()
    }
}

/// A statement that the server refused because of some row.
#[derive(Default)]
pub struct Refusal(Option<Pause>);

impl Refusal {
    /// Returns true while the statement is not to be asked again.
    pub fn is_waiting(&self) -> bool {
        self.0.as_ref().is_some_and(|pause| !pause.is_over())
    }

    /// Notes that it was refused; true if it was not before.
    pub fn begins(&mut self) -> bool {
        let is_first = self.0.is_none();
        self.0.get_or_insert_with(Pause::new).lengthen();
        is_first
    }

    /// Notes that it was answered; true if it was refused before.
    pub fn ends(&mut self) -> bool {
        self.0.take().is_some()
    }
}

impl Faults {
    /// Notes one more failure of a job.
    pub fn add(&mut self, job: JobId, error: SourceError) {
        let fault = self.0.entry(job).or_insert_with(|| Fault { error: error.clone(), pause: Pause::new() });
        fault.pause.lengthen();
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
        self.0.get(job).is_some_and(|fault| !fault.pause.is_over())
    }

    /// The jobs that are to be read again now.
    pub fn due(&self) -> impl Iterator<Item = &JobId> {
        self.0.iter().filter(|(_, fault)| fault.pause.is_over()).map(|(job, _)| job)
    }

    /// All of them, for the news.
    pub fn to_news(&self) -> Vec<(JobId, SourceError)> {
        self.0.iter().map(|(job, fault)| (job.clone(), fault.error.clone())).collect()
    }
}
