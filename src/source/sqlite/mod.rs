//! The embedded source: one SQLite file, which other processes may write to, too.
//!
//! SQLite has one writer at a time, so `INTEGER PRIMARY KEY AUTOINCREMENT` is the order of commits, for all jobs
//! together: a reader that has seen a number has seen every smaller one. A position is therefore one number
//! ([`position`]), and the tail needs one mark for all jobs ([`tail`]).

mod changes;
mod check;
mod database;
mod driver;
mod error;
mod file_watch;
#[cfg(test)]
mod odd_rows;
mod position;
mod rows;
mod tail;
mod writer;

pub use driver::SqliteDriver;

use super::{Appended, JobSummary, Limit, NewEvent, Page, PageBuilder, PageResult, Source, Standing, Tail};
use crate::config;
use crate::cursor::Cursor;
use crate::error::{SourceCode, SourceError};
use crate::event::{JobId, JobStatus};
use crate::sse::Reset;
use async_trait::async_trait;
use database::Database;
use error::SqliteError;
use futures_util::TryStreamExt;
use position::Position;
use rows::{bytes_of, job_of, number_of, read_event, status_of};
use sqlx::ConnectOptions;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteRow, SqliteSynchronous};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

const SCHEMA: &str = include_str!("schema.sql");

/// Lists jobs of a status, or all: id, status, time of the newest event.
const LIST: &str = "SELECT j.id, j.status,
       (SELECT e.timestamp FROM job_events e WHERE e.job_id = j.id ORDER BY e.seq DESC LIMIT 1) AS last_event_at
     FROM runner_jobs j WHERE (?1 IS NULL OR j.status = ?1) AND (typeof(j.id) = 'text'
       OR NOT EXISTS (SELECT 1 FROM runner_jobs t WHERE t.id = CAST(j.id AS TEXT)))
     ORDER BY max(coalesce(last_event_at, ''), j.updated_at) DESC, j.id LIMIT ?2";

/// Connections for history, event ids and lists of jobs.
const READERS: u32 = 4;

pub struct Sqlite {
    database: Arc<Database>,
    writer: writer::Writer,
    /// Wakes the tail after each commit of our own writer.
    written: Arc<Notify>,
}

impl Sqlite {
    /// Opens the file; creates it, and its tables, where they do not exist. Where another process keeps it locked, the
    /// tail opens it later.
    async fn open(settings: &config::Source) -> Result<Self, SourceError> {
        let database = Arc::new(Database::new(&settings.sqlite.path, settings.read_timeout));
        if let Err(error) = database.open().await {
            let is_locked = error.code() == SourceCode::Busy;
            let error = error.during(format!("opening {}", database.path().display()));
            if !is_locked {
                return Err(error);
            }
            tracing::warn!(%error, "the database is locked; waiting for it");
        }
        let written = Arc::new(Notify::new());
        let writer = writer::Writer::start(database.clone(), written.clone());
        Ok(Self { database, writer, written })
    }

    fn failed(&self, operation: &str, error: impl Into<SqliteError>) -> SourceError {
        error.into().during(format!("{operation} in {}", self.database.path().display()))
    }

    async fn reader(&self, operation: &str) -> Result<PoolConnection<sqlx::Sqlite>, SourceError> {
        self.database.reader().await.map_err(|error| self.failed(operation, error))
    }
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .busy_timeout(Duration::from_secs(5))
        .disable_statement_logging()
}

#[async_trait]
impl Source for Sqlite {
    fn kind(&self) -> &'static str {
        "sqlite"
    }

    fn beginning(&self, job: &JobId) -> Cursor {
        Position::BEGINNING.seal(job)
    }

    async fn resolve(&self, job: &JobId, text: &str) -> Result<Option<Cursor>, SourceError> {
        if let Some(position) = Position::open(job, text) {
            return Ok(Some(position.seal(job)));
        }
        let sql = "SELECT seq FROM job_events WHERE job_id IN (?1, CAST(?1 AS BLOB)) AND id IN (?2, CAST(?2 AS BLOB))
             ORDER BY seq LIMIT 1";
        let operation = "looking up an event id";
        let seq: Option<i64> = sqlx::query_scalar(sql)
            .bind(job.as_str())
            .bind(text)
            .fetch_optional(&mut *self.reader(operation).await?)
            .await
            .map_err(|error| self.failed(operation, error))?;
        Ok(seq.map(|seq| Position::after(seq, text).seal(job)))
    }

    async fn newest(&self, job: &JobId) -> Result<Option<Standing>, SourceError> {
        self.read_newest(job).await.map_err(|error| self.failed("reading the newest event", error))
    }

    async fn page(&self, job: &JobId, after: &Cursor, limit: Limit) -> Result<PageResult, SourceError> {
        let Some(after) = Position::open(job, after.as_str()) else {
            return Ok(PageResult::Lost(Reset::Unknown));
        };
        self.read_page(job, after, limit).await.map_err(|error| self.failed("reading history", error))
    }

    fn tail(&self) -> Box<dyn Tail> {
        Box::new(tail::SqliteTail::new(self.database.clone(), self.written.clone()))
    }

    async fn append(&self, job: &JobId, events: Vec<NewEvent>) -> Result<Vec<Appended>, SourceError> {
        self.writer.append(job.clone(), events).await
    }

    async fn set_status(&self, job: &JobId, status: JobStatus) -> Result<(), SourceError> {
        self.writer.set_status(job.clone(), status).await
    }

    async fn job(&self, job: &JobId) -> Result<Option<JobSummary>, SourceError> {
        self.read_summary(job).await.map_err(|error| self.failed("reading a job", error))
    }

    async fn jobs(&self, status: Option<JobStatus>, limit: usize) -> Result<Vec<JobSummary>, SourceError> {
        let operation = "listing jobs";
        let rows = sqlx::query(LIST)
            .bind(status.map(JobStatus::as_str))
            .bind(limit as i64)
            .fetch_all(&mut *self.reader(operation).await?)
            .await
            .map_err(|error| self.failed(operation, error))?;
        let summary = |row: &SqliteRow| {
            Some(JobSummary {
                job_id: job_of(bytes_of(row, 0).ok()?)?,
                status: status_of(bytes_of(row, 1).ok()?.as_deref()),
                last_event_at: bytes_of(row, 2).ok()?.and_then(|bytes| String::from_utf8(bytes).ok()),
            })
        };
        Ok(rows.iter().filter_map(summary).collect())
    }
}

/// The newest event of a job; its number is 0 where there is none.
struct Newest {
    status: Option<JobStatus>,
    seq: i64,
    id: Vec<u8>,
    timestamp: Option<Vec<u8>>,
}

// The id of a job may be stored as text or as BLOB, and an event counts for the job in both cases. Two look-ups by index
// are merged: `IN` would sort all events of the job. Of two statuses, the one under the text counts.
impl Sqlite {
    async fn read_newest(&self, job: &JobId) -> Result<Option<Standing>, SqliteError> {
        let Some(newest) = self.read_newest_row(job).await? else { return Ok(None) };
        let Newest { status, seq, id, .. } = newest;
        let position = if seq == 0 { Position::BEGINNING } else { Position::after(seq, id) };
        Ok(Some(Standing { cursor: position.seal(job), status }))
    }

    async fn read_summary(&self, job: &JobId) -> Result<Option<JobSummary>, SqliteError> {
        let newest = self.read_newest_row(job).await?;
        Ok(newest.map(|Newest { status, timestamp, .. }| {
            let last_event_at = timestamp.and_then(|bytes| String::from_utf8(bytes).ok());
            JobSummary { job_id: job.clone(), status, last_event_at }
        }))
    }

    /// Reads the status and the newest event of a job. `None` where there is neither.
    async fn read_newest_row(&self, job: &JobId) -> Result<Option<Newest>, SqliteError> {
        let row = sqlx::query(
            "SELECT w.status, e.seq, e.id, e.timestamp
             FROM (SELECT coalesce((SELECT status FROM runner_jobs WHERE id = ?1),
                       (SELECT status FROM runner_jobs WHERE id = CAST(?1 AS BLOB))) AS status,
                     max(coalesce((SELECT max(seq) FROM job_events WHERE job_id = ?1), 0),
                       coalesce((SELECT max(seq) FROM job_events WHERE job_id = CAST(?1 AS BLOB)), 0)) AS newest) w
             LEFT JOIN job_events e ON e.seq = w.newest",
        )
        .bind(job.as_str())
        .fetch_one(&mut *self.database.reader().await?)
        .await?;
        let status = bytes_of(&row, 0)?;
        let seq = number_of(&row, 1)?;
        let is_job = status.is_some() || seq != 0;
        let (id, timestamp) = (bytes_of(&row, 2)?.unwrap_or_default(), bytes_of(&row, 3)?);
        Ok(is_job.then(|| Newest { status: status_of(status.as_deref()), seq, id, timestamp }))
    }

    /// Reads by one statement, so that status, mark and events are of one snapshot.
    async fn read_page(&self, job: &JobId, after: Position, limit: Limit) -> Result<PageResult, SqliteError> {
        let mut reader = self.database.reader().await?;
        // The first row has no number; instead of an event it holds the id at the position, the highest number, the status.
        let mut rows = sqlx::query(
            "SELECT NULL AS seq,
               (SELECT coalesce(id, '') FROM job_events WHERE seq = ?2 AND job_id IN (?1, CAST(?1 AS BLOB))) AS id,
               coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'job_events'), 0) AS job_id,
               coalesce((SELECT status FROM runner_jobs WHERE id = ?1),
                 (SELECT status FROM runner_jobs WHERE id = CAST(?1 AS BLOB))) AS step_id,
               NULL AS type, NULL AS timestamp, NULL AS actor, NULL AS payload
             UNION ALL SELECT seq, id, job_id, step_id, type, timestamp, actor, payload
               FROM job_events WHERE job_id = ?1 AND seq > ?2
             UNION ALL SELECT seq, id, job_id, step_id, type, timestamp, actor, payload
               FROM job_events WHERE job_id = CAST(?1 AS BLOB) AND seq > ?2
             ORDER BY seq LIMIT ?3",
        )
        .bind(job.as_str())
        .bind(after.seq)
        .bind(limit.events as i64 + 2)
        .fetch(&mut *reader);
        let mut page = PageBuilder::new(limit);
        let (mut is_last, mut status, mut mark) = (true, None, None);
        while let Some(row) = rows.try_next().await? {
            if number_of(&row, 0)? == 0 {
                mark = bytes_of(&row, 1)?;
                status = bytes_of(&row, 3)?;
                if !after.is_held_by(mark.as_deref()) {
                    // The number belongs to another event, or was never given out; else the event was deleted.
                    let is_rewound = mark.is_some() || after.seq > number_of(&row, 2)?;
                    return Ok(PageResult::Lost(if is_rewound { Reset::Rewound } else { Reset::Trimmed }));
                }
                continue;
            }
            if page.is_full() {
                is_last = false;
                break;
            }
            let (event, position) = read_event(&row, job)?;
            page.push(event, position.seal(job));
        }
        if status.is_none() && page.is_empty() && after == Position::BEGINNING {
            return Ok(PageResult::NoSuchJob);
        }
        // Without an event after it, the event at the position is the newest; this read has seen it.
        let newest = || mark.map_or(Position::BEGINNING, |id| Position::after(after.seq, id)).seal(job);
        let status = status_of(status.as_deref());
        Ok(PageResult::Page(Page {
            end: page.end().cloned().unwrap_or_else(newest),
            events: page.into_events(),
            is_last,
            status,
            is_complete: is_last && status.is_some_and(JobStatus::is_final),
        }))
    }
}
