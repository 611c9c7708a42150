//! Redis Streams: a stream for each job, read with no more than the right to read; one server, the primary that Sentinel
//! names, or a Cluster. [`position`] says how an entry that is gone is told from one that never was, [`hearing`] what
//! wakes the tail up, [`nodes`] who is asked.

mod address;
mod check;
mod driver;
mod entry;
mod error;
mod hearing;
mod keys;
mod nodes;
mod position;
mod tail;
mod writer;

pub use driver::RedisDriver;

use super::{Appended, JobSummary, Limit, NewEvent, Page, PageResult, Source, Standing, Tail};
use crate::config;
use crate::cursor::Cursor;
use crate::error::{SourceCode, SourceError};
use crate::event::{Event, JobId, JobStatus, Rfc3339};
use crate::sse::Reset;
use crate::telemetry;
use async_trait::async_trait;
use entry::{Entry, EntryId, Info, number, odd, text};
use error::failed;
use keys::Template;
use nodes::{Answers, Fault, Keeper, Links, Request, Topology, said};
use position::{Position, Seen};
use redis::{Cmd, Value, cmd};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Entries of one answer: a server that is asked for more than it can say in a moment makes others wait.
const CHUNK: usize = 256;
/// Of a stream of which it is not known yet how long its entries are.
const FIRST_CHUNK: usize = 32;
/// A bare event id is looked for among so many of a job's newest entries; no index leads to it.
const LOOK_BACK: usize = 10_000;
/// To list jobs, so many keys of each server are gone through, ...
const SCANNED_KEYS: usize = 50_000;
/// ... and of so many jobs it is asked how they are.
const LISTED_JOBS: usize = 2_000;

struct Store {
    settings: config::Redis,
    events: Template,
    /// None: there are no hashes.
    job: Option<Template>,
    topology: Arc<Topology>,
    /// For everybody but the tail, which has its own.
    links: Links,
    poll_interval: Duration,
    known: writer::Known,
    _keeper: Keeper,
}

impl Store {
    /// Fails only for what trying again cannot mend; a server that is away may come.
    async fn open(settings: &config::Source) -> Result<Arc<Self>, SourceError> {
        let poll_interval = settings.poll_interval;
        let settings = settings.redis.clone();
        let (deployment, login) = address::read(&settings)?;
        let (topology, keeper) = Topology::start(deployment, login).await;
        let events = Template::new(&settings.events_key).ok_or_else(|| {
            let cause = format!("it does not hold {}", config::Redis::JOB_ID);
            SourceError::new(SourceCode::CannotOpen, "reading source.redis.events_key", cause, "correct it")
        })?;
        let store = Arc::new(Self {
            job: Template::new(&settings.job_key),
            events,
            links: Links::new(topology.clone(), None),
            poll_interval,
            known: writer::Known::default(),
            topology,
            settings,
            _keeper: keeper,
        });
        match store.greet(&store.links).await.map_err(|fault| failed("connecting", fault)) {
            Err(error) if !error.is_retryable() => Err(error),
            Err(error) => {
                tracing::warn!(code = error.code.as_str(), %error, "the server does not answer yet");
                Ok(store)
            }
            Ok(()) => Ok(store),
        }
    }

    /// Reads as the tail does, of a job that there is none of.
    async fn greet(&self, links: &Links) -> Result<(), Fault> {
        let Ok(nobody) = "jobcast".parse::<JobId>() else { return Ok(()) };
        let mut requests = vec![self.look(&nobody, &Position::BEGINNING, 1)];
        requests.extend(self.ask_status(&nobody));
        for answers in links.ask(&requests).await {
            for answer in answers? {
                match said(answer) {
                    Err(error) if error.detail().is_some_and(|why| why.contains("no such key")) => {}
                    said => drop(said.map_err(|error| self.topology.fault(error))?),
                }
            }
        }
        Ok(())
    }

    async fn ask(&self, request: Request) -> Result<Vec<Value>, Fault> {
        let answer = self.links.ask(std::slice::from_ref(&request)).await.pop();
        answer.unwrap_or_else(|| Err(self.topology.fault(odd("an answer"))))
    }

    fn on_stream(&self, job: &JobId, commands: impl FnOnce(&str) -> Vec<Cmd>) -> Request {
        let key = self.events.key(job);
        let commands = commands(&key);
        Request::of(&key, commands)
    }

    // ---- one stream at one moment

    /// Asks for up to `count` entries after a position, and then what the whole stream is like.
    fn look(&self, job: &JobId, after: &Position, count: usize) -> Request {
        self.on_stream(job, |key| {
            let mut range = cmd("XRANGE");
            // the entry at the position, too, and one more than is wanted
            range.arg(key).arg(after.id.to_string()).arg("+").arg("COUNT").arg(count + 2);
            vec![range, info_of(key)]
        })
    }

    fn seen(&self, answers: Answers, after: &Position, count: usize) -> Result<Seen, Fault> {
        let fault = |error| self.topology.fault(error);
        let [range, info] = <[Value; 2]>::try_from(answers?).map_err(|_| fault(odd("two answers")))?;
        let mut entries = entry::entries(said(range).map_err(fault)?).map_err(fault)?;
        let info = entry::info(info).map_err(fault)?;
        let is_here = after.id > EntryId::ZERO && entries.first().is_some_and(|entry| entry.id == after.id);
        let here = is_here.then(|| entries.remove(0).print());
        let is_cut = entries.len() > count;
        entries.truncate(if info.is_some() { count } else { 0 });
        Ok(Seen { here, entries, is_cut, info })
    }

    // ---- statuses

    /// `None`: no hash has it.
    fn ask_status(&self, job: &JobId) -> Option<Request> {
        let key = self.job.as_ref()?.key(job);
        let mut get = cmd("HGET");
        get.arg(&key).arg("status");
        Some(Request::of(&key, vec![get]))
    }

    fn read_status(&self, answers: Answers) -> Result<Option<String>, Fault> {
        let answer = answers?.into_iter().next().unwrap_or(Value::Nil);
        let answer = said(answer).map_err(|error| self.topology.fault(error))?;
        Ok(text(&answer).map(str::to_string))
    }

    async fn status(&self, job: &JobId) -> Result<Option<String>, Fault> {
        match self.ask_status(job) {
            Some(request) => self.read_status(self.ask(request).await),
            None => Ok(None),
        }
    }

    /// How a job ended: as its hash says, else as its last event does, where that is the last of those read.
    fn ending(&self, status: Option<&str>, info: Option<&Info>, read: &Position) -> Option<JobStatus> {
        let last = || info?.last_entry.as_ref().filter(|entry| entry.id == read.id)?.kind();
        status
            .and_then(|status| self.settings.statuses.find(status))
            .or_else(|| last().and_then(|kind| self.settings.final_types.find(&kind)))
    }

    // ---- history

    async fn page(&self, job: &JobId, after: Position, limit: Limit) -> Result<PageResult, Fault> {
        // before the events: an end that is known by then comes after all of them
        let status = self.status(job).await?;
        let (mut at, mut bytes, mut skipped) = (after, 0, 0);
        let mut events: Vec<(Event, Cursor)> = Vec::new();
        let mut fit = FIRST_CHUNK;
        let (is_last, info) = loop {
            let count = fit.min(CHUNK).min(limit.events - events.len()).max(1);
            let seen = self.seen(self.ask(self.look(job, &at, count)).await, &at, count)?;
            let positions = match at.follow(&seen) {
                Ok(positions) => positions,
                Err(reset) => return Ok(PageResult::Lost(reset)),
            };
            let all = seen.entries.len();
            if let Some(size) = entry::mean_size(&seen.entries) {
                fit = limit.bytes.saturating_sub(bytes) / size + 1;
            }
            let mut taken = 0;
            for (entry, position) in seen.entries.iter().zip(positions) {
                if events.len() == limit.events || bytes > limit.bytes {
                    break;
                }
                taken += 1;
                at = position;
                match entry.event(job) {
                    Some(event) => {
                        bytes += event.payload.as_json().len();
                        events.push((event, position.seal(job)));
                    }
                    None => skipped += 1,
                }
            }
            if taken == all && !seen.is_cut {
                break (true, seen.info);
            }
            if taken < all || events.len() >= limit.events || bytes > limit.bytes {
                break (false, seen.info);
            }
        };
        telemetry::SKIPPED.counter(&[]).increment(skipped);
        if info.is_none() && status.is_none() && !self.has_hash(job).await? {
            return Ok(PageResult::NoSuchJob);
        }
        // a reader that was given nothing stays where it stood; one that has just begun now knows where that is
        let end = match events.last() {
            Some((_, cursor)) => cursor.clone(),
            None if after != Position::BEGINNING => after.seal(job),
            None if at != after => at.seal(job),
            None => Position::newest(info.as_ref()).seal(job),
        };
        let ending = self.ending(status.as_deref(), info.as_ref(), &at);
        Ok(PageResult::Page(Page {
            end,
            is_complete: is_last && ending.is_some(),
            status: ending.or_else(|| self.settings.statuses.resolve(&status?)),
            events,
            is_last,
        }))
    }

    async fn has_hash(&self, job: &JobId) -> Result<bool, Fault> {
        let Some(template) = &self.job else { return Ok(false) };
        let key = template.key(job);
        let mut exists = cmd("EXISTS");
        exists.arg(&key);
        let answer = self.ask(Request::of(&key, vec![exists])).await?.into_iter().next().unwrap_or(Value::Nil);
        let answer = said(answer).map_err(|error| self.topology.fault(error))?;
        Ok(number(&answer).is_some_and(|count| count > 0))
    }

    async fn newest(&self, job: &JobId) -> Result<Option<Standing>, Fault> {
        let status = self.status(job).await?;
        let answer = self.ask(self.on_stream(job, |key| vec![info_of(key)])).await?;
        let info = self.info(answer.into_iter().next())?;
        if info.is_none() && status.is_none() && !self.has_hash(job).await? {
            return Ok(None);
        }
        let position = Position::newest(info.as_ref());
        let ending = self.ending(status.as_deref(), info.as_ref(), &position);
        let status = ending.or_else(|| self.settings.statuses.resolve(&status?));
        Ok(Some(Standing { cursor: position.seal(job), status }))
    }

    fn info(&self, answer: Option<Value>) -> Result<Option<Info>, Fault> {
        entry::info(answer.unwrap_or(Value::Nil)).map_err(|error| self.topology.fault(error))
    }

    /// The position of the event with this id, if it is among the newest.
    async fn find(&self, job: &JobId, id: &str) -> Result<Option<Cursor>, Fault> {
        let (mut below, mut newer, mut info) = ("+".to_string(), 0, None);
        let mut is_first = true;
        while newer < LOOK_BACK as u64 {
            let request = self.on_stream(job, |key| {
                let mut range = cmd("XREVRANGE");
                range.arg(key).arg(&below).arg("-").arg("COUNT").arg(CHUNK);
                if is_first { vec![info_of(key), range] } else { vec![range] }
            });
            let mut answers = self.ask(request).await?;
            let range = answers.pop().unwrap_or(Value::Nil);
            if is_first {
                info = self.info(answers.pop())?;
            }
            is_first = false;
            let fault = |error| self.topology.fault(error);
            let found = entry::entries(said(range).map_err(fault)?).map_err(fault)?;
            let Some(info) = &info else { return Ok(None) };
            let Some(last) = found.last().map(|entry| entry.id) else { return Ok(None) };
            for entry in found.iter().filter(|entry| entry.id <= info.last) {
                if entry.event_id() == id && entry.kind().is_some() {
                    // where nothing after it was deleted, those that are there are those that were added
                    let is_whole = info.deleted.is_some_and(|deleted| deleted < entry.id);
                    let ordinal = info.added.filter(|_| is_whole).and_then(|added| added.checked_sub(newer));
                    return Ok(Some(Position::at(entry, ordinal).seal(job)));
                }
                newer += 1;
            }
            below = format!("({last}");
        }
        Ok(None)
    }

    /// What SCAN finds, within bounds: a store may hold millions of other keys, and none of them is indexed.
    async fn jobs(&self, status: Option<JobStatus>, limit: usize) -> Result<Vec<JobSummary>, Fault> {
        let (template, kind) = match &self.job {
            Some(template) => (template, "hash"),
            None => (&self.events, "stream"),
        };
        let scans =
            self.topology.nodes()?.into_iter().map(|node| async move { self.scan(&node, template, kind).await });
        let found: Result<Vec<BTreeSet<JobId>>, Fault> =
            futures_util::future::join_all(scans).await.into_iter().collect();
        let jobs: Vec<JobId> = found?.into_iter().flatten().take(LISTED_JOBS).collect();
        let mut listed = Vec::new();
        for jobs in jobs.chunks(CHUNK) {
            let statuses: Vec<Request> = jobs.iter().filter_map(|job| self.ask_status(job)).collect();
            let newest: Vec<Request> = jobs.iter().map(|job| self.on_stream(job, |key| vec![newest_of(key)])).collect();
            let (statuses, newest) = (self.links.ask(&statuses).await, self.links.ask(&newest).await);
            let mut statuses = statuses.into_iter();
            for (job, newest) in jobs.iter().zip(newest) {
                let text = statuses.next().map(|answer| self.read_status(answer)).transpose()?.flatten();
                let newest = newest?.into_iter().next().and_then(|answer| entry::entries(answer).ok()?.pop());
                listed.extend(self.summary(job, text.as_deref(), newest));
            }
        }
        listed.sort_by(|(a, _), (b, _)| b.cmp(a));
        let summaries = listed.into_iter().map(|(_, summary)| summary);
        Ok(summaries.filter(|job| status.is_none() || job.status == status).take(limit).collect())
    }

    fn summary(&self, job: &JobId, status: Option<&str>, newest: Option<Entry>) -> Option<(EntryId, JobSummary)> {
        let last = newest.as_ref().and_then(|entry| entry.event(job));
        let ended = status.and_then(|status| self.settings.statuses.find(status));
        let ended = ended.or_else(|| last.as_ref().and_then(|event| self.settings.final_types.find(&event.kind)));
        let summary = JobSummary {
            job_id: job.clone(),
            status: ended.or_else(|| self.settings.statuses.resolve(status?)),
            last_event_at: last.map(|event| Rfc3339(event.timestamp).to_string()),
        };
        // a key that merely looks like one of ours has neither
        (summary.status.is_some() || newest.is_some())
            .then(|| (newest.map_or(EntryId::ZERO, |entry| entry.id), summary))
    }

    async fn scan(&self, node: &address::Address, template: &Template, kind: &str) -> Result<BTreeSet<JobId>, Fault> {
        const STEP: usize = 1_000;
        let mut found = BTreeSet::new();
        let mut cursor = "0".to_string();
        for _ in 0..SCANNED_KEYS / STEP {
            let mut scan = cmd("SCAN");
            scan.arg(&cursor).arg("MATCH").arg(template.pattern()).arg("COUNT").arg(STEP).arg("TYPE").arg(kind);
            let Value::Array(parts) = self.links.ask_one(node, scan).await? else { break };
            let [next, Value::Array(keys)] = &parts[..] else { break };
            found.extend(keys.iter().filter_map(|key| template.job(text(key)?)));
            cursor = text(next).unwrap_or("0").to_string();
            if cursor == "0" || found.len() >= LISTED_JOBS {
                break;
            }
        }
        Ok(found)
    }
}

fn info_of(key: &str) -> Cmd {
    let mut info = cmd("XINFO");
    info.arg("STREAM").arg(key);
    info
}

fn newest_of(key: &str) -> Cmd {
    let mut range = cmd("XREVRANGE");
    range.arg(key).arg("+").arg("-").arg("COUNT").arg(1);
    range
}

/// Where the source stands, shared by readers and the tail.
pub struct Redis(Arc<Store>);

impl Redis {
    pub async fn open(settings: &config::Source) -> Result<Self, SourceError> {
        Ok(Self(Store::open(settings).await?))
    }
}

#[async_trait]
impl Source for Redis {
    fn kind(&self) -> &'static str {
        "redis"
    }

    fn beginning(&self, job: &JobId) -> Cursor {
        Position::BEGINNING.seal(job)
    }

    async fn resolve(&self, job: &JobId, text: &str) -> Result<Option<Cursor>, SourceError> {
        if let Some(position) = Position::open(job, text) {
            return Ok(Some(position.seal(job)));
        }
        self.0.find(job, text).await.map_err(|fault| failed("looking up an event id", fault))
    }

    async fn newest(&self, job: &JobId) -> Result<Option<Standing>, SourceError> {
        self.0.newest(job).await.map_err(|fault| failed("reading the newest event", fault))
    }

    async fn page(&self, job: &JobId, after: &Cursor, limit: Limit) -> Result<PageResult, SourceError> {
        let Some(after) = Position::open(job, after.as_str()) else {
            return Ok(PageResult::Lost(Reset::Unknown));
        };
        self.0.page(job, after, limit).await.map_err(|fault| failed("reading history", fault))
    }

    fn tail(&self) -> Box<dyn Tail> {
        Box::new(tail::RedisTail::new(self.0.clone()))
    }

    async fn append(&self, job: &JobId, events: Vec<NewEvent>) -> Result<Vec<Appended>, SourceError> {
        self.0.append(job, events).await.map_err(|fault| failed("writing events", fault))
    }

    async fn set_status(&self, job: &JobId, status: JobStatus) -> Result<(), SourceError> {
        self.0.set_status(job, status).await
    }

    async fn jobs(&self, status: Option<JobStatus>, limit: usize) -> Result<Vec<JobSummary>, SourceError> {
        self.0.jobs(status, limit).await.map_err(|fault| failed("listing jobs", fault))
    }
}
