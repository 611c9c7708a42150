//! The end of a job in Redis. Nothing tells when a hash was written, so it is the memory of this process that knows a job
//! to have ended long ago, or else the time in the newest entry's id.

use super::Store;
use super::entry::EntryId;
use super::position::Position;
use crate::event::{JobId, JobStatus};
use crate::source::{Age, Ends, Evidence};
use jiff::Timestamp;
use std::time::Instant;

/// The ends of jobs, each with its status and the newest entry of its stream.
pub type RedisEnds = Ends<(), (JobStatus, EntryId)>;

/// Ids from here on, in milliseconds, are taken for times: those of the year 2001 and later. Writers that choose ids of
/// their own mostly count from 1.
const FIRST_TIME_MS: u64 = 1_000_000_000_000;

/// The reason why a watched job is ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndedBy {
    /// Its key says so, and may take it back.
    Status,
    /// An entry says so.
    Entry,
}

impl Store {
    /// Tells if a job with a final status, whose newest entry is `last_id`, ended so long ago that no more are to be
    /// expected.
    pub(super) fn is_over(&self, job: &JobId, status: JobStatus, last_id: EntryId) -> bool {
        let was_there = self.last_known(job).is_some_and(|last| last > EntryId::ZERO);
        if last_id == EntryId::ZERO && was_there {
            // The stream is gone, and was there.
            return true;
        }
        let ms = Some(last_id.ms).filter(|ms| *ms >= FIRST_TIME_MS).and_then(|ms| i64::try_from(ms).ok());
        let newest_at = ms.and_then(|ms| Timestamp::from_millisecond(ms).ok());
        self.ends.is_over(job, Evidence { state: (status, last_id), age: Age::Unknown, newest_at })
    }

    /// Tells if a reader at `after`, whose job has a final status and no stream any more, has missed nothing that is known
    /// of: many writers delete the stream with the final status, or let it expire some time after. Then it has ended.
    pub(super) fn has_ended_without_stream(&self, job: &JobId, status: JobStatus, after: &Position) -> bool {
        if let Some(last) = self.last_known(job).filter(|last| *last > EntryId::ZERO) {
            return last <= after.id;
        }
        let state = (status, EntryId::ZERO);
        let long_ago = Instant::now().checked_sub(self.ends.grace());
        let age = long_ago.map_or(Age::Unknown, Age::QuietSince);
        self.ends.is_over(job, Evidence { state, age, newest_at: None });
        true
    }

    /// Returns the status with which a job has ended of which nothing is left, for a reader at `after` who has missed nothing
    /// of it. `None` where this process has not seen the end, or does not remember it.
    pub(super) fn remembered_end(&self, job: &JobId, after: &Position) -> Option<JobStatus> {
        let (status, last) = self.ends.with_state(job, |state| *state)?;
        (last > EntryId::ZERO && last <= after.id).then_some(status)
    }

    /// Returns the newest entry that was seen of a job with a final status, if it is remembered.
    fn last_known(&self, job: &JobId) -> Option<EntryId> {
        self.ends.with_state(job, |(_, last)| *last)
    }
}
