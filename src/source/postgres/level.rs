//! Fixes levels, up to which many jobs are read: see `position/level.rs`. Finds places from the end of a history.

use super::error::QueryError;
use super::page::{MAX_KEY_BYTES, MAX_LIST_BYTES, PageEnd, PageRows, Sizes, raw_bytes};
use super::position::{EndedXids, Key, KeyId, Position};
use super::session::Session;
use super::snapshot::Snapshot;
use super::sql::{self, ManyQuery};
use super::tables::{Tables, XidSource};
use crate::cursor::{Cursor, Level};
use crate::event::JobId;
use sqlx::Row;
use sqlx::postgres::PgRow;

impl Snapshot {
    /// The level of a look by which every row that it shows is of a transaction below `durable_xid`, with what is known
    /// of others below `known`. `None` where the snapshot does not tell, or the level has no room in a cursor.
    pub fn level(&self, tables: &Tables, known: u64) -> Option<Position> {
        if tables.best.xids == XidSource::System || self.is_standby {
            return None;
        }
        let ended = self.listed().truncated(self.durable_xid.max(known));
        Some(Position::at_level(tables.best, ended, tables.life)).filter(Position::fits_list)
    }
}

impl Position {
    /// The level as readers of many jobs have it.
    pub fn to_level(&self) -> Level {
        Level { version: self.scheme.letter(), inside: self.to_bytes(Cursor::MAX_INSIDE).0.into() }
    }

    /// Returns true for a level that a cursor has room for, also where a range goes on from it.
    pub fn fits_list(&self) -> bool {
        self.encoded_length() <= MAX_LIST_BYTES
    }

    /// Returns true if a cursor has room for this position in the midst of a range that ends with `level`.
    pub fn has_room_up_to(&self, level: &Self) -> bool {
        self.scheme == level.scheme
            && self.at_range_start(level.settled()).encoded_length() + MAX_KEY_BYTES <= Cursor::MAX_INSIDE
    }
}

impl Session<'_> {
    /// Fixes a level that holds every row of these jobs that is visible now. `None` where the server cannot tell it, or it
    /// has no room in a cursor, and with `source.dedupe`: a level is of no moment.
    pub async fn fix_level<'j>(
        &mut self,
        jobs: impl Iterator<Item = &'j JobId>,
    ) -> Result<Option<Position>, QueryError> {
        let (best, life) = (self.tables.best, self.tables.life);
        if self.first_versions().is_some() {
            return Ok(None);
        }
        let nothing = Position::at_level(best, EndedXids::default(), life);
        let Some(list) = self.list_open(&nothing, 0, false).await? else { return Ok(None) };
        // A standby cannot be asked for the moment of its own snapshot: its jobs are read one by one.
        if list.is_standby {
            return Ok(None);
        }
        let mut durable_xid = list.durable_xid;
        if best.xids == XidSource::System && durable_xid < list.xmax {
            // No index finds the last row, so the list's own statement did not look for it.
            let sql = sql::last_xid(&self.tables.rows(best), durable_xid, jobs);
            let last: Option<i64> = self.connection.query_one(sql).await?.try_get("last_xid")?;
            durable_xid = durable_xid.max(last.map_or(0, |last| last as u64 + 1)).min(list.xmax);
        }
        let is_whole = list.ended.mark >= durable_xid;
        Ok(is_whole.then(|| Position::at_level(best, list.ended.truncated(durable_xid), life)))
    }

    /// Reads the first rows of several jobs that stand at one place: one result for each, in their order.
    pub async fn first_rows(&mut self, query: &ManyQuery<'_>) -> Result<Vec<PageRows>, QueryError> {
        let sql = sql::pages(&self.tables, self.durable_xid(), self.store.expansion.factor(), query);
        let rows = self.connection.query(sql).await?;
        let snapshot = self.snapshot_of(rows.first().ok_or(QueryError::NoRow)?)?;
        let mut pages: Vec<PageRows> = Vec::with_capacity(query.jobs.len());
        let (mut last_place, mut sizes) = (0, Sizes::default());
        for row in &rows {
            let place: i64 = row.try_get("place")?;
            if place != last_place {
                last_place = place;
                let (status, has_job) = (row.try_get("status")?, row.try_get("has_job")?);
                let answer = PageEnd { snapshot: snapshot.clone(), status, has_job };
                pages.push(PageRows::new(answer, query.end.clone(), self.tables.best));
            }
            let is_row = row.try_get::<Option<i32>, _>("part")?.is_some();
            let page = pages.last_mut().filter(|page| is_row && page.rows.len() <= query.limit.events);
            if let (Some(page), Some(job)) = (page, query.jobs.get(place as usize - 1)) {
                page.add(row, job, self, query.position, &mut sizes)?;
            }
        }
        sizes.teach(&self.store.expansion);
        if pages.iter().flat_map(|page| &page.rows).any(|row| row.xid >= snapshot.xmax) {
            return Err(QueryError::OtherLife);
        }
        if pages.len() == query.jobs.len() { Ok(pages) } else { Err(QueryError::NoRow) }
    }

    /// Returns the position before the job's last `count` events, by key; `None` if there is no such job.
    pub async fn before_last(&mut self, job: &JobId, count: usize) -> Result<Option<Cursor>, QueryError> {
        if self.tables.events.job_id.canonical(job.as_str()).is_none() {
            return Ok(None);
        }
        let level = self.fix_level(std::iter::once(job)).await?;
        let end = level.as_ref().map(Position::settled);
        let rows = self.tables.rows(self.tables.best);
        let sql = sql::key_from_end(&rows, self.durable_xid(), job, end, count);
        let row = self.connection.query_one(sql).await?;
        let snapshot = self.snapshot_of(&row)?;
        if !row.try_get::<bool, _>("is_known")? {
            return Ok(None);
        }
        let Some(key) = key_of(&row)? else { return Ok(Some(Position::beginning().to_cursor(job))) };
        let end = match level {
            Some(level) => level,
            // As after an event that was looked up: what commits meanwhile with a lower key counts as before it.
            None => self.count_newer(job, snapshot.mark(), Some(&key)).await?,
        };
        Ok(Some(end.up_to_key(key).to_cursor(job)))
    }
}

/// Reads the columns of [`sql::EventRows::key_list`]; `None` where they are null.
fn key_of(row: &PgRow) -> Result<Option<Key>, QueryError> {
    if let Some(number) = row.try_get("number")? {
        return Ok(Some(Key::Number(number)));
    }
    let Some(at) = row.try_get("time_key")? else { return Ok(None) };
    let id = raw_bytes(row, "id")?.unwrap_or_default();
    let id = std::str::from_utf8(&id).map_or_else(|_| KeyId::digest_of(&id), KeyId::of);
    Ok(Some(Key::Time { at, id }))
}
