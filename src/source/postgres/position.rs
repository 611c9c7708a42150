//! Where a reader stands in a table whose rows become visible out of order: *settled and counted*.
//!
//! A row gets its number when it is inserted and becomes visible when its transaction commits, perhaps much later. So
//! a number cannot say what was delivered. A snapshot's `xmin` can: every transaction below that *mark* has ended, for
//! good. Rows below it are delivered in the order of their keys; of those at or above it, which may still get company,
//! it is counted how many of each transaction were delivered. All rows of one transaction become visible together and
//! keep their order, so a count is exact.
//!
//! Where a transaction stays open for long, the mark stands still and the counts would grow. Then a position may go
//! further than the mark if it lists which transactions below it are still *open*: everything else below has ended.
//!
//! A row was delivered ⇔ its xid is below `settled`, and not among the `open`
//!                     or it is among the first `counted[xid]` rows of its transaction, by key
//!                     or there is a range, its xid is below the range's end and not among its open, and its key is at
//!                        most the range's.
//!
//! Rows of one answer of the database are delivered in two parts: the range, by key; then the others, by key. After
//! each of them the position is one that any process can go on from.

use super::table::View;
use crate::cursor::varint;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// What rows of one job are ordered by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// A column that grows.
    Number(i64),
    /// Without one: microseconds since 1970, then the event's id as PostgreSQL orders it.
    Time { at: i64, id: KeyId },
}

/// An event's id as a part of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyId {
    Whole(String),
    /// Of one that is too long for a cursor: the first bytes of its SHA-256. The table knows which one it is.
    Digest([u8; 8]),
}

impl KeyId {
    /// Longer ones do not go into a cursor, but for UUIDs.
    const MOST: usize = 16;

    pub fn of(id: &str) -> Self {
        if id.len() <= Self::MOST || short_id(id).is_some() {
            return Self::Whole(id.into());
        }
        let mut digest = [0; 8];
        digest.copy_from_slice(&Sha256::digest(id.as_bytes())[..8]);
        Self::Digest(digest)
    }
}

/// Which transactions have ended for good: all below `mark` but the `open`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    pub mark: u64,
    pub open: BTreeSet<u64>,
}

impl Ended {
    pub fn below(mark: u64) -> Self {
        Self { mark, open: BTreeSet::new() }
    }

    pub fn has(&self, xid: u64) -> bool {
        xid < self.mark && !self.open.contains(&xid)
    }

    /// This, and below `xid` all that has ended since, as `later` tells.
    fn and_below(&self, xid: u64, later: &Self) -> Self {
        if xid >= self.mark {
            return later.until(xid);
        }
        let open = later.open.range(..xid).chain(self.open.range(xid..));
        Self { mark: self.mark, open: open.copied().collect() }
    }

    /// The same, as far as another mark.
    pub fn until(&self, mark: u64) -> Self {
        let mark = mark.min(self.mark);
        Self { mark, open: self.open.range(..mark).copied().collect() }
    }

    /// The lowest transaction that may still write.
    pub fn floor(&self) -> u64 {
        self.open.first().copied().unwrap_or(self.mark)
    }
}

/// One answer of the database on its way to a reader.
#[derive(Clone, Debug)]
pub struct Answer<R> {
    /// Not delivered yet: those of the range by key, then the others by key.
    pub rows: Vec<R>,
    /// Where the range ends.
    pub end: Ended,
    /// Everything that had ended before the answer, where that was asked for; then the rows are all there are.
    pub listed: Option<Ended>,
}

impl<R> Answer<R> {
    /// The rows in the order of delivery, each with what is finished before it. Of many transactions beyond the range no
    /// more are counted at a time than a position of `most` bytes has room for.
    pub fn steps(self, from: &Position, most: usize, xid: impl Fn(&R) -> u64) -> Vec<(Option<Ended>, R)> {
        let Self { rows, end, listed } = self;
        let (range, mut newer): (Vec<R>, Vec<R>) = rows.into_iter().partition(|row| end.has(xid(row)));
        let mut steps: Vec<_> = range.into_iter().map(|row| (None, row)).collect();
        let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
        for row in &newer {
            *counts.entry(xid(row)).or_default() += 1;
        }
        // where each group begins, and what is finished by then
        let mut groups = vec![(0, end.clone())];
        let mut position = from.clone();
        position.finish(&end);
        for (xid, count) in counts {
            let until = listed.as_ref().map(|listed| end.and_below(xid, listed)).filter(|until| until.mark >= end.mark);
            let counted = position.counted.clone();
            *position.counted.entry(xid).or_default() += count;
            if let Some(until) = until.filter(|_| position.length() > most) {
                position.counted = counted;
                position.finish(&until);
                *position.counted.entry(xid).or_default() += count;
                groups.push((xid, until));
            }
        }
        let group = |xid: u64| groups.partition_point(|(first, _)| *first <= xid) - 1;
        newer.sort_by_key(|row| group(xid(row)));
        let mut current = None;
        for row in newer {
            let group = group(xid(&row));
            let is_next = current.replace(group) != Some(group);
            steps.push((is_next.then(|| groups[group].1.clone()), row));
        }
        steps
    }
}

/// A place in an event table. See the module for what it means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// What numbers and keys mean here.
    pub view: View,
    settled: Ended,
    /// A range that is being delivered by key: its end, and how far it has got.
    range: Option<(Ended, Key)>,
    counted: BTreeMap<u64, u64>,
}

impl Position {
    /// After nothing at all.
    pub fn beginning() -> Self {
        Self::default()
    }

    pub fn is_beginning(&self) -> bool {
        self.settled == Ended::default() && self.range.is_none() && self.counted.is_empty()
    }

    /// Level with an answer before which these had ended, when `counted` rows of other transactions were delivered.
    pub fn level(view: View, settled: Ended, counted: BTreeMap<u64, u64>) -> Self {
        Self { view, settled, range: None, counted }
    }

    /// This, within a range that ends so, before the first of its rows.
    pub fn amid(&self, end: &Ended) -> Self {
        Self { range: Some((end.clone(), Key::Number(0))), ..self.clone() }
    }

    /// After everything that an answer showed up to `key`, before which these had ended.
    pub fn after_key(view: View, end: Ended, key: Key, counted: BTreeMap<u64, u64>) -> Self {
        Self { view, settled: Ended::default(), range: Some((end, key)), counted }
    }

    /// Of these, everything was delivered.
    pub fn settled(&self) -> &Ended {
        &self.settled
    }

    /// The range that a reader before us left unfinished. It is finished first, with its own end: only in that does its
    /// key mean what was delivered.
    pub fn range(&self) -> Option<&(Ended, Key)> {
        self.range.as_ref()
    }

    /// How many rows of transactions were delivered beyond that.
    pub fn counted(&self) -> &BTreeMap<u64, u64> {
        &self.counted
    }

    /// Where the next range may end, if a statement that is yet to begin is to find everything below `mark` ended.
    /// Never before what is settled.
    pub fn next_end(&self, mark: u64) -> Ended {
        if mark >= self.settled.mark { Ended::below(mark) } else { self.settled.clone() }
    }

    /// Above every transaction that it speaks of.
    pub fn ceiling(&self) -> u64 {
        let range = self.range.as_ref().map_or(0, |(end, _)| end.mark);
        let counted = self.counted.keys().next_back().map_or(0, |xid| xid + 1);
        self.settled.mark.max(range).max(counted)
    }

    /// One more row was delivered, in the order of the answer: of the range that ends with `end`, then of the others.
    pub fn take(&mut self, xid: u64, key: Key, end: &Ended) {
        if end.has(xid) && !self.settled.has(xid) {
            self.range = Some((end.clone(), key));
        } else {
            self.count(xid);
        }
    }

    /// One more row was delivered, of an answer with few transactions and no range: its order is by key within each.
    pub fn count(&mut self, xid: u64) {
        debug_assert!(self.range.is_none(), "a range is finished first");
        debug_assert!(!self.settled.has(xid), "what is settled is not counted");
        *self.counted.entry(xid).or_default() += 1;
    }

    /// Nothing is left of the range that ends with `end`.
    pub fn finish(&mut self, end: &Ended) {
        self.range = None;
        if self.settled != *end {
            self.settled = end.clone();
            self.counted.retain(|xid, _| !end.has(*xid));
        }
    }

    /// The same, and nothing is left of what is listed, where that was listed later.
    pub fn finish_all(&mut self, end: &Ended, listed: Option<&Ended>) {
        self.finish(end);
        if let Some(listed) = listed.filter(|listed| listed.mark >= self.settled.mark) {
            self.finish(listed);
        }
    }

    /// Everything that there was to see was delivered: where nothing has to be remembered but a mark, which means the
    /// same in every view, the position goes on in this one.
    pub fn adopt(&mut self, view: View) {
        if self.range.is_none() && self.counted.is_empty() && self.settled.open.is_empty() {
            self.view = view;
        }
    }

    /// Whether a row was delivered; `nth` counts from 1 among the rows of its transaction, by key.
    #[cfg(test)]
    fn has(&self, xid: u64, key: &Key, nth: u64) -> bool {
        // those without a number come first
        let rank = |key: &Key| (matches!(key, Key::Number(_)), key.clone());
        self.settled.has(xid)
            || self.counted.get(&xid).is_some_and(|counted| nth <= *counted)
            || self.range.as_ref().is_some_and(|(end, until)| end.has(xid) && rank(key) <= rank(until))
    }
}

// ---- as bytes

/// The inside of a cursor: numbers as LEB128, sets and the map by differences.
impl Position {
    /// At most `most` bytes. Where the map does not fit, its newest entries are left out: what they counted is repeated
    /// rather than lost. Returns the bytes, and whether anything was left out.
    pub fn to_bytes(&self, most: usize) -> (Vec<u8>, bool) {
        let mut bytes = Vec::with_capacity(16);
        put_ended(&mut bytes, &self.settled);
        match &self.range {
            None => bytes.push(0),
            Some((end, key)) => {
                put_key(&mut bytes, key);
                put_end(&mut bytes, end, &self.settled);
            }
        }
        if bytes.len() > most {
            // a range is delivered again, or all that is not settled without exception
            let settled = if self.range.is_some() { self.settled.clone() } else { Ended::below(self.settled.floor()) };
            let less = Self { settled, range: None, counted: BTreeMap::new(), ..*self };
            return (less.to_bytes(most).0, true);
        }
        let mut before = self.settled.floor();
        for (xid, count) in &self.counted {
            let length = bytes.len();
            // ranges come and go below the floor of what is settled: then the difference is negative
            varint::write_signed(&mut bytes, *xid as i64 - before as i64);
            varint::write(&mut bytes, *count);
            if bytes.len() > most {
                bytes.truncate(length);
                return (bytes, true);
            }
            before = *xid;
        }
        (bytes, false)
    }

    /// How many bytes it takes.
    pub fn length(&self) -> usize {
        self.to_bytes(usize::MAX).0.len()
    }

    /// `None` for what [`Position::to_bytes`] never wrote.
    pub fn from_bytes(view: View, bytes: &[u8]) -> Option<Self> {
        let from = &mut &*bytes;
        let settled = get_ended(from)?;
        let range = match get_key(from)? {
            None => None,
            Some(key) => Some((get_end(from, &settled)?, key)),
        };
        let mut counted = BTreeMap::new();
        let mut before = settled.floor();
        while !from.is_empty() {
            let xid = u64::try_from((before as i64).checked_add(varint::read_signed(from)?)?).ok()?;
            if xid > MAX_XID {
                return None;
            }
            counted.insert(xid, varint::read(from).filter(|count| *count > 0)?);
            before = xid;
        }
        // no position has two spellings
        Some(Self { view, settled, range, counted }).filter(|position| position.to_bytes(usize::MAX).0 == bytes)
    }
}

/// More transactions than there will ever be; keeps sums from overflowing.
const MAX_XID: u64 = 1 << 62;

/// So many transactions below a mark, at most, are told by a bit each, in bytes; the older ones by their distances.
const WINDOW: u64 = 32;

/// The mark; the open ones, in whichever way is shortest: most of them began lately.
fn put_ended(to: &mut Vec<u8>, ended: &Ended) {
    varint::write(to, ended.mark);
    put_open(to, ended.mark, ended.open.iter().rev().copied());
}

fn get_ended(from: &mut &[u8]) -> Option<Ended> {
    let mark = varint::read(from).filter(|mark| *mark <= MAX_XID)?;
    Some(Ended { mark, open: get_open(from, mark)? })
}

/// The end of a range as it differs from what is settled: how much further the mark is, a bit for each that was open
/// and still is, and the open ones of between. Where it is not further, the whole of it.
fn put_end(to: &mut Vec<u8>, end: &Ended, settled: &Ended) {
    let is_further = end.mark >= settled.mark && end.open.range(..settled.mark).all(|xid| settled.open.contains(xid));
    if !is_further {
        varint::write(to, 0);
        return put_ended(to, end);
    }
    varint::write(to, 1 + end.mark - settled.mark);
    let mut bits = vec![0; settled.open.len().div_ceil(8)];
    for (index, _) in settled.open.iter().enumerate().filter(|(_, xid)| end.open.contains(xid)) {
        bits[index / 8] |= 1 << (index % 8);
    }
    to.extend_from_slice(&bits);
    put_open(to, end.mark, end.open.range(settled.mark..).rev().copied());
}

fn get_end(from: &mut &[u8], settled: &Ended) -> Option<Ended> {
    let further = match varint::read(from)? {
        0 => return get_ended(from),
        more => more - 1,
    };
    let mark = settled.mark.checked_add(further).filter(|mark| *mark <= MAX_XID)?;
    let bits = take(from, settled.open.len().div_ceil(8))?;
    let still = settled.open.iter().enumerate().filter(|(index, _)| bits[index / 8] & (1 << (index % 8)) != 0);
    let mut open: BTreeSet<u64> = still.map(|(_, xid)| *xid).collect();
    open.extend(get_open(from, mark)?);
    Some(Ended { mark, open })
}

/// Transactions below a mark, the newest first.
fn put_open(to: &mut Vec<u8>, mark: u64, open: impl Iterator<Item = u64> + Clone) {
    let far = |window: u64| {
        let (mut bytes, mut count, mut above) = (Vec::new(), 0, mark);
        for xid in open.clone().filter(|xid| mark - 1 - xid >= window * 8) {
            varint::write(&mut bytes, above - xid);
            (count, above) = (count + 1, xid);
        }
        (bytes, count)
    };
    let windows = open.clone().map(|xid| (mark - 1 - xid) / 8 + 1).filter(|window| *window <= WINDOW);
    let cost = |window: &u64| window + far(*window).0.len() as u64;
    let window = std::iter::once(0).chain(windows).min_by_key(cost).unwrap_or_default();
    let mut bits = vec![0; window as usize];
    for below in open.clone().map(|xid| mark - 1 - xid).filter(|below| *below < window * 8) {
        bits[below as usize / 8] |= 1 << (below % 8);
    }
    let (distances, count) = far(window);
    varint::write(to, window);
    to.extend_from_slice(&bits);
    varint::write(to, count);
    to.extend_from_slice(&distances);
}

fn get_open(from: &mut &[u8], mark: u64) -> Option<BTreeSet<u64>> {
    let mut open = BTreeSet::new();
    let window = varint::read(from).filter(|window| *window <= WINDOW)?;
    let bits = take(from, window as usize)?;
    for below in (0..window * 8).filter(|below| bits[*below as usize / 8] & (1 << (below % 8)) != 0) {
        open.insert(mark.checked_sub(1 + below)?);
    }
    let mut above = mark;
    for _ in 0..varint::read(from)? {
        above = above.checked_sub(varint::read(from).filter(|distance| *distance > 0)?)?;
        open.insert(above);
    }
    Some(open)
}

fn put_key(to: &mut Vec<u8>, key: &Key) {
    let (kind, number) = match key {
        Key::Number(number) => (1, number),
        Key::Time { at, id: KeyId::Whole(id) } => (if short_id(id).is_some() { 2 } else { 3 }, at),
        Key::Time { at, id: KeyId::Digest(_) } => (4, at),
    };
    to.push(kind);
    varint::write_signed(to, *number);
    match key {
        Key::Number(_) => {}
        Key::Time { id: KeyId::Digest(digest), .. } => to.extend_from_slice(digest),
        Key::Time { id: KeyId::Whole(id), .. } => match short_id(id) {
            Some(uuid) => to.extend_from_slice(&uuid),
            None => {
                varint::write(to, id.len() as u64);
                to.extend_from_slice(id.as_bytes());
            }
        },
    }
}

fn get_key(from: &mut &[u8]) -> Option<Option<Key>> {
    let kind = take(from, 1)?[0];
    if kind == 0 {
        return Some(None);
    }
    let number = varint::read_signed(from)?;
    let id = match kind {
        1 => return Some(Some(Key::Number(number))),
        2 => KeyId::Whole(uuid::Uuid::from_slice(take(from, 16)?).ok()?.to_string()),
        3 => {
            let length = usize::try_from(varint::read(from)?).ok().filter(|length| *length <= KeyId::MOST)?;
            KeyId::Whole(std::str::from_utf8(take(from, length)?).ok()?.to_string())
        }
        4 => KeyId::Digest(take(from, 8)?.try_into().ok()?),
        _ => return None,
    };
    Some(Some(Key::Time { at: number, id }))
}

/// A UUID in its usual spelling takes 16 bytes instead of 36.
fn short_id(id: &str) -> Option<[u8; 16]> {
    let uuid = uuid::Uuid::try_parse(id).ok()?;
    (uuid.to_string() == id).then(|| *uuid.as_bytes())
}

fn take<'a>(from: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::super::table::{Age, Order};
    use super::*;
    use proptest::prelude::*;

    /// What writers and the reader do, against a small model of what PostgreSQL lets a snapshot see.
    #[derive(Clone, Debug)]
    enum Act {
        Begin,
        /// Into one of the open transactions; `late` keys lie before others. In a savepoint: an xid of its own, which
        /// is kept, or rolled back.
        Insert {
            into: prop::sample::Index,
            key: u8,
            savepoint: Option<bool>,
        },
        /// A prepared transaction is one that stays open: nothing more to model.
        End {
            of: prop::sample::Index,
            commits: bool,
        },
        /// All that was written so far is on the disk, and the reader is told.
        Flush,
        /// Who had not committed is gone, and what the disk does not know of may get the same id once more.
        Crash,
        /// The table gets columns for transactions and numbers, which new rows fill. Waits for all who write to it.
        Migrate,
        /// The reader stops after so many rows, and another process goes on from its token: one that has seen the
        /// columns of today, or one that began before them.
        Poll {
            stops_after: Option<u8>,
            lists_open: bool,
            counts: bool,
            /// With much to tell: what is listed is delivered by key.
            is_long: bool,
            is_fresh: bool,
        },
    }

    fn act() -> impl Strategy<Value = Act> {
        let index = any::<prop::sample::Index>;
        let flag = any::<bool>;
        prop_oneof![
            20 => Just(Act::Begin),
            40 => (index(), any::<u8>(), prop::option::of(flag()))
                .prop_map(|(into, key, savepoint)| Act::Insert { into, key, savepoint }),
            30 => (index(), prop::bool::weighted(0.8)).prop_map(|(of, commits)| Act::End { of, commits }),
            5 => Just(Act::Flush),
            5 => Just(Act::Crash),
            1 => Just(Act::Migrate),
            30 => (prop::option::of(0..4_u8), prop::bool::weighted(0.3), flag(), flag(), flag()).prop_map(
                |(stops_after, lists_open, counts, is_long, is_fresh)| {
                    Act::Poll { stops_after, lists_open, counts, is_long, is_fresh }
                }
            ),
        ]
    }

    #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
    struct Row {
        at: i64,
        /// The transaction's, or its savepoint's.
        xmin: u64,
        /// In the columns: the transaction's, and the row's number.
        told: Option<(u64, i64)>,
    }

    impl Row {
        fn xid(&self, view: View) -> u64 {
            match view.age {
                Age::System => self.xmin,
                Age::Column => self.told.map_or(0, |(top, _)| top),
            }
        }

        fn key(&self, view: View) -> Key {
            match self.told {
                Some((_, number)) if view.order == Order::Number => Key::Number(number),
                _ => Key::Time { at: self.at, id: KeyId::of("") },
            }
        }
    }

    struct Open {
        xid: u64,
        rows: Vec<Row>,
        /// Of savepoints, also of those that were rolled back.
        subs: Vec<u64>,
    }

    #[derive(Default)]
    struct Model {
        next_xid: u64,
        next_row: i64,
        has_columns: bool,
        /// What the id after a crash would be, at least.
        on_disk: u64,
        /// A mark that the reader knows to be on the disk.
        durable: u64,
        open: Vec<Open>,
        committed: Vec<Row>,
        delivered: Vec<Row>,
        position: Position,
    }

    impl Model {
        fn new_xid(&mut self) -> u64 {
            self.next_xid += 1;
            self.next_xid + 99
        }

        fn act(&mut self, act: &Act) {
            match act {
                Act::Begin => {
                    let xid = self.new_xid();
                    self.open.push(Open { xid, rows: Vec::new(), subs: Vec::new() });
                }
                Act::Insert { into, key, savepoint } if !self.open.is_empty() => {
                    let into = into.index(self.open.len());
                    self.next_row += 1;
                    // most keys grow, some come from another clock; the low part keeps them apart
                    let high = if key % 3 == 0 { i64::from(*key) } else { 256 + self.next_row };
                    let at = (high << 20) | self.next_row;
                    let top = self.open[into].xid;
                    let xmin = if savepoint.is_some() { self.new_xid() } else { top };
                    self.open[into].subs.extend(savepoint.is_some().then_some(xmin));
                    if *savepoint != Some(false) {
                        let told = self.has_columns.then_some((top, self.next_row));
                        self.open[into].rows.push(Row { at, xmin, told });
                    }
                }
                Act::End { of, commits } if !self.open.is_empty() => {
                    let ended = self.open.swap_remove(of.index(self.open.len()));
                    if *commits {
                        let last = ended.subs.iter().copied().fold(ended.xid, u64::max);
                        self.on_disk = self.on_disk.max(last + 1);
                        self.committed.extend(ended.rows);
                        self.committed.sort();
                    }
                }
                Act::Flush => {
                    self.durable = self.mark();
                    // of one that has written nothing yet the disk has not heard
                    let silent = |xid| {
                        let is = |open: &Open| open.xid == xid && open.rows.is_empty() && open.subs.is_empty();
                        self.open.iter().any(is)
                    };
                    self.on_disk = (self.on_disk..=self.durable)
                        .rev()
                        .find(|next| !silent(next - 1))
                        .unwrap_or(0)
                        .max(self.on_disk);
                }
                Act::Crash => {
                    self.open.clear();
                    self.next_xid = self.on_disk.max(100) - 100;
                }
                Act::Migrate => self.has_columns |= self.open.iter().all(|open| open.rows.is_empty()),
                Act::Poll { stops_after, lists_open, counts, is_long, is_fresh } => {
                    let lists = lists_open.then_some(*is_long);
                    self.poll(stops_after.map(usize::from), lists, *counts, *is_fresh);
                }
                _ => {}
            }
        }

        /// Every transaction below it has ended.
        fn mark(&self) -> u64 {
            self.open.iter().map(|open| open.xid).min().unwrap_or(self.next_xid + 100)
        }

        /// One answer of the database, delivered whole or in part; the rest by whoever takes over the token.
        fn poll(&mut self, stops_after: Option<usize>, lists: Option<bool>, counts: bool, is_fresh: bool) {
            let (old, new) = (View { age: Age::System, order: Order::Time }, View::default());
            let is_told = self.position.view == new && !self.position.is_beginning();
            let best = if self.has_columns && (is_fresh || is_told) { new } else { old };
            if self.position.is_beginning() {
                self.position.adopt(best);
            }
            let view = self.position.view;
            let next = self.next_xid + 100;
            let last = self.committed.iter().map(|row| row.xid(view)).max();
            let reached = self.durable.max(last.map_or(0, |last| last + 1)).min(next);
            let mark = self.mark().min(reached);
            let subs = |open: &Open| if view.age == Age::System { open.subs.clone() } else { Vec::new() };
            let open = self.open.iter().flat_map(|open| subs(open).into_iter().chain([open.xid]));
            let listed = Ended { mark: next, open: open.collect() }.until(reached);
            let end = match (self.position.range(), lists) {
                (Some((end, _)), _) => end.clone(),
                (None, Some(true)) if listed.mark > mark => listed.clone(),
                _ => self.position.next_end(mark),
            };
            let mut nth: BTreeMap<u64, u64> = BTreeMap::new();
            let rank = |row: &Row| (matches!(row.key(view), Key::Number(_)), row.key(view));
            self.committed.sort_by_key(rank);
            let mut rows = Vec::new();
            for row in &self.committed {
                let nth = nth.entry(row.xid(view)).or_default();
                *nth += 1;
                if !self.position.has(row.xid(view), &row.key(view), *nth) {
                    rows.push(row.clone());
                }
            }
            rows.sort_by_key(|row| (!end.has(row.xid(view)), rank(row)));
            let is_cut = stops_after.is_some_and(|most| most < rows.len());
            let counts = counts && self.position.range().is_none() && lists != Some(true);
            let listed = Some(listed).filter(|_| lists == Some(false));
            let answer = Answer { rows, end: end.clone(), listed: listed.clone() };
            let steps = answer.steps(&self.position, 24, |row| row.xid(view));
            for (before, row) in steps.into_iter().take(stops_after.unwrap_or(usize::MAX)) {
                if let Some(ended) = before {
                    self.position.finish(&ended);
                }
                match counts {
                    true => self.position.count(row.xid(view)),
                    false => self.position.take(row.xid(view), row.key(view), &end),
                }
                self.delivered.push(row);
            }
            if !is_cut {
                self.position.finish_all(&end, listed.as_ref());
                self.position.adopt(best);
            }
            let (token, left_out) = self.position.to_bytes(usize::MAX);
            assert!(!left_out);
            assert_eq!(Position::from_bytes(self.position.view, &token).as_ref(), Some(&self.position));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100_000, ..ProptestConfig::default() })]

        #[test]
        fn every_committed_row_is_delivered_once_whoever_reads_and_however_writers_interleave(
            acts in prop::collection::vec(act(), 1..60)
        ) {
            let mut model = Model::default();
            for one in &acts {
                model.act(one);
            }
            for open in std::mem::take(&mut model.open) {
                model.committed.extend(open.rows);
            }
            for is_fresh in [false, true, true] {
                model.poll(None, None, false, is_fresh);
            }
            let mut delivered = model.delivered;
            delivered.sort();
            model.committed.sort();
            prop_assert_eq!(delivered, model.committed);
        }

        #[test]
        fn foreign_bytes_are_no_position_or_one_that_spells_the_same(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Some(position) = Position::from_bytes(View::default(), &bytes) {
                prop_assert_eq!(position.to_bytes(usize::MAX).0, bytes);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_left_out_from_the_newest_on() {
        let counted: BTreeMap<u64, u64> = (1..100).map(|number| (1_000_000 + number * 1000, 3)).collect();
        let key = Key::Time { at: 1_764_000_000_000_000, id: KeyId::of("01a20d92-66b8-751f-b452-de6e87991467") };
        let range = Some((Ended::below(1_000_000), key));
        let position = Position { settled: Ended::below(1_000_000), range, counted, ..Position::default() };
        let (bytes, left_out) = position.to_bytes(90);
        assert!(left_out && bytes.len() <= 90);
        let back = Position::from_bytes(View::default(), &bytes).expect("a position");
        assert!(back.counted.len() > 15 && back.counted.iter().all(|(xid, count)| position.counted[xid] == *count));
        assert_eq!(back.range, position.range);
    }
}
