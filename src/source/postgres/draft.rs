//! One read of the tail while it is being made.

use super::error::QueryError;
use super::page::Delivered;
use super::position::{Floor, Position};
use super::tail::ReachedPlace;
use crate::event::JobId;
use crate::source::{Limit, TailBatch};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Bounds of one read of the tail.
pub const READ_LIMIT: Limit = Limit { events: 2000, bytes: 1 << 20 };
/// Most jobs that one read comes to, so that a sweep of many does not keep the others' news waiting.
const MAX_JOBS_PER_READ: usize = 64;

/// The result of a read so far. The tail itself changes only when everything was read.
pub struct Draft {
    pub batch: TailBatch,
    /// Positions after this read.
    pub positions: BTreeMap<JobId, Position>,
    /// Jobs that were read to their end.
    pub done: BTreeSet<JobId>,
    /// Jobs for whose next rows a cursor has no room.
    pub cramped: BTreeSet<JobId>,
    /// Jobs whose rows failed this read.
    pub failed: BTreeMap<JobId, QueryError>,
    pub jobs_read: usize,
    /// Floors that the jobs had reached which were read to their end.
    pub reached: BTreeMap<JobId, ReachedPlace<Floor>>,
    /// Time that the reads of jobs took that a sweep has left.
    pub swept_for: Duration,
}

impl Draft {
    pub fn new() -> Self {
        Self {
            batch: TailBatch::new(READ_LIMIT),
            positions: BTreeMap::new(),
            done: BTreeSet::new(),
            cramped: BTreeSet::new(),
            failed: BTreeMap::new(),
            jobs_read: 0,
            reached: BTreeMap::new(),
            swept_for: Duration::ZERO,
        }
    }

    pub fn is_full(&self) -> bool {
        self.batch.is_full() || self.jobs_read >= MAX_JOBS_PER_READ
    }

    /// Adds what was read of a job.
    pub fn add(
        &mut self,
        job: &JobId,
        after: Position,
        (events, is_last): Delivered,
        reached: Option<ReachedPlace<Floor>>,
    ) {
        self.batch.extend(job, events);
        self.positions.insert(job.clone(), after);
        if is_last {
            self.done.insert(job.clone());
            self.reached.extend(reached.map(|reached| (job.clone(), reached)));
        }
    }

    /// Keeps an error that the rows of `job` can cause for that job alone. Any other ends the read.
    pub fn narrow<T>(&mut self, job: &JobId, result: Result<T, QueryError>) -> Result<Option<T>, QueryError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_of_rows() => {
                self.done.remove(job);
                self.failed.insert(job.clone(), error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
