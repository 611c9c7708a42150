//! Rows above a floor, which can be read by their number or time.
//!
//! Where no column tells the transactions, no index finds the rows of those that are not settled, and a read of "all that was
//! not delivered" goes through the job. The numbers of a job have an index as a rule, or else its times. So a read for a new
//! event is *partial*: it reads only the rows with a number (a time) above a floor, and moves on in what [`Above`] says, which
//! speaks of no others.
//!
//! ```text
//! settled { mark: 700 }                    all rows of transactions below 700,
//! above   { floor: 58, ended: 740 }        and the rows of 700 to 739 with a number above 58 were delivered
//! ```
//!
//! That is exact for any floor, and whatever becomes of the rows: one that commits late with a number of 58 or lower, or with
//! none, is not delivered yet, and nothing claims that it was. The next *whole* read delivers it. Behind its last row everything
//! of `ended` was delivered, and `settled` takes over. No clock takes part in that: of a time nothing is asked but that it stays
//! what it is while no transaction writes the row, as a column of a table does. A view may make its times of other rows, or of
//! the time at which it is read, so there is no floor of times in it.
//!
//! The floor stays where it is until then. If it rose, the rows between the two would be claimed no more, and come twice; if it
//! fell, rows would be claimed that nobody was given. Nothing is counted in a partial read: a row may be all that a transaction
//! has above the floor, and not all that it has.
//!
//! A range that a partial read leaves unfinished is one of rows above the floor, too. Whoever goes on from it finishes it by a
//! partial read, and then reads the job whole.

use super::super::tables::Tables;
use super::{Claims, EndedXids, Position, Range};

/// A bound of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Floor {
    Number(i64),
    /// Number of a time, as [`Key::Time`](super::Key) has it.
    Time(i64),
}

impl Floor {
    pub fn number(self) -> i64 {
        let (Self::Number(number) | Self::Time(number)) = self;
        number
    }
}

/// A claim on the rows above a floor, beside those on all rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Above {
    pub floor: Floor,
    /// Transactions of which everything above the floor was delivered.
    pub ended: EndedXids,
    /// A range of such rows.
    pub range: Option<Range>,
}

impl Above {
    /// Returns true if everything that this speaks of has ended here.
    pub(super) fn is_within(&self, ended: &EndedXids) -> bool {
        ended.covers(&self.ended) && self.range.as_ref().is_none_or(|range| ended.covers(&range.end))
    }

    /// A bound above every transaction that this speaks of.
    pub(super) fn ceiling(&self) -> u64 {
        self.range.as_ref().map_or(0, |range| range.end.ceiling()).max(self.ended.ceiling())
    }
}

impl Position {
    pub fn above(&self) -> Option<&Above> {
        self.above.as_ref()
    }

    /// The floor of a range that a partial read left unfinished.
    pub fn floor_of_range(&self) -> Option<Floor> {
        self.above.as_ref().filter(|above| above.range.is_some()).map(|above| above.floor)
    }

    /// The same position for who reads only the rows above a floor, as if they were all of the job's. The floor is that of
    /// what is said of such rows already, if something is.
    pub fn part_above(&self) -> Self {
        // Without a column of transactions only whole ones are counted.
        let of_all = self.settled.clone().and(self.counted.keys().copied());
        let (settled, range) = match &self.above {
            // A read of all rows may have gone further, and was cut.
            Some(above) => (of_all.union(&above.ended), above.range.clone()),
            None => (of_all, None),
        };
        Self { scheme: self.scheme, life: self.life, settled, range, ..Self::default() }
    }

    /// This position after a partial read has come to `part` among the rows above the floor.
    pub fn with_part_above(&self, floor: Floor, part: &Self) -> Self {
        debug_assert!(self.range.is_none(), "a range of all rows is finished by whole reads");
        debug_assert!(self.above.as_ref().is_none_or(|above| above.floor == floor), "the floor stays");
        debug_assert!(part.counted.is_empty(), "nothing is counted above a floor");
        let mut whole = self.clone();
        if whole.above.is_none() {
            // What was counted is settled above the floor, and so it may be below.
            let counted = std::mem::take(&mut whole.counted);
            whole.settled = whole.settled.and(counted.into_keys());
            whole.claims = Claims::Rows;
        }
        whole.above = Some(Above { floor, ended: part.settled.clone(), range: part.range.clone() });
        whole
    }

    /// Notes that a whole read has delivered everything that there was: so nothing is left of the transactions of which
    /// everything above a floor was delivered.
    pub fn settle_above(&mut self) {
        if let Some(above) = self.above.take() {
            self.finish(&above.ended);
        }
    }

    /// Returns true if rows of a transaction may be claimed by a floor.
    pub fn claims_above(&self, xid: u64) -> bool {
        let contains = |above: &Above| {
            above.ended.contains(xid) || above.range.as_ref().is_some_and(|range| range.end.contains(xid))
        };
        self.above.as_ref().is_some_and(contains)
    }

    /// Gives up what is said of a floor where the table has no such numbers or times: rather twice than never.
    pub(super) fn forget_unknown_floor(&mut self, tables: &Tables) {
        let rows = tables.rows(self.scheme);
        self.above.take_if(|above| rows.above(above.floor).is_none());
    }
}
