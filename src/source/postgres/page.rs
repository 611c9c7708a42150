//! Reads the next rows of one job after a position, and turns them into events with cursors.
//!
//! A cursor has at most 128 bytes ([`Cursor::MAX_BYTES`]): a letter for the scheme, and base64url of 4 bytes of checksum
//! and 91 bytes of position ([`Cursor::MAX_INSIDE`]). The position's bytes are shared out like this:
//!
//! | part | bytes | bound |
//! |---|---|---|
//! | settled mark, with a list of open transactions, and what is said of a floor | 36 | [`MAX_LIST_BYTES`] |
//! | counts beside it, while there is no range | 10 | [`MAX_COUNTED_BYTES`], of both together |
//! | key of a range | 28 | [`MAX_KEY_BYTES`] |
//! | end of a range, as it differs from what is settled | 17 or more | the rest of 91 |
//!
//! A cursor counts [`MAX_COUNTED_XIDS`] transactions without ado; where there are more, or a transaction at or above the
//! mark has a long history, the open ones are listed instead: `open_list.rs`. Where a cursor has no room for anything new,
//! the read may wait until some of them have ended ([`PageRows::is_cramped`]). In the end it repeats rows rather than
//! lose one.

mod cursors;
mod delivery;
#[cfg(test)]
mod tests;

pub use self::delivery::{Delivered, NoRoom};
use super::error::QueryError;
use super::expansion::Expansion;
use super::first_versions::FirstVersions;
use super::open_list::OpenList;
use super::position::{EndedXids, Floor, Key, KeyId, Position};
use super::session::Session;
use super::snapshot::Snapshot;
use super::sql::{self, PageQuery, Scope, XidBound};
use super::tables::CursorScheme;
use crate::cursor::Cursor;
use crate::event::{Event, JobId, Part, text_of};
use crate::source::Limit;
use jiff::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{Row, ValueRef};
use std::collections::BTreeSet;

/// Most transactions that a position counts before the open ones are listed instead.
pub const MAX_COUNTED_XIDS: usize = 3;
/// Most transactions that a cursor counts at all, since each costs the next read a subquery.
const MAX_COUNTS: usize = 20;
/// Most rows that a cursor counts of one transaction.
const MAX_COUNT: u64 = 1 << 40;
/// Most rows of one transaction that are counted without ado. Honest cursors seldom have more: a long history is
/// delivered by key, in a range.
const MAX_CHEAP_COUNT: u64 = 10_000;
/// Most bytes of a position that is nothing but a mark and a list of open transactions.
pub const MAX_LIST_BYTES: usize = 36;
/// Most bytes of a position that also counts.
const MAX_COUNTED_BYTES: usize = 46;
/// Most bytes of a key: its kind, a time, and an id of 16 bytes with its length.
pub const MAX_KEY_BYTES: usize = 28;

/// An event as the database has it.
pub struct StoredRow {
    pub xid: u64,
    pub key: Key,
    pub event: Event,
    /// A later version of an event that was delivered.
    is_repeat: bool,
}

impl StoredRow {
    /// Reads the columns of [`sql::EventRows::select_list`].
    pub fn parse(row: &PgRow, job: &JobId, session: &Session) -> Result<Self, QueryError> {
        let mut unreadable = Vec::new();
        let time_key: i64 = row.try_get("time_key")?;
        let at: Option<i64> = row.try_get("at")?;
        let raw_id = raw_bytes(row, "id")?.unwrap_or_default();
        let digest = KeyId::digest_of(&raw_id);
        let id = text_of(Part::Id, raw_id, &mut unreadable);
        let key = match row.try_get("number")? {
            Some(number) => Key::Number(number),
            None if unreadable.is_empty() => Key::Time { at: time_key, id: KeyId::of(&id) },
            None => Key::Time { at: time_key, id: digest },
        };
        let mut text = |part, column| -> Result<Option<String>, QueryError> {
            Ok(raw_bytes(row, column)?.map(|bytes| text_of(part, bytes, &mut unreadable)))
        };
        let (step_id, kind) = (text(Part::StepId, "step_id")?, text(Part::Type, "type")?.unwrap_or_default());
        let actor = text(Part::Actor, "actor")?;
        let payload = session.tables.events.columns.payload.read(raw_bytes(row, "payload")?, &mut unreadable);
        let has_time = row.try_get("has_time")?;
        let timestamp = at.and_then(|at| Timestamp::from_microsecond(at).ok()).filter(|_| has_time);
        if timestamp.is_none() && has_time {
            unreadable.push(Part::Timestamp);
        }
        let event = Event {
            id,
            job_id: job.clone(),
            step_id,
            kind: session.store.settings.types.get(&kind).cloned().unwrap_or(kind),
            timestamp,
            actor,
            payload,
            unreadable,
        };
        Ok(Self { xid: row.try_get::<i64, _>("xid")? as u64, key, event, is_repeat: false })
    }

    /// Marks a version of an event that was delivered at a position in this one or another.
    pub fn compared_with_first(mut self, session: &Session, position: &Position) -> Self {
        self.is_repeat =
            session.first_versions().is_some_and(|known| known.repeats(&self, position, session.tables.life));
        self
    }
}

/// The bytes of payloads, and of how they are stored.
#[derive(Default)]
pub struct Sizes {
    payloads: u64,
    whole: u64,
    compressed: u64,
}

impl Sizes {
    /// Adds those of a row with the columns of [`sql::EventRows::select_list_up_to`].
    fn add(&mut self, row: &PgRow, stored: &StoredRow) -> Result<(), QueryError> {
        self.payloads += stored.event.payload.as_json().len() as u64;
        self.whole += row.try_get::<i32, _>("whole_bytes")? as u64;
        self.compressed += row.try_get::<i32, _>("compressed_bytes")? as u64;
        Ok(())
    }

    pub fn teach(&self, expansion: &Expansion) {
        expansion.learn(self.payloads, self.whole, self.compressed);
    }
}

/// The bytes of a text, which are no UTF-8 where the database has no encoding. `None` for null.
pub fn raw_bytes(row: &PgRow, column: &str) -> Result<Option<Vec<u8>>, QueryError> {
    let value = row.try_get_raw(column)?;
    if value.is_null() {
        return Ok(None);
    }
    let bytes = value.as_bytes().map_err(sqlx::Error::Decode)?;
    Ok(Some(bytes.to_vec()))
}

/// Rows of a job that were not delivered at a position, and what else the same statement read.
pub struct PageRows {
    pub snapshot: Snapshot,
    pub status: Option<String>,
    /// The job table has the job.
    pub has_job: bool,
    /// The rows of the settled part by key, then the newer rows by key.
    pub rows: Vec<StoredRow>,
    /// End of the settled part.
    pub end: EndedXids,
    /// Everything that had ended before, if the open transactions were listed.
    pub listed: Option<EndedXids>,
    /// Rows were left out, for the next read.
    pub has_more: bool,
    /// The newer rows are not all there are of their transactions.
    is_cut: bool,
    /// Further rows have no room beside the payloads of these, and are not among them.
    is_full: bool,
    /// The page is of all rows that were not delivered at the position, as far as it goes.
    is_of_all: bool,
    /// The position after all of this is one of a moment, as `source.dedupe` needs it.
    notes_moment: bool,
    /// The page is of the rows above this floor.
    floor: Option<Floor>,
    /// A number or time that all of the job's rows are at or below but the newest. `None` where it has no more, and where new
    /// rows are looked for by neither.
    pub reach: Option<Floor>,
    /// Scheme that the position may go on in, once it is caught up.
    best: CursorScheme,
}

/// The part of an answer of the database that is no row.
pub struct PageEnd {
    pub snapshot: Snapshot,
    pub status: Option<String>,
    pub has_job: bool,
}

impl Session<'_> {
    /// Reads the next rows of a job after `position`, about `limit`. Never returns without rows while there are some, but
    /// for a page that [`PageRows::is_cramped`], if the reader `can_wait`. A range that has none left is finished.
    pub async fn read_rows(
        &mut self,
        scope: Scope<'_>,
        position: &mut Position,
        can_wait: bool,
    ) -> Result<PageRows, QueryError> {
        if position.is_beginning() {
            position.adopt(self.tables.best);
        }
        position.settle_in(&self.tables);
        if let Some(floor) = position.floor_of_range() {
            let mut part = position.part_above();
            if let Some(page) = self.rest_of_range(Scope { floor: Some(floor), ..scope }, &mut part, None).await? {
                return Ok(page);
            }
            *position = position.with_part_above(floor, &part);
        }
        self.read_scope(scope, position, can_wait).await
    }

    /// Reads the next rows above the floor of `scope`, which is that of what the position says of such rows, if it does.
    pub async fn read_rows_above(&mut self, scope: Scope<'_>, position: &Position) -> Result<PageRows, QueryError> {
        self.read_scope(scope, &mut position.part_above(), true).await
    }

    async fn read_scope(
        &mut self,
        scope: Scope<'_>,
        position: &mut Position,
        can_wait: bool,
    ) -> Result<PageRows, QueryError> {
        loop {
            let end = self.next_range_end(&scope, position).await?;
            let page = self.query_page(PageQuery { scope, position, end, published_by: None }).await?;
            let is_cut = page.is_cut;
            let counted = page.counted_xids(position).len();
            if counted <= MAX_COUNTED_XIDS && (!is_cut || counted == 0) {
                return Ok(page);
            }
            if position.range().is_some() {
                if let Some(page) = page.finish_foreign_range(position) {
                    return Ok(page);
                }
                continue;
            }
            let page = match self.list_open(position, page.durable_xid(0), is_cut).await? {
                None => Some(page),
                Some(list) if is_cut => self.extend_range(scope, position, page, list).await?,
                Some(list) => self.reread_by_list(scope, position, page, list).await?,
            };
            if let Some(page) = page {
                return Ok(page.truncated_to_cursor(position, can_wait));
            }
        }
    }

    /// Reads the rows that are left of a range, by themselves. `None`, and the range is finished, where there are none.
    async fn rest_of_range(
        &mut self,
        scope: Scope<'_>,
        position: &mut Position,
        published_by: Option<&Position>,
    ) -> Result<Option<PageRows>, QueryError> {
        let Some(range) = position.range() else { return Ok(None) };
        let end = XidBound::Fixed(range.end.clone());
        let page = self.query_page(PageQuery { scope, position, end, published_by }).await?;
        Ok(page.finish_foreign_range(position))
    }

    /// Chooses the end of the settled part: that of an unfinished range, else the mark.
    async fn next_range_end(&mut self, scope: &Scope<'_>, position: &Position) -> Result<XidBound, QueryError> {
        if let Some(range) = position.range() {
            return Ok(XidBound::Fixed(range.end.clone()));
        }
        if position.settled().open.is_empty() {
            return Ok(XidBound::OwnMark);
        }
        // With a list the end depends on the mark, so the mark is read first. It only rises.
        let snapshot = self.read_snapshot(position, scope).await?;
        Ok(XidBound::Fixed(position.next_end(snapshot.mark())))
    }

    /// For newer rows of many transactions: reads again after the open ones were listed, so that the rows are all there
    /// are of those that have ended by the list. `None`: read again.
    async fn reread_by_list(
        &mut self,
        scope: Scope<'_>,
        position: &Position,
        page: PageRows,
        list: OpenList,
    ) -> Result<Option<PageRows>, QueryError> {
        let durable_xid = page.durable_xid(list.durable_xid);
        let end = XidBound::Fixed(page.end);
        let page = self.query_page(PageQuery { scope, position, end, published_by: None }).await?;
        if page.is_cut {
            return Ok(None);
        }
        let counted = position.counted().keys().chain(&position.settled().also).map(|xid| xid + 1);
        let durable_xid = counted.fold(page.durable_xid(durable_xid), u64::max);
        let listed = list.ended.truncated(durable_xid);
        // What is said of a floor speaks of transactions that have ended, too, and the page has what is left of them.
        let listed = position.above().map_or(listed.clone(), |above| listed.union(&above.ended));
        Ok(Some(PageRows { listed: Some(listed), ..page }))
    }

    /// For a long history at or above the mark: delivers everything but the open transactions by key, in a range that
    /// ends with their list. `None`: read again.
    async fn extend_range(
        &mut self,
        scope: Scope<'_>,
        position: &Position,
        page: PageRows,
        list: OpenList,
    ) -> Result<Option<PageRows>, QueryError> {
        let end = page.end.union(&list.ended.truncated(page.durable_xid(list.durable_xid)));
        if end == page.end {
            return Ok(Some(page));
        }
        let end = XidBound::Fixed(end);
        let mut longer = self.query_page(PageQuery { scope, position, end, published_by: None }).await?;
        longer.rows.retain(|row| longer.end.contains(row.xid));
        if !longer.rows.is_empty() {
            return Ok(Some(PageRows { has_more: true, ..longer }));
        }
        // The list had no room for the transactions that have rows.
        let is_beyond_list = page.rows.iter().any(|row| !longer.end.contains(row.xid));
        Ok(is_beyond_list.then_some(page))
    }

    /// Reads the rows that a joining reader lacks of those that were `published` to the job's channel. The published rows
    /// are fixed, so the reader needs no snapshot in common with the tail. `None` if they are more than `limit`.
    pub async fn read_missing(
        &mut self,
        job: &JobId,
        position: &mut Position,
        published: &Position,
        limit: Limit,
    ) -> Result<Option<Vec<(Event, Cursor)>>, QueryError> {
        let (mut missing, scope) = (Vec::new(), Scope::of(job, limit));
        if let Some(floor) = position.floor_of_range() {
            let (of_range, mut part) = (Scope { floor: Some(floor), ..scope }, position.part_above());
            match self.rest_of_range(of_range, &mut part, Some(published)).await? {
                None => *position = position.with_part_above(floor, &part),
                Some(page) => missing.extend(page.deliver(job, position, limit).0),
            }
            if position.floor_of_range().is_some() {
                return Ok(None);
            }
        }
        loop {
            let range = position.range().map(|range| range.end.clone());
            let is_range = range.is_some();
            let end = range.unwrap_or_else(|| position.next_end(published.settled().lowest_open()));
            let end = XidBound::Fixed(end);
            let query = PageQuery { scope, position, end, published_by: Some(published) };
            let mut page = self.query_page(query).await?;
            if is_range {
                page.rows.retain(|row| page.end.contains(row.xid));
            } else if position.scheme == published.scheme {
                page.listed = Some(published.settled().clone());
            }
            let (events, is_last) = page.deliver(job, position, limit);
            missing.extend(events);
            if !is_last {
                return Ok(None);
            }
            if !is_range {
                return Ok(Some(missing));
            }
        }
    }

    pub async fn query_page(&mut self, query: PageQuery<'_>) -> Result<PageRows, QueryError> {
        let sql = sql::page(&self.tables, self.durable_xid(), self.store.expansion.factor(), &query);
        let seen_before = self.first_versions().map(FirstVersions::xmax);
        let rows = self.connection.query(sql).await?;
        let first = rows.first().ok_or(QueryError::NoRow)?;
        let snapshot = self.snapshot_of(first)?;
        if let Some((known, before)) = self.first_versions().zip(seen_before) {
            known.follow(before, snapshot.xmax);
        }
        let end = match query.end {
            XidBound::Fixed(end) => end,
            XidBound::OwnMark => query.position.next_end(snapshot.mark()),
        };
        let answer = PageEnd { snapshot, status: first.try_get("status")?, has_job: first.try_get("has_job")? };
        let reach: Option<i64> = first.try_get("reach")?;
        let reach = self.tables.rows(self.tables.best).look_column().zip(reach);
        let reach = reach.map(|(column, number)| column.floor(number));
        let Scope { job, floor, limit, .. } = query.scope;
        let is_of_all = query.published_by.is_none() && floor.is_none();
        let notes_moment = is_of_all && self.first_versions().is_some();
        let new = PageRows::new(answer, end, self.tables.best);
        let mut page = PageRows { reach, is_of_all, notes_moment, floor, ..new };
        // Without rows there is one that has only the snapshot and the status.
        let mut sizes = Sizes::default();
        for row in &rows {
            if row.try_get::<Option<i32>, _>("part")?.is_none() {
                break;
            }
            page.add(row, job, self, query.position, &mut sizes)?;
        }
        sizes.teach(&self.store.expansion);
        if page.rows.iter().any(|row| row.xid >= page.snapshot.xmax) {
            return Err(QueryError::OtherLife);
        }
        page.is_cut = page.is_full || page.rows.len() > limit.events;
        Ok(page)
    }
}

impl PageRows {
    /// The end of a page, before its rows are known.
    pub fn new(answer: PageEnd, end: EndedXids, best: CursorScheme) -> Self {
        let PageEnd { snapshot, status, has_job } = answer;
        Self {
            snapshot,
            status,
            has_job,
            rows: Vec::new(),
            end,
            listed: None,
            has_more: false,
            is_cut: false,
            is_full: false,
            is_of_all: false,
            notes_moment: false,
            floor: None,
            reach: None,
            best,
        }
    }

    /// Adds the next row of a statement that reads after a position, unless the page is full.
    pub fn add(
        &mut self,
        row: &PgRow,
        job: &JobId,
        session: &Session,
        position: &Position,
        sizes: &mut Sizes,
    ) -> Result<(), QueryError> {
        self.is_full = self.is_full || row.try_get("is_withheld")?;
        if !self.is_full {
            let stored = StoredRow::parse(row, job, session)?.compared_with_first(session, position);
            sizes.add(row, &stored)?;
            self.rows.push(stored);
        }
        Ok(())
    }

    /// All but the rows.
    pub fn answer(&self) -> PageEnd {
        PageEnd { snapshot: self.snapshot.clone(), status: self.status.clone(), has_job: self.has_job }
    }

    /// Transactions that a position counts when all of this is delivered.
    fn counted_xids(&self, position: &Position) -> BTreeSet<u64> {
        let counted = position.counted().keys().chain(&position.settled().also).copied();
        self.rows.iter().map(|row| row.xid).chain(counted).filter(|xid| !self.end.contains(*xid)).collect()
    }

    /// Returns true where a cursor has no room for any of the rows that there are, so the page has none of them. It will
    /// when some of the open transactions have ended.
    pub fn is_cramped(&self) -> bool {
        self.rows.is_empty() && self.has_more
    }

    /// Raises a durable mark by the rows: those that are visible have committed, which a crash does not undo.
    fn durable_xid(&self, durable_xid: u64) -> u64 {
        self.rows.iter().map(|row| row.xid + 1).fold(durable_xid, u64::max)
    }

    /// Keeps only the rows of a range that an earlier read left unfinished. `None`, and the range is finished, if it has
    /// none left.
    fn finish_foreign_range(mut self, position: &mut Position) -> Option<Self> {
        self.rows.retain(|row| self.end.contains(row.xid));
        if self.rows.is_empty() {
            position.finish(&self.end);
            return None;
        }
        self.has_more = true;
        Some(self)
    }
}
