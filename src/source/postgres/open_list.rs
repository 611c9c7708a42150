//! Lists of the open transactions, so that a position can go beyond one that stays open for long.
//!
//! A primary's snapshot lists those that the column has. Of the others the server is asked one by one, at most
//! [`sql::MAX_XID_SCAN`] in one statement. Whatever has ended stays so, so the next list goes on from what the one before has
//! found ([`KnownEnded`]), and costs no more the longer a transaction stays open.

use super::error::QueryError;
use super::position::{EndedXids, Position};
use super::session::Session;
use super::snapshot::Snapshot;
use super::sql;
use super::tables::XidSource;
use sqlx::Row;
use std::collections::BTreeSet;

/// A list of the open transactions.
pub struct OpenList {
    pub is_standby: bool,
    /// No transaction at or above it had begun.
    pub xmax: u64,
    /// Everything that has ended, as far as a cursor has room for the open ones and the server was asked.
    pub ended: EndedXids,
    /// Transaction below which a crash undoes nothing.
    pub durable_xid: u64,
}

/// The transactions of which this process knows that they have ended, and that a crash does not undo it.
#[derive(Default)]
pub struct KnownEnded {
    /// Time at which the server was started, in microseconds since 1970: by another one, nothing of this is known.
    started_at: i64,
    ended: EndedXids,
}

impl KnownEnded {
    /// The transactions known to have ended, by the server that was started then.
    fn of(&self, started_at: i64) -> EndedXids {
        if self.started_at == started_at { self.ended.clone() } else { EndedXids::default() }
    }

    fn learn(&mut self, started_at: i64, ended: &EndedXids) {
        self.ended = self.of(started_at).union(ended);
        self.started_at = started_at;
    }
}

impl Position {
    /// Cuts a list of the open transactions down to what a cursor has room for when all of it is settled, and, if it is to
    /// end a range, before that too. `None` where there is no room for such a range.
    fn cut_list(&self, mut list: EndedXids, ends_range: bool) -> Option<EndedXids> {
        while !self.has_room_for(&self.settled().union(&list), ends_range) {
            if list.mark <= self.settled().mark {
                // It leaves fewer transactions open than there were.
                return (!ends_range).then_some(list);
            }
            let last = list.open.range(self.settled().mark..).next_back();
            list = list.truncated(last.copied().unwrap_or(self.settled().mark));
        }
        Some(list)
    }

    fn has_room_for(&self, ended: &EndedXids, ends_range: bool) -> bool {
        let level = Self::at_level(self.scheme, ended.clone(), self.life());
        level.fits_list() && (!ends_range || self.has_room_up_to(&level))
    }

    /// Replaces counts by the list of the transactions that were open in the very snapshot of a primary in which they
    /// were counted: all others had ended, and their rows were counted. By the column only, whose ids a snapshot lists.
    pub fn settle_by_snapshot(&mut self, snapshot: &Snapshot) {
        let last_committed = self.counted().keys().next_back().map_or(0, |xid| xid + 1);
        if let Some(list) = self.cut_list(snapshot.listed(), false) {
            self.finish(&list.truncated(snapshot.durable_xid.max(last_committed)));
        }
    }
}

impl Session<'_> {
    /// Lists the open transactions as far as a cursor has room for them, beside a range that ends with the list, if it
    /// does. Rows of a transaction below `committed` are visible, if it is not 0, so all below it are durable. `None` if
    /// there is no room. Not for use within a transaction, whose snapshot may be older.
    pub async fn list_open(
        &mut self,
        position: &Position,
        committed: u64,
        ends_range: bool,
    ) -> Result<Option<OpenList>, QueryError> {
        let rows = self.tables.rows(position.scheme);
        let xid_source = rows.xid_source();
        let (started_at, known) = {
            let known = self.store.known_ended();
            (known.started_at, known.ended.clone())
        };
        let sql = sql::open_xids(&rows, self.durable_xid(), started_at, &known);
        let answer = self.connection.query(sql).await?;
        let first = answer.first().ok_or(QueryError::NoRow)?;
        let snapshot = self.snapshot_of(first)?;
        let (started_at, mark) = (first.try_get("started_at")?, first.try_get::<i64, _>("mark")? as u64);
        let mut open = BTreeSet::new();
        for row in &answer {
            open.extend(row.try_get::<Option<i64>, _>("open_xid")?.map(|xid| xid as u64));
        }
        let durable_xid = snapshot.durable_xid.max(committed);
        // What another session has found meanwhile may be beyond this snapshot.
        let ended = EndedXids::listed(mark, open).truncated(mark);
        let is_of_top_level = xid_source == XidSource::Column && !snapshot.is_standby;
        if !is_of_top_level {
            self.store.known_ended().learn(started_at, &ended.truncated(durable_xid));
        }
        let ended = position.cut_list(ended, ends_range);
        let (is_standby, xmax) = (snapshot.is_standby, snapshot.xmax);
        Ok(ended.map(|ended| OpenList { is_standby, xmax, ended, durable_xid }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tables::CursorScheme;
    use super::*;
    use std::collections::BTreeMap;

    fn ended(mark: u64, open: impl IntoIterator<Item = u64>) -> EndedXids {
        EndedXids::listed(mark, open.into_iter().collect())
    }

    #[test]
    fn a_list_is_cut_down_to_what_a_cursor_has_room_for_but_never_below_what_was_settled() {
        let few = ended(2_000, [700, 1_700]);
        let from = Position::new_settled(CursorScheme::default(), few.clone(), BTreeMap::new());
        let many = ended(100_000, (0..90).map(|number| 700 + number * 1_000));
        for ends_range in [false, true] {
            let cut = from.cut_list(many.clone(), ends_range).expect("a list");
            assert!(cut.mark > 10_000 && cut.mark < 90_000 && cut == many.truncated(cut.mark), "{cut:?}");
            assert!(from.has_room_for(&cut, ends_range));
        }
        let full = Position::new_settled(CursorScheme::default(), many.truncated(60_000), BTreeMap::new());
        let later = ended(100_000, (3..90).map(|number| 700 + number * 1_000));
        let cut = full.cut_list(later.clone(), false).expect("a list");
        assert_eq!(cut, later.truncated(60_000));
    }

    #[test]
    fn nothing_is_known_of_a_server_that_was_started_at_another_time() {
        let mut known = KnownEnded::default();
        known.learn(1, &ended(2_000, [700, 1_990]));
        known.learn(1, &ended(1_995, [700]));
        assert_eq!((known.of(1), known.of(2)), (ended(2_000, [700]), EndedXids::default()));
        known.learn(2, &ended(900, []));
        assert_eq!((known.of(1), known.of(2)), (EndedXids::default(), ended(900, [])));
    }
}
