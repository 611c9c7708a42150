//! Sources of events: the traits that every kind of store is read through, and the registry of kinds.
//!
//! A source reads; it never decides who gets what. It gives out positions as [`Cursor`]s, and only the source itself knows
//! what is inside of them. A reader and the tail meet without a hole and without a repeat:
//!
//! ```text
//! // one reader of one job
//! cursor = source.beginning(job), or source.resolve(job, text), or source.newest(job).cursor
//! loop {
//!     page = source.page(job, cursor, limit)
//!     deliver page.events; cursor = page.end      // on the last page: made by the source, whatever `cursor` was
//!     if page.is_complete { return }              // the job has ended, and this was all of it
//!     if page.is_last { break }
//! }
//! if the job is watched { join with Joiner { job, after: cursor } } else { watch(job, cursor) }
//!
//! // the one tail, for all readers of all jobs
//! tail = source.tail()
//! loop {
//!     wait for a request, for tail.woken(), or for the poll; do not wait if news.more
//!     tail.watch(job, after), tail.unwatch(job)   // as requested
//!     tail.await_jobs(jobs)                       // those that somebody waits for
//!     news = tail.read(joining)                   // after an error: wait, then read again; nothing is lost
//!     wake who waits for one of news.appeared     // who asks the source again
//!     publish the events of news.jobs, each to the readers of its job
//!     for (joiner, missing) in joining.zip(news.caught_up_joiners) {
//!         Some(missing): deliver it to the joiner, which from now on gets what is published
//!         None:          let it join again in a later read, a few times; then it reads pages again
//!     }
//!     finish the readers of every job that has an end
//! }
//! ```
//!
//! A reader is *caught up* when it has received every event that the tail has published of its job. From then on it gets
//! exactly what the tail publishes. A reader that begins a watch is caught up at once, since the tail goes on at its own
//! cursor; one that joins a watch is caught up by [`Tail::read`].
//!
//! # One reader
//!
//! A reader's cursor is foreign input. Whoever can read the store can write one that was never given out: "all of these were
//! received", of events that are not committed yet. Such a cursor decides which events *that reader* is given, and nothing
//! else:
//!
//! - Only [`Source::resolve`] and [`Source::page`] are ever given a foreign position.
//! - [`Page::end`] of a last page is a position that the source made itself from what it saw in that very read. All who come
//!   by way of a last page therefore stand at positions of the source's making, and so do those from [`Source::beginning`]
//!   and [`Source::newest`].
//! - [`Tail::watch`] and [`Joiner`] get no others.

mod awaited;
mod ends;
mod faults;
mod finding;
mod forgiving;
mod job_lists;
mod many;
mod names;
mod news;
mod page;
mod postgres;
mod redis;
mod registry;
mod sqlite;
mod times;
mod tls;

pub use ends::{Age, Ending, Endings, Ends, Evidence, Seen};
pub use finding::{Finding, Grade};
pub use forgiving::Forgiving;
pub use job_lists::{MAX_JOBS, SharedLists};
pub use many::{PagesBuilder, PagesRoom, before_last_by_paging, brings_on, pages_one_by_one};
pub use news::TailBatch;
pub use page::PageBuilder;
pub use registry::{DRIVERS, Driver, driver, open};

use crate::config;
use crate::cursor::{Cursor, Level};
use crate::error::SourceError;
use crate::event::{Event, JobId, JobStatus, Payload};
use crate::sse::{JobEnd, Reset};
use async_trait::async_trait;
use jiff::Timestamp;
use serde::Serialize;

/// A change that a source is ready to make.
pub type Change = Box<dyn FnOnce() + Send>;

/// A store of job events, open.
#[async_trait]
pub trait Source: Send + Sync {
    /// The name of its kind, in metrics and logs.
    fn kind(&self) -> &'static str;

    /// Returns where the store is, for the log: a file, or servers and database. Never a secret.
    fn store(&self) -> String;

    /// Returns the part of an event that no other event of its job has.
    fn event_key(&self) -> EventKey;

    /// Makes ready to log in as these settings say, on connections that are opened from now on: their credentials may have been
    /// renewed. Fails where they lead to another store. A source without credentials has nothing to change.
    fn prepare(&self, settings: &config::Source) -> Result<Change, SourceError>;

    /// Returns the position before the job's first event, which has one [`Level`] for all jobs.
    fn beginning(&self, job: &JobId) -> Cursor;

    /// Returns the position that foreign text means for this job: a cursor, or an event's id. `None` where it means
    /// nothing.
    async fn resolve(&self, job: &JobId, text: &str) -> Result<Option<Cursor>, SourceError>;

    /// Returns the position after the job's newest event. `None` where there is no such job.
    async fn newest(&self, job: &JobId) -> Result<Option<Standing>, SourceError>;

    /// Returns the events after a cursor, as many as `limit` allows. The cursor may be foreign: one that [`Source::resolve`]
    /// let pass, but that was never given out. It decides which events are in the page, and nothing of the end of a last
    /// one: see [`Page::end`].
    async fn page(&self, job: &JobId, after: &Cursor, limit: Limit) -> Result<PageResult, SourceError>;

    /// Reads pages of several jobs, in their order, until the limit is reached: a result for each of the first jobs of
    /// `wanted`, at least for one. Of their pages only the last may be cut short; the jobs behind it were not read. Each page
    /// keeps the promises of [`Source::page`], also where a cursor is foreign.
    ///
    /// A source that can read all of them as of one moment makes the ends of all last pages of one call alike: cursors with
    /// one [`Level`]. Others end each page for itself ([`pages_one_by_one`]); then a cursor of many jobs is long.
    ///
    /// Such a source brings jobs first to the highest level that any of them stands at, and only then to the present moment:
    /// the pages are *staged* ([`Page::is_staged`]). A reader who leaves in the midst of them, again and again, then stands at
    /// two levels and at one place between them, instead of at one level more each time.
    ///
    /// An error that is about one job's rows is about the first job: where another one's cannot be read, the pages of those
    /// before it are returned.
    async fn pages(&self, wanted: &[(JobId, Cursor)], limit: Limit) -> Result<Vec<PageResult>, SourceError>;

    /// Returns the position before the job's last `count` events, in the order in which pages give them: the job's beginning
    /// where it has no more. `None` where there is no such job. The source makes the position itself. A source without a
    /// quicker way reads the whole history ([`before_last_by_paging`]).
    async fn before_last(&self, job: &JobId, count: usize) -> Result<Option<Cursor>, SourceError>;

    /// Returns a new tail, which watches nothing yet.
    fn tail(&self) -> Box<dyn Tail>;

    /// Appends all events or none. An event whose id the job has already is not appended; its stored event is returned
    /// in its place.
    async fn append(&self, job: &JobId, events: Vec<NewEvent>) -> Result<Vec<Appended>, SourceError>;

    /// Sets a job's status; creates the job where there is none.
    async fn set_status(&self, job: &JobId, status: JobStatus) -> Result<(), SourceError>;

    /// Returns what a list of jobs says of this one. `None` where there is no such job.
    async fn job(&self, job: &JobId) -> Result<Option<JobSummary>, SourceError>;

    /// Returns jobs, the one with the newest activity first.
    async fn jobs(&self, status: Option<JobStatus>, limit: usize) -> Result<Vec<JobSummary>, SourceError>;
}

/// The part by which the events of a job are told apart: a client drops an event whose key it has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKey {
    Id,
    /// The position after the event, where the store promises nothing of ids.
    Cursor,
}

impl EventKey {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Cursor => "cursor",
        }
    }
}

/// The cause of a read; the label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakeup {
    /// This process wrote.
    Ingest,
    /// The file of an embedded store changed.
    File,
    /// The store sent a notification.
    Notify,
    /// The poll was due.
    Poll,
    /// The grace of a job's end was over.
    End,
    /// A reader began to watch or to join.
    Watch,
    /// The last read was cut short.
    More,
    /// The credentials may have been renewed.
    Renewed,
}

impl Wakeup {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::File => "file",
            Self::Notify => "notify",
            Self::Poll => "poll",
            Self::End => "end",
            Self::Watch => "watch",
            Self::More => "more",
            Self::Renewed => "renewed",
        }
    }
}

/// The one reader for all watched jobs. It keeps the position of each of them.
#[async_trait]
pub trait Tail: Send {
    /// Makes the events of `job` after `after` news, from the next read on. The source itself made `after`, and may believe
    /// it. A job that is watched goes on from where it stands; if it has ended, its end is news once more.
    fn watch(&mut self, job: JobId, after: Cursor);

    fn unwatch(&mut self, job: &JobId);

    /// Replaces the jobs that the next reads look for, because readers wait for them: jobs that a page said not to know.
    fn await_jobs(&mut self, jobs: Vec<JobId>);

    /// Returns when a read may find something new before the next poll is due. It may never return. It may be dropped
    /// at any time and called again, and no wake-up is lost.
    async fn woken(&mut self) -> Wakeup;

    /// Reads the news of all watched jobs, and for each of `joining` the published events that it lacks.
    ///
    /// It is atomic: after an error the next read returns the same news. A job whose watch is lost is no longer watched. One
    /// that is complete is: what comes of it after its end is news, and then its end once more.
    async fn read(&mut self, joining: &[Joiner]) -> Result<News, SourceError>;
}

/// A reader that joins the watch of a job, and has received everything up to `after`, a position that the source itself
/// made.
#[derive(Clone, Debug)]
pub struct Joiner {
    pub job: JobId,
    pub after: Cursor,
}

/// The result of one read of the tail.
#[derive(Debug)]
pub struct News {
    /// Watched jobs with new events, with a status, or with an end; each of them once.
    pub jobs: Vec<JobNews>,
    /// One entry for each joiner of the read, in their order: the events that make it caught up, once the events in
    /// `jobs` are published. `None` where this read could not say: the job is not watched, the joiner's cursor is ahead
    /// of the watch, or too much is missing for one read.
    pub caught_up_joiners: Vec<Option<Vec<(Event, Cursor)>>>,
    /// The position at which every watched job stands after this read, where that is one and the same: each has got
    /// everything up to there, whether it has news or not. It holds for all jobs that are watched when the read ends, without
    /// those in `faults` and those of a part that is out. `None` where a source does not know, or where the read was cut short
    /// so that jobs stand at different places. It is no position of a job of which nothing was ever given: that one stays at
    /// its beginning.
    pub level: Option<Level>,
    /// The read was cut short: there is more to read at once.
    pub more: bool,
    /// The failure of a part of the store. Its jobs have no news until it is back; those of other parts do.
    pub outage: Option<SourceError>,
    /// Watched jobs whose own rows the store cannot read now, each with the reason. They keep their positions, and a
    /// later read tries again; a job that is not in here can be read. All other jobs go on.
    pub faults: Vec<(JobId, SourceError)>,
    /// Awaited jobs that a page may know now. It may name one that no page knows, and name one more than once; but none that
    /// was there when the read began is left out by this read and all that follow.
    pub appeared: Vec<JobId>,
}

impl News {
    /// Returns the result of a read that found nothing and caught up nobody. Begin with this one: it keeps the promise
    /// on the length of `caught_up_joiners`.
    pub fn nothing(joining: &[Joiner]) -> Self {
        Self {
            jobs: Vec::new(),
            caught_up_joiners: vec![None; joining.len()],
            level: None,
            more: false,
            outage: None,
            faults: Vec::new(),
            appeared: Vec::new(),
        }
    }
}

/// The news of one watched job.
#[derive(Debug)]
pub struct JobNews {
    pub job: JobId,
    /// In the order of delivery, each with the position after it.
    pub events: Vec<(Event, Cursor)>,
    /// The job's status, where it may be another one than the source said last. Of a new watch it is said in any case, if
    /// it is known.
    pub status: Option<JobStatus>,
    /// The end of the job's watch, after these events; the source has stopped it.
    pub end: Option<JobEnd>,
}

impl JobNews {
    pub fn nothing(job: JobId) -> Self {
        Self { job, events: Vec::new(), status: None, end: None }
    }

    /// The end of a watch whose position means nothing any more.
    pub fn lost(job: JobId, reset: Reset) -> Self {
        Self { end: Some(JobEnd::Lost(reset)), ..Self::nothing(job) }
    }
}

/// The bounds of a page. It stops at the first of them, but holds at least one event where there is one.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub events: usize,
    /// Bytes of payloads. The event that crosses this bound is the last.
    pub bytes: usize,
}

impl Limit {
    /// The bounds of a page of a replay. They are small, since a subscriber that reads nothing holds one of them.
    pub const PAGE: Self = Self { events: 512, bytes: 64 * 1024 };

    pub fn is_reached_by(self, events: usize, bytes: usize) -> bool {
        events >= self.events || bytes > self.bytes
    }
}

/// The result of a page read.
#[derive(Debug)]
pub enum PageResult {
    Page(Page),
    NoSuchJob,
    /// A job of a set whose place in the store is taken by something else. Alone it is no job.
    Unreadable(SourceError),
    /// Some of the events after the cursor are gone.
    Lost(Reset),
}

/// A piece of a job's history.
#[derive(Debug)]
pub struct Page {
    pub events: Vec<(Event, Cursor)>,
    /// The position after this page. On the last page the source makes it itself, from what it saw in this read: everything
    /// of the job that was there then, whatever `after` said. Where a page is not the last, it may descend from `after`, as
    /// the cursors of the events may.
    pub end: Cursor,
    /// Nothing was left after this page when it was read.
    pub is_last: bool,
    /// Nothing was left up to the level that the jobs of this read are brought to first. It is not the last: the level is one
    /// that the reader sent.
    pub is_staged: bool,
    pub status: Option<JobStatus>,
    /// The job has ended, so long ago that it has no events after this page. Only a last page is complete. One that ended
    /// less than `source.end_grace` ago may have more to come: its reader goes live, and the tail ends the watch.
    pub is_complete: bool,
}

impl Page {
    /// The page of a job that has come to the level already that others are brought to, or further.
    pub fn staged(end: Cursor) -> Self {
        Self { events: Vec::new(), end, is_last: false, is_staged: true, status: None, is_complete: false }
    }

    /// The last page of a job that has ended with this status.
    pub fn of_ended(events: Vec<(Event, Cursor)>, end: Cursor, status: JobStatus) -> Self {
        Self { events, end, is_last: true, is_staged: false, status: Some(status), is_complete: true }
    }
}

/// The newest position of a job, and its status.
#[derive(Debug)]
pub struct Standing {
    pub cursor: Cursor,
    pub status: Option<JobStatus>,
}

/// An event to be appended. Its fields have been validated.
#[derive(Clone, Debug)]
pub struct NewEvent {
    pub id: String,
    pub step_id: Option<String>,
    pub kind: String,
    pub timestamp: Timestamp,
    pub actor: Option<String>,
    pub payload: Payload,
}

impl NewEvent {
    pub fn into_event(self, job_id: JobId) -> Event {
        let Self { id, step_id, kind, timestamp, actor, payload } = self;
        Event { id, job_id, step_id, kind, timestamp: Some(timestamp), actor, payload, unreadable: Vec::new() }
    }
}

/// An event as it is stored.
#[derive(Clone, Debug, Serialize)]
pub struct Appended {
    #[serde(flatten)]
    pub event: Event,
    pub cursor: Cursor,
    /// False where the job had this id already.
    #[serde(skip)]
    pub is_new: bool,
}

/// A job in a list of jobs.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobSummary {
    pub job_id: JobId,
    pub status: Option<JobStatus>,
    pub last_event_at: Option<String>,
}
