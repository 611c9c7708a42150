//! The order in which the rows of one answer are delivered, and the position after each.
//!
//! Rows that become settled come first, by key, and then the newer ones. Of these a position may count how many of each
//! transaction were delivered. Where a column tells the transactions, that is exact. Elsewhere it is `xmin` that tells
//! them, and an UPDATE of a row that was delivered takes it away from its transaction: then "the first two rows" are not
//! what they were, and one would be hidden that nobody was given. So there only whole transactions are counted, and a
//! reader stands among the rows of others by a key, in a range of the transactions that the answer has shown. A read of the
//! rows above a floor does not show whole transactions, and neither does one that leaves such rows out.

use super::super::tables::XidSource;
use super::{EndedXids, Position};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rows of one answer of the database that a reader has not been given yet.
#[derive(Clone, Debug)]
pub struct UndeliveredRows<R> {
    /// The rows of the settled part by key, then the newer rows by key.
    pub rows: Vec<R>,
    /// End of the settled part.
    pub end: EndedXids,
    /// Everything that had ended before the answer, if the open transactions were listed. Then the rows are all there
    /// are.
    pub listed: Option<EndedXids>,
    /// The newer rows are all there are of their transactions, of those that the read is of.
    pub is_whole: bool,
    /// The read is of the rows above a floor.
    pub is_above_floor: bool,
    /// The rows of the settled part are counted, too, which takes less room where they are few.
    pub counts_settled: bool,
}

/// The delivery of one row.
pub struct DeliveryStep<R> {
    /// Transactions of which nothing is left before this row: [`Position::finish`] comes first.
    pub finished: Option<EndedXids>,
    pub row: R,
    pub advance: Advance,
}

/// The way in which a position moves past a row.
#[derive(Clone, Debug)]
pub enum Advance {
    /// Counts it for its transaction.
    Count,
    /// Goes to its key, in the range with this end.
    Range(Arc<EndedXids>),
    /// Moves past all of these transactions, of which it is the last row.
    Finish(Arc<EndedXids>),
}

impl<R> UndeliveredRows<R> {
    /// Puts the rows into the order of delivery. Where newer rows are of many transactions, they are delivered in groups,
    /// so that each position `fits` a cursor.
    pub fn into_steps(
        self,
        from: &Position,
        fits: impl Fn(&Position) -> bool,
        xid: impl Fn(&R) -> u64,
    ) -> Vec<DeliveryStep<R>> {
        let Self { rows, end, listed, is_whole, is_above_floor, counts_settled } = self;
        let (settled, mut newer): (Vec<R>, Vec<R>) = rows.into_iter().partition(|row| end.contains(xid(row)));
        let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
        for row in &newer {
            *counts.entry(xid(row)).or_default() += 1;
        }
        let mut groups = groups_of_newer(from, &end, listed.as_ref(), &counts, fits);
        if from.scheme.xids == XidSource::System {
            for (xid, count) in counts {
                let at = group_of(&groups, xid);
                let shows_all_of_it = is_whole && !is_above_floor && !from.claims_above(xid);
                groups[at].add(xid, shows_all_of_it && count == 1);
            }
        }
        newer.sort_by_key(|row| group_of(&groups, xid(row)));
        let advance = if counts_settled { Advance::Count } else { Advance::Range(Arc::new(end)) };
        let step = |row| DeliveryStep { finished: None, row, advance: advance.clone() };
        let mut steps: Vec<_> = settled.into_iter().map(step).collect();
        let (mut current, mut newer) = (None, newer.into_iter().peekable());
        while let Some(row) = newer.next() {
            let at = group_of(&groups, xid(&row));
            let is_first = current.replace(at) != Some(at);
            let is_last = is_whole && newer.peek().is_none_or(|next| group_of(&groups, xid(next)) != at);
            let group = &groups[at];
            let finished = is_first.then(|| group.finished.clone());
            steps.push(DeliveryStep { finished, row, advance: group.advance(is_last) });
        }
        steps
    }
}

/// The place of a transaction's group.
fn group_of(groups: &[Group], xid: u64) -> usize {
    groups.partition_point(|group| group.first_xid <= xid) - 1
}

/// Newer rows that are delivered together.
struct Group {
    /// The group's transactions are at or above it, up to the next group's.
    first_xid: u64,
    /// Transactions of which nothing is left when the group begins.
    finished: EndedXids,
    /// Transactions of the group and of what is settled then, beside those that are counted.
    end: Arc<EndedXids>,
    /// The group's rows are delivered by key.
    is_range: bool,
}

impl Group {
    fn new(first_xid: u64, finished: EndedXids, settled: &EndedXids) -> Self {
        Self { first_xid, finished, end: Arc::new(settled.without_also()), is_range: false }
    }

    /// Adds a transaction of which a row was read. `is_one`: it has no other.
    fn add(&mut self, xid: u64, is_one: bool) {
        self.is_range |= !is_one;
        Arc::make_mut(&mut self.end).add(xid);
    }

    fn advance(&self, is_last: bool) -> Advance {
        match (self.is_range, is_last) {
            (false, _) => Advance::Count,
            (true, false) => Advance::Range(self.end.clone()),
            (true, true) => Advance::Finish(self.end.clone()),
        }
    }
}

/// Cuts the newer transactions, each with its number of rows, into groups. Only a list of the open transactions allows
/// more than one: where a position counts too much, all that is listed and was delivered is settled instead.
fn groups_of_newer(
    from: &Position,
    end: &EndedXids,
    listed: Option<&EndedXids>,
    counts: &BTreeMap<u64, u64>,
    fits: impl Fn(&Position) -> bool,
) -> Vec<Group> {
    let mut position = from.clone();
    position.finish(end);
    let mut groups = vec![Group::new(0, end.clone(), &position.settled)];
    for (xid, count) in counts {
        let mut counted = position.clone();
        counted.count_all(*xid, *count);
        if let Some(listed) = listed.filter(|_| !fits(&counted)) {
            // Everything below, or everything but the rest: whichever is shorter.
            let rest = counts.range(xid..).map(|(xid, _)| *xid);
            let ways = [listed.truncated(*xid), listed.without(rest)].map(|listed| {
                let finished = end.union(&listed);
                let mut position = position.clone();
                position.finish(&finished);
                let settled = position.settled.clone();
                position.count_all(*xid, *count);
                (position, Group::new(*xid, finished, &settled))
            });
            let [below, but_rest] = ways;
            let is_shorter = but_rest.0.encoded_length() < below.0.encoded_length();
            let (next, group) = if is_shorter { but_rest } else { below };
            counted = next;
            groups.push(group);
        }
        position = counted;
    }
    groups
}
