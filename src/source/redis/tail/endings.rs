//! The statuses of watched jobs, and the ends that come of them, of entries, and of streams that are gone.

use super::super::ends::EndedBy;
use super::super::position::Position;
use super::super::status::JobState;
use super::{ReadProgress, RedisTail, StreamSlice};
use crate::event::{JobId, JobStatus};
use crate::sse::JobEnd;
use std::time::Instant;

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

    /// Takes the status in a job's key.
    pub(super) fn on_status(&mut self, job: &JobId, state: &JobState, read: &mut ReadProgress) {
        let shown = self.store.resolve_status(state.end, Some(state));
        self.tell_status(job, shown, read);
        match state.end {
            Some(end) => self.endings.begin(&self.store.ends, job, end, EndedBy::Status),
            None if self.endings.get(job).is_some_and(|ending| ending.mark == EndedBy::Status) => {
                self.endings.remove(&self.store.ends, job);
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

    /// Returns the end that an entry said before the watch of this job began.
    pub(super) async fn end_before(&mut self, job: &JobId, after: &Position, slice: &StreamSlice) -> Option<JobStatus> {
        let watched = self.watched.get_mut(job).filter(|watched| watched.is_new)?;
        let end = self.store.end_in_stream(job, slice.info.as_ref(), after).await.ok()?;
        watched.is_new = false;
        end
    }

    /// Notes that an entry says that the job has ended.
    pub(super) fn note_final_entry(&mut self, job: &JobId, status: JobStatus, read: &mut ReadProgress) {
        self.tell_status(job, Some(status), read);
        self.endings.begin(&self.store.ends, job, status, EndedBy::Entry);
    }

    /// Ends a job that was read to its last entry, if its grace is over.
    pub(super) fn end_if_due(&mut self, job: &JobId, slice: &StreamSlice, read: &mut ReadProgress) {
        if !slice.entries.is_empty() {
            self.endings.note_events(&self.store.ends, job);
        }
        if let Some((ending, watched)) = self.endings.get(job).zip(self.watched.get(job)) {
            // The stream may be gone before anybody comes back.
            self.store.ends.note_state(job, (ending.status, watched.position.id));
        }
        if let Some(status) = self.endings.due_status(job, read.began) {
            read.batch.end(job, JobEnd::Complete(status));
            self.endings.publish(&self.store.ends, job);
        }
    }
}
