//! The first and cheapest query of a read of the tail.

use super::catalogue::RowNumbers;
use super::error::SqliteError;
use super::ids::Id;
use super::position::Position;
use super::rows::{bytes_of, job_of, number_of};
use super::sql::FIND_IN_OWN;
use super::tables::{Numbering, Tables};
use super::values::Stored;
use crate::event::{JobId, JobStatus};
use crate::source::{Ends, Seen};
use futures_util::TryStreamExt;
use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteConnection;
use std::collections::HashMap;

/// The numbers of the newest event and of the newest change of a status: of a job, or of the whole file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reached {
    pub seq: i64,
    pub changed: i64,
}

/// The ends of jobs. Where both numbers are in the order of commits, they tell what was there at a look.
pub type SqliteEnds = Ends<Reached, Reached>;

impl Reached {
    /// Tells if a look that had come to `reached` saw this.
    pub fn seen_by(self, reached: &Self) -> Seen {
        if self.seq <= reached.seq && self.changed <= reached.changed { Seen::Before } else { Seen::After }
    }
}

pub struct Changes {
    /// The place that events go up to.
    pub newest: Mark,
    /// The identity of the row at the mark that was asked for; `None` where there is none.
    at_mark: Option<Vec<u8>>,
    /// The highest number of a change of status.
    pub status_mark: i64,
    /// Statuses that changed since the last read, and those of jobs that are catching up. In tables that do not number
    /// the changes, those of all watched jobs. `None` for one that nobody knows, which is not the end.
    pub statuses: Vec<(JobId, Option<JobStatus>)>,
}

/// A place among all rows of the event table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub seq: i64,
    /// The row that has this number; `None` where it was deleted, or no row had it.
    row: Option<Position>,
}

impl Mark {
    pub fn new(seq: i64, identity: Option<&[u8]>) -> Self {
        Self { seq, row: identity.map(|identity| Position::after(seq, identity)) }
    }
}

impl From<Position> for Mark {
    fn from(row: Position) -> Self {
        Self { seq: row.seq, row: Some(row) }
    }
}

impl Changes {
    /// Tells whether numbers up to `mark` were given out anew since it was read: by a backup that was put in place, or,
    /// where SQLite does that, after the newest rows were deleted.
    pub fn is_rewound(&self, mark: Mark, numbering: Numbering) -> bool {
        let comes_back = match numbering {
            Numbering::Table(RowNumbers::Reused | RowNumbers::Renumbered) => true,
            Numbering::Table(RowNumbers::Autoincrement) | Numbering::Job => false,
        };
        let is_other = match (mark.row, &self.at_mark) {
            (Some(row), Some(found)) => !row.is_held_by(Some(found)),
            (Some(_), None) => comes_back,
            (None, _) => false,
        };
        self.newest.seq < mark.seq || is_other
    }
}

/// Reads how far events go, the statuses that changed after `status_mark`, and those of jobs that are catching up.
///
/// A job's id may be stored as text or as BLOB. Where both are there, the text counts.
pub async fn read_changes(
    connection: &mut SqliteConnection,
    tables: &Tables,
    (mark, status_mark): (Option<Mark>, i64),
    catching_up: &[&JobId],
) -> Result<Changes, SqliteError> {
    let mut rows = sqlx::query(AssertSqlSafe(tables.look()))
        .bind(status_mark)
        .bind(mark.map(|mark| mark.seq))
        .bind(serde_json::to_string(catching_up)?)
        .fetch(connection);
    let mut changes = Changes { newest: Mark::new(i64::MIN, None), at_mark: None, status_mark, statuses: Vec::new() };
    let mut statuses = HashMap::new();
    while let Some(row) = rows.try_next().await? {
        let number = number_of(&row, 3)?.unwrap_or(i64::MIN);
        if number_of(&row, 0)? == Some(0) {
            changes.at_mark = bytes_of(&row, 1)?;
            changes.newest = Mark::new(number, bytes_of(&row, 2)?.as_deref());
            continue;
        }
        changes.status_mark = changes.status_mark.max(number);
        let is_bytes = matches!(Stored::read(&row, 1)?, Stored::Blob(_));
        if let Some(job) = job_of(bytes_of(&row, 1)?)
            && !(is_bytes && statuses.contains_key(&job))
        {
            statuses.insert(job, tables.status(bytes_of(&row, 2)?.as_deref()));
        }
    }
    changes.statuses = statuses.into_iter().collect();
    Ok(changes)
}

/// Returns those of `jobs` that have a row in one of the tables.
pub async fn find_jobs(
    connection: &mut SqliteConnection,
    tables: &Tables,
    jobs: &[&JobId],
) -> Result<Vec<JobId>, SqliteError> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    if tables.is_own {
        let list = serde_json::to_string(jobs)?;
        let found: Vec<String> = sqlx::query_scalar(FIND_IN_OWN).bind(list).fetch_all(connection).await?;
        return Ok(found.iter().filter_map(|job| job.parse().ok()).collect());
    }
    let mut found = Vec::new();
    for &job in jobs {
        let key = Id::from(job);
        let query = key.bind(sqlx::query(AssertSqlSafe(tables.exists(&key))));
        let row = query.fetch_one(&mut *connection).await?;
        if number_of(&row, 0)? == Some(1) {
            found.push(job.clone());
        }
    }
    Ok(found)
}
