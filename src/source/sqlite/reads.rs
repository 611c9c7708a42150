//! The queries of a read of the tail.

use super::changes::Mark;
use super::database::{Connected, Database};
use super::error::SqliteError;
use super::ids::Id;
use super::position::{Of, Position};
use super::rows::{bytes_of, job_of, number_of};
use super::scope::{is_of_rows, narrow};
use super::sql::{self, MAKE_WATCHED};
use super::tables::{Numbering, Tables};
use crate::cursor::Cursor;
use crate::event::{Event, JobId};
use crate::source::{Joiner, Limit, PageBuilder, TailBatch};
use crate::telemetry;
use futures_util::TryStreamExt;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use std::collections::HashMap;

/// The bounds of one query of a read.
pub const READ: Limit = Limit { events: 1000, bytes: 1 << 20 };

/// The place up to which a job that is catching up was read.
#[derive(Clone, Copy)]
pub enum ReadUpTo {
    /// The position that its watch began with, or that its own reads got to. The file may have been replaced since.
    Position(Position),
    /// The number that the tail itself got to, of all jobs together.
    Seq(i64),
}

impl ReadUpTo {
    pub fn seq(self) -> i64 {
        match self {
            Self::Position(position) => position.seq,
            Self::Seq(seq) => seq,
        }
    }
}

/// Watches that were catching up before a read, after it.
#[derive(Default)]
pub struct CaughtUpWatches {
    /// Each with the position after the events that it got, or at which it was.
    pub caught_up: HashMap<JobId, ReadUpTo>,
    /// Too much was missing for one read, or the read ended before the position of the watch.
    pub behind: Vec<(JobId, ReadUpTo)>,
    /// Another event has the number of the watch's position.
    pub lost: Vec<JobId>,
    /// The job's rows cannot be read. Each with the place up to which it was read before.
    pub failed: Vec<(JobId, ReadUpTo, SqliteError)>,
}

/// The outcome for one watch.
enum CaughtUp {
    /// Up to this place, where the read ends.
    Whole(ReadUpTo),
    /// Only up to this place.
    Behind(ReadUpTo),
    Lost,
}

impl CaughtUpWatches {
    /// Tells whether this read could not bring the job up to now.
    pub fn leaves_out(&self, job: &JobId) -> bool {
        let is_failed = self.failed.iter().any(|(other, ..)| other == job);
        is_failed || self.behind.iter().any(|(other, _)| other == job) || self.lost.contains(job)
    }
}

/// Returns a connection to the file that is at the path now. While there is none, an open connection is kept.
pub async fn ensure_connection<'a>(
    connection: &'a mut Option<Connected>,
    database: &Database,
) -> Result<&'a mut Connected, SqliteError> {
    let file = database.file()?;
    let open = match connection.take() {
        Some(open) if open.file == file => open,
        _ => {
            let mut new = database.open().await?;
            sqlx::raw_sql(MAKE_WATCHED).execute(&mut new.sqlite).await?;
            new
        }
    };
    Ok(connection.insert(open))
}

/// Returns a number that differs from the last one after a commit of any other connection ("PRAGMA data_version").
pub async fn read_version(connection: &mut SqliteConnection) -> Result<i64, SqliteError> {
    Ok(sqlx::query_scalar("PRAGMA data_version").fetch_one(connection).await?)
}

pub async fn delete_watched(
    connection: &mut SqliteConnection,
    tables: &Tables,
    jobs: &[JobId],
) -> Result<(), SqliteError> {
    change_watched(connection, sql::delete_watched(), tables, jobs).await
}

pub async fn insert_watched<'a>(
    connection: &mut SqliteConnection,
    tables: &Tables,
    jobs: impl IntoIterator<Item = &'a JobId>,
) -> Result<(), SqliteError> {
    change_watched(connection, sql::insert_watched(), tables, jobs).await
}

async fn change_watched<'a>(
    connection: &mut SqliteConnection,
    sql: String,
    tables: &Tables,
    jobs: impl IntoIterator<Item = &'a JobId>,
) -> Result<(), SqliteError> {
    let ids: Vec<Value> = jobs.into_iter().map(|job| listed(&Id::from(job), tables.is_own)).collect();
    if !ids.is_empty() {
        sqlx::query(AssertSqlSafe(sql)).bind(Value::from(ids).to_string()).execute(connection).await?;
    }
    Ok(())
}

/// An id as an item of the list that [`sql`] takes.
fn listed(id: &Id, is_own: bool) -> Value {
    let bytes = hex(id.text.as_bytes());
    let uuid = id.uuid.as_ref().map(|uuid| hex(uuid));
    if is_own { json!([id.text, bytes, null, null]) } else { json!([id.text, bytes, id.number, uuid]) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads the events of live jobs in `(mark, newest]`, as far as the batch takes them. Returns the place up to which
/// everything was read; `None` where a row makes that fail, and nothing was read: each job is to be read by itself. Rows without
/// a job are counted as skipped.
pub async fn read_new_rows(
    connection: &mut SqliteConnection,
    tables: &Tables,
    (mark, newest): (Mark, Mark),
    is_live: impl Fn(&JobId) -> bool,
    batch: &mut TailBatch,
) -> Result<Option<Mark>, SqliteError> {
    match try_new_rows(connection, tables, (mark, newest), is_live, batch).await {
        Err(error) if is_of_rows(connection, tables, &error).await => {
            *batch = TailBatch::new(READ);
            Ok(None)
        }
        read => read.map(Some),
    }
}

async fn try_new_rows(
    connection: &mut SqliteConnection,
    tables: &Tables,
    (mark, newest): (Mark, Mark),
    is_live: impl Fn(&JobId) -> bool,
    batch: &mut TailBatch,
) -> Result<Mark, SqliteError> {
    let mut rows = sqlx::query(AssertSqlSafe(tables.events.range_of_watched()))
        .bind(mark.seq)
        .bind(newest.seq)
        .bind(READ.events as i64)
        .fetch(connection);
    let mut last = mark;
    for _ in 0..READ.events {
        let Some(row) = rows.try_next().await? else { return Ok(newest) };
        match job_of(bytes_of(&row, 2)?) {
            Some(job) if is_live(&job) => {
                let (event, position) = tables.read_event(&row, &job)?;
                batch.push(&job, event, position.seal(&job));
            }
            Some(_) => {}
            None => telemetry::SKIPPED.counter(&[]).increment(1),
        }
        last = tables.place_of(&row)?.into();
        if batch.is_full() {
            break;
        }
    }
    Ok(last)
}

/// Reads each of these jobs by itself up to `read_to`, but those of `failed`. Adds those that got there to `temp.watched`, and
/// takes those out whose rows cannot be read.
pub async fn catch_up_watches(
    connection: &mut SqliteConnection,
    tables: &Tables,
    (catching_up, mut failed): (Vec<(JobId, ReadUpTo)>, HashMap<JobId, SqliteError>),
    range: (i64, i64),
    batch: &mut TailBatch,
) -> Result<CaughtUpWatches, SqliteError> {
    let has_own_marks = tables.events.numbering == Numbering::Job;
    let mut watches = CaughtUpWatches::default();
    for (job, after) in catching_up {
        if let Some(error) = failed.remove(&job) {
            watches.failed.push((job, after, error));
            continue;
        }
        let was_live = has_own_marks || matches!(after, ReadUpTo::Seq(_));
        if was_live && batch.is_full() {
            watches.behind.push((job, after));
            continue;
        }
        let read = catch_up_watch(connection, tables, (&job, after), range, batch).await;
        match narrow(connection, tables, &job, read).await {
            Ok(CaughtUp::Whole(at)) => drop(watches.caught_up.insert(job, at)),
            Ok(CaughtUp::Behind(at)) => watches.behind.push((job, at)),
            Ok(CaughtUp::Lost) => watches.lost.push(job),
            Err(error @ SqliteError::OfJob { .. }) => watches.failed.push((job, after, error)),
            Err(error) => return Err(error),
        }
    }
    insert_watched(connection, tables, watches.caught_up.keys()).await?;
    let failed: Vec<JobId> = watches.failed.iter().map(|(job, ..)| job.clone()).collect();
    delete_watched(connection, tables, &failed).await?;
    Ok(watches)
}

/// Reads one watch up to `read_to`.
async fn catch_up_watch(
    connection: &mut SqliteConnection,
    tables: &Tables,
    (job, after): (&JobId, ReadUpTo),
    (read_to, newest): (i64, i64),
    batch: &mut TailBatch,
) -> Result<CaughtUp, SqliteError> {
    if let ReadUpTo::Position(position) = after
        && (position.seq > newest || is_contradicted(connection, tables, job, position).await?)
    {
        return Ok(CaughtUp::Lost);
    }
    if after.seq() > read_to {
        // If it was made live here, it would get the events up to its position once more.
        return Ok(CaughtUp::Behind(after));
    }
    let missing = read_missing(connection, tables, job, (after.seq(), read_to)).await?;
    let at = missing.last.map_or(after, ReadUpTo::Position);
    batch.extend(job, missing.events);
    Ok(if missing.is_all { CaughtUp::Whole(at) } else { CaughtUp::Behind(at) })
}

/// Tells whether another event has the number of this position. An event that was deleted contradicts nothing, unless its
/// number may come back within the job.
async fn is_contradicted(
    connection: &mut SqliteConnection,
    tables: &Tables,
    job: &JobId,
    position: Position,
) -> Result<bool, SqliteError> {
    if position == Position::BEGINNING {
        return Ok(false);
    }
    if position.of == Of::Any {
        return is_contradicted_level(connection, tables, position).await;
    }
    let key = Id::from(job);
    let query = key.bind(sqlx::query(AssertSqlSafe(tables.events.at_number(&key))));
    let row = query.bind(position.seq).fetch_optional(&mut *connection).await?;
    if let Some(row) = row {
        return Ok(!position.is_held_by(bytes_of(&row, 0)?.as_deref()));
    }
    if tables.events.numbering != Numbering::Job {
        return Ok(false);
    }
    let query = key.bind(sqlx::query(AssertSqlSafe(tables.events.highest_of_job(&key))));
    let highest = tables.number_in(&query.fetch_one(connection).await?, 0)?;
    Ok(highest.is_none_or(|highest| highest < position.seq))
}

/// Tells the same of a position after the row of any job.
async fn is_contradicted_level(
    connection: &mut SqliteConnection,
    tables: &Tables,
    position: Position,
) -> Result<bool, SqliteError> {
    let numbering = tables.events.numbering;
    if numbering == Numbering::Job {
        return Ok(true);
    }
    let query = sqlx::query(AssertSqlSafe(tables.events.row_at_number())).bind(position.seq);
    match query.fetch_optional(connection).await? {
        Some(row) => Ok(read_place(&row)? != position),
        None => Ok(numbering.gives_again()),
    }
}

/// Reads the position of all jobs after a row of [`super::tables::EventTable::row_at_number`].
fn read_place(row: &SqliteRow) -> Result<Position, sqlx::Error> {
    let (identity, job) = (bytes_of(row, 1)?.unwrap_or_default(), bytes_of(row, 2)?.unwrap_or_default());
    Ok(Position::after_any(number_of(row, 0)?.unwrap_or_default(), &job, &identity))
}

/// Reads the position of all jobs after all rows of the table; `None` where jobs have numbers of their own, and no such
/// position, or where the last row cannot be read.
pub async fn read_level(connection: &mut SqliteConnection, tables: &Tables) -> Result<Option<Position>, SqliteError> {
    if tables.events.numbering == Numbering::Job {
        return Ok(None);
    }
    let read = sqlx::query(AssertSqlSafe(tables.events.highest_row())).fetch_optional(&mut *connection).await;
    match read.map_err(SqliteError::from) {
        Ok(Some(row)) => Ok(Some(read_place(&row)?)),
        Ok(None) => Ok(Some(Position::BEGINNING)),
        Err(error) if is_of_rows(connection, tables, &error).await => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads the position of all jobs after the row with this number. `None` where there is no such row, jobs have numbers of
/// their own, or it cannot be read.
pub async fn read_level_at(
    connection: &mut SqliteConnection,
    tables: &Tables,
    number: i64,
) -> Result<Option<Position>, SqliteError> {
    if tables.events.numbering == Numbering::Job {
        return Ok(None);
    }
    let query = sqlx::query(AssertSqlSafe(tables.events.row_at_number())).bind(number);
    match query.fetch_optional(&mut *connection).await.map_err(SqliteError::from) {
        Ok(row) => Ok(row.as_ref().map(read_place).transpose()?),
        Err(error) if is_of_rows(connection, tables, &error).await => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads what each joiner lacks of what was read up to the number beside it; it has none where its job is not live. One whose
/// job's rows cannot be read is not caught up, and reads pages again, which say so.
pub async fn catch_up_joiners(
    connection: &mut SqliteConnection,
    tables: &Tables,
    joining: &[(&Joiner, Option<i64>)],
) -> Result<Vec<Option<Vec<(Event, Cursor)>>>, SqliteError> {
    let mut caught_up = Vec::with_capacity(joining.len());
    for (joiner, read_to) in joining {
        let Some(read_to) = read_to else {
            caught_up.push(None);
            continue;
        };
        let read = catch_up_joiner(connection, tables, joiner, *read_to).await;
        caught_up.push(match narrow(connection, tables, &joiner.job, read).await {
            Err(SqliteError::OfJob { .. }) => None,
            read => read?,
        });
    }
    Ok(caught_up)
}

/// Reads what a joiner of a live job lacks of what was read up to `read_to`. `None` where its cursor is ahead of that or of
/// another life of the file, or too much is missing.
async fn catch_up_joiner(
    connection: &mut SqliteConnection,
    tables: &Tables,
    joiner: &Joiner,
    read_to: i64,
) -> Result<Option<Vec<(Event, Cursor)>>, SqliteError> {
    let Some(after) = Position::open(&joiner.job, joiner.after.as_str()).filter(|after| after.seq <= read_to) else {
        return Ok(None);
    };
    if is_contradicted(connection, tables, &joiner.job, after).await? {
        return Ok(None);
    }
    let missing = read_missing(connection, tables, &joiner.job, (after.seq, read_to)).await?;
    Ok(missing.is_all.then_some(missing.events))
}

/// Events of one job in a range of numbers.
struct Missing {
    events: Vec<(Event, Cursor)>,
    /// The position after the last of them.
    last: Option<Position>,
    /// The read was not cut short.
    is_all: bool,
}

/// Reads the events of a job in `(after, read_to]`.
async fn read_missing(
    connection: &mut SqliteConnection,
    tables: &Tables,
    job: &JobId,
    (after, read_to): (i64, i64),
) -> Result<Missing, SqliteError> {
    let key = Id::from(job);
    let query = key.bind(sqlx::query(AssertSqlSafe(tables.events.range_of_job(&key))));
    let mut rows = query.bind(after).bind(read_to).bind(READ.events as i64).fetch(connection);
    let (mut page, mut last) = (PageBuilder::new(READ), None);
    while !page.is_full()
        && let Some(row) = rows.try_next().await?
    {
        let (event, position) = tables.read_event(&row, job)?;
        last = Some(position);
        page.push(event, position.seal(job));
    }
    let is_all = !page.is_full();
    Ok(Missing { events: page.into_events(), last, is_all })
}
