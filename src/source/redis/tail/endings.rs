//! The statuses of watched jobs, and the ends that come of them, of entries, and of streams that are gone.

use super::{ReadProgress, RedisTail, StreamSlice};
use crate::event::{JobId, JobStatus};
use crate::sse::JobEnd;
use std::time::Instant;

/// The reason why a watched job is ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndedBy {
    /// Its hash says so, and may take it back.
    Status,
    /// The type of an entry says so.
    Entry,
}

impl RedisTail {
    /// Queues the jobs whose end is due: one more read tells whether it is.
    pub(super) fn queue_ending(&mut self) {
        let due: Vec<JobId> = self.endings.due(Instant::now()).map(|(job, _)| job.clone()).collect();
        for job in due {
            if !self.held.contains(&job) {
                self.queue(&job, true);
            }
        }
    }

    /// Takes the status in a job's hash.
    pub(super) fn on_status(&mut self, job: &JobId, status: Option<&str>, read: &mut ReadProgress) {
        let statuses = &self.store.settings.statuses;
        let (shown, end) =
            (status.and_then(|status| statuses.resolve(status)), status.and_then(|status| statuses.find(status)));
        self.tell_status(job, end.or(shown), read);
        match end {
            Some(end) => self.begin_ending(job, end, EndedBy::Status),
            None if self.endings.get(job).is_some_and(|ending| ending.mark == EndedBy::Status) => {
                self.endings.remove(job);
                self.store.ends.forget(job);
            }
            None => {}
        }
    }

    /// Makes a status news if it is another one than before.
    fn tell_status(&mut self, job: &JobId, status: Option<JobStatus>, read: &mut ReadProgress) {
        let Some((watched, status)) = self.watched.get_mut(job).zip(status) else { return };
        if watched.status.replace(status) != Some(status) {
            read.batch.set_status(job, status);
        }
    }

    fn begin_ending(&mut self, job: &JobId, status: JobStatus, by: EndedBy) {
        if self.endings.get(job).is_none_or(|ending| ending.status != status) {
            self.endings.begin(job, status, self.store.ends.begin(job), by);
        }
    }

    /// Takes the ends that new entries tell of, wherever they stand: others may follow. All begin the grace anew.
    pub(super) fn note_entries(&mut self, job: &JobId, slice: &StreamSlice, read: &mut ReadProgress) {
        if !slice.entries.is_empty() {
            self.endings.note_events(job);
        }
        if self.endings.contains(job) {
            return;
        }
        let Some(position) = self.watched.get(job).map(|watched| watched.position) else { return };
        let by_last = || self.store.resolve_end(None, slice.info.as_ref(), &position);
        if let Some(status) = self.store.end_among(&slice.entries).or_else(by_last) {
            self.tell_status(job, Some(status), read);
            self.begin_ending(job, status, EndedBy::Entry);
        }
    }

    /// Ends a job that was read to its last entry, if its grace is over.
    pub(super) fn end_if_due(&mut self, job: &JobId, read: &mut ReadProgress) {
        if let Some(status) = self.endings.due_status(job, read.began) {
            self.end(job, JobEnd::Complete(status), read);
            self.store.ends.end(job);
        }
    }
}
