//! Answers for readers: pages of history, the position of an event, the newest position, the list of jobs.

use super::error::QueryError;
use super::page::{MAX_COUNTED_XIDS, PageEnd, PageRows, StoredRow};
use super::position::{EndedXids, Key, Position};
use super::session::Session;
use super::snapshot::Snapshot;
use super::sql::{self, MAX_XID_SCAN, Scope, XidBound};
use super::tables::XidSource;
use crate::cursor::Cursor;
use crate::event::{Event, JobId, JobStatus};
use crate::source::{JobSummary, Limit, Page, PageResult, Standing};
use crate::sse::Reset;
use sqlx::Row;
use sqlx::postgres::PgRow;
use std::collections::BTreeMap;

/// Most lists of the open transactions that are read for one position.
const MAX_LISTS: usize = 4;

/// Answers a reader of whose position the server does not know all. `None`: it may, after a while.
pub fn behind(job: &JobId, before: &Position, snapshot: &Snapshot, can_wait: bool) -> Option<PageResult> {
    if !(snapshot.may_know(before) || snapshot.is_standby && can_wait) {
        // A primary has nothing to catch up with.
        return Some(PageResult::Lost(Reset::Rewound));
    }
    let behind = Page {
        end: before.to_cursor(job),
        is_complete: false,
        status: None,
        events: Vec::new(),
        is_last: false,
        is_staged: false,
    };
    (!can_wait).then_some(PageResult::Page(behind))
}

impl Session<'_> {
    /// Reads a page of history after `position`. `None` where a standby has not come to the position, or a cursor has no
    /// room now, and `can_wait`: then it is to be read again after a while, in which this connection serves others.
    pub async fn page(
        &mut self,
        job: &JobId,
        before: &Position,
        limit: Limit,
        can_wait: bool,
    ) -> Result<Option<PageResult>, QueryError> {
        if self.tables.events.job_id.canonical(job.as_str()).is_none() {
            return Ok(Some(PageResult::NoSuchJob));
        }
        let mut position = before.clone();
        if !position.is_honoured(&self.tables) {
            return Ok(Some(PageResult::Lost(Reset::Unknown)));
        }
        let rows = self.read_rows(Scope::of(job, limit), &mut position, can_wait).await?;
        if rows.is_cramped() {
            return Ok(None);
        }
        let may_know = rows.snapshot.may_know(before);
        if may_know && self.knows_ends(&rows.snapshot, before).await? {
            return self.build_page(job, before.clone(), position, rows, limit).await.map(Some);
        }
        Ok(behind(job, before, &rows.snapshot, can_wait))
    }

    async fn build_page(
        &mut self,
        job: &JobId,
        before: Position,
        mut position: Position,
        rows: PageRows,
        limit: Limit,
    ) -> Result<PageResult, QueryError> {
        let (answer, mark) = (rows.answer(), rows.snapshot.mark());
        let is_superseded = position.is_superseded_by(&rows.end, mark);
        let (mut events, mut is_last) = rows.deliver(job, &mut position, limit);
        if before.is_beginning() && events.is_empty() && !answer.has_job {
            return Ok(PageResult::NoSuchJob);
        }
        let end = if is_last && events.is_empty() && before.is_reached_mark(mark, self.tables.best) {
            // The ring knows the cursor of a reader that has everything.
            before
        } else if !is_last || (is_superseded && position.scheme == self.tables.best) {
            position
        } else {
            let own = self.own_position(job, mark).await?;
            // A position that its cursor cannot hold would repeat events. More pages bring the reader there later, but
            // for one that has nothing to read: only that many transactions which stay open can be the cause.
            let is_held = own.fits_cursor() || events.is_empty();
            is_last = is_held && self.bring_level(job, &position, &own, &mut events, limit).await?;
            if is_last { own } else { position }
        };
        self.finish_page(job, events, end.to_cursor(job), is_last, &answer).await
    }

    /// Makes a page of events, and finds out whether the job has ended.
    pub async fn finish_page(
        &mut self,
        job: &JobId,
        events: Vec<(Event, Cursor)>,
        end: Cursor,
        is_last: bool,
        answer: &PageEnd,
    ) -> Result<PageResult, QueryError> {
        let PageEnd { snapshot, status, .. } = answer;
        let nothing_is_open = snapshot.xmin >= snapshot.xmax;
        let mut ended = self.final_status(status.as_deref(), &events);
        if is_last && ended.is_none() {
            ended = self.read_final_event(job).await?;
        }
        Ok(PageResult::Page(Page {
            end,
            is_complete: is_last && ended.is_some() && self.is_over(job, nothing_is_open).await?,
            status: ended.or_else(|| self.store.settings.statuses.resolve(status.as_deref()?)),
            events,
            is_last,
            is_staged: false,
        }))
    }

    /// Makes the position after all rows of the job that are visible now, from a mark that the server has reached.
    async fn own_position(&mut self, job: &JobId, mark: u64) -> Result<Position, QueryError> {
        let counted = self.count_newer(job, mark, None).await?;
        Ok(if counted.scheme.xids == XidSource::System { counted.with_whole_transactions() } else { counted })
    }

    /// Adds the events that a reader at `position` lacks of those before `own`. False if they do not fit into the page.
    async fn bring_level(
        &mut self,
        job: &JobId,
        position: &Position,
        own: &Position,
        events: &mut Vec<(Event, Cursor)>,
        limit: Limit,
    ) -> Result<bool, QueryError> {
        let room = limit.events.saturating_sub(events.len());
        if room == 0 {
            return Ok(false);
        }
        let bytes = events.iter().map(|(event, _)| event.payload.as_json().len()).sum();
        let room = Limit { events: room, bytes: limit.bytes.saturating_sub(bytes) };
        let missing = self.read_missing(job, &mut position.clone(), own, room).await?;
        let fits = missing.is_some();
        events.extend(missing.into_iter().flatten());
        Ok(fits)
    }

    /// Returns true if the server knows the end of every transaction that a position speaks of. A standby may not have
    /// come to it. Then its tail would repeat what the reader was given elsewhere.
    async fn knows_ends(&mut self, snapshot: &Snapshot, position: &Position) -> Result<bool, QueryError> {
        if !snapshot.is_standby || position.ceiling() <= snapshot.xmin {
            return Ok(true);
        }
        let ended = position.ended();
        // Too many to ask for all: rather repeat than lose.
        let is_far = ended.mark.saturating_sub(snapshot.xmin) > MAX_XID_SCAN;
        let mark = if is_far { snapshot.xmin } else { ended.mark };
        let known = position.counted().keys().chain(&ended.also);
        let sql = sql::has_ended(snapshot.xmin, mark, &ended.open, known);
        Ok(self.connection.query_one(sql).await?.try_get("has_ended")?)
    }

    /// Returns the position after the event with this id, for a reader that was given all events up to it by key.
    pub async fn find_event(&mut self, job: &JobId, id: &str) -> Result<Option<Cursor>, QueryError> {
        let events = &self.tables.events;
        if events.job_id.canonical(job.as_str()).is_none() || events.id.canonical(id).is_none() {
            return Ok(None);
        }
        let best = self.tables.best;
        let sql = sql::find_event(&self.tables.rows(best), self.durable_xid(), job, id);
        let answer = self.connection.query(sql).await?;
        let Some(row) = answer.first() else { return Ok(None) };
        let (snapshot, found) = (self.snapshot_of(row)?, StoredRow::parse(row, job, self)?);
        let newer = self.count_newer(job, snapshot.mark(), Some(&found.key)).await?;
        Ok(Some(newer.up_to_key(found.key).to_cursor(job)))
    }

    /// Counts the rows of each transaction that had not ended at `mark`, up to the key `last`. Where those transactions
    /// are many, it goes on from a list of the open ones instead of the mark.
    ///
    /// Others commit meanwhile. Where the list and the counts are of one snapshot, that makes no difference. Elsewhere the
    /// counts are of a later one, and may be more than a cursor holds ([`Position::fits_cursor`]): then both are read
    /// again, a few times.
    pub async fn count_newer(&mut self, job: &JobId, mark: u64, last: Option<&Key>) -> Result<Position, QueryError> {
        let best = self.tables.best;
        let mut end = EndedXids::below(mark);
        let mut tries = 0;
        loop {
            let bound = XidBound::Fixed(end.clone());
            let sql = sql::count_by_xid(&self.tables.rows(best), self.durable_xid(), job, &bound, last);
            let rows = self.connection.query(sql).await?;
            let snapshot = self.snapshot_of(rows.first().ok_or(QueryError::NoRow)?)?;
            let mut counted = BTreeMap::new();
            for row in &rows {
                if let Some(xid) = row.try_get::<Option<i64>, _>("xid")? {
                    counted.insert(xid as u64, row.try_get::<i64, _>("count")? as u64);
                }
            }
            let last_committed = counted.keys().next_back().map_or(0, |last| last + 1);
            let is_short = counted.len() <= MAX_COUNTED_XIDS;
            let mut position = Position::new_settled(best, end.clone(), counted).in_life(self.tables.life);
            if is_short || (tries > 0 && position.fits_cursor()) || tries == MAX_LISTS {
                return Ok(position);
            }
            if best.xids == XidSource::Column && !snapshot.is_standby {
                position.settle_by_snapshot(&snapshot);
                return Ok(position);
            }
            let settled = Position::new_settled(best, EndedXids::below(mark), BTreeMap::new());
            let list = self.list_open(&settled, last_committed, false).await?;
            let Some(list) = list.filter(|list| list.ended.mark > mark) else { return Ok(position) };
            end = list.ended.truncated(list.durable_xid);
            if end.open.is_empty() && end.mark == mark {
                return Ok(position);
            }
            tries += 1;
        }
    }

    /// Returns the position after all events of the job that are visible now; `None` if there is no such job.
    pub async fn newest_event(&mut self, job: &JobId) -> Result<Option<Standing>, QueryError> {
        if self.tables.events.job_id.canonical(job.as_str()).is_none() {
            return Ok(None);
        }
        let best = self.tables.best;
        let sql = sql::newest_event(&self.tables.rows(best), self.durable_xid(), job);
        let row = self.connection.query_one(sql).await?;
        if !row.try_get::<bool, _>("is_known")? {
            return Ok(None);
        }
        let mark = self.snapshot_of(&row)?.mark();
        let cursor = self.own_position(job, mark).await?.to_cursor(job);
        let status: Option<String> = row.try_get("status")?;
        let status = status.and_then(|status| self.store.settings.statuses.resolve(&status));
        Ok(Some(Standing { cursor, status }))
    }

    /// Returns the status of an ended job that has no status column, by the event that ended it.
    pub async fn read_final_event(&mut self, job: &JobId) -> Result<Option<JobStatus>, QueryError> {
        let (final_types, types) = (&self.store.settings.final_types, &self.store.settings.types);
        if self.tables.jobs.is_some() || final_types.all().next().is_none() {
            return Ok(None);
        }
        let name_of = |stored: &str| types.get(stored).map_or_else(|| stored.to_string(), String::clone);
        // The types as they are stored: those that have such a name, and those that keep their own.
        let named = types.iter().filter(|(_, name)| final_types.find(name).is_some()).map(|(stored, _)| &**stored);
        let own = final_types.all().filter(|name| !types.contains_key(*name));
        let answer = self.connection.query(sql::final_event(&self.tables, job, named.chain(own))).await?;
        let kind: Option<String> = answer.first().map(|row| row.try_get("type")).transpose()?;
        Ok(kind.and_then(|kind| final_types.find(&name_of(&kind))))
    }

    /// Returns the status with which a job has ended, by its status column or by one of these events.
    pub fn final_status(&self, status: Option<&str>, events: &[(Event, Cursor)]) -> Option<JobStatus> {
        let settings = &self.store.settings;
        let by_event = || events.iter().rev().find_map(|(event, _)| settings.final_types.find(&event.kind));
        status.and_then(|status| settings.statuses.find(status)).or_else(by_event)
    }

    pub async fn job_summary(&mut self, job: &JobId) -> Result<Option<JobSummary>, QueryError> {
        if self.tables.events.job_id.canonical(job.as_str()).is_none() {
            return Ok(None);
        }
        let row = self.connection.query_one(sql::job_summary(&self.tables, job)).await?;
        if !row.try_get::<bool, _>("is_known")? {
            return Ok(None);
        }
        let status: Option<String> = row.try_get("status")?;
        let status = match status.and_then(|status| self.store.settings.statuses.resolve(&status)) {
            None => self.read_final_event(job).await?,
            status => status,
        };
        Ok(Some(JobSummary { job_id: job.clone(), status, last_event_at: row.try_get("last_event_at")? }))
    }

    pub async fn list_jobs(&mut self, status: Option<JobStatus>, limit: usize) -> Result<Vec<JobSummary>, QueryError> {
        let Some(jobs) = &self.tables.jobs else { return Ok(Vec::new()) };
        let answer = self.connection.query(sql::list_jobs(&self.tables, jobs, status, limit)).await?;
        // A row that is no job of ours, by its id, is left out.
        let summary = |row: &PgRow| {
            let status: Option<String> = row.try_get("status").ok()?;
            Some(JobSummary {
                job_id: row.try_get::<String, _>("job_id").ok()?.parse().ok()?,
                status: status.and_then(|status| self.store.settings.statuses.resolve(&status)),
                last_event_at: row.try_get("last_event_at").ok()?,
            })
        };
        Ok(answer.iter().filter_map(summary).collect())
    }
}
