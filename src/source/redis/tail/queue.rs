//! The queue of jobs to read.

use super::{JOBS_PER_POLL, MAX_JOBS_PER_REQUEST, RedisTail, Watched, nodes_of};
use crate::event::JobId;
use std::ops::Bound;
use std::time::Instant;

impl RedisTail {
    pub(super) fn queue(&mut self, job: &JobId, needs_status: bool) {
        let Some(watched) = self.watched.get_mut(job) else { return };
        watched.needs_status |= needs_status;
        if !watched.is_queued {
            watched.is_queued = true;
            self.queue.push_back(job.clone());
        }
    }

    pub(super) fn queue_first(&mut self, job: &JobId) {
        let Some(watched) = self.watched.get_mut(job) else { return };
        if watched.is_queued {
            self.queue.retain(|queued| queued != job);
        }
        watched.is_queued = true;
        self.queue.push_front(job.clone());
    }

    pub(super) fn queue_all(&mut self) {
        for job in self.watched.keys().cloned().collect::<Vec<_>>() {
            self.queue(&job, true);
        }
    }

    pub(super) fn queue_held(&mut self) {
        let faulty: Vec<JobId> = self.faults.keys().cloned().collect();
        for job in std::mem::take(&mut self.held).into_iter().chain(faulty) {
            self.queue(&job, true);
        }
    }

    /// Queues the jobs whose end is due, those that changed, those that moved to another node, and those of the poll where
    /// it is due.
    pub(super) fn queue_due(&mut self) {
        self.queue_ending();
        self.queue_changed();
        self.queue_moved();
        if self.last_poll.is_none_or(|at| at.elapsed() >= self.poll_interval) {
            self.last_poll = Some(Instant::now());
            self.queue_held();
            self.queue_polled();
            self.awaited.queue_all();
        }
    }

    fn queue_changed(&mut self) {
        let changes = self.invalidations.take();
        for key in changes.changed_keys {
            self.awaited.note_change(&key);
            let Some(job) = self.by_key.get(&key).cloned() else { continue };
            let is_stream = self.store.events_key.key(&job) == key;
            self.queue(&job, !is_stream);
        }
        if changes.is_incomplete {
            self.queue_held();
            self.queue_all();
            self.awaited.queue_all();
        }
    }

    fn queue_moved(&mut self) {
        let version = self.store.topology.version();
        if version == self.topology_version {
            return;
        }
        self.topology_version = version;
        self.queue_held();
        let has_moved = |watched: &Watched| watched.nodes != nodes_of(&self.store.topology, watched.slots);
        let moved: Vec<JobId> =
            self.watched.iter().filter(|(_, watched)| has_moved(watched)).map(|(job, _)| job.clone()).collect();
        for job in moved {
            self.queue(&job, true);
        }
    }

    /// Queues the next jobs in turn, or all of them where a server does not tell what changed.
    fn queue_polled(&mut self) {
        if self.invalidations.has_untracked_nodes() {
            return self.queue_all();
        }
        let from = self.polled_up_to.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.watched.range::<JobId, _>((from, Bound::Unbounded));
        let polled: Vec<JobId> = rest.take(JOBS_PER_POLL).map(|(job, _)| job.clone()).collect();
        self.polled_up_to = polled.last().cloned().filter(|_| polled.len() == JOBS_PER_POLL);
        for job in polled {
            self.queue(&job, true);
        }
    }

    pub(super) fn next_jobs(&mut self) -> Vec<JobId> {
        let mut jobs = Vec::new();
        while jobs.len() < MAX_JOBS_PER_REQUEST
            && let Some(job) = self.queue.pop_front()
        {
            if let Some(watched) = self.watched.get_mut(&job) {
                watched.is_queued = false;
                jobs.push(job);
            }
        }
        jobs
    }
}
