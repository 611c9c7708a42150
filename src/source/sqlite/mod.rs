//! The embedded source. SQLite has one writer at a time, so `INTEGER PRIMARY KEY AUTOINCREMENT` is the order of commits
//! and a position is one number; the event's id, hashed, goes with it, so that a number which means another event by
//! now (a restored backup, another database) is noticed.

mod driver;
mod tail;
mod writer;

pub use driver::SqliteDriver;

use super::{Appended, Finding, JobSummary, Limit, NewEvent, Page, PageBuilder, PageResult, Source, Standing, Tail};
use crate::config;
use crate::cursor::{CHECK_BYTES, Cursor, fingerprint};
use crate::error::{SourceCode, SourceError};
use crate::event::{Event, JobId, JobStatus, Payload};
use crate::sse::Reset;
use async_trait::async_trait;
use futures_util::TryStreamExt;
use jiff::Timestamp;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Row};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

pub const SCHEMA: &str = include_str!("schema.sql");

const READERS: u32 = 4;

pub struct Sqlite {
    path: PathBuf,
    readers: SqlitePool,
    writer: writer::Writer,
    /// Rung by our own writer, so that the tail reads at once.
    written: Arc<Notify>,
}

impl Sqlite {
    /// Opens the file, making it and its tables where they are not there.
    pub async fn open(settings: &config::Source) -> Result<Self, SourceError> {
        let path = &settings.sqlite.path;
        let failed = |error| failed(format!("opening {}", path.display()), error);
        let mut first = options(path).create_if_missing(true).connect().await.map_err(failed)?;
        sqlx::raw_sql(SCHEMA).execute(&mut first).await.map_err(failed)?;
        let problems: Vec<Finding> = findings(&mut first).await.map_err(failed)?;
        if let Some(problem) = problems.into_iter().find(|finding| finding.is_problem) {
            let help = "see `jobcast check` and `jobcast schema sqlite`, or give another file by source.sqlite.path";
            let operation = format!("opening {}", path.display());
            return Err(SourceError::new(SourceCode::Schema, operation, problem.summary, help));
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

    fn failed(&self, what: &str, error: sqlx::Error) -> SourceError {
        failed(format!("{what} in {}", self.path.display()), error)
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
        Ok(seq.map(|seq| Position::of(seq, text).seal(job)))
    }

    async fn newest(&self, job: &JobId) -> Result<Option<Standing>, SourceError> {
        let row = sqlx::query(
            "SELECT j.status, e.seq, e.id FROM (SELECT ?1 AS job_id) w
             LEFT JOIN runner_jobs j ON j.id = w.job_id
             LEFT JOIN job_events e ON e.job_id = w.job_id ORDER BY e.seq DESC LIMIT 1",
        )
        .bind(job.as_str())
        .fetch_one(&self.readers)
        .await
        .and_then(|row| {
            Ok((
                row.try_get::<Option<String>, _>(0)?,
                row.try_get::<Option<i64>, _>(1)?,
                row.try_get::<Option<String>, _>(2)?,
            ))
        })
        .map_err(|error| self.failed("reading the newest event", error))?;
        let (status, seq, id) = row;
        if status.is_none() && seq.is_none() {
            return Ok(None);
        }
        let position = seq.map_or(Position::BEGINNING, |seq| Position::of(seq, id.as_deref().unwrap_or_default()));
        let status = status.and_then(|status| status.parse().ok());
        Ok(Some(Standing { cursor: position.seal(job), status }))
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
            "SELECT j.id, j.status,
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
                job_id: row.try_get::<String, _>(0).ok()?.parse().ok()?,
                status: row.try_get::<String, _>(1).ok()?.parse().ok(),
                last_event_at: row.try_get(2).ok()?,
            })
        };
        Ok(rows.iter().filter_map(summary).collect())
    }
}

impl Sqlite {
    /// One statement, so that status, cursor and events are of one moment.
    async fn read_page(&self, job: &JobId, after: Position, limit: Limit) -> Result<PageResult, sqlx::Error> {
        let mut rows = sqlx::query(
            "SELECT e.seq, e.id, e.job_id, e.step_id, e.type, e.timestamp, e.actor, e.payload, w.status, w.mark, w.newest
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
            let mark: Option<String> = row.try_get(9)?;
            status = row.try_get::<Option<String>, _>(8)?;
            if !after.is_on(mark.as_deref()) {
                // another event has its number, or none has had it yet; else it was deleted
                let is_rewound = mark.is_some() || after.seq > row.try_get(10)?;
                return Ok(PageResult::Lost(if is_rewound { Reset::Rewound } else { Reset::Trimmed }));
            }
            if row.try_get::<Option<i64>, _>(0)?.is_none() {
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

/// A row of `seq, id, job_id, step_id, type, timestamp, actor, payload, …`; the job is known already.
fn read_event(row: &SqliteRow, job: &JobId) -> Result<(Event, Position), sqlx::Error> {
    let id: String = row.try_get(1)?;
    let position = Position::of(row.try_get(0)?, &id);
    let timestamp: String = row.try_get(5)?;
    let event = Event {
        id,
        job_id: job.clone(),
        step_id: row.try_get(3)?,
        kind: row.try_get(4)?,
        timestamp: read_timestamp(&timestamp),
        actor: row.try_get(6)?,
        payload: Payload::from_text(row.try_get(7)?),
    };
    Ok((event, position))
}

/// RFC 3339, or `2026-11-23 21:00:00` as SQLite's own functions write it, in UTC. What is neither is no reason to lose
/// an event: it gets the epoch.
fn read_timestamp(text: &str) -> Timestamp {
    text.parse().or_else(|_| format!("{}Z", text.trim_end_matches('Z')).parse()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A place in `job_events`: an event's number, and a fingerprint of its id. What a [`Cursor`] of this source holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    seq: i64,
    event: [u8; CHECK_BYTES],
}

impl Position {
    const VERSION: char = 's';
    const BEGINNING: Self = Self { seq: 0, event: [0; CHECK_BYTES] };

    fn of(seq: i64, id: &str) -> Self {
        Self { seq, event: fingerprint(id.as_bytes()) }
    }

    fn seal(self, job: &JobId) -> Cursor {
        let seq = self.seq.to_be_bytes();
        let zeros = seq.iter().take_while(|byte| **byte == 0).count();
        let inside = if self.seq == 0 { Vec::new() } else { [&self.event, &seq[zeros..]].concat() };
        Cursor::seal(Self::VERSION, job, &inside)
    }

    fn open(job: &JobId, text: &str) -> Option<Self> {
        let inside = Cursor::open(Self::VERSION, job, text)?;
        if inside.is_empty() {
            return Some(Self::BEGINNING);
        }
        let (event, digits) = inside.split_first_chunk::<CHECK_BYTES>()?;
        let mut seq = [0; 8];
        seq.get_mut(8_usize.checked_sub(digits.len())?..)?.copy_from_slice(digits);
        let seq = i64::from_be_bytes(seq);
        let canonical = seq > 0 && digits.first() != Some(&0);
        canonical.then_some(Self { seq, event: *event })
    }

    /// Whether the event that it stands on is the one that was meant; `id` is what the table has there.
    fn is_on(self, id: Option<&str>) -> bool {
        self == Self::BEGINNING || id.is_some_and(|id| fingerprint(id.as_bytes()) == self.event)
    }
}

/// What SQLite said (its primary result code), as everybody else needs to know it.
fn failed(operation: String, error: sqlx::Error) -> SourceError {
    let code = match &error {
        sqlx::Error::Database(said) => {
            let extended: i32 = said.code().and_then(|code| code.parse().ok()).unwrap_or(1);
            match extended & 0xff {
                5 | 6 => SourceCode::Busy,
                8 => SourceCode::ReadOnly,
                10 => SourceCode::Io,
                11 | 26 => SourceCode::Corrupt,
                13 => SourceCode::DiskFull,
                3 | 14 => SourceCode::CannotOpen,
                1 => SourceCode::Schema,
                _ => SourceCode::Other,
            }
        }
        sqlx::Error::PoolTimedOut => SourceCode::TimedOut,
        sqlx::Error::Io(_) => SourceCode::Io,
        sqlx::Error::ColumnNotFound(_) | sqlx::Error::ColumnDecode { .. } => SourceCode::Schema,
        _ => SourceCode::Other,
    };
    let help = match code {
        SourceCode::Busy => "another process holds the database's lock; keep its transactions short",
        SourceCode::ReadOnly => {
            "give this user the right to write to the file and to its directory, where SQLite keeps -wal and -shm"
        }
        SourceCode::Io => "see whether the disk works and the file system is local; SQLite needs working locks",
        SourceCode::Corrupt => {
            "the file is no SQLite database or is damaged; restore a backup, or give another file by source.sqlite.path"
        }
        SourceCode::DiskFull => "make room on the disk; nothing that was answered 201 is lost",
        SourceCode::CannotOpen => {
            "see whether its directory exists and this user may write to it, or give another file by source.sqlite.path"
        }
        SourceCode::Schema => "compare the tables with `jobcast schema sqlite`",
        SourceCode::TimedOut => "too many reads at once",
        _ => "see the cause",
    };
    let cause = match &error {
        sqlx::Error::Database(said) => said.message().to_string(),
        other => other.to_string(),
    };
    SourceError::new(code, operation, cause, help).with_source(error)
}

/// What `jobcast check` says of the file. Opens it read-only where it is there, and makes nothing.
pub async fn check(path: &Path) -> Vec<Finding> {
    if !path.exists() {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        return match tempfile_in(folder) {
            Ok(()) => vec![Finding::fine(format!("{} is not there yet: the first start makes it", path.display()))],
            Err(error) => vec![Finding::problem(
                format!("{} cannot be made: {error}", path.display()),
                "make its directory, and give this user the right to write there, or change source.sqlite.path",
            )],
        };
    }
    // its journal mode stays as it is
    let opened = SqliteConnectOptions::new().filename(path).read_only(true).connect().await;
    let found = match opened {
        Ok(mut connection) => findings(&mut connection).await,
        Err(error) => Err(error),
    };
    found.unwrap_or_else(|error| vec![failed(format!("opening {}", path.display()), error).into()])
}

fn tempfile_in(folder: &Path) -> std::io::Result<()> {
    let probe = folder.join(format!(".jobcast-{}", std::process::id()));
    std::fs::write(&probe, b"")?;
    std::fs::remove_file(probe)
}

async fn findings(connection: &mut sqlx::SqliteConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let mut found = Vec::new();
    for (table, columns) in [
        ("runner_jobs", "id status updated_at changed"),
        ("job_events", "seq id job_id step_id type timestamp actor payload"),
        ("jobcast_changes", "number"),
    ] {
        let there: Vec<String> = sqlx::query_scalar("SELECT name FROM pragma_table_info(?1)")
            .bind(table)
            .fetch_all(&mut *connection)
            .await?;
        let missing: Vec<&str> = columns.split(' ').filter(|column| !there.iter().any(|name| name == column)).collect();
        if missing.is_empty() {
            found.push(Finding::fine(format!("table {table} has its columns")));
        } else if there.is_empty() {
            found
                .push(Finding::problem(format!("table {table} is missing"), "run `jobcast schema sqlite` on the file"));
        } else {
            found.push(Finding::problem(
                format!("table {table} lacks {}", missing.join(", ")),
                "rename it, then run `jobcast schema sqlite` on the file",
            ));
        }
    }
    let made: Option<String> = sqlx::query_scalar("SELECT sql FROM sqlite_schema WHERE name = 'job_events'")
        .fetch_optional(&mut *connection)
        .await?;
    if made.is_some_and(|sql| !sql.to_uppercase().contains("AUTOINCREMENT")) {
        found.push(Finding::problem(
            "job_events.seq is not AUTOINCREMENT: the number of a deleted event would come back, and an event be lost",
            "rename the table, then run `jobcast schema sqlite` on the file",
        ));
    }
    for index in ["job_events_job_id", "job_events_job_seq", "runner_jobs_changed"] {
        let there: Option<i64> = sqlx::query_scalar("SELECT 1 FROM sqlite_schema WHERE type = 'index' AND name = ?1")
            .bind(index)
            .fetch_optional(&mut *connection)
            .await?;
        if there.is_none() {
            found
                .push(Finding::problem(format!("index {index} is missing"), "run `jobcast schema sqlite` on the file"));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_comes_back_from_its_token_and_a_forged_one_does_not() {
        let job: JobId = "job-7".parse().expect("id");
        for seq in [0, 1, 255, 256, 70_000, i64::MAX] {
            let position = if seq == 0 { Position::BEGINNING } else { Position::of(seq, "e") };
            assert_eq!(Position::open(&job, position.seal(&job).as_str()), Some(position));
        }
        for forged in [&[1, 2, 3][..], &[0; 5], &[9; 4], &[255; 12], &[1; 13]] {
            let token = Cursor::seal('s', &job, forged);
            assert_eq!(Position::open(&job, token.as_str()), None, "{forged:?}");
        }
    }
}
