//! Positions in a table whose rows become visible out of order: *settled and counted*.
//!
//! A row gets its number when it is inserted and becomes visible when its transaction commits, perhaps much later. So
//! no number can tell which rows were delivered. A snapshot's `xmin` can: every transaction below that *mark* has ended,
//! for good. Rows below the mark are settled, and delivered in the order of their keys. Rows at or above it may still
//! get company, so for each of their transactions the position counts how many rows were delivered. All rows of one
//! transaction become visible together and keep their order, so a count is exact.
//!
//! Where a transaction stays open for long, the mark stands still and the counts would grow. Then a position may go
//! beyond the mark, if it lists the transactions below it that are still *open*: all others below it have ended.
//!
//! A row was delivered ⇔ its xid is below `settled`, and not among the `open`
//!                     or it is among the first `counted[xid]` rows of its transaction, by key
//!                     or there is a range, its xid is below the range's end and not among its open, and its key is at
//!                        most the range's.
//!
//! For example: transaction 700 was open for long, and meanwhile the reader was given the two rows of 741. Now 700 has
//! ended, 740 and 743 are open, and the reader is among the rows below 740; the last one had the number 58.
//!
//! ```text
//! settled { mark: 700, open: {} }       all rows of transactions below 700,
//! range   { end: 740, key: 58 }         the rows of 700 to 739 with numbers up to 58,
//! counted { 741: 2 }                    and the first two rows of 741 were delivered
//! ```
//!
//! When the range is finished, `settled` takes over its end: `settled { mark: 740 }, counted { 741: 2 }`. Then a row of
//! 744 is delivered: `counted { 741: 2, 744: 1 }`. A list of the open transactions says the same without counts:
//! `settled { mark: 745, open: {740, 743} }`. `codec.rs` makes bytes of it.
//!
//! The rows of one answer of the database are delivered in two parts: the range by key, then the newer rows by key.
//! After each of them the position is one that any process can go on from.
//!
//! # Positions of the source's own
//!
//! A cursor is foreign input: whoever can read the source can write one. So a position that a reader sends decides which
//! rows *that reader* is given, and nothing else. A channel and the tail's watch begin only at a position that the source
//! made itself, which is where the last page of a read ends ([`Position::is_superseded_by`]).
//!
//! A last page delivers all visible rows that the reader's position does not claim, and `settled` takes over the end of
//! its settled part. Where that end is a mark that the server itself has reached, everything below it has ended, was
//! visible, and is settled for good: it makes no difference which of those rows the reader claimed. What remains is what
//! the page itself counted, unless the position also
//!
//! - counts transactions at or above that end, since such a count may be too high;
//! - has `settled` at a higher mark, or has left a range that ends there: then the end is the reader's word;
//! - has a list of open transactions that is still needed, for the same reason;
//! - is of another scheme than the table's best, and cannot leave it yet.
//!
//! Then the source makes a position of its own from the mark of that very statement: below it all is settled, from it on
//! rows are counted as they are visible. The reader is given what it lacks of these, by the formula above, as a reader
//! that joins a watch is. Both are one statement, in the rare case of many open transactions a few. Where that is more
//! than a page has room for, the page is not the last.
//!
//! A reader who is given nothing keeps its position only where that is nothing but a mark below the server's own.
//!
//! - **Lists of open transactions**: one that the page itself has made is the server's word, and cut off at a durable
//!   mark to which only counts below `end`, which are durable anyway, contribute.
//! - **Durable marks** come from the log and from visible rows, never from a position.
//! - **Standbys**: the mark is the standby's own, so a cursor of its future ends no page there before the standby has
//!   come to it; what it claims beyond the mark is treated as above.
//! - **Migrations**: a mark means the same in every scheme. A position that counts by another scheme is replaced, so no
//!   reader can keep a channel in a scheme that is dearer to read by.

mod codec;
mod level;
#[cfg(test)]
mod tests;

use super::tables::{CursorScheme, Tables};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// The order of a job's rows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// Value of a column that grows.
    Number(i64),
    /// In a table without one: microseconds since 1970, then the event's id as PostgreSQL orders it.
    Time { at: i64, id: KeyId },
}

/// An event's id as a part of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyId {
    Whole(String),
    /// The first bytes of the SHA-256 of an id that is too long for a cursor. The table finds the id by it.
    Digest([u8; 8]),
}

impl KeyId {
    /// Longest id in bytes that goes into a cursor as it is, but for UUIDs.
    const MAX_BYTES: usize = 16;

    pub fn of(id: &str) -> Self {
        if id.len() <= Self::MAX_BYTES || codec::uuid_bytes(id).is_some() {
            return Self::Whole(id.into());
        }
        Self::digest_of(id.as_bytes())
    }

    /// The digest of an id that is too long, or no text.
    pub fn digest_of(id: &[u8]) -> Self {
        let mut digest = [0; 8];
        digest.copy_from_slice(&Sha256::digest(id)[..8]);
        Self::Digest(digest)
    }
}

/// The transactions that have ended for good: all below `mark` but the `open`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndedXids {
    pub mark: u64,
    /// Open transactions below the mark.
    pub open: BTreeSet<u64>,
}

impl EndedXids {
    pub fn below(mark: u64) -> Self {
        Self { mark, open: BTreeSet::new() }
    }

    pub fn contains(&self, xid: u64) -> bool {
        xid < self.mark && !self.open.contains(&xid)
    }

    /// Returns true if everything that had ended at `earlier` has ended here.
    fn covers(&self, earlier: &Self) -> bool {
        self.mark >= earlier.mark && self.open.range(..earlier.mark).all(|xid| earlier.open.contains(xid))
    }

    /// All that has ended by one of the two.
    pub fn union(&self, other: &Self) -> Self {
        let open = self.open.union(&other.open).filter(|xid| !self.contains(**xid) && !other.contains(**xid));
        Self { mark: self.mark.max(other.mark), open: open.copied().collect() }
    }

    /// All but these.
    fn without(&self, xids: impl Iterator<Item = u64>) -> Self {
        let mut rest = self.clone();
        rest.open.extend(xids.filter(|xid| *xid < self.mark));
        rest
    }

    /// Keeps what is below another mark.
    pub fn truncated(&self, mark: u64) -> Self {
        let mark = mark.min(self.mark);
        Self { mark, open: self.open.range(..mark).copied().collect() }
    }

    /// The lowest transaction that may still write.
    pub fn lowest_open(&self) -> u64 {
        self.open.first().copied().unwrap_or(self.mark)
    }
}

/// Rows of one answer of the database that a reader has not been given yet.
#[derive(Clone, Debug)]
pub struct UndeliveredRows<R> {
    /// The rows of the range by key, then the newer rows by key.
    pub rows: Vec<R>,
    /// End of the range.
    pub end: EndedXids,
    /// Everything that had ended before the answer, if the open transactions were listed. Then the rows are all there
    /// are.
    pub listed: Option<EndedXids>,
}

/// The delivery of one row.
pub struct DeliveryStep<R> {
    /// Transactions of which nothing is left before this row: [`Position::finish`] comes first.
    pub finished: Option<EndedXids>,
    pub row: R,
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
        let Self { rows, end, listed } = self;
        let (range, mut newer): (Vec<R>, Vec<R>) = rows.into_iter().partition(|row| end.contains(xid(row)));
        let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
        for row in &newer {
            *counts.entry(xid(row)).or_default() += 1;
        }
        let groups = groups_of_newer(from, &end, listed.as_ref(), counts, fits);
        let group = |xid: u64| groups.partition_point(|group| group.first_xid <= xid) - 1;
        newer.sort_by_key(|row| group(xid(row)));
        let mut steps: Vec<_> = range.into_iter().map(|row| DeliveryStep { finished: None, row }).collect();
        let mut current = None;
        for row in newer {
            let group = group(xid(&row));
            let is_first = current.replace(group) != Some(group);
            steps.push(DeliveryStep { finished: is_first.then(|| groups[group].finished.clone()), row });
        }
        steps
    }
}

/// Newer rows that are delivered and counted together.
struct Group {
    /// The group's transactions are at or above it, up to the next group's.
    first_xid: u64,
    /// Transactions of which nothing is left when the group begins.
    finished: EndedXids,
}

/// Cuts the newer transactions, each with its number of rows, into groups. Only a list of the open transactions allows
/// more than one: where a position counts too much, all that is listed and was delivered is settled instead.
fn groups_of_newer(
    from: &Position,
    end: &EndedXids,
    listed: Option<&EndedXids>,
    counts: BTreeMap<u64, u64>,
    fits: impl Fn(&Position) -> bool,
) -> Vec<Group> {
    let mut groups = vec![Group { first_xid: 0, finished: end.clone() }];
    let mut position = from.clone();
    position.finish(end);
    for (xid, count) in &counts {
        let mut counted = position.clone();
        counted.count_all(*xid, *count);
        if let Some(listed) = listed.filter(|_| !fits(&counted)) {
            // Everything below, or everything but the rest: whichever is shorter.
            let rest = counts.range(xid..).map(|(xid, _)| *xid);
            let ways = [listed.truncated(*xid), listed.without(rest)].map(|listed| {
                let finished = end.union(&listed);
                let mut position = position.clone();
                position.finish(&finished);
                position.count_all(*xid, *count);
                (position, finished)
            });
            let [below, but_rest] = ways;
            let is_shorter = but_rest.0.encoded_length() < below.0.encoded_length();
            let (next, finished) = if is_shorter { but_rest } else { below };
            counted = next;
            groups.push(Group { first_xid: *xid, finished });
        }
        position = counted;
    }
    groups
}

/// A life of the database: the time in which its transaction ids mean one thing. A dump that is restored into another
/// server begins a new one, and so does `pg_upgrade`. Standbys live on when they are promoted. 16 bits of a digest of the
/// server's system identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life(pub u16);

impl Life {
    pub fn of(system_identifier: &str) -> Self {
        let digest = Sha256::digest(system_identifier);
        Self(u16::from_be_bytes([digest[0], digest[1]]))
    }
}

/// A place in an event table; the module says which rows it has delivered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Meaning of the transaction ids and keys here.
    pub scheme: CursorScheme,
    /// The life of the database that the transaction ids are of. `None` where it is not known: before the first row, in
    /// cursors of older versions, and of servers that do not tell.
    life: Option<Life>,
    settled: EndedXids,
    range: Option<Range>,
    counted: BTreeMap<u64, u64>,
}

/// A part of the history that is being delivered by key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// Transactions of the range and of what is settled.
    pub end: EndedXids,
    /// Key of the last delivered row.
    pub key: Key,
}

impl Position {
    /// The position before a job's first row.
    pub fn beginning() -> Self {
        Self::default()
    }

    pub fn is_beginning(&self) -> bool {
        self.settled == EndedXids::default() && self.range.is_none() && self.counted.is_empty()
    }

    /// The position of a reader that was given all of `settled`, and `counted` rows of other transactions.
    pub fn new_settled(scheme: CursorScheme, settled: EndedXids, counted: BTreeMap<u64, u64>) -> Self {
        Self { scheme, life: None, settled, range: None, counted }
    }

    /// This position as one of a life of the database.
    pub fn in_life(self, life: Option<Life>) -> Self {
        Self { life, ..self }
    }

    pub fn life(&self) -> Option<Life> {
        self.life
    }

    /// Takes the life of the database that the position is read in, unless it has one.
    pub fn settle_in(&mut self, life: Option<Life>) {
        self.life = self.life.or(life);
    }

    /// Returns true for a position of another life of the database than this one, as far as both are known.
    pub fn is_of_another_life(&self, life: Option<Life>) -> bool {
        self.life.zip(life).is_some_and(|(own, other)| own != other)
    }

    /// This position, before the first row of a range with this end.
    pub fn at_range_start(&self, end: &EndedXids) -> Self {
        Self { range: Some(Range { end: end.clone(), key: Key::Number(0) }), ..self.clone() }
    }

    /// The position of a reader that was given, of all that is settled here, only the rows up to `key`.
    pub fn up_to_key(self, key: Key) -> Self {
        Self { settled: EndedXids::default(), range: Some(Range { end: self.settled, key }), ..self }
    }

    /// Transactions of which everything was delivered.
    pub fn settled(&self) -> &EndedXids {
        &self.settled
    }

    /// The range that an earlier read left unfinished. It is finished first, with its own end, because only in that its
    /// key tells which rows were delivered.
    pub fn range(&self) -> Option<&Range> {
        self.range.as_ref()
    }

    /// Numbers of delivered rows, by transaction, beyond what is settled and the range.
    pub fn counted(&self) -> &BTreeMap<u64, u64> {
        &self.counted
    }

    /// This position without its newest counts, so that `most` are left. `None` if it has no more.
    pub fn with_oldest_counts(&self, most: usize) -> Option<Self> {
        let (first_left_out, _) = self.counted.iter().nth(most)?;
        let mut shorter = self.clone();
        shorter.counted.split_off(first_left_out);
        Some(shorter)
    }

    /// The end of the next range, for a statement that is yet to begin and will find everything below `mark` ended. It is
    /// never before what is settled.
    pub fn next_end(&self, mark: u64) -> EndedXids {
        if mark >= self.settled.mark { EndedXids::below(mark) } else { self.settled.clone() }
    }

    /// A bound above every transaction that the position speaks of.
    pub fn ceiling(&self) -> u64 {
        let range = self.range.as_ref().map_or(0, |range| range.end.mark);
        let counted = self.counted.keys().next_back().map_or(0, |xid| xid + 1);
        self.settled.mark.max(range).max(counted)
    }

    /// Moves past the next row in the order of delivery: first those of the range that ends with `end`, by key, then the
    /// newer ones.
    pub fn advance(&mut self, xid: u64, key: Key, end: &EndedXids) {
        if end.contains(xid) && !self.settled.contains(xid) {
            self.range = Some(Range { end: end.clone(), key });
        } else {
            self.count(xid);
        }
    }

    /// Counts one more delivered row. Without a range, rows need an order only within each transaction: by key.
    pub fn count(&mut self, xid: u64) {
        debug_assert!(self.range.is_none(), "a range is finished first");
        debug_assert!(!self.settled.contains(xid), "a settled row is not counted");
        self.count_all(xid, 1);
    }

    fn count_all(&mut self, xid: u64, rows: u64) {
        *self.counted.entry(xid).or_default() += rows;
    }

    /// Moves past everything of these transactions. What was settled before stays so, also where `ended` does not know of
    /// it: a list of the open ones may be cut off below the mark.
    pub fn finish(&mut self, ended: &EndedXids) {
        self.range = None;
        let settled = self.settled.union(ended);
        if self.settled != settled {
            self.counted.retain(|xid, _| !settled.contains(*xid));
            self.settled = settled;
        }
    }

    /// Moves past all of an answer: everything before `end`, and everything in a list of what had ended before it.
    pub fn finish_all(&mut self, end: &EndedXids, listed: Option<&EndedXids>) {
        self.finish(end);
        listed.into_iter().for_each(|listed| self.finish(listed));
    }

    /// Returns true if nothing that this position says is left after a last page, whose settled part ended with `end`
    /// and whose statement found everything below `mark` ended. Then the position after the page is the source's own,
    /// whoever has made this one; the module says why.
    pub fn is_superseded_by(&self, end: &EndedXids, mark: u64) -> bool {
        end.open.is_empty()
            && (self.settled.mark..=mark).contains(&end.mark)
            && self.counted.keys().all(|xid| end.contains(*xid))
    }

    /// Returns true if the position says nothing but a mark that has been reached, in this scheme, which everybody may
    /// know for true.
    pub fn is_reached_mark(&self, mark: u64, scheme: CursorScheme) -> bool {
        let is_mark = self.range.is_none() && self.counted.is_empty() && self.settled.open.is_empty();
        self.is_beginning() || (is_mark && self.settled.mark <= mark && self.scheme == scheme)
    }

    /// Goes on in the best scheme of a table that does not honour this position's own, where it is nothing but a mark.
    /// False where it says more, which has no meaning in the table.
    pub fn is_honoured(&mut self, tables: &Tables) -> bool {
        if !tables.honours(self.scheme) {
            self.adopt(tables.best);
        }
        tables.honours(self.scheme)
    }

    /// Goes on in another scheme, after everything there was to see has been delivered. Only a position that is nothing
    /// but a mark can, since a mark means the same in every scheme.
    pub fn adopt(&mut self, scheme: CursorScheme) {
        if self.range.is_none() && self.counted.is_empty() && self.settled.open.is_empty() {
            self.scheme = scheme;
        }
    }

    /// The formula of this module; `nth` counts from 1 among the rows of its transaction, by key.
    #[cfg(test)]
    fn has_delivered(&self, xid: u64, key: &Key, nth: u64) -> bool {
        // Rows without a number come first.
        let rank = |key: &Key| (matches!(key, Key::Number(_)), key.clone());
        self.settled.contains(xid)
            || self.counted.get(&xid).is_some_and(|counted| nth <= *counted)
            || self.range.as_ref().is_some_and(|range| range.end.contains(xid) && rank(key) <= rank(&range.key))
    }
}
