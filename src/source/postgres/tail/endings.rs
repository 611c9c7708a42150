//! The statuses of watched jobs, and the ends that come of them and of events.

use super::{Changes, Draft, Found, PostgresTail, QueryError, Session, Snapshot};
use crate::event::JobId;
use crate::source::{Endings, JobNews, TailBatch};
use crate::sse::JobEnd;
use std::time::Instant;

impl PostgresTail {
    /// Returns the endings as the status column has them now. A job whose status is no longer final has not ended.
    pub(super) fn updated_endings(&self, session: &Session<'_>, changes: &Changes) -> Endings<u64> {
        let mut endings = self.endings.clone();
        let ends = &session.store.ends;
        for (job, status) in changes.found.iter().flat_map(|found| &found.statuses) {
            match session.store.settings.statuses.find(status) {
                Some(status) => endings.begin(ends, job, status, changes.snapshot.xmax),
                None => endings.remove(ends, job),
            }
        }
        endings
    }

    /// Adds the jobs that an event has ended: of new watches any event, of the others one that this read found. All events
    /// begin the grace of their job anew.
    pub(super) async fn detect_endings(
        &self,
        session: &mut Session<'_>,
        snapshot: &Snapshot,
        draft: &mut Draft,
        endings: &mut Endings<u64>,
    ) -> Result<(), QueryError> {
        let mut ended = Vec::new();
        for job in self.unchecked.iter().filter(|job| !self.faults.is_waiting(job)) {
            let status = session.read_final_event(job).await;
            ended.extend(draft.narrow(job, status)?.flatten().map(|status| (job.clone(), status)));
        }
        for JobNews { job, events, .. } in draft.batch.jobs() {
            ended.extend(session.final_status(None, events).map(|status| (job.clone(), status)));
            if !events.is_empty() {
                endings.note_events(&session.store.ends, job);
            }
        }
        for (job, status) in ended {
            if !endings.contains(&job) {
                endings.begin(&session.store.ends, &job, status, snapshot.xmax);
                draft.batch.set_status(&job, status);
            }
        }
        Ok(())
    }

    /// Makes the statuses that a look found news.
    pub(super) fn tell_statuses(&mut self, session: &Session<'_>, found: Option<Found>, batch: &mut TailBatch) {
        for (job, status) in found.into_iter().flat_map(|found| found.statuses) {
            if let Some(status) = session.store.settings.statuses.resolve(&status) {
                batch.set_status(&job, status);
            }
            self.statuses.insert(job, status);
        }
    }

    /// Ends the jobs whose grace was over when a read began, as far as it has read them to their end.
    pub(super) fn end_due(
        &mut self,
        session: &Session<'_>,
        began: Instant,
        is_read: impl Fn(&JobId) -> bool,
        batch: &mut TailBatch,
    ) {
        let due = self.endings.due(began).filter(|(job, _)| is_read(job));
        let due: Vec<_> = due.map(|(job, ending)| (job.clone(), ending.status)).collect();
        for (job, status) in due {
            batch.end(&job, JobEnd::Complete(status));
            self.endings.publish(&session.store.ends, &job);
        }
    }
}
