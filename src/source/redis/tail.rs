//! Tails the streams: a job is read when its server says that one of its keys changed, when it begins to be watched, and
//! now and then because a poll's turn comes to it. Each reading starts at the job's own position and finds out for itself
//! what is new; a wake-up that is lost only makes it late.
//!
//! Invariant: `queue` holds just the jobs that are `queued`, each once; `held` those that a server did not answer for.

use super::Store;
use super::address::Address;
use super::entry::mean_size;
use super::error::{failed, is_moved};
use super::hearing::Hearing;
use super::keys::slot;
use super::nodes::{Fault, Links, Request};
use super::position::{Position, Seen};
use crate::cursor::Cursor;
use crate::error::SourceError;
use crate::event::{Event, JobId, JobStatus};
use crate::source::{JobNews, Joiner, Limit, News, Tail, Wakeup};
use crate::sse::{JobEnd, Reset};
use crate::telemetry;
use async_trait::async_trait;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One read stops at about so much.
const READ: Limit = Limit { events: 2048, bytes: 1 << 20 };
/// Jobs that are asked for at once.
const BATCH: usize = 64;
/// Entries that are asked for of each: few where there are many jobs, or entries are long, so that an answer stays bounded.
const MOST_OF_ONE: usize = 512;
const LEAST_OF_ONE: usize = 16;
/// Entries that a joining reader may lack.
const MOST_MISSING: usize = 1024;
/// Jobs that a poll reads although nothing was heard of them.
const POLLED: usize = 256;

pub struct RedisTail {
    store: Arc<Store>,
    links: Links,
    hearing: Arc<Hearing>,
    live: BTreeMap<JobId, Watched>,
    /// Whose key it is.
    by_key: HashMap<String, JobId>,
    queue: VecDeque<JobId>,
    held: Vec<JobId>,
    /// Why those are held.
    outage: Option<SourceError>,
    poll_interval: Duration,
    polled: Option<Instant>,
    /// Where the last poll's turn ended.
    turn: Option<JobId>,
    /// Of the map of servers.
    version: u64,
}

struct Watched {
    /// After the last entry that was read, be it an event or not.
    position: Position,
    /// How the job ended, by the hash.
    ended: Option<JobStatus>,
    /// What the status is was not asked since it may have changed.
    asks_status: bool,
    is_queued: bool,
    /// Bytes of an entry, on average, when some were read last.
    entry_size: Option<usize>,
    /// Who was asked for the stream and for the hash: each tells what changes there.
    nodes: [Option<Address>; 2],
}

impl Watched {
    /// How many entries to ask for, of about so many bytes together.
    fn count(&self, bytes: usize, most: usize) -> usize {
        self.entry_size.map_or(LEAST_OF_ONE, |size| (bytes / size).clamp(1, most))
    }
}

impl RedisTail {
    pub fn new(store: Arc<Store>) -> Self {
        let hearing = Arc::new(Hearing::default());
        Self {
            links: Links::new(store.topology.clone(), Some(hearing.clone())),
            version: store.topology.version(),
            poll_interval: store.poll_interval,
            store,
            hearing,
            live: BTreeMap::new(),
            by_key: HashMap::new(),
            queue: VecDeque::new(),
            held: Vec::new(),
            outage: None,
            polled: None,
            turn: None,
        }
    }

    fn keys(&self, job: &JobId) -> [Option<String>; 2] {
        [Some(self.store.events.key(job)), self.store.job.as_ref().map(|template| template.key(job))]
    }

    /// Its turn comes in the next read.
    fn queue(&mut self, job: &JobId, asks_status: bool) {
        let Some(watched) = self.live.get_mut(job) else { return };
        watched.asks_status |= asks_status;
        if !std::mem::replace(&mut watched.is_queued, true) {
            self.queue.push_back(job.clone());
        }
    }

    fn queue_all(&mut self) {
        for job in self.live.keys().cloned().collect::<Vec<_>>() {
            self.queue(&job, true);
        }
    }

    /// What was heard, what has moved to another server, and, when it is time, what a poll reads.
    fn gather(&mut self) {
        let heard = self.hearing.take();
        for key in heard.keys {
            let Some(job) = self.by_key.get(&key).cloned() else { continue };
            let is_stream = self.store.events.key(&job) == key;
            self.queue(&job, !is_stream);
        }
        if heard.is_lost {
            self.release();
            self.queue_all();
        }
        let version = self.store.topology.version();
        if std::mem::replace(&mut self.version, version) != version {
            self.release();
            for job in self.live.keys().cloned().collect::<Vec<_>>() {
                if self.live.get(&job).is_some_and(|watched| watched.nodes != self.nodes_of(&job)) {
                    self.queue(&job, true);
                }
            }
        }
        if self.polled.is_none_or(|at| at.elapsed() >= self.poll_interval) {
            self.polled = Some(Instant::now());
            self.release();
            self.poll();
        }
    }

    fn nodes_of(&self, job: &JobId) -> [Option<Address>; 2] {
        self.keys(job).map(|key| self.store.topology.node_of(slot(&key?)).ok())
    }

    fn poll(&mut self) {
        if self.hearing.is_deaf() {
            return self.queue_all();
        }
        let from = self.turn.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let turn: Vec<JobId> =
            self.live.range::<JobId, _>((from, Bound::Unbounded)).take(POLLED).map(|(job, _)| job.clone()).collect();
        self.turn = turn.last().cloned().filter(|_| turn.len() == POLLED);
        for job in turn {
            self.queue(&job, true);
        }
    }

    /// What was held is tried again.
    fn release(&mut self) {
        for job in std::mem::take(&mut self.held) {
            self.queue(&job, true);
        }
    }

    fn next_batch(&mut self) -> Vec<JobId> {
        let mut batch = Vec::new();
        while let Some(job) = self.queue.pop_front() {
            if let Some(watched) = self.live.get_mut(&job) {
                watched.is_queued = false;
                batch.push(job);
            }
            if batch.len() == BATCH {
                break;
            }
        }
        batch
    }

    fn drop_watch(&mut self, job: &JobId) {
        if self.live.remove(job).is_some_and(|watched| watched.is_queued) {
            self.queue.retain(|queued| queued != job);
        }
        self.held.retain(|held| held != job);
        for key in self.keys(job).into_iter().flatten() {
            self.by_key.remove(&key);
        }
    }
}

#[async_trait]
impl Tail for RedisTail {
    fn watch(&mut self, job: JobId, after: Cursor) {
        let position = Position::open(&job, after.as_str()).unwrap_or(Position::BEGINNING);
        for key in self.keys(&job).into_iter().flatten() {
            self.by_key.insert(key, job.clone());
        }
        self.drop_queued(&job);
        let watched = Watched {
            position,
            ended: None,
            asks_status: true,
            is_queued: true,
            entry_size: None,
            nodes: [None, None],
        };
        self.live.insert(job.clone(), watched);
        // before those that a poll only looks after
        self.queue.push_front(job);
    }

    fn unwatch(&mut self, job: &JobId) {
        self.drop_watch(job);
    }

    async fn woken(&mut self) -> Wakeup {
        self.hearing.rung().await;
        Wakeup::Notify
    }

    async fn read(&mut self, joining: &[Joiner]) -> Result<News, SourceError> {
        self.gather();
        for reader in joining {
            self.queue(&reader.job, false);
            self.queue_first(&reader.job);
        }
        let mut draft = Draft::default();
        if self.queue.is_empty() && self.held.is_empty() && self.live.is_empty() {
            // nobody watches: still it is known whether the source answers
            let greeted = self.store.greet(&self.links).await;
            greeted.map_err(|fault| failed("reading new events", fault))?;
        }
        while !draft.is_full() {
            let batch = self.next_batch();
            if batch.is_empty() {
                break;
            }
            self.read_batch(&batch, &mut draft).await;
        }
        if let Some(fault) = draft.fault.take() {
            let error = failed("reading new events", fault);
            if draft.answered == 0 {
                // not to be tried again before the pause that this asks for
                self.outage = None;
                self.release();
                return Err(error);
            }
            self.outage = Some(error);
        } else if self.held.is_empty() {
            self.outage = None;
        }
        let mut caught_up_joiners = Vec::with_capacity(joining.len());
        for reader in joining {
            caught_up_joiners.push(self.missing(reader, &mut draft).await);
        }
        let told = draft.jobs.into_iter().filter(|(_, told)| !told.events.is_empty() || told.end.is_some());
        let jobs = told.map(|(job, told)| JobNews { job, events: told.events, end: told.end }).collect();
        Ok(News { jobs, caught_up_joiners, more: !self.queue.is_empty(), outage: self.outage.clone() })
    }
}

/// What a read is about to tell.
#[derive(Default)]
struct Draft {
    jobs: BTreeMap<JobId, Told>,
    events: usize,
    bytes: usize,
    /// Jobs that a server answered for.
    answered: usize,
    fault: Option<Fault>,
}

#[derive(Default)]
struct Told {
    events: Vec<(Event, Cursor)>,
    /// Read to its end.
    is_level: bool,
    end: Option<JobEnd>,
}

impl Draft {
    fn is_full(&self) -> bool {
        self.events >= READ.events || self.bytes >= READ.bytes
    }
}

impl RedisTail {
    fn drop_queued(&mut self, job: &JobId) {
        if self.live.get(job).is_some_and(|watched| watched.is_queued) {
            self.queue.retain(|queued| queued != job);
        }
    }

    fn queue_first(&mut self, job: &JobId) {
        if self.live.get(job).is_some_and(|watched| watched.is_queued) {
            self.queue.retain(|queued| queued != job);
            self.queue.push_front(job.clone());
        }
    }

    /// Statuses first: an end that is known by then comes after all events that are read then.
    async fn read_batch(&mut self, batch: &[JobId], draft: &mut Draft) {
        for job in batch {
            let nodes = self.nodes_of(job);
            if let Some(watched) = self.live.get_mut(job) {
                watched.nodes = nodes;
            }
        }
        let asked = |job: &&JobId| self.live.get(*job).is_some_and(|watched| watched.asks_status);
        let (jobs, requests): (Vec<JobId>, Vec<Request>) =
            batch.iter().filter(asked).filter_map(|job| Some((job.clone(), self.store.ask_status(job)?))).unzip();
        let mut silent = Vec::new();
        if !requests.is_empty() {
            for (job, answer) in jobs.into_iter().zip(self.links.ask(&requests).await) {
                let status = self.store.read_status(answer);
                let Some(watched) = self.live.get_mut(&job) else { continue };
                match status {
                    Ok(status) => {
                        watched.asks_status = false;
                        watched.ended = status.and_then(|status| self.store.settings.statuses.find(&status));
                    }
                    Err(fault) => {
                        silent.push(job.clone());
                        self.hold(job, fault, draft);
                    }
                }
            }
        }
        let spoken = batch.iter().filter(|job| !silent.contains(job));
        let shares = batch.len().max(1);
        let most = (READ.events / shares).clamp(LEAST_OF_ONE, MOST_OF_ONE);
        let asked: Vec<(JobId, Position, usize)> = spoken
            .filter_map(|job| {
                let watched = self.live.get(job)?;
                Some((job.clone(), watched.position, watched.count(READ.bytes / shares, most)))
            })
            .collect();
        let requests: Vec<Request> =
            asked.iter().map(|(job, after, count)| self.store.look(job, after, *count)).collect();
        for ((job, after, count), answers) in asked.into_iter().zip(self.links.ask(&requests).await) {
            match self.store.seen(answers, &after, count) {
                Ok(seen) => {
                    draft.answered += 1;
                    self.take(job, after, seen, draft);
                }
                Err(fault) => self.hold(job, fault, draft),
            }
        }
    }

    /// A server did not answer for a job. Where that is the job's own trouble, its readers are to meet it themselves.
    fn hold(&mut self, job: JobId, fault: Fault, draft: &mut Draft) {
        if fault.error.code() == Some("WRONGTYPE") || is_moved(&fault.error) {
            draft.answered += 1;
            return self.end(job, JobEnd::Lost(Reset::Rewound), draft);
        }
        draft.fault = Some(fault);
        self.held.push(job);
    }

    fn end(&mut self, job: JobId, end: JobEnd, draft: &mut Draft) {
        self.drop_watch(&job);
        draft.jobs.entry(job).or_default().end = Some(end);
    }

    /// Takes what was seen of one job.
    fn take(&mut self, job: JobId, after: Position, seen: Seen, draft: &mut Draft) {
        let positions = match after.follow(&seen) {
            Ok(positions) => positions,
            Err(reset) => return self.end(job, JobEnd::Lost(reset), draft),
        };
        let Some(watched) = self.live.get_mut(&job) else { return };
        watched.entry_size = mean_size(&seen.entries).or(watched.entry_size);
        let told = draft.jobs.entry(job.clone()).or_default();
        let mut skipped = 0;
        for (entry, position) in seen.entries.iter().zip(positions) {
            watched.position = position;
            match entry.event(&job) {
                Some(event) => {
                    draft.events += 1;
                    draft.bytes += event.payload.as_json().len();
                    told.events.push((event, position.seal(&job)));
                }
                None => skipped += 1,
            }
        }
        telemetry::SKIPPED.counter(&[]).increment(skipped);
        told.is_level = !seen.is_cut;
        if seen.is_cut {
            return self.queue(&job, false);
        }
        let ended = watched.ended.or_else(|| self.store.ending(None, seen.info.as_ref(), &watched.position));
        if let Some(status) = ended {
            self.end(job, JobEnd::Complete(status), draft);
        }
    }

    /// What brings a reader level with its job, which was read just now.
    async fn missing(&mut self, reader: &Joiner, draft: &mut Draft) -> Option<Vec<(Event, Cursor)>> {
        let after = Position::open(&reader.job, reader.after.as_str())?;
        let watched = self.live.get(&reader.job)?;
        let (upto, count) = (watched.position, watched.count(READ.bytes, MOST_MISSING).max(LEAST_OF_ONE));
        if !draft.jobs.get(&reader.job).is_some_and(|told| told.is_level) {
            return None;
        }
        let request = self.store.look(&reader.job, &after, count);
        let answers = self.links.ask(&[request]).await.pop()?;
        let seen = self.store.seen(answers, &after, count).ok()?;
        let Ok(positions) =
            after.follow(&seen).map_err(|reset| self.end(reader.job.clone(), JobEnd::Lost(reset), draft))
        else {
            return None;
        };
        if seen.is_cut && seen.entries.last().is_some_and(|last| last.id < upto.id) {
            return None;
        }
        let read = seen.entries.iter().zip(positions).filter(|(entry, _)| entry.id <= upto.id);
        let told = read.filter_map(|(entry, position)| Some((entry.event(&reader.job)?, position.seal(&reader.job))));
        Some(told.collect())
    }
}
