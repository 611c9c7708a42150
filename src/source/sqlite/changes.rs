//! The first and cheapest query of a read of the tail.

use super::error::SqliteError;
use super::ids::Id;
use super::position::Position;
use super::rows::{bytes_of, job_of, number_of};
use super::sql::FIND_IN_OWN;
use super::tables::{Numbering, Tables};
use super::values::Stored;
use crate::cursor::Level;
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
    /// The row that has the number of the mark's row now; `None` where none has it.
    at_mark: Option<Position>,
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
    /// The position of all jobs after the row with the highest number up to this one; `None` where there is no row.
    row: Option<Position>,
}

impl Mark {
    /// The position at which a job stands that was read up to here.
    pub fn level(self) -> Level {
        self.row.unwrap_or(Position::BEGINNING).level()
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
        let is_other = match (mark.row, self.at_mark) {
            (Some(row), Some(found)) => row != found,
            (Some(_), None) => numbering.gives_again(),
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
    let marked = mark.and_then(|mark| mark.row).map(|row| row.seq);
    let mut rows = sqlx::query(AssertSqlSafe(tables.look()))
        .bind(status_mark)
        .bind(marked)
        .bind(serde_json::to_string(catching_up)?)
        .fetch(connection);
    let newest = Mark { seq: i64::MIN, row: None };
    let mut changes = Changes { newest, at_mark: None, status_mark, statuses: Vec::new() };
    let mut statuses = HashMap::new();
    while let Some(row) = rows.try_next().await? {
        let number = number_of(&row, 3)?.unwrap_or(i64::MIN);
        if number_of(&row, 0)? == Some(0) {
            let read = |seq: Option<i64>, identity: usize, job: usize| {
                let Some((seq, identity)) = seq.zip(bytes_of(&row, identity)?) else { return Ok(None) };
                let job = bytes_of(&row, job)?.unwrap_or_default();
                Ok::<_, sqlx::Error>(Some(Position::after_any(seq, &job, &identity)))
            };
            changes.at_mark = read(marked, 1, 4)?;
            changes.newest = Mark { seq: number, row: read(number_of(&row, 6)?, 2, 5)? };
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
