//! The embedded source: one SQLite file, which other processes may write to, too.
//!
//! SQLite has one writer at a time, so `INTEGER PRIMARY KEY AUTOINCREMENT` is the order of commits, for all jobs
//! together: a reader that has seen a number has seen every smaller one. A position is therefore one number
//! ([`position`]), and the tail needs one mark for all jobs ([`tail`]). Views and tables WITHOUT ROWID have no such number;
//! their jobs are read one by one, each from its own mark.
//!
//! The file is Jobcast's own, or one of others with tables as they are ([`catalogue`], [`tables`]), which is only read.

mod catalogue;
mod changes;
mod check;
mod database;
mod driver;
mod error;
mod file_watch;
mod history;
mod ids;
mod numbers;
#[cfg(test)]
mod odd_rows;
mod plan;
mod position;
mod reads;
mod rows;
mod scope;
mod sql;
mod tables;
mod tail;
mod values;
mod writer;

pub use driver::SqliteDriver;

use super::{Appended, Change, EventKey, JobSummary, Limit, NewEvent, PageResult, Source, Standing, Tail};
use crate::config;
use crate::cursor::Cursor;
use crate::error::{Retry, SourceError};
use crate::event::{JobId, JobStatus};
use crate::sse::Reset;
use async_trait::async_trait;
use changes::SqliteEnds;
use database::Database;
use error::SqliteError;
use position::Position;
use std::sync::Arc;
use tokio::sync::Notify;

const SCHEMA: &str = include_str!("schema.sql");

/// Connections for history, event ids and lists of jobs.
const READERS: u32 = 4;

pub struct Sqlite {
    database: Arc<Database>,
    writer: writer::Writer,
    /// Wakes the tail after each commit of our own writer.
    written: Arc<Notify>,
    ends: Arc<SqliteEnds>,
}

impl Sqlite {
    /// Opens the file; creates it, and its tables, where they do not exist and may be made. Where another process keeps it
    /// locked or has not made it yet, the tail opens it later.
    async fn open(settings: &config::Source) -> Result<Self, SourceError> {
        let database = Arc::new(Database::new(&settings.sqlite, settings.read_timeout));
        if let Err(error) = database.open().await {
            let may_come = error.code().retry() == Retry::Yes;
            let error = error.during(format!("opening {}", database.path().display()));
            if !may_come {
                return Err(error);
            }
            tracing::warn!(%error, "the database cannot be opened yet; waiting for it");
        }
        let written = Arc::new(Notify::new());
        let writer = writer::Writer::start(database.clone(), written.clone());
        Ok(Self { database, writer, written, ends: Arc::new(SqliteEnds::new(settings.end_grace)) })
    }

    fn failed(&self, operation: &str, error: impl Into<SqliteError>) -> SourceError {
        error.into().during(format!("{operation} in {}", self.database.path().display()))
    }

    /// Fails where the file is not Jobcast's own.
    fn require_own(&self) -> Result<(), SourceError> {
        self.database.require_own().map_err(|error| self.failed("writing", error))
    }
}

#[async_trait]
impl Source for Sqlite {
    fn kind(&self) -> &'static str {
        "sqlite"
    }

    fn store(&self) -> String {
        let path = self.database.path();
        std::path::absolute(path).as_deref().unwrap_or(path).display().to_string()
    }

    fn event_key(&self) -> EventKey {
        // Nobody promises that the ids in tables of others differ.
        if self.database.require_own().is_ok() { EventKey::Id } else { EventKey::Cursor }
    }

    fn prepare(&self, _: &config::Source) -> Result<Change, SourceError> {
        Ok(Box::new(|| {}))
    }

    fn beginning(&self, job: &JobId) -> Cursor {
        Position::BEGINNING.seal(job)
    }

    async fn resolve(&self, job: &JobId, text: &str) -> Result<Option<Cursor>, SourceError> {
        if let Some(position) = Position::open(job, text) {
            return Ok(Some(position.seal(job)));
        }
        self.narrowed(job, self.find_event(job, text))
            .await
            .map_err(|error| self.failed("looking up an event id", error))
    }

    async fn newest(&self, job: &JobId) -> Result<Option<Standing>, SourceError> {
        self.narrowed(job, self.read_newest(job)).await.map_err(|error| self.failed("reading the newest event", error))
    }

    async fn page(&self, job: &JobId, after: &Cursor, limit: Limit) -> Result<PageResult, SourceError> {
        let Some(after) = Position::open(job, after.as_str()) else {
            return Ok(PageResult::Lost(Reset::Unknown));
        };
        self.narrowed(job, self.read_page(job, after, limit))
            .await
            .map_err(|error| self.failed("reading history", error))
    }

    async fn pages(&self, wanted: &[(JobId, Cursor)], limit: Limit) -> Result<Vec<PageResult>, SourceError> {
        self.read_pages(wanted, limit).await.map_err(|error| self.failed("reading history", error))
    }

    async fn before_last(&self, job: &JobId, count: usize) -> Result<Option<Cursor>, SourceError> {
        let read = self.narrowed(job, self.read_before_last(job, count)).await;
        read.map_err(|error| self.failed("looking for a job's last events", error))
    }

    fn tail(&self) -> Box<dyn Tail> {
        Box::new(tail::SqliteTail::new(self.database.clone(), self.written.clone(), self.ends.clone()))
    }

    async fn append(&self, job: &JobId, events: Vec<NewEvent>) -> Result<Vec<Appended>, SourceError> {
        self.require_own()?;
        self.writer.append(job.clone(), events).await
    }

    async fn set_status(&self, job: &JobId, status: JobStatus) -> Result<(), SourceError> {
        self.require_own()?;
        self.writer.set_status(job.clone(), status).await
    }

    async fn job(&self, job: &JobId) -> Result<Option<JobSummary>, SourceError> {
        self.narrowed(job, self.read_summary(job)).await.map_err(|error| self.failed("reading a job", error))
    }

    async fn jobs(&self, status: Option<JobStatus>, limit: usize) -> Result<Vec<JobSummary>, SourceError> {
        self.list_jobs(status, limit).await.map_err(|error| self.failed("listing jobs", error))
    }
}
