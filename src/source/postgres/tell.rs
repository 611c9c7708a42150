//! What one job has for one position, as statements and as steps of delivery.

use super::link::Link;
use super::moment::{MOMENT, MOMENT_COLUMNS, Moment};
use super::position::{self, Ended, Key, KeyId, Position};
use super::table::{Age, Mark, Tables, View};
use super::{Store, literal};
use crate::cursor::Cursor;
use crate::event::{Event, JobId, JobStatus, Payload};
use crate::source::Limit;
use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::PgRow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// When a position counts more transactions, it is time to list the open ones instead.
pub const MANY: usize = 3;
/// What a list of open ones may take of a cursor, in bytes.
const LIST_BYTES: usize = 30;
/// Within so many bytes transactions are counted beside that. A range that ends with a list has room then, too.
const LEVEL_BYTES: usize = 42;
/// What a key takes, at most.
const KEY_BYTES: usize = 28;
/// Of so many transactions the database is asked, one by one, which of them are open.
pub const WIDEST: i64 = 100_000;

/// One event as the database has it.
pub struct Stored {
    pub xid: u64,
    pub key: Key,
    pub event: Event,
}

/// The columns of [`Tables::row`], from `first` on.
pub fn read_row(row: &PgRow, first: usize, job: &JobId) -> Result<Stored, sqlx::Error> {
    let at: i64 = row.try_get(first + 2)?;
    let id: String = row.try_get(first + 3)?;
    let key = match row.try_get(first + 1)? {
        Some(number) => Key::Number(number),
        None => Key::Time { at, id: KeyId::of(&id) },
    };
    let event = Event {
        id,
        job_id: job.clone(),
        step_id: row.try_get(first + 4)?,
        kind: row.try_get(first + 5)?,
        // one that no clock has shown is as old as can be
        timestamp: Timestamp::from_microsecond(at).unwrap_or(Timestamp::UNIX_EPOCH),
        actor: row.try_get(first + 6)?,
        payload: Payload::from_text(row.try_get::<Option<String>, _>(first + 7)?.unwrap_or_else(|| "null".into())),
    };
    Ok(Stored { xid: row.try_get::<i64, _>(first)? as u64, key, event })
}

impl Position {
    pub fn seal(&self, job: &JobId) -> Cursor {
        let (bytes, left_out) = self.to_bytes(Cursor::MAX_INSIDE);
        if left_out {
            crate::telemetry::CURSORS_SHORTENED.counter(&[]).increment(1);
            // once: the metric counts the rest
            static TOLD: std::sync::Once = std::sync::Once::new();
            TOLD.call_once(|| {
                tracing::warn!(%job, counted = self.counted().len(), "a cursor has no room for all that was counted: whoever resumes with it gets events twice, with the same ids");
            });
        }
        Cursor::seal(self.view.letter(), job, &bytes)
    }

    /// Whether a cursor can hold this list when it is settled, and before that, when a range is to end with it.
    fn has_room_for(&self, ended: &Ended, ends_range: bool) -> bool {
        let settled = Self::level(self.view, ended.clone(), BTreeMap::new());
        settled.length() <= LIST_BYTES && (!ends_range || self.amid(ended).length() + KEY_BYTES <= Cursor::MAX_INSIDE)
    }

    pub fn open(job: &JobId, text: &str) -> Option<Self> {
        let view = View::ALL.into_iter().find(|view| text.starts_with(view.letter()))?;
        Self::from_bytes(view, &Cursor::open(view.letter(), job, text)?)
    }
}

/// What a page statement told.
pub struct Told {
    pub moment: Moment,
    /// Where the range of this answer ends.
    pub end: Ended,
    pub listed: Option<Ended>,
    /// Beyond the range there is more, to be asked for when that is through.
    pub has_more: bool,
    pub status: Option<String>,
    pub has_job: bool,
    pub rows: Vec<Stored>,
    /// What a position may go on in.
    pub best: View,
}

/// That row `e` is among the first so many of its transaction: not beyond the key of the last of them.
fn is_counted(tables: &Tables, job: &JobId, (xid, count): (&u64, &u64)) -> String {
    let (of_xid, comparable) = (tables.of(*xid), tables.comparable_key());
    format!(
        "(({of_xid}) IS TRUE AND (({comparable}) > (SELECT {comparable} FROM {} e WHERE {} AND {of_xid}
          ORDER BY {} LIMIT 1 OFFSET {})) IS FALSE)",
        tables.events,
        tables.job_id.is(job.as_str()),
        tables.key(),
        count - 1
    )
}

/// That row `e` was delivered to one who is at this position, which is in no range.
fn is_delivered(tables: &Tables, job: &JobId, position: &Position) -> String {
    let tables = &*tables.seen_by(position.view);
    let settled = tables.before(&Mark::At(position.settled().clone()));
    let counted = position.counted().iter().map(|one| is_counted(tables, job, one));
    std::iter::once(settled).chain(counted).collect::<Vec<_>>().join(" OR ")
}

/// What is asked of one job.
pub struct Wanted<'a> {
    pub job: &'a JobId,
    /// What it has not been given.
    pub position: &'a Position,
    /// Where the range of the answer is to end.
    pub end: Mark,
    /// No more than what one who is level was given.
    pub within: Option<&'a Position>,
    /// So many rows and one, in each part of the answer.
    pub most: usize,
}

/// The statement for that, in the order of delivery: the range up to its end by key, then the others by key.
pub fn page_statement(head: &str, tables: &Tables, wanted: &Wanted) -> String {
    let Wanted { job, position, end, within, most } = wanted;
    let mut of_job = tables.job_id.is(job.as_str());
    if let Some(within) = within {
        let _ = write!(of_job, " AND ({})", is_delivered(tables, job, within));
    }
    let (key, row, events, limit) = (tables.key(), tables.row(), &tables.events, most + 1);
    let since = tables.since(&Mark::At(position.settled().clone()));
    let before = tables.before(end);
    let counted: String =
        position.counted().iter().map(|one| format!(" AND NOT {}", is_counted(tables, job, one))).collect();
    let until = position.range().map(|(_, key)| key);
    let settled = match tables.halves() {
        None => {
            let beyond_key = until.map_or_else(|| "true".into(), |key| tables.after(job.as_str(), key));
            format!(
                "settled AS MATERIALIZED (
                   SELECT 0 AS part, {row} FROM {events} e
                   WHERE {of_job} AND {since} AND {before} AND {beyond_key}{counted} ORDER BY {key} LIMIT {limit}
                 )"
            )
        }
        // in two parts, so that an index can serve each
        Some((unnumbered, numbered)) => {
            let (first, then) = match until {
                None => ("true".into(), "true".into()),
                Some(key @ Key::Time { .. }) => (unnumbered.after(job.as_str(), key), "true".into()),
                Some(key @ Key::Number(_)) => ("false".into(), numbered.after(job.as_str(), key)),
            };
            format!(
                "unnumbered AS MATERIALIZED (
                   SELECT 0 AS part, {} FROM {events} e WHERE {of_job} AND {is_unnumbered} AND {since} AND {before}
                   AND {first}{counted} ORDER BY {} LIMIT {limit}
                 ), numbered AS MATERIALIZED (
                   SELECT 1 AS part, {} FROM {events} e WHERE (SELECT count(*) FROM unnumbered) < {limit}
                   AND {of_job} AND NOT {is_unnumbered} AND {since} AND {before}
                   AND {then}{counted} ORDER BY {} LIMIT {limit}
                 ), settled AS (SELECT * FROM unnumbered UNION ALL SELECT * FROM numbered)",
                unnumbered.row(),
                unnumbered.key(),
                numbered.row(),
                numbered.key(),
                is_unnumbered = tables.is_unnumbered(),
            )
        }
    };
    let (status, has_job) = job_columns(tables, job);
    format!(
        "{head}, {settled}, newer AS (
           SELECT 2 AS part, {row} FROM {events} e
           WHERE (SELECT count(*) FROM settled) < {limit} AND {of_job} AND {since} AND {after}{counted}
           ORDER BY {key} LIMIT {limit}
         )
         SELECT {MOMENT}, {status}, {has_job}, r.* FROM s CROSS JOIN m
         LEFT JOIN (SELECT * FROM settled UNION ALL SELECT * FROM newer) r ON true ORDER BY r.part, r.place",
        after = tables.since(end),
    )
}

/// The job's status as a text, and whether the job table has it.
pub fn job_columns(tables: &Tables, job: &JobId) -> (String, String) {
    let Some(jobs) = &tables.jobs else { return ("NULL::text".into(), "false".into()) };
    let one = format!("FROM {} j WHERE {}", jobs.table, jobs.id.is(job.as_str()));
    (format!("(SELECT {}::text {one} LIMIT 1)", jobs.status), format!("EXISTS (SELECT {one})"))
}

impl Store {
    /// What a position lacks of one job, or the beginning of it: always something, where there is something. A range
    /// that has nothing left is finished.
    pub async fn tell(
        &self,
        link: &mut Link,
        tables: &Tables,
        job: &JobId,
        position: &mut Position,
        most: usize,
    ) -> Result<Told, sqlx::Error> {
        if position.is_beginning() {
            position.adopt(tables.best);
        }
        let tables = &*tables.seen_by(position.view);
        loop {
            let end = match position.range() {
                Some((end, _)) => Mark::At(end.clone()),
                None if position.settled().open.is_empty() => Mark::Now,
                // which end it is depends on the mark: that of a moment before
                None => {
                    let head = self.snapshot(tables, Some(job));
                    let answer = link.ask(format!("{head} SELECT {MOMENT} FROM s, m")).await?;
                    let first = answer.first().ok_or(sqlx::Error::RowNotFound)?;
                    Mark::At(position.next_end(self.moment(first)?.mark()))
                }
            };
            let mut told = self.ask(link, tables, Wanted { job, position, end, within: None, most }).await?;
            // beyond the end each transaction is counted: where they are many, or have much to tell, the open ones are
            // listed instead
            let is_cut = told.rows.len() > most;
            let beyond = told.beyond(position).len();
            if beyond <= MANY && !(is_cut && beyond > 0) {
                return Ok(told);
            }
            if position.range().is_some() {
                // first what a reader before us left unfinished
                told.rows.retain(|row| told.end.has(row.xid));
                if told.rows.is_empty() {
                    position.finish(&told.end);
                    continue;
                }
                return Ok(Told { has_more: true, ..told });
            }
            let Some((listed, reached)) = self.list_open(link, tables, position, is_cut).await? else {
                return Ok(told.that_fits(position));
            };
            // what has committed is not forgotten in a crash
            let reached = told.rows.iter().map(|row| row.xid + 1).fold(reached, u64::max);
            if !is_cut {
                let end = Mark::At(told.end.clone());
                let told = self.ask(link, tables, Wanted { job, position, end, within: None, most }).await?;
                if told.rows.len() <= most {
                    let counted = position.counted().keys().copied();
                    let committed = told.rows.iter().map(|row| row.xid).chain(counted).map(|xid| xid + 1);
                    let listed = listed.until(committed.fold(reached, u64::max));
                    return Ok(Told { listed: Some(listed), ..told }.that_fits(position));
                }
                continue;
            }
            let end = listed.until(reached);
            if end.mark <= told.end.mark {
                return Ok(told.that_fits(position));
            }
            let mut long =
                self.ask(link, tables, Wanted { job, position, end: Mark::At(end), within: None, most }).await?;
            long.rows.retain(|row| long.end.has(row.xid));
            if !long.rows.is_empty() {
                return Ok(Told { has_more: true, ..long });
            }
            if told.rows.iter().any(|row| !long.end.has(row.xid)) {
                // the list had no room for those who have something to tell
                return Ok(told.that_fits(position));
            }
        }
    }

    /// What one who joins lacks of what was delivered to the tail, which is level: it has been given all there was, and
    /// so what both were given does not depend on the moment. `None` where that is more than `limit`.
    pub async fn missing(
        &self,
        link: &mut Link,
        tables: &Tables,
        job: &JobId,
        position: &mut Position,
        level: &Position,
        limit: Limit,
    ) -> Result<Option<Vec<(Event, Cursor)>>, sqlx::Error> {
        let tables = &*tables.seen_by(position.view);
        let mut missing = Vec::new();
        loop {
            let range = position.range().map(|(end, _)| end.clone());
            let is_range = range.is_some();
            let end = range.unwrap_or_else(|| position.next_end(level.settled().floor()));
            let end = Mark::At(end);
            let mut told =
                self.ask(link, tables, Wanted { job, position, end, within: Some(level), most: limit.events }).await?;
            if is_range {
                told.rows.retain(|row| told.end.has(row.xid));
            } else if position.view == level.view {
                told.listed = Some(level.settled().clone());
            }
            let (events, is_last) = told.deliver(job, position, limit);
            missing.extend(events);
            if !is_last {
                return Ok(None);
            }
            if !is_range {
                return Ok(Some(missing));
            }
        }
    }

    pub async fn ask(&self, link: &mut Link, tables: &Tables, wanted: Wanted<'_>) -> Result<Told, sqlx::Error> {
        let Wanted { job, position, .. } = wanted;
        let head = self.snapshot(tables, matches!(wanted.end, Mark::Now).then_some(job));
        let answer = link.ask(page_statement(&head, tables, &wanted)).await?;
        let first = answer.first().ok_or(sqlx::Error::RowNotFound)?;
        let moment = self.moment(first)?;
        let mut told = Told {
            end: match wanted.end {
                Mark::At(end) => end,
                Mark::Now => position.next_end(moment.mark()),
            },
            listed: None,
            has_more: false,
            moment,
            status: first.try_get(MOMENT_COLUMNS)?,
            has_job: first.try_get(MOMENT_COLUMNS + 1)?,
            rows: Vec::new(),
            best: tables.best,
        };
        for row in &answer {
            if row.try_get::<Option<i32>, _>(MOMENT_COLUMNS + 2)?.is_some() {
                told.rows.push(read_row(row, MOMENT_COLUMNS + 4, job)?);
            }
        }
        Ok(told)
    }

    /// Everything that has ended by now, where an open transaction keeps the mark from telling, and how far that would
    /// survive a crash; `None` where the database cannot say. Not within a transaction: its snapshot may be older than the
    /// answer.
    pub async fn list_open(
        &self,
        link: &mut Link,
        tables: &Tables,
        position: &Position,
        ends_range: bool,
    ) -> Result<Option<(Ended, u64)>, sqlx::Error> {
        // a snapshot lists top-level ids, which is what the column has; the system column has those of savepoints, too,
        // and a standby lists nothing
        let listed = match tables.age() {
            Age::Column => "NOT is_standby",
            Age::System => "false",
        };
        let open = format!(
            "SELECT x::text::bigint AS x FROM s, pg_snapshot_xip(pg_current_snapshot()) x WHERE {listed}
             UNION ALL SELECT x FROM s, generate_series(s.xmin, s.xmax - 1) x
             WHERE NOT ({listed}) AND s.xmax - s.xmin < {WIDEST} AND pg_xact_status(x::text::xid8) = 'in progress'"
        );
        let head = self.snapshot(tables, None);
        let sql = format!("{head} SELECT {MOMENT}, o.x FROM s CROSS JOIN m LEFT JOIN ({open}) o ON true");
        let answer = link.ask(sql).await?;
        let moment = self.moment(answer.first().ok_or(sqlx::Error::RowNotFound)?)?;
        let mut open = BTreeSet::new();
        for row in &answer {
            open.extend(row.try_get::<Option<i64>, _>(MOMENT_COLUMNS)?.map(|xid| xid as u64));
        }
        let is_listed = tables.age() == Age::Column && !moment.is_standby;
        let is_known = is_listed || moment.xmax - moment.xmin < WIDEST as u64;
        let mut ended = Ended { mark: moment.xmax, open };
        // as far as fits into a cursor
        while !ended.open.is_empty() && !position.has_room_for(&ended, ends_range) {
            ended.mark = ended.open.pop_last().unwrap_or(ended.mark);
        }
        Ok(Some((ended, moment.reached)).filter(|(ended, _)| is_known && ended.mark >= position.settled().mark))
    }

    /// How a job without a status ended, by the event that says so.
    pub async fn final_event(
        &self,
        link: &mut Link,
        tables: &Tables,
        job: &JobId,
    ) -> Result<Option<JobStatus>, sqlx::Error> {
        let finals: Vec<String> = self.settings.final_types.all().map(literal).collect();
        if tables.jobs.is_some() || finals.is_empty() {
            return Ok(None);
        }
        let sql = format!(
            "SELECT {kind}::text FROM {} e WHERE {} AND {kind}::text = ANY (ARRAY[{}]::text[]) LIMIT 1",
            tables.events,
            tables.job_id.is(job.as_str()),
            finals.join(","),
            kind = tables.kind(),
        );
        let answer = link.ask(sql).await?;
        let kind: Option<String> = answer.first().map(|row| row.try_get(0)).transpose()?;
        Ok(kind.and_then(|kind| self.settings.final_types.find(&kind)))
    }

    /// How the job ended, as far as its status or its events say.
    pub fn ending(&self, status: Option<&str>, events: &[(Event, Cursor)]) -> Option<JobStatus> {
        let by_event = || events.iter().rev().find_map(|(event, _)| self.settings.final_types.find(&event.kind));
        status.and_then(|status| self.settings.statuses.find(status)).or_else(by_event)
    }
}

impl Told {
    /// The transactions that are counted when this is delivered.
    fn beyond(&self, position: &Position) -> BTreeSet<u64> {
        let counted = position.counted().keys().copied();
        self.rows.iter().map(|row| row.xid).chain(counted).filter(|xid| !self.end.has(*xid)).collect()
    }

    /// Without those beyond the range, and the list, that a cursor has no room to count. Where it has room for none of
    /// them and there is nothing else, with all: rather twice than never.
    fn that_fits(mut self, position: &Position) -> Self {
        let mut position = position.clone();
        let is_beyond = |xid| !self.end.has(xid) && !self.listed.as_ref().is_some_and(|listed| listed.has(xid));
        position.finish_all(&self.end, self.listed.as_ref());
        let mut rows: BTreeMap<u64, u64> = BTreeMap::new();
        self.rows.iter().filter(|row| is_beyond(row.xid)).for_each(|row| *rows.entry(row.xid).or_default() += 1);
        let mut dropped = BTreeSet::new();
        for (xid, count) in rows {
            let counted = position.clone();
            (0..count).for_each(|_| position.count(xid));
            if position.length() > LEVEL_BYTES {
                position = counted;
                dropped.insert(xid);
            }
        }
        if self.rows.iter().any(|row| !dropped.contains(&row.xid)) {
            self.rows.retain(|row| !dropped.contains(&row.xid));
            self.has_more |= !dropped.is_empty();
        }
        self
    }

    /// Delivers as many rows as `limit` allows: moves the position past each, and says whether those were all.
    pub fn deliver(self, job: &JobId, position: &mut Position, limit: Limit) -> (Vec<(Event, Cursor)>, bool) {
        let (mut events, mut bytes, mut is_last) = (Vec::new(), 0, true);
        let Self { rows, end, listed, has_more, best, .. } = self;
        // a count for each of few transactions is shorter than a range with its end
        let counts = position.range().is_none() && rows.len() <= limit.events && {
            let mut counted = position.clone();
            rows.iter().filter(|row| end.has(row.xid)).for_each(|row| counted.count(row.xid));
            counted.length() <= LEVEL_BYTES
        };
        let answer = position::Answer { rows, end: end.clone(), listed: listed.clone() };
        for (before, Stored { xid, key, event }) in answer.steps(position, LEVEL_BYTES, |row| row.xid) {
            if events.len() == limit.events || bytes > limit.bytes {
                is_last = false;
                break;
            }
            if let Some(ended) = before {
                position.finish(&ended);
            }
            bytes += event.payload.as_json().len();
            match counts {
                true => position.count(xid),
                false => position.take(xid, key, &end),
            }
            events.push((event, position.seal(job)));
        }
        if is_last {
            position.finish_all(&end, listed.as_ref());
            if has_more {
                return (events, false);
            }
            position.adopt(best);
        }
        (events, is_last)
    }
}
