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
//! A row was delivered ⇔ its transaction is in `settled`: below the mark and not among the `open`, or among the `also`
//!                     or it is among the first `counted[xid]` rows of its transaction, by key
//!                     or there is a range, its transaction is in the range's end, and its key is at most the range's
//!                     or its number or time is above a floor, and one of these holds of what is said `above` it (`above.rs`).
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
//! Transactions are told by a column, or by `xmin`. In the latter case an UPDATE takes a row away from its transaction, and
//! "the first two rows of 741" were others before it. So there only one row is counted, where it is all of its transaction's.
//! A reader among the rows of others has a range that ends with what is settled and `also` these transactions, and behind
//! their last row `settled` takes over them, too:
//!
//! ```text
//! settled { mark: 740 }, range { end: 740 also 741, 744, key: 61 }     the rows of 741 and 744 with numbers up to 61
//! settled { mark: 740, also: {741, 744} }                              all rows of both
//! ```
//!
//! That is exact whatever is UPDATEd or deleted. The transactions in `also` have ended, since their rows were visible, and no
//! row comes to them any more; a row that leaves them for another transaction is delivered as that one's, and the keys of the
//! others are what they were.
//!
//! The rows of one answer of the database are delivered in two parts: what becomes settled by key, then the newer rows by
//! key (`delivery.rs`). After each of them the position is one that any process can go on from.
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
//! - counts transactions at or above that end, or has them `also`, since that may be more than they have;
//! - has `settled` at a higher mark, or has left a range that ends there: then the end is the reader's word;
//! - has a list of open transactions that is still needed, for the same reason;
//! - claims rows above a floor of a transaction that is not before that end, since nothing else tells that it has ended;
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

mod above;
mod codec;
mod delivery;
mod ended;
mod level;
#[cfg(test)]
mod tests;

use super::tables::{CursorScheme, Tables};
pub use above::{Above, Floor};
pub use delivery::{Advance, DeliveryStep, UndeliveredRows};
pub use ended::EndedXids;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

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
    /// `None` where the last read was of all rows.
    above: Option<Above>,
    claims: Claims,
}

/// Strength of what a position says of the transactions in `settled` and `counted`, where rows are UPDATEd: a row's
/// newer version is of another transaction, so it leaves those that are being delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Claims {
    /// The rows that are theirs were delivered.
    #[default]
    Rows,
    /// There was a moment at which these transactions had ended, and everything was delivered that was visible at it. So
    /// was every row that they wrote, though others may have changed it before.
    Moment,
}

/// A part of the history that is being delivered by key: what becomes settled, or newer rows.
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
        self.settled == EndedXids::default() && self.is_mark()
    }

    /// The position of a reader that was given all of `settled`, and `counted` rows of other transactions.
    pub fn new_settled(scheme: CursorScheme, settled: EndedXids, counted: BTreeMap<u64, u64>) -> Self {
        Self { scheme, settled, counted, ..Self::default() }
    }

    /// This position as one of a life of the database.
    pub fn in_life(self, life: Option<Life>) -> Self {
        Self { life, ..self }
    }

    pub fn life(&self) -> Option<Life> {
        self.life
    }

    /// Takes the life of the database that the position is read in, unless it has one, and gives up what has no meaning in
    /// its tables.
    pub fn settle_in(&mut self, tables: &Tables) {
        self.life = self.life.or(tables.life);
        self.forget_unknown_floor(tables);
    }

    /// Returns true for a position of another life of the database than this one, as far as both are known.
    pub fn is_of_another_life(&self, life: Option<Life>) -> bool {
        self.life.zip(life).is_some_and(|(own, other)| own != other)
    }

    /// This position, before the first row of a range with this end.
    pub fn at_range_start(&self, end: &EndedXids) -> Self {
        Self { range: Some(Range { end: end.clone(), key: Key::Number(0) }), ..self.clone() }
    }

    /// The position of a reader that was given, of all that is settled or counted here, only the rows up to `key`.
    pub fn up_to_key(self, key: Key) -> Self {
        let end = self.settled.and(self.counted.into_keys());
        Self { scheme: self.scheme, life: self.life, range: Some(Range { end, key }), ..Self::default() }
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

    /// This position, where the counts are of all rows of their transactions: those with several rows are settled as a whole.
    pub fn with_whole_transactions(mut self) -> Self {
        let with_several: Vec<u64> =
            self.counted.iter().filter(|(_, count)| **count > 1).map(|(xid, _)| *xid).collect();
        self.finish(&self.settled.without_also().and(with_several));
        self
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
        if mark >= self.settled.mark { EndedXids::below(mark) } else { self.settled.without_also() }
    }

    /// A bound above every transaction that the position speaks of.
    pub fn ceiling(&self) -> u64 {
        let range = self.range.as_ref().map_or(0, |range| range.end.ceiling());
        let counted = self.counted.keys().next_back().map_or(0, |xid| xid + 1);
        let above = self.above.as_ref().map_or(0, Above::ceiling);
        self.settled.ceiling().max(range).max(counted).max(above)
    }

    /// All transactions that the position says have ended, but for those that it counts.
    pub fn ended(&self) -> EndedXids {
        let above = self.above.iter();
        let above =
            above.flat_map(|above| std::iter::once(&above.ended).chain(above.range.as_ref().map(|range| &range.end)));
        let others = self.range.iter().map(|range| &range.end).chain(above);
        others.fold(self.settled.clone(), |all, ended| all.union(ended))
    }

    /// Moves past the next row in the order of delivery.
    pub fn advance(&mut self, xid: u64, key: Key, how: &Advance) {
        match how {
            Advance::Count => self.count(xid),
            Advance::Range(end) => self.range = Some(Range { end: (**end).clone(), key }),
            Advance::Finish(end) => self.finish(end),
        }
    }

    /// Counts one more delivered row. Without a range, rows need an order only within each transaction: by key.
    pub fn count(&mut self, xid: u64) {
        debug_assert!(self.range.is_none(), "a range is finished first");
        debug_assert!(!self.settled.contains(xid), "a settled row is not counted");
        self.count_all(xid, 1);
    }

    fn count_all(&mut self, xid: u64, rows: u64) {
        self.claims = Claims::Rows;
        *self.counted.entry(xid).or_default() += rows;
    }

    /// Moves past everything of these transactions. What was settled before stays so, also where `ended` does not know of
    /// it: a list of the open ones may be cut off below the mark.
    pub fn finish(&mut self, ended: &EndedXids) {
        self.range = None;
        let settled = self.settled.union(ended);
        if self.settled != settled {
            self.claims = Claims::Rows;
            self.counted.retain(|xid, _| !settled.contains(*xid));
            self.above.take_if(|above| above.is_within(&settled));
            self.settled = settled;
        }
    }

    /// Moves past all of an answer: everything before `end`, and everything in a list of what had ended before it.
    pub fn finish_all(&mut self, end: &EndedXids, listed: Option<&EndedXids>) {
        self.finish(end);
        listed.into_iter().for_each(|listed| self.finish(listed));
    }

    /// Notes that everything was delivered that one statement saw, and that no range is left.
    pub fn note_moment(&mut self) {
        self.claims = if self.range.is_none() { Claims::Moment } else { Claims::Rows };
    }

    /// Gives up what was noted of a moment, so that no version of an event is left out by it.
    pub fn forget_moment(&mut self) {
        self.claims = Claims::Rows;
    }

    /// Returns true if all rows that a transaction wrote have certainly been delivered, in this version or another.
    pub fn has_delivered_all_of(&self, xid: u64) -> bool {
        self.claims == Claims::Moment && (self.settled.contains(xid) || self.counted.contains_key(&xid))
    }

    /// Returns true if nothing that this position says is left after a last page, whose settled part ended with `end`
    /// and whose statement found everything below `mark` ended. Then the position after the page is the source's own,
    /// whoever has made this one; the module says why.
    pub fn is_superseded_by(&self, end: &EndedXids, mark: u64) -> bool {
        end.open.is_empty()
            && end.also.is_empty()
            && (self.settled.mark..=mark).contains(&end.mark)
            && self.counted.keys().chain(&self.settled.also).all(|xid| end.contains(*xid))
            && self.above.as_ref().is_none_or(|above| above.is_within(end))
    }

    /// Returns true if the position says nothing but a mark that has been reached, in this scheme, which everybody may
    /// know for true.
    pub fn is_reached_mark(&self, mark: u64, scheme: CursorScheme) -> bool {
        self.is_beginning() || (self.is_mark() && self.settled.mark <= mark && self.scheme == scheme)
    }

    /// Returns true if the position says nothing but a mark.
    fn is_mark(&self) -> bool {
        let is_mark = self.settled.open.is_empty() && self.settled.also.is_empty();
        is_mark && self.range.is_none() && self.counted.is_empty() && self.above.is_none()
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
        if self.is_mark() {
            self.scheme = scheme;
        }
    }

    /// The formula of this module for a row with these values of floors; `nth` counts from 1 among the rows of its
    /// transaction, by key.
    #[cfg(test)]
    fn has_delivered(&self, xid: u64, key: &Key, floors: &[Floor], nth: u64) -> bool {
        // Rows without a number come first.
        let rank = |key: &Key| (matches!(key, Key::Number(_)), key.clone());
        let is_within = |range: &Option<Range>| {
            range.as_ref().is_some_and(|range| range.end.contains(xid) && rank(key) <= rank(&range.key))
        };
        let is_claimed = |above: &Above| {
            let is_same_kind = |floor: &Floor| matches!(floor, Floor::Time(_)) == matches!(above.floor, Floor::Time(_));
            let is_above = floors.iter().filter(|floor| is_same_kind(floor)).any(|floor| *floor > above.floor);
            is_above && (above.ended.contains(xid) || is_within(&above.range))
        };
        self.settled.contains(xid)
            || self.counted.get(&xid).is_some_and(|counted| nth <= *counted)
            || is_within(&self.range)
            || self.above.as_ref().is_some_and(is_claimed)
    }
}
