//! The moment that an answer is of: its snapshot, and what of that a crash of the server does not change.

use super::Store;
use super::link::Link;
use super::position::{Ended, Position};
use super::table::{Age, Mark, Tables};
use crate::event::JobId;
use sqlx::Row;
use sqlx::postgres::PgRow;
use std::sync::PoisonError;

/// What one row of an answer says of the moment that it is of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    pub snapshot: String,
    /// Every transaction below it has ended.
    pub xmin: u64,
    /// No transaction at or above it has begun.
    pub xmax: u64,
    /// What was visible below it stays so, also after a crash.
    pub reached: u64,
    pub is_standby: bool,
    /// How far the log has got.
    pub inserted: Option<i64>,
}

/// What [`Store::moment`] reads.
pub const MOMENT: &str = "s.snapshot, s.xmin, s.xmax, m.reached, s.is_standby, s.inserted, s.flushed";
/// How many columns that is.
pub const MOMENT_COLUMNS: usize = 7;

/// How far the server's memory of transactions would survive a crash.
///
/// A transaction that rolled back leaves nothing on the disk that anybody waits for. When the server crashes just then,
/// it does not know any more that there was one, and gives the same id to another, which may commit. So a mark that is
/// to be remembered must not lie above what the log on the disk has: all that was written to the log when the mark was
/// read. A transaction that has committed, and all before it, is there (with `synchronous_commit` on).
#[derive(Default)]
pub struct Durable {
    mark: u64,
    /// A mark, and how far the log must be on the disk until it counts.
    next: Option<(u64, i64)>,
}

impl Durable {
    /// Answers overtake each other, but not by so many transactions.
    const LATE: u64 = 10_000;

    fn learn(&mut self, xmin: u64, inserted: Option<i64>, flushed: Option<i64>) {
        let (Some(inserted), Some(flushed)) = (inserted, flushed) else { return };
        if xmin + Self::LATE < self.mark {
            // another database, or another life of it
            *self = Self::default();
        }
        if let Some((mark, _)) = self.next.take_if(|(_, end)| *end <= flushed) {
            self.mark = self.mark.max(mark);
        }
        if inserted <= flushed {
            self.mark = self.mark.max(xmin);
        } else {
            self.next.get_or_insert((xmin, inserted));
        }
    }
}

impl Store {
    /// The head of a statement: `s`, its view of what has ended, and `m`, how far that may be remembered. Of what has
    /// committed, which may always be, it looks at one job, or, where an index can tell, at all.
    pub fn snapshot(&self, tables: &Tables, job: Option<&JobId>) -> String {
        let durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner).mark;
        let (inserted, flushed) = match tables.tells_log {
            true => ("pg_current_wal_insert_lsn() - '0/0'", "pg_current_wal_flush_lsn() - '0/0'"),
            false => ("1", "0"),
        };
        let of_job = job.map_or_else(|| "true".into(), |job| tables.job_id.is(job.as_str()));
        let committed = match (job, tables.age()) {
            (None, Age::System) => "0".into(),
            _ => format!(
                "coalesce((SELECT {xid} + 1 FROM {} e WHERE {of_job} AND {} ORDER BY {raw} DESC LIMIT 1), 0)",
                tables.events,
                tables.since(&Mark::At(Ended::below(durable.max(1)))),
                xid = tables.xid(),
                raw = tables.raw_xid(),
            ),
        };
        format!(
            "WITH s AS MATERIALIZED (
               SELECT now::text AS snapshot, pg_snapshot_xmin(now)::text::bigint AS xmin,
                      pg_snapshot_xmax(now)::text::bigint AS xmax, is_standby,
                      pg_snapshot_xmax(now)::text::bigint + age(pg_snapshot_xmax(now)::xid) AS base,
                      (CASE WHEN NOT is_standby THEN {inserted} END)::bigint AS inserted,
                      (CASE WHEN NOT is_standby THEN {flushed} END)::bigint AS flushed
               FROM (SELECT pg_current_snapshot() AS now, pg_is_in_recovery() AS is_standby) one
             ), r AS MATERIALIZED (
               SELECT CASE WHEN is_standby OR flushed >= inserted THEN xmax
                           ELSE least(xmax, greatest({durable}, {committed})) END AS reached FROM s
             ), m AS MATERIALIZED (
               SELECT reached, least(xmin, reached) AS mark, least(xmin, reached)::text::xid8 AS mark8 FROM s, r
             )"
        )
    }

    /// Whether nothing has begun or ended, and nothing was written, since a moment of a primary. Touches no table.
    pub async fn is_now(&self, link: &mut Link, tables: &Tables, then: &Moment) -> Result<bool, sqlx::Error> {
        let inserted = if tables.tells_log { "(pg_current_wal_insert_lsn() - '0/0')::bigint" } else { "1::bigint" };
        let sql = format!(
            "SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_current_snapshot()::text = '{}' AND {inserted} = {} END",
            then.snapshot,
            then.inserted.unwrap_or(0),
        );
        let answer = link.ask(sql).await?;
        let is_now: Option<bool> = answer.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)?;
        Ok(is_now.unwrap_or(false))
    }

    /// The columns of [`MOMENT`].
    pub fn moment(&self, row: &PgRow) -> Result<Moment, sqlx::Error> {
        let moment = Moment {
            snapshot: row.try_get(0)?,
            xmin: row.try_get::<i64, _>(1)? as u64,
            xmax: row.try_get::<i64, _>(2)? as u64,
            reached: row.try_get::<i64, _>(3)? as u64,
            is_standby: row.try_get(4)?,
            inserted: row.try_get(5)?,
        };
        let mut durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        durable.learn(moment.xmin, moment.inserted, row.try_get(6)?);
        Ok(moment)
    }
}

impl Moment {
    /// Every transaction below it has ended, and a crash does not change that.
    pub fn mark(&self) -> u64 {
        self.xmin.min(self.reached)
    }

    /// Whether a position can be of this database and this time at all.
    pub fn may_know(&self, position: &Position) -> bool {
        position.ceiling() <= self.xmax
    }
}
