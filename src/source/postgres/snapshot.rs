//! The snapshot that an answer of the database is of, and how much of it a crash of the server would not undo.

use super::error::QueryError;
use super::position::{EndedXids, Life, Position};
use super::session::Session;
use super::sql::{self, Scope};
use sqlx::Row;
use sqlx::postgres::PgRow;

/// The state of the server's transactions when a statement began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// `pg_current_snapshot()` as PostgreSQL writes it: `xmin:xmax:open,open`.
    pub text: String,
    /// Every transaction below it has ended.
    pub xmin: u64,
    /// No transaction at or above it has begun.
    pub xmax: u64,
    /// Rows of transactions below it that are visible stay so, also after a crash.
    pub durable_xid: u64,
    pub is_standby: bool,
    life: Option<Life>,
    /// Position up to which the log is written; `None` on a standby.
    wal_inserted: Option<i64>,
}

impl Snapshot {
    #[cfg(test)]
    pub fn of(xmin: u64, xmax: u64) -> Self {
        let text = format!("{xmin}:{xmax}:");
        Self { text, xmin, xmax, durable_xid: xmax, is_standby: false, life: None, wal_inserted: Some(0) }
    }

    /// The settled mark: every transaction below it has ended, and a crash does not change that.
    pub fn mark(&self) -> u64 {
        self.xmin.min(self.durable_xid)
    }

    /// Everything that had ended, as the snapshot of a primary lists it: top-level transactions only.
    pub fn listed(&self) -> EndedXids {
        let open = self.text.rsplit(':').next().unwrap_or_default();
        EndedXids::listed(self.xmax, open.split(',').filter_map(|xid| xid.parse().ok()).collect())
    }

    /// Returns false for a position that speaks of transactions which this database has not begun. It is of another
    /// database, of another life of it, or of a replica that is ahead.
    pub fn may_know(&self, position: &Position) -> bool {
        position.ceiling() <= self.xmax && !position.is_of_another_life(self.life)
    }
}

/// The highest settled mark that is known to survive a crash of the server.
///
/// A transaction that rolled back leaves nothing on the disk that anybody waits for. A server that crashes just then has
/// forgotten it, and gives its id to another transaction, which may commit. So a mark counts only when everything that
/// was in the log when the mark was read has been flushed. Committed transactions, and all before them, are on the disk
/// (with `synchronous_commit` on).
#[derive(Default)]
pub struct DurableMark {
    xid: u64,
    /// A higher mark that counts once the log is flushed up to `wal_inserted`.
    next: Option<NextMark>,
}

struct NextMark {
    xid: u64,
    wal_inserted: i64,
}

impl DurableMark {
    /// Answers may overtake each other by some transactions. A mark that falls by more is of another database, or of
    /// another life of it.
    const MAX_REORDERING: u64 = 10_000;

    fn learn(&mut self, xmin: u64, wal_inserted: i64, wal_flushed: i64) {
        if xmin + Self::MAX_REORDERING < self.xid {
            *self = Self::default();
        }
        if let Some(next) = self.next.take_if(|next| next.wal_inserted <= wal_flushed) {
            self.xid = self.xid.max(next.xid);
        }
        if wal_inserted <= wal_flushed {
            self.xid = self.xid.max(xmin);
        } else {
            self.next.get_or_insert(NextMark { xid: xmin, wal_inserted });
        }
    }

    pub fn xid(&self) -> u64 {
        self.xid
    }
}

impl Session<'_> {
    /// Reads the snapshot columns of a row.
    /// Fails where another server has answered than the one whose tables these are.
    pub fn snapshot_of(&self, row: &PgRow) -> Result<Snapshot, QueryError> {
        let life: Option<String> = row.try_get("life")?;
        if self.store.is_elsewhere(self.tables.life, life.as_deref().map(Life::of)) {
            return Err(QueryError::OtherServer);
        }
        let snapshot = Snapshot {
            text: row.try_get("snapshot_text")?,
            xmin: row.try_get::<i64, _>("xmin")? as u64,
            xmax: row.try_get::<i64, _>("xmax")? as u64,
            durable_xid: row.try_get::<i64, _>("durable_xid")? as u64,
            is_standby: row.try_get("is_standby")?,
            life: self.tables.life,
            wal_inserted: row.try_get("wal_inserted")?,
        };
        let wal_flushed: Option<i64> = row.try_get("wal_flushed")?;
        if let (Some(wal_inserted), Some(wal_flushed)) = (snapshot.wal_inserted, wal_flushed) {
            self.store.durable_mark().learn(snapshot.xmin, wal_inserted, wal_flushed);
        }
        Ok(snapshot)
    }

    /// Takes a snapshot; rows in `scope` may raise its durable mark.
    pub async fn read_snapshot(&mut self, position: &Position, scope: &Scope<'_>) -> Result<Snapshot, QueryError> {
        let sql = sql::read_snapshot(&self.tables.rows(position.scheme), self.durable_xid(), scope);
        let row = self.connection.query_one(sql).await?;
        self.snapshot_of(&row)
    }

    /// Returns true if no transaction has begun or ended, and nothing was written, since a snapshot of a primary.
    pub async fn is_unchanged(&mut self, since: &Snapshot) -> Result<bool, QueryError> {
        let sql = sql::is_unchanged(self.tables.reports_wal, &since.text, since.wal_inserted.unwrap_or(0));
        let is_unchanged: Option<bool> = self.connection.query_one(sql).await?.try_get("is_unchanged")?;
        Ok(is_unchanged.unwrap_or(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_counts_when_the_log_that_it_was_read_with_is_flushed() {
        let mut mark = DurableMark::default();
        mark.learn(100, 50, 50);
        assert_eq!(mark.xid(), 100, "all of the log is on the disk");
        mark.learn(110, 60, 50);
        mark.learn(120, 70, 59);
        assert_eq!(mark.xid(), 100);
        mark.learn(130, 80, 60);
        assert_eq!(mark.xid(), 110, "the log of 110 is on the disk, that of 130 is not");
        mark.learn(105, 90, 90);
        assert_eq!(mark.xid(), 130, "an overtaken answer does not lower it");
    }

    #[test]
    fn a_mark_of_another_database_is_forgotten() {
        let mut mark = DurableMark::default();
        mark.learn(1_000_000, 50, 50);
        mark.learn(700, 20, 10);
        assert_eq!(mark.xid(), 0);
    }
}
