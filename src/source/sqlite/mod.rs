//! The embedded source: one SQLite file, which other processes may write to, too.
//!
//! SQLite has one writer at a time, so `INTEGER PRIMARY KEY AUTOINCREMENT` is the order of commits, for all jobs
//! together: a reader that has seen a number has seen every smaller one. A position is therefore one number
//! ([`position`]), and the tail needs one mark for all jobs ([`tail`]).

mod check;
mod driver;
mod error;
mod file_watch;
mod position;
mod tail;
mod writer;

pub use driver::SqliteDriver;

use super::{Appended, JobSummary, Limit, NewEvent, Page, PageBuilder, PageResult, Source, Standing, Tail};
use crate::config;
use crate::cursor::Cursor;
use crate::error::{SourceCode, SourceError};
use crate::event::{Event, JobId, JobStatus, Payload};
use crate::sse::Reset;
use async_trait::async_trait;
use error::SqliteError;
use futures_util::TryStreamExt;
use jiff::Timestamp;
use position::Position;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Row};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

const SCHEMA: &str = include_str!("schema.sql");

/// Connections for history, event ids and lists of jobs.
const READERS: u32 = 4;

pub struct Sqlite {
    path: PathBuf,
    /// Connections for everybody but the tail and the writer, which have their own.
    readers: SqlitePool,
    writer: writer::Writer,
    /// Wakes the tail after each commit of our own writer.
    written: Arc<Notify>,
}

impl Sqlite {
    /// Opens the file; creates it, and its tables, where they do not exist.
    async fn open(settings: &config::Source) -> Result<Self, SourceError> {
        let path = &settings.sqlite.path;
        let opening = || format!("opening {}", path.display());
        let failed = |error: sqlx::Error| SqliteError::from(error).during(opening());
        let mut first = options(path).create_if_missing(true).connect().await.map_err(failed)?;
        sqlx::raw_sql(SCHEMA).execute(&mut first).await.map_err(failed)?;
        let findings = check::check_schema(&mut first).await.map_err(|error| error.during(opening()))?;
        if let Some(problem) = findings.into_iter().find(|finding| finding.is_problem) {
            let help = "see `jobcast check` and `jobcast schema sqlite`, or give another file by source.sqlite.path";
            return Err(SourceError::new(SourceCode::Schema, opening(), problem.summary, help));
        }
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(Duration::from_secs(5))
            .connect_with(options(path))
            .await
            .map_err(failed)?;
        let written = Arc::new(Notify::new());
        let writer = writer::Writer::start(first, path.clone(), written.clone());
        Ok(Self { path: path.clone(), readers, writer, written })
    }

    fn failed(&self, operation: &str, error: sqlx::Error) -> SourceError {
        SqliteError::from(error).during(format!("{operation} in {}", self.path.display()))
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
        let seq: Option<i64> = sqlx::query_scalar("SELECT seq FROM job_events WHERE job_id = ?1 AND id = ?2")
            .bind(job.as_str())
            .bind(text)
            .fetch_optional(&self.readers)
            .await
            .map_err(|error| self.failed("looking up an event id", error))?;
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
        Box::new(tail::SqliteTail::new(&self.path, self.written.clone()))
    }

    async fn append(&self, job: &JobId, events: Vec<NewEvent>) -> Result<Vec<Appended>, SourceError> {
        self.writer.append(job.clone(), events).await
    }

    async fn set_status(&self, job: &JobId, status: JobStatus) -> Result<(), SourceError> {
        self.writer.set_status(job.clone(), status).await
    }

    async fn jobs(&self, status: Option<JobStatus>, limit: usize) -> Result<Vec<JobSummary>, SourceError> {
        let rows = sqlx::query(
            "SELECT j.id AS id, j.status AS status,
               (SELECT e.timestamp FROM job_events e WHERE e.job_id = j.id ORDER BY e.seq DESC LIMIT 1) AS last_event_at
             FROM runner_jobs j WHERE ?1 IS NULL OR j.status = ?1
             ORDER BY max(coalesce(last_event_at, ''), j.updated_at) DESC, j.id LIMIT ?2",
        )
        .bind(status.map(JobStatus::as_str))
        .bind(limit as i64)
        .fetch_all(&self.readers)
        .await
        .map_err(|error| self.failed("listing jobs", error))?;
        let summary = |row: &SqliteRow| {
            Some(JobSummary {
                job_id: row.try_get::<String, _>("id").ok()?.parse().ok()?,
                status: row.try_get::<String, _>("status").ok()?.parse().ok(),
                last_event_at: row.try_get("last_event_at").ok()?,
            })
        };
        Ok(rows.iter().filter_map(summary).collect())
    }
}

impl Sqlite {
    async fn read_newest(&self, job: &JobId) -> Result<Option<Standing>, sqlx::Error> {
        let row = sqlx::query(
            "SELECT j.status AS status, e.seq AS seq, e.id AS id FROM (SELECT ?1 AS job_id) w
             LEFT JOIN runner_jobs j ON j.id = w.job_id
             LEFT JOIN job_events e ON e.job_id = w.job_id ORDER BY e.seq DESC LIMIT 1",
        )
        .bind(job.as_str())
        .fetch_one(&self.readers)
        .await?;
        let status: Option<String> = row.try_get("status")?;
        let seq: Option<i64> = row.try_get("seq")?;
        let id: Option<String> = row.try_get("id")?;
        if status.is_none() && seq.is_none() {
            return Ok(None);
        }
        let position = seq.map_or(Position::BEGINNING, |seq| Position::after(seq, id.as_deref().unwrap_or_default()));
        let status = status.and_then(|status| status.parse().ok());
        Ok(Some(Standing { cursor: position.seal(job), status }))
    }

    /// Reads by one statement, so that status, mark and events are of one snapshot.
    async fn read_page(&self, job: &JobId, after: Position, limit: Limit) -> Result<PageResult, sqlx::Error> {
        let mut rows = sqlx::query(
            "SELECT e.seq, e.id, e.job_id, e.step_id, e.type, e.timestamp, e.actor, e.payload,
               w.status AS status, w.mark AS mark, w.newest AS newest
             FROM (SELECT ?1 AS job_id,
                     (SELECT status FROM runner_jobs WHERE id = ?1) AS status,
                     (SELECT id FROM job_events WHERE seq = ?2 AND job_id = ?1) AS mark,
                     coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'job_events'), 0) AS newest) w
             LEFT JOIN job_events e ON e.job_id = w.job_id AND e.seq > ?2
             ORDER BY e.seq LIMIT ?3",
        )
        .bind(job.as_str())
        .bind(after.seq)
        .bind(limit.events as i64 + 1)
        .fetch(&self.readers);
        let mut page = PageBuilder::new(limit);
        let (mut is_last, mut status) = (true, None);
        while let Some(row) = rows.try_next().await? {
            let mark: Option<String> = row.try_get("mark")?;
            status = row.try_get::<Option<String>, _>("status")?;
            if !after.is_held_by(mark.as_deref()) {
                // the number belongs to another event, or was never given out; else the event was deleted
                let is_rewound = mark.is_some() || after.seq > row.try_get("newest")?;
                return Ok(PageResult::Lost(if is_rewound { Reset::Rewound } else { Reset::Trimmed }));
            }
            if row.try_get::<Option<i64>, _>(0)?.is_none() {
                // the one row of a job without events after the position
                break;
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
        let status = status.and_then(|status| status.parse::<JobStatus>().ok());
        Ok(PageResult::Page(Page {
            end: page.end().cloned().unwrap_or_else(|| after.seal(job)),
            events: page.into_events(),
            is_last,
            status,
            is_complete: is_last && status.is_some_and(JobStatus::is_final),
        }))
    }
}

/// Reads a row that begins with `seq, id, job_id, step_id, type, timestamp, actor, payload`. The caller knows the job.
///
/// Columns are read by number: this runs for every event, and a name would be looked up each time.
fn read_event(row: &SqliteRow, job: &JobId) -> Result<(Event, Position), sqlx::Error> {
    let id: String = row.try_get(1)?;
    let position = Position::after(row.try_get(0)?, &id);
    let timestamp: String = row.try_get(5)?;
    let event = Event {
        id,
        job_id: job.clone(),
        step_id: row.try_get(3)?,
        kind: row.try_get(4)?,
        timestamp: read_timestamp(&timestamp),
        actor: row.try_get(6)?,
        payload: Payload::from_text(row.try_get(7)?),
        unreadable: Vec::new(),
    };
    Ok((event, position))
}

/// Reads RFC 3339, or UTC as SQLite's own functions write it (`2026-11-23 21:00:00`). `None` for anything else:
/// an event is not lost for its timestamp.
fn read_timestamp(text: &str) -> Option<Timestamp> {
    text.parse().or_else(|_| format!("{}Z", text.trim_end_matches('Z')).parse()).ok()
}
