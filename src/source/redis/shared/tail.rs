//! The tail over a shared stream: one read finds the news of all watched jobs.

use super::super::connections::{Nodes, Request};
use super::super::ends::EndedBy;
use super::super::error::{failed, is_denied_key};
use super::super::invalidation::Invalidations;
use super::super::position::Position;
use super::super::status::JobState;
use super::super::topology::NodeError;
use super::super::{JobKey, Store};
use super::{Mirror, Shared};
use crate::cursor::Cursor;
use crate::error::SourceError;
use crate::event::{Event, JobId, JobStatus};
use crate::source::{Endings, Joiner, Limit, News, Tail, TailBatch, Wakeup};
use crate::sse::JobEnd;
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bounds of one read, all jobs together.
const READ: Limit = Limit { events: 2048, bytes: 1 << 20 };
/// Jobs whose status one poll reads although no change of it was told.
const JOBS_PER_POLL: usize = 256;
/// Events that a joiner may lack. One that lacks more reads pages first.
const MAX_JOINER_EVENTS: usize = 1024;
const OPERATION: &str = "reading new events";

pub struct SharedTail {
    store: Arc<Store>,
    /// Connections of the tail alone: on these the servers track what was read.
    nodes: Nodes,
    invalidations: Arc<Invalidations>,
    watched: BTreeMap<JobId, Watched>,
    /// The watched job of each key with a status.
    by_key: HashMap<String, JobId>,
    /// Jobs whose status may have changed.
    unsure: BTreeSet<JobId>,
    /// Jobs that readers wait for.
    awaited: Vec<JobId>,
    /// Watched jobs with a final status.
    endings: Endings<EndedBy>,
    /// Jobs whose status may not be read, each with the reason. Their events are read.
    faults: BTreeMap<JobId, SourceError>,
    /// Jobs that the tail has not come to since their watch began.
    new: BTreeSet<JobId>,
    /// The number in the mirror of the next entry to read, in this life of the stream.
    next: u64,
    life: u64,
    poll_interval: Duration,
    last_poll: Option<Instant>,
    /// The last job that the last poll asked for.
    polled_up_to: Option<JobId>,
}

struct Watched {
    /// The position after the last entry that was read of any job, as far as this one is concerned.
    position: Position,
    /// The job's status, as it was told last.
    status: Option<JobStatus>,
}

impl SharedTail {
    pub fn new(store: Arc<Store>) -> Self {
        let invalidations = Arc::new(Invalidations::default());
        Self {
            nodes: Nodes::new(store.topology.clone(), Some(invalidations.clone())),
            poll_interval: store.poll_interval,
            endings: Endings::new(store.ends.grace()),
            store,
            invalidations,
            watched: BTreeMap::new(),
            awaited: Vec::new(),
            faults: BTreeMap::new(),
            by_key: HashMap::new(),
            unsure: BTreeSet::new(),
            new: BTreeSet::new(),
            next: 0,
            life: 0,
            last_poll: None,
            polled_up_to: None,
        }
    }

    fn job_key(&self, job: &JobId) -> Option<String> {
        self.store.job_key.as_ref().map(|template| template.key(job))
    }

    fn remove(&mut self, job: &JobId) {
        self.watched.remove(job);
        self.unsure.remove(job);
        self.faults.remove(job);
        self.new.remove(job);
        self.endings.unwatch(&self.store.ends, job);
        if let Some(key) = self.job_key(job) {
            self.by_key.remove(&key);
        }
    }

    // ---- statuses

    fn note_changes(&mut self) {
        let changes = self.invalidations.take();
        self.unsure.extend(changes.changed_keys.iter().filter_map(|key| self.by_key.get(key)).cloned());
        let is_due = self.last_poll.is_none_or(|at| at.elapsed() >= self.poll_interval);
        if changes.is_incomplete || (is_due && self.invalidations.has_untracked_nodes()) {
            self.unsure.extend(self.watched.keys().cloned());
        } else if is_due {
            let from = self.polled_up_to.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
            let rest = self.watched.range::<JobId, _>((from, Bound::Unbounded));
            let polled: Vec<JobId> = rest.take(JOBS_PER_POLL).map(|(job, _)| job.clone()).collect();
            self.polled_up_to = polled.last().cloned().filter(|_| polled.len() == JOBS_PER_POLL);
            self.unsure.extend(polled);
        }
        if is_due {
            self.unsure.extend(self.faults.keys().cloned());
            self.last_poll = Some(Instant::now());
        }
    }

    /// Reads the statuses that may have changed. Returns the error of a server, too; its jobs are asked for again.
    async fn read_statuses(&mut self) -> (Vec<(JobId, JobKey)>, Option<NodeError>) {
        let unsure = std::mem::take(&mut self.unsure);
        let requests = unsure.into_iter().filter_map(|job| Some((self.store.status_request(&job)?, job)));
        let (requests, jobs): (Vec<Request>, Vec<JobId>) = requests.unzip();
        let (mut keys, mut failure) = (Vec::with_capacity(jobs.len()), None);
        for (job, replies) in jobs.into_iter().zip(self.nodes.send(&requests).await) {
            // A key of another type is none of this job's.
            match self.store.parse_job_key(replies) {
                Ok(key) => {
                    self.faults.remove(&job);
                    keys.push((job, key));
                }
                Err(error) if is_denied_key(&error.error) => {
                    let error = failed(OPERATION, error).of_job(job.clone());
                    self.faults.insert(job, error);
                }
                Err(error) => {
                    self.unsure.insert(job);
                    failure = Some(error);
                }
            }
        }
        (keys, failure)
    }

    fn on_status(&mut self, job: &JobId, state: Option<&JobState>, batch: &mut TailBatch) {
        if self.endings.get(job).is_some_and(|ending| ending.mark == EndedBy::Entry) {
            return;
        }
        let end = state.and_then(|state| state.end);
        self.tell_status(job, self.store.resolve_status(end, state), batch);
        match end {
            Some(end) => self.endings.begin(&self.store.ends, job, end, EndedBy::Status),
            None => self.endings.remove(&self.store.ends, job),
        }
    }

    /// Makes a status news if it is another one than before.
    fn tell_status(&mut self, job: &JobId, status: Option<JobStatus>, batch: &mut TailBatch) {
        let Some((watched, status)) = self.watched.get_mut(job).zip(status) else { return };
        if watched.status.replace(status) != Some(status) {
            batch.set_status(job, status);
        }
    }

    /// Notes an event of a watched job, and the end that it may be.
    fn note_event(&mut self, job: &JobId, end: Option<JobStatus>, batch: &mut TailBatch) {
        self.endings.note_events(&self.store.ends, job);
        if end.is_some() {
            self.tell_status(job, end, batch);
        }
        if let Some(end) = end {
            self.endings.begin(&self.store.ends, job, end, EndedBy::Entry);
        }
    }

    // ---- entries

    /// Takes what the mirror has after a position of this job.
    fn take_new(&mut self, mirror: &Mirror, batch: &mut TailBatch) {
        for job in std::mem::take(&mut self.new) {
            let Some(watched) = self.watched.get_mut(&job) else { continue };
            if let Err(reset) = mirror.judge(&job, &watched.position) {
                self.remove(&job);
                batch.end(&job, JobEnd::Lost(reset));
                continue;
            }
            let after = watched.position.id;
            let mut end = mirror.end_of(&job);
            let mut has_news = false;
            let missed = mirror
                .after(&job, after)
                .filter(|kept| mirror.entry(self.next).is_none_or(|next| kept.entry.id < next.entry.id));
            for kept in missed {
                let mapped = self.store.mapping.read(&kept.entry, &job);
                (end, has_news) = (mapped.end.or(end), true);
                watched.position = kept.position;
                batch.push(&job, mapped.event, kept.position.seal(&job));
            }
            if has_news {
                self.endings.note_events(&self.store.ends, &job);
            }
            if let Some(status) = end {
                self.tell_status(&job, end, batch);
                self.endings.begin(&self.store.ends, &job, status, EndedBy::Entry);
            }
        }
    }

    /// Takes the entries that nobody has read yet, as many as fit.
    fn take_next(&mut self, mirror: &Mirror, batch: &mut TailBatch) {
        while !batch.is_full()
            && let Some(kept) = mirror.entry(self.next)
        {
            self.next += 1;
            let Some(job) = &kept.job else { continue };
            let Some(watched) = self.watched.get_mut(job).filter(|watched| watched.position.id < kept.entry.id) else {
                continue;
            };
            let mapped = self.store.mapping.read(&kept.entry, job);
            watched.position = kept.position;
            batch.push(job, mapped.event, kept.position.seal(job));
            self.note_event(job, mapped.end, batch);
        }
    }

    fn has_read_all(&self, mirror: &Mirror) -> bool {
        self.next >= mirror.next_number()
    }

    /// Ends the watches of a life of the stream that is over, and of entries that left before they were read.
    fn note_loss(&mut self, mirror: &Mirror, batch: &mut TailBatch) {
        let life = mirror.life();
        if life.number != self.life {
            self.life = life.number;
            self.next = mirror.first_number();
            // A watch that began in the new life is judged by its position.
            let (new, old): (Vec<JobId>, Vec<JobId>) =
                self.watched.keys().cloned().partition(|job| self.new.contains(job));
            for job in old {
                self.remove(&job);
                batch.end(&job, JobEnd::Lost(life.reason));
            }
            self.new.extend(new);
        }
        if self.next < mirror.first_number() {
            self.next = mirror.first_number();
            // Each is judged by its own entries.
            self.new.extend(self.watched.keys().cloned());
        }
    }

    /// Ends the jobs whose grace was over when the read began.
    fn end_jobs(&mut self, began: Instant, batch: &mut TailBatch) {
        let due: Vec<(JobId, JobStatus)> =
            self.endings.due(began).map(|(job, ending)| (job.clone(), ending.status)).collect();
        for (job, status) in due {
            batch.end(&job, JobEnd::Complete(status));
            self.endings.publish(&self.store.ends, &job);
        }
    }

    /// Returns the published events that a joiner lacks. Everything in the mirror is published.
    fn catch_up(&self, mirror: &Mirror, joiner: &Joiner) -> Option<Vec<(Event, Cursor)>> {
        let job = &joiner.job;
        self.watched.get(job)?;
        let after = Position::open(job, joiner.after.as_str()).filter(|after| after.id <= mirror.end().id)?;
        mirror.judge(job, &after).ok()?;
        let missing: Vec<_> = mirror.after(job, after.id).take(MAX_JOINER_EVENTS + 1).collect();
        let read = |kept: &super::Kept| (self.store.mapping.read(&kept.entry, job).event, kept.position.seal(job));
        (missing.len() <= MAX_JOINER_EVENTS).then(|| missing.into_iter().map(read).collect())
    }
}

#[async_trait]
impl Tail for SharedTail {
    fn watch(&mut self, job: JobId, after: Cursor) {
        if self.watched.contains_key(&job) {
            return self.endings.repeat(&job);
        }
        let position = Position::open(&job, after.as_str()).unwrap_or(Position::BEGINNING);
        if let Some(key) = self.job_key(&job) {
            self.by_key.insert(key, job.clone());
        }
        self.watched.insert(job.clone(), Watched { position, status: None });
        self.unsure.insert(job.clone());
        self.new.insert(job);
    }

    fn unwatch(&mut self, job: &JobId) {
        self.remove(job);
    }

    fn await_jobs(&mut self, jobs: Vec<JobId>) {
        self.awaited = jobs;
    }

    async fn woken(&mut self) -> Wakeup {
        tokio::select! {
            () = self.invalidations.changed() => Wakeup::Notify,
            () = self.endings.next_due() => Wakeup::End,
        }
    }

    async fn read(&mut self, joining: &[Joiner]) -> Result<News, SourceError> {
        if self.watched.is_empty() && self.awaited.is_empty() {
            // No job tells whether the servers answer.
            let probed = self.store.probe_access(&self.nodes).await;
            return probed.map(|_| News::nothing(joining)).map_err(|error| failed(OPERATION, error));
        }
        self.note_changes();
        // The statuses come first: where one is final by then, all events come before the end.
        let (began, mut batch) = (Instant::now(), TailBatch::new(READ));
        // A job whose end is due is asked once more whether it is one.
        self.unsure.extend(self.endings.due(began).map(|(job, _)| job.clone()));
        let (keys, failure) = self.read_statuses().await;
        let store = self.store.clone();
        let Some(shared): Option<&Shared> = store.shared.as_ref() else { return Ok(News::nothing(joining)) };
        let mut mirror = shared.lock().await;
        if let Err(error) = mirror.refresh(&store, &self.nodes).await {
            // Nothing is told yet, so the statuses are read again.
            self.unsure.extend(keys.into_iter().map(|(job, _)| job));
            return Err(failed(OPERATION, error));
        }
        for (job, key) in &keys {
            self.on_status(job, key.state(), &mut batch);
        }
        self.note_loss(&mirror, &mut batch);
        self.take_new(&mirror, &mut batch);
        self.take_next(&mirror, &mut batch);
        let mut caught_up_joiners = vec![None; joining.len()];
        let more = !self.has_read_all(&mirror);
        if !more {
            caught_up_joiners = joining.iter().map(|joiner| self.catch_up(&mirror, joiner)).collect();
            self.end_jobs(began, &mut batch);
        }
        Ok(News {
            // Each job has what the mirror has of it.
            level: (!more).then(|| mirror.end().level()),
            jobs: batch.into_jobs(),
            caught_up_joiners,
            more,
            outage: failure.map(|error| failed(OPERATION, error)),
            faults: self.faults.iter().map(|(job, error)| (job.clone(), error.clone())).collect(),
            appeared: self.awaited.iter().filter(|job| mirror.holds(job)).cloned().collect(),
        })
    }
}
