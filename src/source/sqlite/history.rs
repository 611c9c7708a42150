//! Answers for readers: pages of history, the position of an event, the newest position, the list of jobs.

use super::Sqlite;
use super::changes::{Reached, find_jobs};
use super::error::SqliteError;
use super::ids::Id;
use super::position::{Of, Position};
use super::reads::{read_level, read_level_at};
use super::rows::{bytes_of, job_of, number_of};
use super::scope::narrow;
use super::sql::texts_of;
use super::tables::{Numbering, Tables};
use crate::cursor::Cursor;
use crate::event::{Event, JobId, JobStatus, Rfc3339};
use crate::source::{
    Age, Evidence, JobSummary, Limit, Page, PageBuilder, PageResult, PagesBuilder, Standing, brings_on,
};
use crate::sse::Reset;
use futures_util::TryStreamExt;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Connection, SqliteExecutor};

/// A job, and the place after which it is read. `None` where its cursor means nothing.
type Start<'a> = (&'a JobId, Option<Position>);

/// The end of a read of pages.
#[derive(Clone, Copy)]
enum UpTo {
    /// All there is now. It may have one place for all jobs.
    Now(Option<Position>),
    /// An earlier place of all jobs.
    Stage(Position),
}

impl UpTo {
    fn level(self) -> Option<Position> {
        match self {
            Self::Now(level) => level,
            Self::Stage(stage) => Some(stage),
        }
    }

    fn stage(self) -> Option<Position> {
        match self {
            Self::Now(_) => None,
            Self::Stage(stage) => Some(stage),
        }
    }
}

/// The newest event of a job.
struct Newest {
    status: Option<JobStatus>,
    /// The number of the newest change of the status; 0 where the table has none.
    changed: i64,
    /// `None` where the job has no events.
    event: Option<(Event, Position)>,
}

// The id of a job may be stored in several ways, and an event counts for the job in all of them. Look-ups by index are
// merged: `IN` would sort all events of the job. Of two statuses, the one under the text counts.
impl Sqlite {
    pub(super) async fn find_event(&self, job: &JobId, text: &str) -> Result<Option<Cursor>, SqliteError> {
        let (mut reader, tables) = self.database.reader().await?;
        let (key, id) = (Id::from(job), Id::new(text));
        let query = sqlx::query(AssertSqlSafe(tables.events.find(&key, &id)));
        let found = id.bind(key.bind(query)).fetch_optional(&mut *reader).await?;
        let Some(row) = found else { return Ok(None) };
        let seq = tables.number_in(&row, 0)?.unwrap_or_default();
        let identity = bytes_of(&row, 1)?.unwrap_or_default();
        Ok(Some(Position::after(seq, identity).seal(job)))
    }

    pub(super) async fn read_newest(&self, job: &JobId) -> Result<Option<Standing>, SqliteError> {
        let Some(Newest { status, event, .. }) = self.read_newest_row(job).await? else { return Ok(None) };
        let position = event.map_or(Position::BEGINNING, |(_, position)| position);
        Ok(Some(Standing { cursor: position.seal(job), status }))
    }

    pub(super) async fn read_summary(&self, job: &JobId) -> Result<Option<JobSummary>, SqliteError> {
        let newest = self.read_newest_row(job).await?;
        Ok(newest.map(|Newest { status, event, .. }| {
            let time = event.and_then(|(event, _)| event.timestamp);
            JobSummary { job_id: job.clone(), status, last_event_at: time.map(|time| Rfc3339(time).to_string()) }
        }))
    }

    /// Reads the status and the newest event of a job. `None` where there is neither.
    async fn read_newest_row(&self, job: &JobId) -> Result<Option<Newest>, SqliteError> {
        let (mut reader, tables) = self.database.reader().await?;
        let key = Id::from(job);
        let row = key.bind(sqlx::query(AssertSqlSafe(tables.newest(&key)))).fetch_one(&mut *reader).await?;
        let status = bytes_of(&row, tables.events.width())?;
        let event = tables.number_in(&row, 0)?.map(|_| tables.read_event(&row, job)).transpose()?;
        if status.is_none() && event.is_none() {
            return Ok(None);
        }
        let mut status = tables.status(status.as_deref());
        if let (None, Some((_, position))) = (status, &event) {
            status = read_final_type(&mut *reader, &tables, job, position.seq).await?;
        }
        let changed = if tables.is_own { number_of(&row, tables.events.width() + 1)? } else { None };
        let changed = changed.unwrap_or_default();
        Ok(Some(Newest { status, changed, event }))
    }

    /// Tells if a job with a final status ended so long ago that no more events are to be expected.
    async fn is_over(&self, job: &JobId) -> Result<bool, SqliteError> {
        let Some(Newest { changed, event, .. }) = self.read_newest_row(job).await? else { return Ok(true) };
        let state = Reached { seq: event.as_ref().map_or(0, |(_, position)| position.seq), changed };
        let is_numbered = self.database.tables()?.numbers_all_changes();
        let age = if is_numbered { self.ends.age(|reached| state.seen_by(reached)) } else { Age::Unknown };
        let newest_at = event.and_then(|(event, _)| event.timestamp);
        Ok(self.ends.is_over(job, Evidence { state, age, newest_at }))
    }

    pub(super) async fn read_page(
        &self,
        job: &JobId,
        after: Position,
        limit: Limit,
    ) -> Result<PageResult, SqliteError> {
        let (mut reader, tables) = self.database.reader().await?;
        let result = read_page_on(&mut reader, &tables, (job, after), limit, UpTo::Now(None)).await?;
        // The end is asked for on another connection.
        drop(reader);
        self.with_end(job, result).await
    }

    /// Reads pages of several jobs as of one moment, job after job until the limit is reached. Where the table numbers the
    /// rows of all jobs, all last pages end at one place, and staged ones at an earlier one. The pages before one that cannot
    /// be read are returned: the next read begins with that job.
    pub(super) async fn read_pages(
        &self,
        wanted: &[(JobId, Cursor)],
        limit: Limit,
    ) -> Result<Vec<PageResult>, SqliteError> {
        let starts: Vec<Start<'_>> =
            wanted.iter().map(|(job, after)| (job, Position::open(job, after.as_str()))).collect();
        let (mut reader, tables) = self.database.reader().await?;
        let mut snapshot = reader.begin().await?;
        if let Some(stage) = find_stage(&mut snapshot, &tables, &starts).await? {
            let pages = read_pages_on(&mut snapshot, &tables, &starts, limit, UpTo::Stage(stage)).await?;
            if brings_on(wanted, &pages) {
                snapshot.rollback().await?;
                return Ok(pages);
            }
        }
        let up_to = UpTo::Now(read_level(&mut snapshot, &tables).await?);
        let pages = read_pages_on(&mut snapshot, &tables, &starts, limit, up_to).await?;
        snapshot.rollback().await?;
        drop(reader);
        let mut results = Vec::with_capacity(pages.len());
        for ((job, _), result) in wanted.iter().zip(pages) {
            match self.narrowed(job, self.with_end(job, result)).await {
                Err(SqliteError::OfJob { .. }) if !results.is_empty() => break,
                read => results.push(read?),
            }
        }
        Ok(results)
    }

    /// Says of a last page if the job has ended, and this was all of it.
    async fn with_end(&self, job: &JobId, result: PageResult) -> Result<PageResult, SqliteError> {
        let PageResult::Page(mut page) = result else { return Ok(result) };
        page.is_complete = page.is_last && page.status.is_some_and(JobStatus::is_final) && self.is_over(job).await?;
        Ok(PageResult::Page(page))
    }

    /// Returns the position before the last `count` events of a job. `None` where there is no such job.
    pub(super) async fn read_before_last(&self, job: &JobId, count: usize) -> Result<Option<Cursor>, SqliteError> {
        let (mut reader, tables) = self.database.reader().await?;
        let key = Id::from(job);
        let query = key.bind(sqlx::query(AssertSqlSafe(tables.events.before_last(&key)))).bind(count as i64);
        if let Some(row) = query.fetch_optional(&mut *reader).await? {
            let seq = tables.number_in(&row, 0)?.unwrap_or_default();
            let identity = bytes_of(&row, 1)?.unwrap_or_default();
            return Ok(Some(Position::after(seq, identity).seal(job)));
        }
        let is_there = !find_jobs(&mut reader, &tables, &[job]).await?.is_empty();
        Ok(is_there.then(|| Position::BEGINNING.seal(job)))
    }

    pub(super) async fn list_jobs(
        &self,
        status: Option<JobStatus>,
        limit: usize,
    ) -> Result<Vec<JobSummary>, SqliteError> {
        let (mut reader, tables) = self.database.reader().await?;
        let texts = status.map(|status| serde_json::to_string(&texts_of(&tables.statuses, status))).transpose()?;
        let query = sqlx::query(AssertSqlSafe(tables.list_jobs())).bind(texts).bind(limit as i64);
        let rows = query.fetch_all(&mut *reader).await?;
        Ok(rows.iter().filter_map(|row| summary(row, &tables)).collect())
    }
}

/// Finds the highest level that some of these jobs stand at and others behind. `None` where there is none, and where the table
/// does not hold its row any more.
async fn find_stage(
    connection: &mut SqliteConnection,
    tables: &Tables,
    starts: &[Start<'_>],
) -> Result<Option<Position>, SqliteError> {
    let positions = || starts.iter().filter_map(|(_, after)| *after);
    let levels = positions().filter(|after| after.of == Of::Any);
    let Some(highest) = levels.max_by_key(|level| level.seq) else { return Ok(None) };
    if positions().all(|after| after == highest) {
        return Ok(None);
    }
    Ok(read_level_at(connection, tables, highest.seq).await?.filter(|held| *held == highest))
}

/// Reads pages in one transaction. A job whose cursor means nothing is lost.
async fn read_pages_on(
    connection: &mut SqliteConnection,
    tables: &Tables,
    starts: &[Start<'_>],
    limit: Limit,
    up_to: UpTo,
) -> Result<Vec<PageResult>, SqliteError> {
    let mut pages = PagesBuilder::new(limit);
    for (job, after) in starts {
        let Some(rest) = pages.rest() else { break };
        let read = match (after, up_to) {
            (None, _) => Ok(PageResult::Lost(Reset::Unknown)),
            // It is there, or further.
            (Some(after), UpTo::Stage(stage)) if after.seq > stage.seq || *after == stage => {
                Ok(PageResult::Page(Page::staged(after.seal(job))))
            }
            (Some(after), _) => read_page_on(connection, tables, (job, *after), rest, up_to).await,
        };
        match narrow(connection, tables, job, read).await {
            Err(SqliteError::OfJob { .. }) if !pages.is_empty() => break,
            read => pages.push(read?),
        }
    }
    Ok(pages.into_results())
}

/// Reads a page of a job, by one statement, so that status, place and events are of one snapshot. The last one ends at the
/// level that is given, if the job has events. The result does not say yet if it is complete.
async fn read_page_on(
    connection: &mut SqliteConnection,
    tables: &Tables,
    (job, after): (&JobId, Position),
    limit: Limit,
    up_to: UpTo,
) -> Result<PageResult, SqliteError> {
    let stage = up_to.stage();
    let key = Id::from(job);
    let query = key.bind(sqlx::query(AssertSqlSafe(tables.page(&key, after.of))));
    let mut rows = query.bind(after.seq).bind(limit.events as i64 + 2).fetch(&mut *connection);
    let mut page = PageBuilder::new(limit);
    let (mut has_all, mut status, mut reached, mut last) = (true, None, Position::BEGINNING, after.seq);
    let mut is_beyond_stage = false;
    while let Some(row) = rows.try_next().await? {
        if tables.number_in(&row, 0)?.is_none() {
            status = bytes_of(&row, 3)?;
            reached = match judge(tables, after, &row)? {
                Ok(reached) => reached,
                Err(reset) => return Ok(PageResult::Lost(reset)),
            };
            continue;
        }
        is_beyond_stage = stage.is_some() && number_of(&row, 0)? > stage.map(|stage| stage.seq);
        if is_beyond_stage {
            break;
        }
        if page.is_full() {
            has_all = false;
            break;
        }
        let (event, position) = tables.read_event(&row, job)?;
        last = position.seq;
        page.push(event, position.seal(job));
    }
    drop(rows);
    if status.is_none() && page.is_empty() && after == Position::BEGINNING && !is_beyond_stage {
        return Ok(PageResult::NoSuchJob);
    }
    let (is_last, is_staged) = (has_all && stage.is_none(), has_all && stage.is_some());
    let has_events = !page.is_empty() || reached != Position::BEGINNING;
    let level = up_to.level().filter(|_| has_all && has_events).map(|level| level.seal(job));
    let end = level.or_else(|| page.end().cloned()).unwrap_or_else(|| reached.seal(job));
    let status = match tables.status(status.as_deref()) {
        None if is_last => read_final_type(connection, tables, job, last).await?,
        status => status,
    };
    let events = page.into_events();
    Ok(PageResult::Page(Page { end, events, is_last, is_staged, status, is_complete: false }))
}

/// Reads the first row of a page: returns the position after the newest event of the job that a reader at `after` has, made of
/// what the row says, or the reset that is due.
fn judge(tables: &Tables, after: Position, row: &SqliteRow) -> Result<Result<Position, Reset>, SqliteError> {
    if after == Position::BEGINNING {
        return Ok(Ok(after));
    }
    let held = bytes_of(row, 1)?;
    let is_beyond = tables.number_in(row, 2)?.is_none_or(|newest| after.seq > newest);
    let numbering = tables.events.numbering;
    Ok(match (after.of, held) {
        // Those after an event that is gone may be gone, too.
        (Of::Job, None) => Err(if is_beyond { Reset::Rewound } else { Reset::Trimmed }),
        (Of::Job, Some(id)) if after.is_held_by(Some(&id)) => Ok(Position::after(after.seq, id)),
        (Of::Job, Some(_)) => Err(Reset::Rewound),
        (Of::Any, _) if numbering == Numbering::Job => Err(Reset::Unknown),
        (Of::Any, None) if is_beyond || numbering.gives_again() => Err(Reset::Rewound),
        (Of::Any, Some(id)) if Position::after_any(after.seq, &bytes_of(row, 4)?.unwrap_or_default(), &id) != after => {
            Err(Reset::Rewound)
        }
        // The row may be of another job, which was deleted since. The job's own rows tell if any after them are gone.
        (Of::Any, _) => match number_of(row, 5)?.zip(bytes_of(row, 6)?) {
            Some((seq, id)) => Ok(Position::after(seq, id)),
            None => Err(Reset::Trimmed),
        },
    })
}

/// Reads a job of the list. `None` for a row that no job can have.
fn summary(row: &SqliteRow, tables: &Tables) -> Option<JobSummary> {
    let job_id = job_of(bytes_of(row, 0).ok()?)?;
    let status = tables.status(bytes_of(row, 1).ok()?.as_deref());
    let last_event_at = if tables.is_own {
        bytes_of(row, 2).ok()?.and_then(|bytes| String::from_utf8(bytes).ok())
    } else {
        tables.events.times.read(row, 2, &mut Vec::new()).ok()?.map(|time| Rfc3339(time).to_string())
    };
    Some(JobSummary { job_id, status, last_event_at })
}

/// Returns the status that an event of a final type gives a job, where there is no table of jobs. An event after number
/// `last` does not count: it was written after the events were read.
pub(super) async fn read_final_type(
    connection: impl SqliteExecutor<'_>,
    tables: &Tables,
    job: &JobId,
    last: i64,
) -> Result<Option<JobStatus>, SqliteError> {
    let stored = tables.stored_final_types();
    if tables.jobs.is_some() || stored.is_empty() {
        return Ok(None);
    }
    let key = Id::from(job);
    let query = key.bind(sqlx::query(AssertSqlSafe(tables.events.newest_of_types(&key))));
    let found = query.bind(serde_json::to_string(&stored)?).bind(last).fetch_optional(connection).await?;
    let Some(row) = found else { return Ok(None) };
    Ok(bytes_of(&row, 1)?.and_then(|kind| tables.final_type(tables.name_of(&String::from_utf8(kind).ok()?))))
}
