//! Sets of ended transactions.

use std::collections::BTreeSet;

/// Transactions that have ended for good: all below `mark` but the `open`, and some more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndedXids {
    pub mark: u64,
    /// Open transactions below the mark.
    pub open: BTreeSet<u64>,
    /// Ended transactions at or above the mark, of which others may be open. Their rows were seen.
    pub also: BTreeSet<u64>,
}

impl EndedXids {
    pub fn below(mark: u64) -> Self {
        Self { mark, ..Self::default() }
    }

    /// All below a mark but these.
    pub fn listed(mark: u64, open: BTreeSet<u64>) -> Self {
        Self { mark, open, ..Self::default() }
    }

    /// These transactions, and more that have ended.
    pub fn and(mut self, xids: impl IntoIterator<Item = u64>) -> Self {
        xids.into_iter().for_each(|xid| self.add(xid));
        self
    }

    /// Adds a transaction that has ended.
    pub fn add(&mut self, xid: u64) {
        match xid < self.mark {
            true => self.open.remove(&xid),
            false => self.also.insert(xid),
        };
    }

    /// Only those below the mark.
    pub fn without_also(&self) -> Self {
        Self::listed(self.mark, self.open.clone())
    }

    pub fn contains(&self, xid: u64) -> bool {
        (xid < self.mark && !self.open.contains(&xid)) || self.also.contains(&xid)
    }

    /// Returns true if everything that had ended at `earlier` has ended here.
    pub(super) fn covers(&self, earlier: &Self) -> bool {
        self.covers_below_mark(earlier) && earlier.also.iter().all(|xid| self.contains(*xid))
    }

    /// The same, of what had ended below the mark of `earlier`.
    pub(super) fn covers_below_mark(&self, earlier: &Self) -> bool {
        self.mark >= earlier.mark && self.open.range(..earlier.mark).all(|xid| earlier.open.contains(xid))
    }

    /// All that has ended by one of the two.
    pub fn union(&self, other: &Self) -> Self {
        let mark = self.mark.max(other.mark);
        let open = self.open.union(&other.open).filter(|xid| !self.contains(**xid) && !other.contains(**xid));
        let also = self.also.union(&other.also).filter(|xid| **xid >= mark);
        Self { mark, open: open.copied().collect(), also: also.copied().collect() }
    }

    /// All but these.
    pub(super) fn without(&self, xids: impl Iterator<Item = u64>) -> Self {
        let mut rest = self.clone();
        for xid in xids {
            rest.also.remove(&xid);
            rest.open.extend((xid < self.mark).then_some(xid));
        }
        rest
    }

    /// Keeps what is below another mark.
    pub fn truncated(&self, mark: u64) -> Self {
        let mark = mark.min(self.mark);
        Self::listed(mark, self.open.range(..mark).copied().collect())
    }

    /// The lowest transaction that may still write.
    pub fn lowest_open(&self) -> u64 {
        self.open.first().copied().unwrap_or(self.mark)
    }

    /// A bound above all of these transactions.
    pub fn ceiling(&self) -> u64 {
        self.also.last().map_or(self.mark, |xid| xid + 1)
    }
}
