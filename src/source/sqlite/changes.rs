//! The first and cheapest query of a read of the tail.

use super::error::SqliteError;
use super::history::read_final_type;
use super::ids::Id;
use super::position::Position;
use super::rows::{bytes_of, job_of, number_of};
use super::scope::{is_of_rows, narrow};
use super::sql::FIND_IN_OWN;
use super::tables::{Numbering, Tables};
use super::values::Stored;
use crate::cursor::Level;
use crate::event::{JobId, JobStatus};
use crate::source::{Ends, Seen};
use futures_util::TryStreamExt;
use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteConnection;
use std::collections::{HashMap, HashSet};

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
    /// The row that has the number of the mark's row now.
    at_mark: Row,
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
    /// The row with the highest number up to this one.
    row: Row,
}

/// The row at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    None,
    /// There is one, with the position of all jobs after it.
    At(Position),
    /// There may be one.
    Unknown,
}

impl Mark {
    /// The position at which a job stands that was read up to here, where it can be told.
    pub fn level(self) -> Option<Level> {
        match self.row {
            Row::None => Some(Position::BEGINNING.level()),
            Row::At(position) => Some(position.level()),
            Row::Unknown => None,
        }
    }
}

impl From<Position> for Mark {
    fn from(row: Position) -> Self {
        Self { seq: row.seq, row: Row::At(row) }
    }
}

impl Changes {
    /// Tells whether numbers up to `mark` were given out anew since it was read: by a backup that was put in place, or,
    /// where SQLite does that, after the newest rows were deleted.
    pub fn is_rewound(&self, mark: Mark, numbering: Numbering) -> bool {
        let is_other = match (mark.row, self.at_mark) {
            (Row::At(row), Row::At(found)) => row != found,
            (Row::At(_), Row::None) => numbering.gives_again(),
            (Row::None | Row::Unknown, _) | (_, Row::Unknown) => false,
        };
        self.newest.seq < mark.seq || is_other
    }
}

/// Looks how far events go, and for statuses: those that changed after `status_mark`, and those of the jobs `due`, which catch
/// up in this read. Where some row makes the look fail, each job of `live` and `due` is looked at by itself. Returns the jobs whose
/// status cannot be read.
pub async fn look(
    connection: &mut SqliteConnection,
    tables: &Tables,
    (mark, status_mark): (Option<Mark>, i64),
    live: &HashSet<JobId>,
    due: &[&JobId],
) -> Result<(Changes, HashMap<JobId, SqliteError>), SqliteError> {
    let mut failed = HashMap::new();
    let mut changes = match read_changes(connection, tables, (mark, status_mark), due).await {
        Err(error) if is_of_rows(connection, tables, &error).await => {
            let watched = live.iter().chain(due.iter().copied());
            read_changes_of_each(connection, tables, status_mark, watched, &mut failed).await?
        }
        read => read?,
    };
    for &job in due {
        // Its reader may have read the event that ended it.
        let read = read_final_type(&mut *connection, tables, job, i64::MAX).await;
        let read = narrow(connection, tables, job, read).await;
        changes.statuses.extend(sort_out(job, read, &mut failed)?.flatten().map(|status| (job.clone(), Some(status))));
    }
    Ok((changes, failed))
}

/// Keeps an error of this job's rows among the failed ones. Any other is returned.
fn sort_out<T>(
    job: &JobId,
    read: Result<T, SqliteError>,
    failed: &mut HashMap<JobId, SqliteError>,
) -> Result<Option<T>, SqliteError> {
    match read {
        Err(error @ SqliteError::OfJob { .. }) => {
            failed.insert(job.clone(), error);
            Ok(None)
        }
        read => read.map(Some),
    }
}

/// Reads how far events go by numbers alone, and the status of each job by itself.
async fn read_changes_of_each<'a>(
    connection: &mut SqliteConnection,
    tables: &Tables,
    status_mark: i64,
    watched: impl Iterator<Item = &'a JobId>,
    failed: &mut HashMap<JobId, SqliteError>,
) -> Result<Changes, SqliteError> {
    let row = sqlx::query(AssertSqlSafe(tables.events.newest_number())).fetch_one(&mut *connection).await?;
    let newest = Mark { seq: number_of(&row, 0)?.unwrap_or(i64::MIN), row: Row::Unknown };
    let mut statuses = Vec::new();
    let jobs = tables.jobs.as_ref();
    for (job, jobs) in watched.filter_map(|job| Some((job, jobs?))) {
        let key = Id::from(job);
        let read = key.bind(sqlx::query(AssertSqlSafe(jobs.find(&key)))).fetch_one(&mut *connection).await;
        let read = narrow(connection, tables, job, read.map_err(SqliteError::from)).await;
        if let Some(row) = sort_out(job, read, failed)? {
            statuses.push((job.clone(), tables.status(bytes_of(&row, 0)?.as_deref())));
        }
    }
    Ok(Changes { newest, at_mark: Row::Unknown, status_mark, statuses })
}

/// Reads how far events go, the statuses that changed after `status_mark`, and those of jobs that are catching up.
///
/// A job's id may be stored as text or as BLOB. Where both are there, the text counts.
async fn read_changes(
    connection: &mut SqliteConnection,
    tables: &Tables,
    (mark, status_mark): (Option<Mark>, i64),
    catching_up: &[&JobId],
) -> Result<Changes, SqliteError> {
    let marked = mark.and_then(|mark| match mark.row {
        Row::At(position) => Some(position.seq),
        Row::None | Row::Unknown => None,
    });
    let mut rows = sqlx::query(AssertSqlSafe(tables.look()))
        .bind(status_mark)
        .bind(marked)
        .bind(serde_json::to_string(catching_up)?)
        .fetch(connection);
    let newest = Mark { seq: i64::MIN, row: Row::None };
    let mut changes = Changes { newest, at_mark: Row::None, status_mark, statuses: Vec::new() };
    let mut statuses = HashMap::new();
    while let Some(row) = rows.try_next().await? {
        let number = number_of(&row, 3)?.unwrap_or(i64::MIN);
        if number_of(&row, 0)? == Some(0) {
            let read = |seq: Option<i64>, identity: usize, job: usize| {
                let Some((seq, identity)) = seq.zip(bytes_of(&row, identity)?) else { return Ok(Row::None) };
                let job = bytes_of(&row, job)?.unwrap_or_default();
                Ok::<_, sqlx::Error>(Row::At(Position::after_any(seq, &job, &identity)))
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

/// Returns those of `jobs` that have a row in one of the tables, and those of which it cannot be told.
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
        let read = query.fetch_one(&mut *connection).await;
        match narrow(connection, tables, job, read.map_err(SqliteError::from)).await {
            Ok(row) if number_of(&row, 0)? != Some(1) => {}
            Ok(_) | Err(SqliteError::OfJob { .. }) => found.push(job.clone()),
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}
