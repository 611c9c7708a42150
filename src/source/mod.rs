//! Where events come from: the one trait that every store is tailed through, and the registry of stores.
//!
//! A source reads; it never decides who gets what. It gives out positions as [`Cursor`]s and is the only one that knows
//! what is inside. Three ways of reading, and how they meet without a hole or a repeat:
//!
//! - [`Source::page`] reads history after a cursor, page by page, for one reader;
//! - [`Tail::read`] reads what is new for all watched jobs at one moment;
//! - a reader whose last page was level with the store begins a watch at its own cursor, or, where the job is watched
//!   already, is brought level by the tail itself: it is *joining*, and [`Tail::read`] answers it as of the same moment.

mod postgres;
mod redis;
mod sqlite;

use crate::config;
use crate::cursor::Cursor;
use crate::error::SourceError;
use crate::event::{Event, JobId, JobStatus, Payload};
use crate::sse::{JobEnd, Reset};
use async_trait::async_trait;
use jiff::Timestamp;
use serde::Serialize;
use std::sync::Arc;

/// Opens the configured source. One line for each kind of store.
pub async fn open(settings: &config::Source) -> Result<Arc<dyn Source>, SourceError> {
    match settings.kind {
        config::SourceKind::Sqlite => Ok(Arc::new(sqlite::Sqlite::open(settings).await?)),
        config::SourceKind::Postgres => Ok(Arc::new(postgres::Postgres::open(settings).await?)),
        config::SourceKind::Redis => Ok(Arc::new(redis::Redis::open(settings).await?)),
    }
}

/// The recommended tables and indexes of a kind of store, and what wakes us up, as SQL that may be run twice.
pub fn schema(kind: config::SourceKind, with_trigger: bool) -> Vec<&'static str> {
    match kind {
        config::SourceKind::Sqlite => vec![sqlite::SCHEMA],
        config::SourceKind::Postgres if with_trigger => vec![postgres::SCHEMA, postgres::TRIGGER],
        config::SourceKind::Postgres => vec![postgres::SCHEMA],
        config::SourceKind::Redis => Vec::new(),
    }
}

/// What the configured tables, as they are, lack of the recommended ones, as SQL that may be run twice. `None` where
/// there is nothing that they could lack.
pub fn migration(kind: config::SourceKind, settings: &config::Source, with_trigger: bool) -> Option<String> {
    match kind {
        config::SourceKind::Sqlite | config::SourceKind::Redis => None,
        config::SourceKind::Postgres => Some(postgres::migration(&settings.postgres, with_trigger)),
    }
}

/// Everything that is wrong with the configured store, or worth knowing; changes nothing.
pub async fn check(settings: &config::Source) -> Vec<Finding> {
    match settings.kind {
        config::SourceKind::Sqlite => sqlite::check(&settings.sqlite.path).await,
        config::SourceKind::Postgres => postgres::check(settings).await,
        config::SourceKind::Redis => redis::check(settings).await,
    }
}

#[async_trait]
pub trait Source: Send + Sync {
    /// Its name in metrics and logs.
    fn kind(&self) -> &'static str;

    /// The position before the job's first event.
    fn beginning(&self, job: &JobId) -> Cursor;

    /// What foreign text means for this job: a cursor, or an event's id. `None`: nothing.
    async fn resolve(&self, job: &JobId, text: &str) -> Result<Option<Cursor>, SourceError>;

    /// The position after the job's newest event. `None`: no such job.
    async fn newest(&self, job: &JobId) -> Result<Option<Standing>, SourceError>;

    /// The events after a cursor, as many as `limit` allows.
    async fn page(&self, job: &JobId, after: &Cursor, limit: Limit) -> Result<PageResult, SourceError>;

    /// A tail of its own, watching nothing yet.
    fn tail(&self) -> Box<dyn Tail>;

    /// Appends all or none. An id that the job has already is not appended again: its stored event is given back.
    async fn append(&self, job: &JobId, events: Vec<NewEvent>) -> Result<Vec<Appended>, SourceError>;

    /// Sets a job's status, making the job where there is none.
    async fn set_status(&self, job: &JobId, status: JobStatus) -> Result<(), SourceError>;

    /// Jobs, newest activity first.
    async fn jobs(&self, status: Option<JobStatus>, limit: usize) -> Result<Vec<JobSummary>, SourceError>;
}

/// The one reader for all watched jobs. It keeps for itself where each of them stands.
#[async_trait]
pub trait Tail: Send {
    /// From the next read on, the events of `job` after `after` are among the news.
    fn watch(&mut self, job: JobId, after: Cursor);

    fn unwatch(&mut self, job: &JobId);

    /// Returns when a read may find something new, sooner than the next poll. May never return; may be dropped at any
    /// time and called again without losing a wake-up.
    async fn woken(&mut self) -> Wakeup;

    /// Reads what is new for all watched jobs, and for each of `joining` what it lacks, all as of one moment. After an
    /// error nothing is lost: the next read tells the same.
    async fn read(&mut self, joining: &[Joiner]) -> Result<News, SourceError>;
}

/// What caused a read; the label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakeup {
    /// This process wrote.
    Ingest,
    /// The file of an embedded store changed.
    File,
    /// The store said so.
    Notify,
    /// It was time.
    Poll,
    /// Somebody began to watch.
    Watch,
    /// The last read left something over.
    More,
}

impl Wakeup {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::File => "file",
            Self::Notify => "notify",
            Self::Poll => "poll",
            Self::Watch => "watch",
            Self::More => "more",
        }
    }
}

/// A reader of a watched job that has read pages up to `after`.
#[derive(Clone, Debug)]
pub struct Joiner {
    pub job: JobId,
    pub after: Cursor,
}

/// What one read of the tail found.
#[derive(Debug, Default)]
pub struct News {
    pub jobs: Vec<JobNews>,
    /// For each of `joining`, in their order: what brings it level with its job. `None`: not this time.
    pub caught_up_joiners: Vec<Option<Vec<(Event, Cursor)>>>,
    /// The read was cut short: there is more.
    pub more: bool,
    /// A part of the store does not answer: of its jobs nothing is told until it is back. The others go on.
    pub outage: Option<SourceError>,
}

/// What happened to one watched job.
#[derive(Debug)]
pub struct JobNews {
    pub job: JobId,
    /// In the order of delivery, each with the position after it.
    pub events: Vec<(Event, Cursor)>,
    /// The job's watch is over: the source has stopped it.
    pub end: Option<JobEnd>,
}

/// A page stops at the first of these, but holds at least one event where there is one.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub events: usize,
    /// Of payloads.
    pub bytes: usize,
}

/// What a page read found.
#[derive(Debug)]
pub enum PageResult {
    Page(Page),
    NoSuchJob,
    /// The events after this cursor are not all there any more.
    Lost(Reset),
}

/// A piece of a job's history.
#[derive(Debug)]
pub struct Page {
    pub events: Vec<(Event, Cursor)>,
    /// The position after this page.
    pub end: Cursor,
    /// Nothing was left after this page when it was read.
    pub is_last: bool,
    pub status: Option<JobStatus>,
    /// The job has ended and nothing more of it will come; only on the last page.
    pub is_complete: bool,
}

/// Where a job stands.
#[derive(Debug)]
pub struct Standing {
    pub cursor: Cursor,
    pub status: Option<JobStatus>,
}

/// An event to be appended; checked already.
#[derive(Clone, Debug)]
pub struct NewEvent {
    pub id: String,
    pub step_id: Option<String>,
    pub kind: String,
    pub timestamp: Timestamp,
    pub actor: Option<String>,
    pub payload: Payload,
}

/// An event as it is stored.
#[derive(Clone, Debug, Serialize)]
pub struct Appended {
    #[serde(flatten)]
    pub event: Event,
    pub cursor: Cursor,
    /// False when the job had this id already.
    #[serde(skip)]
    pub is_new: bool,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobSummary {
    pub job_id: JobId,
    pub status: Option<JobStatus>,
    pub last_event_at: Option<String>,
}

/// One thing that `check` found.
#[derive(Clone, Debug)]
pub struct Finding {
    pub is_problem: bool,
    pub summary: String,
    /// What to do about it; empty where nothing is to be done.
    pub help: String,
}

impl Finding {
    pub fn fine(summary: impl Into<String>) -> Self {
        Self { is_problem: false, summary: summary.into(), help: String::new() }
    }

    pub fn problem(summary: impl Into<String>, help: impl Into<String>) -> Self {
        Self { is_problem: true, summary: summary.into(), help: help.into() }
    }
}
