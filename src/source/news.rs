//! News of one tail read, gathered job by job.

use super::{JobNews, Limit};
use crate::cursor::Cursor;
use crate::event::{Event, JobId, JobStatus};
use crate::sse::JobEnd;
use std::collections::HashMap;

/// Events and ends of jobs, up to a [`Limit`] for all of them together.
///
/// Invariant: each job occurs once, in the order of first mention, with its events in the order of delivery. A job with
/// neither an event, a status nor an end does not occur.
#[derive(Debug)]
pub struct TailBatch {
    limit: Limit,
    jobs: Vec<JobNews>,
    /// The place of each job in `jobs`.
    places: HashMap<JobId, usize>,
    events: usize,
    bytes: usize,
}

impl TailBatch {
    pub fn new(limit: Limit) -> Self {
        Self { limit, jobs: Vec::new(), places: HashMap::new(), events: 0, bytes: 0 }
    }

    /// Adds an event of `job`, with the position after it.
    pub fn push(&mut self, job: &JobId, event: Event, cursor: Cursor) {
        self.events += 1;
        self.bytes += event.payload.as_json().len();
        self.job(job).events.push((event, cursor));
    }

    /// Adds events of `job`, in the order of delivery.
    pub fn extend(&mut self, job: &JobId, events: impl IntoIterator<Item = (Event, Cursor)>) {
        for (event, cursor) in events {
            self.push(job, event, cursor);
        }
    }

    /// Notes the status of `job`, which may be the one that it had.
    pub fn set_status(&mut self, job: &JobId, status: JobStatus) {
        self.job(job).status = Some(status);
    }

    /// Notes the end of the watch of `job`.
    pub fn end(&mut self, job: &JobId, end: JobEnd) {
        self.job(job).end = Some(end);
    }

    pub fn is_full(&self) -> bool {
        self.limit.is_reached_by(self.events, self.bytes)
    }

    /// The events that still fit, all jobs together; at least one.
    pub fn room(&self) -> usize {
        self.limit.events.saturating_sub(self.events).max(1)
    }

    /// The news so far, one entry for each job.
    pub fn jobs(&self) -> &[JobNews] {
        &self.jobs
    }

    pub fn into_jobs(self) -> Vec<JobNews> {
        self.jobs
    }

    fn job(&mut self, job: &JobId) -> &mut JobNews {
        let place = *self.places.entry(job.clone()).or_insert(self.jobs.len());
        if place == self.jobs.len() {
            self.jobs.push(JobNews::nothing(job.clone()));
        }
        &mut self.jobs[place]
    }
}
