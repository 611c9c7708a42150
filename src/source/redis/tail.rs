//! The tail over all watched streams.
//!
//! A job is read when its server tells that one of its keys changed, when its watch begins, and when the poll comes to
//! it. Each read starts at the job's own position and finds the new entries by itself, so a lost invalidation only
//! delays it.
//!
//! Invariant: `queue` holds exactly the jobs with `is_queued`, each once. `held` holds the jobs whose server did not
//! answer, `faults` those whose own keys cannot be read; neither is asked again before a poll or a change.

mod endings;
mod queue;

use super::Store;
use super::address::Address;
use super::awaited::AwaitedJobs;
use super::connections::{Nodes, Replies, Request};
use super::ends::EndedBy;
use super::entry::{EntryId, mean_size};
use super::error::{Extent, extent, failed, is_moved};
use super::invalidation::Invalidations;
use super::keys::slot;
use super::position::{Position, StreamSlice};
use super::topology::{NodeError, Topology};
use crate::cursor::Cursor;
use crate::error::SourceError;
use crate::event::{Event, JobId, JobStatus};
use crate::source::{Endings, Joiner, Limit, News, Tail, TailBatch, Wakeup};
use crate::sse::{JobEnd, Reset};
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bounds of one read, all jobs together.
const READ: Limit = Limit { events: 2048, bytes: 1 << 20 };
/// Jobs asked for at once.
const MAX_JOBS_PER_REQUEST: usize = 64;
/// Bounds of the entries asked for of one job: fewer where there are many jobs, or where entries are large.
const MIN_ENTRIES_PER_JOB: usize = 16;
const MAX_ENTRIES_PER_JOB: usize = 512;
/// Entries that a joiner may lack. One that lacks more reads pages first.
const MAX_JOINER_ENTRIES: usize = 1024;
/// Bytes of the entries asked for by all joiners of a read together, but for the fewest of each.
const JOINED_BYTES: usize = 32 << 20;
/// Jobs that one poll reads although no change of theirs was told.
const JOBS_PER_POLL: usize = 256;

/// A joiner whose job was read to its last entry.
struct Join<'a> {
    job: &'a JobId,
    after: Position,
    /// Entries to ask for.
    count: usize,
    published_up_to: EntryId,
}

pub struct RedisTail {
    store: Arc<Store>,
    /// Connections of the tail alone: on these the servers track what was read.
    nodes: Nodes,
    invalidations: Arc<Invalidations>,
    watched: BTreeMap<JobId, Watched>,
    /// The watched job of each key.
    by_key: HashMap<String, JobId>,
    /// Jobs to read next, in this order.
    queue: VecDeque<JobId>,
    /// Jobs whose server did not answer. They are queued again at the next poll, or when servers or connections change.
    held: BTreeSet<JobId>,
    /// Jobs whose keys the server refuses, each with the reason. They keep their positions, and are queued as held ones
    /// are.
    faults: BTreeMap<JobId, SourceError>,
    /// Watched jobs with a final status.
    endings: Endings<EndedBy>,
    awaited: AwaitedJobs,
    /// The reason why jobs are held.
    outage: Option<SourceError>,
    poll_interval: Duration,
    last_poll: Option<Instant>,
    /// The last job that the last poll read; the next poll goes on after it. `None`: at the first job.
    polled_up_to: Option<JobId>,
    /// The version of the topology that jobs were last compared with.
    topology_version: u64,
}

struct Watched {
    /// The position after the last entry that was read, an event or not.
    position: Position,
    /// The job's status, as it was told last.
    status: Option<JobStatus>,
    /// The status may have changed since it was read.
    needs_status: bool,
    is_queued: bool,
    /// No entry was read since the watch began.
    is_new: bool,
    /// Mean bytes of the entries that were read last.
    entry_size: Option<usize>,
    /// The slots of the stream and of the key with the status.
    slots: [Option<u16>; 2],
    /// The nodes that these two were read from, and that track them.
    nodes: [Option<Address>; 2],
}

impl Watched {
    /// Returns the number of entries to ask for, of about `bytes` together.
    fn count(&self, bytes: usize, max: usize) -> usize {
        self.entry_size.map_or(MIN_ENTRIES_PER_JOB, |size| (bytes / size).clamp(1, max))
    }
}

fn nodes_of(topology: &Topology, slots: [Option<u16>; 2]) -> [Option<Address>; 2] {
    slots.map(|slot| topology.node_of(slot?).ok())
}

/// The results of one read, as they come in.
struct ReadProgress {
    began: Instant,
    batch: TailBatch,
    /// Jobs that were read up to their last entry.
    fully_read: HashSet<JobId>,
    /// Number of jobs that a server answered for.
    answered: usize,
    /// The last error of a server.
    error: Option<NodeError>,
}

impl ReadProgress {
    fn new() -> Self {
        let batch = TailBatch::new(READ);
        Self { began: Instant::now(), batch, fully_read: HashSet::new(), answered: 0, error: None }
    }
}

impl RedisTail {
    pub fn new(store: Arc<Store>) -> Self {
        let invalidations = Arc::new(Invalidations::default());
        Self {
            nodes: Nodes::new(store.topology.clone(), Some(invalidations.clone())),
            topology_version: store.topology.version(),
            poll_interval: store.poll_interval,
            endings: Endings::new(store.ends.grace()),
            store,
            invalidations,
            watched: BTreeMap::new(),
            by_key: HashMap::new(),
            queue: VecDeque::new(),
            held: BTreeSet::new(),
            faults: BTreeMap::new(),
            awaited: AwaitedJobs::default(),
            outage: None,
            last_poll: None,
            polled_up_to: None,
        }
    }

    fn remove(&mut self, job: &JobId) {
        if self.watched.remove(job).is_some_and(|watched| watched.is_queued) {
            self.queue.retain(|queued| queued != job);
        }
        self.held.remove(job);
        self.faults.remove(job);
        self.endings.unwatch(&self.store.ends, job);
        for key in self.store.keys(job).into_iter().flatten() {
            self.by_key.remove(&key);
        }
    }

    // ---- one read

    async fn read_jobs(&mut self, jobs: &[JobId], read: &mut ReadProgress) {
        for job in jobs {
            if let Some(watched) = self.watched.get_mut(job) {
                watched.nodes = nodes_of(&self.store.topology, watched.slots);
            }
        }
        // The statuses come first: where one is final by then, all events come before the end.
        let failed = self.read_statuses(jobs, read).await;
        self.read_streams(jobs.iter().filter(|job| !failed.contains(*job)), jobs.len(), read).await;
    }

    /// Reads the statuses that may have changed. Returns the jobs whose server did not answer.
    async fn read_statuses(&mut self, jobs: &[JobId], read: &mut ReadProgress) -> HashSet<JobId> {
        let needs_status = |job: &&JobId| self.watched.get(*job).is_some_and(|watched| watched.needs_status);
        let requests = jobs.iter().filter(needs_status);
        let (jobs, requests): (Vec<&JobId>, Vec<Request>) =
            requests.filter_map(|job| Some((job, self.store.status_request(job)?))).unzip();
        let mut failed = HashSet::new();
        for (job, replies) in jobs.into_iter().zip(self.nodes.send(&requests).await) {
            let status = self.store.parse_status(replies);
            let Some(watched) = self.watched.get_mut(job) else { continue };
            match status {
                Ok(status) => {
                    watched.needs_status = false;
                    self.on_status(job, &status, read);
                }
                Err(error) => {
                    failed.insert(job.clone());
                    self.on_error(job, error, read);
                }
            }
        }
        failed
    }

    /// Reads the new entries of jobs. Each may take one of `shares` equal shares of the read.
    async fn read_streams(&mut self, jobs: impl Iterator<Item = &JobId>, shares: usize, read: &mut ReadProgress) {
        let max = (READ.events / shares.max(1)).clamp(MIN_ENTRIES_PER_JOB, MAX_ENTRIES_PER_JOB);
        let bytes = READ.bytes / shares.max(1);
        let asked = jobs.filter_map(|job| {
            let watched = self.watched.get(job)?;
            Some((job, watched.position, watched.count(bytes, max)))
        });
        let asked: Vec<(&JobId, Position, usize)> = asked.collect();
        let requests: Vec<Request> =
            asked.iter().map(|(job, after, count)| self.store.stream_request(job, after, *count)).collect();
        for ((job, after, count), replies) in asked.into_iter().zip(self.nodes.send(&requests).await) {
            match self.store.parse_stream(replies, &after, count) {
                Ok(slice) => {
                    read.answered += 1;
                    let end = self.end_before(job, &after, &slice).await;
                    self.on_slice(job, &after, (&slice, end), read);
                }
                Err(error) => self.on_error(job, error, read),
            }
        }
    }

    /// Takes the new entries of one job, and the end that an entry before them said.
    fn on_slice(
        &mut self,
        job: &JobId,
        after: &Position,
        (slice, mut end): (&StreamSlice, Option<JobStatus>),
        read: &mut ReadProgress,
    ) {
        let positions = match after.follow(slice) {
            Ok(positions) => positions,
            // Its writer deleted it with the final status, or let it expire.
            Err(_) if slice.info.is_none() && self.endings.contains(job) => Vec::new(),
            Err(reset) => return self.end(job, JobEnd::Lost(reset), read),
        };
        self.faults.remove(job);
        let Some(watched) = self.watched.get_mut(job) else { return };
        watched.entry_size = mean_size(&slice.entries).or(watched.entry_size);
        for (entry, position) in slice.entries.iter().zip(positions) {
            watched.position = position;
            let mapped = self.store.mapping.read(entry, job);
            end = mapped.end.or(end);
            read.batch.push(job, mapped.event, position.seal(job));
        }
        if let Some(status) = end {
            self.note_final_entry(job, status, read);
        }
        if slice.is_cut {
            read.fully_read.remove(job);
            return self.queue(job, false);
        }
        read.fully_read.insert(job.clone());
        self.end_if_due(job, slice, read);
    }

    /// Holds a job whose server did not answer, and notes an error of the job's own keys as a fault of this job.
    fn on_error(&mut self, job: &JobId, error: NodeError, read: &mut ReadProgress) {
        if is_moved(&error.error) {
            // This is outside of a Cluster: readers meet the error themselves when they read pages again.
            read.answered += 1;
            return self.end(job, JobEnd::Lost(Reset::Rewound), read);
        }
        match extent(&error.error) {
            Extent::Key | Extent::RightsOfKey => {
                read.answered += 1;
                self.note_fault(job, error);
            }
            Extent::Source => {
                read.error = Some(error);
                self.held.insert(job.clone());
            }
        }
    }

    fn note_fault(&mut self, job: &JobId, error: NodeError) {
        self.held.remove(job);
        self.faults.insert(job.clone(), failed("reading new events", error).of_job(job.clone()));
    }

    fn end(&mut self, job: &JobId, end: JobEnd, read: &mut ReadProgress) {
        self.remove(job);
        read.batch.end(job, end);
    }

    /// Turns an error of a read into an outage of the servers that did not answer, or fails where none answered.
    fn note_outage(&mut self, read: &mut ReadProgress) -> Result<(), SourceError> {
        let Some(error) = read.error.take() else {
            if self.held.is_empty() {
                self.outage = None;
            }
            return Ok(());
        };
        let error = failed("reading new events", error);
        if read.answered == 0 {
            // The caller waits before the next read, and all of them are tried then.
            self.outage = None;
            self.queue_held();
            return Err(error);
        }
        self.outage = Some(error);
        Ok(())
    }

    /// Returns, for each joiner, the published events that it lacks. Its job must have been read to its last entry just now.
    async fn catch_up(&self, joining: &[Joiner], read: &ReadProgress) -> Vec<Option<Vec<(Event, Cursor)>>> {
        let bytes_each = JOINED_BYTES / joining.len().max(1);
        let mut caught_up = Vec::with_capacity(joining.len());
        for some in joining.chunks(MAX_JOBS_PER_REQUEST) {
            let joins: Vec<Option<Join<'_>>> = some.iter().map(|joiner| self.join(joiner, read, bytes_each)).collect();
            let ask = |join: &Join<'_>| self.store.stream_request(join.job, &join.after, join.count);
            let requests: Vec<Request> = joins.iter().flatten().map(ask).collect();
            let mut replies = self.nodes.send(&requests).await.into_iter();
            caught_up.extend(joins.into_iter().map(|join| self.missing(&join?, replies.next()?)));
        }
        caught_up
    }

    fn join<'a>(&self, joiner: &'a Joiner, read: &ReadProgress, bytes: usize) -> Option<Join<'a>> {
        let job = &joiner.job;
        let after = Position::open(job, joiner.after.as_str())?;
        let watched = self.watched.get(job).filter(|_| read.fully_read.contains(job))?;
        let count = watched.count(bytes.min(READ.bytes), MAX_JOINER_ENTRIES).max(MIN_ENTRIES_PER_JOB);
        Some(Join { job, after, count, published_up_to: watched.position.id })
    }

    fn missing(&self, join: &Join<'_>, replies: Replies) -> Option<Vec<(Event, Cursor)>> {
        let Join { job, after, count, published_up_to } = join;
        let slice = self.store.parse_stream(replies, after, *count).ok()?;
        // A loss is the joiner's own: it reads pages, which say so; the others stay.
        let positions = after.follow(&slice).ok()?;
        if slice.is_cut && slice.entries.last().is_some_and(|last| last.id < *published_up_to) {
            return None;
        }
        let published = slice.entries.iter().zip(positions).filter(|(entry, _)| entry.id <= *published_up_to);
        let events = published.map(|(entry, position)| (self.store.mapping.read(entry, job).event, position.seal(job)));
        Some(events.collect())
    }
}

#[async_trait]
impl Tail for RedisTail {
    fn watch(&mut self, job: JobId, after: Cursor) {
        if self.watched.contains_key(&job) {
            self.endings.repeat(&job);
            return self.queue_first(&job);
        }
        let position = Position::open(&job, after.as_str()).unwrap_or(Position::BEGINNING);
        let keys = self.store.keys(&job);
        let slots = keys.each_ref().map(|key| key.as_deref().map(slot));
        for key in keys.into_iter().flatten() {
            self.by_key.insert(key, job.clone());
        }
        let watched = Watched {
            position,
            status: None,
            needs_status: true,
            is_queued: false,
            is_new: true,
            entry_size: None,
            slots,
            nodes: [None, None],
        };
        self.watched.insert(job.clone(), watched);
        // They come before the jobs of a poll, of which nothing is known to have changed.
        self.queue_first(&job);
    }

    fn unwatch(&mut self, job: &JobId) {
        self.remove(job);
    }

    fn await_jobs(&mut self, jobs: Vec<JobId>) {
        self.awaited.replace(jobs, |job| self.store.keys(job).into_iter().flatten().collect());
    }

    async fn woken(&mut self) -> Wakeup {
        tokio::select! {
            () = self.invalidations.changed() => Wakeup::Notify,
            () = self.endings.next_due() => Wakeup::End,
        }
    }

    async fn read(&mut self, joining: &[Joiner]) -> Result<News, SourceError> {
        self.queue_due();
        for joiner in joining {
            self.queue_first(&joiner.job);
        }
        if self.watched.is_empty() {
            // No job tells whether the servers answer.
            let probed = self.store.probe_access(&self.nodes).await;
            probed.map_err(|error| failed("reading new events", error))?;
        }
        let mut read = ReadProgress::new();
        while !read.batch.is_full() {
            let jobs = self.next_jobs();
            if jobs.is_empty() {
                break;
            }
            self.read_jobs(&jobs, &mut read).await;
        }
        let found = self.awaited.find(&self.store, &self.nodes).await;
        read.answered += found.answers;
        read.error = read.error.or(found.error);
        self.note_outage(&mut read)?;
        let caught_up_joiners = self.catch_up(joining, &read).await;
        Ok(News {
            level: None,
            jobs: read.batch.into_jobs(),
            caught_up_joiners,
            more: !self.queue.is_empty(),
            outage: self.outage.clone(),
            faults: self.faults.iter().map(|(job, error)| (job.clone(), error.clone())).collect(),
            appeared: found.appeared,
        })
    }
}
