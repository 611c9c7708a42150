//! Answers for readers: pages of history, the position of an event, the newest position, the list of jobs.

use super::Sqlite;
use super::changes::Reached;
use super::error::SqliteError;
use super::ids::Id;
use super::position::Position;
use super::rows::{bytes_of, job_of, number_of};
use super::sql::texts_of;
use super::tables::Tables;
use crate::cursor::Cursor;
use crate::event::{Event, JobId, JobStatus, Rfc3339};
use crate::source::{Age, Evidence, JobSummary, Limit, Page, PageBuilder, PageResult, Standing};
use crate::sse::Reset;
use futures_util::TryStreamExt;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, SqliteExecutor};

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
        let (seq, identity) = (number_of(&row, 0)?.unwrap_or_default(), bytes_of(&row, 1)?.unwrap_or_default());
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
        let status = bytes_of(&row, tables.width())?;
        let event = number_of(&row, 0)?.map(|_| tables.read_event(&row, job)).transpose()?;
        if status.is_none() && event.is_none() {
            return Ok(None);
        }
        let mut status = tables.status(status.as_deref());
        if let (None, Some((_, position))) = (status, &event) {
            status = read_final_type(&mut *reader, &tables, job, position.seq).await?;
        }
        let changed = if tables.is_own { number_of(&row, tables.width() + 1)? } else { None };
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

    /// Reads by one statement, so that status, mark and events are of one snapshot.
    pub(super) async fn read_page(
        &self,
        job: &JobId,
        after: Position,
        limit: Limit,
    ) -> Result<PageResult, SqliteError> {
        let (mut reader, tables) = self.database.reader().await?;
        let key = Id::from(job);
        let query = key.bind(sqlx::query(AssertSqlSafe(tables.page(&key))));
        let mut rows = query.bind(after.seq).bind(limit.events as i64 + 2).fetch(&mut *reader);
        let mut page = PageBuilder::new(limit);
        let (mut is_last, mut status, mut mark, mut last) = (true, None, None, after.seq);
        while let Some(row) = rows.try_next().await? {
            if number_of(&row, 0)?.is_none() {
                mark = bytes_of(&row, 1)?;
                status = bytes_of(&row, 3)?;
                if !after.is_held_by(mark.as_deref()) {
                    // The number belongs to another event, or was never given out; else the event was deleted.
                    let is_rewound = mark.is_some() || number_of(&row, 2)?.is_none_or(|newest| after.seq > newest);
                    return Ok(PageResult::Lost(if is_rewound { Reset::Rewound } else { Reset::Trimmed }));
                }
                continue;
            }
            if page.is_full() {
                is_last = false;
                break;
            }
            let (event, position) = tables.read_event(&row, job)?;
            last = position.seq;
            page.push(event, position.seal(job));
        }
        drop(rows);
        if status.is_none() && page.is_empty() && after == Position::BEGINNING {
            return Ok(PageResult::NoSuchJob);
        }
        // Without an event after it, the event at the position is the newest; this read has seen it.
        let newest = || mark.map_or(Position::BEGINNING, |id| Position::after(after.seq, id)).seal(job);
        let end = page.end().cloned().unwrap_or_else(newest);
        let events = page.into_events();
        let status = match tables.status(status.as_deref()) {
            None if is_last => read_final_type(&mut *reader, &tables, job, last).await?,
            status => status,
        };
        // The end is asked for on another connection.
        drop(reader);
        let is_complete = is_last && status.is_some_and(JobStatus::is_final) && self.is_over(job).await?;
        Ok(PageResult::Page(Page { end, events, is_last, status, is_complete }))
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
