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

use std::collections::{BTreeMap, BTreeSet};

/// What rows of one job are ordered by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// A column that grows.
    Number(i64),
    /// Without one: microseconds since 1970, then the event's id as PostgreSQL orders it.
    Time { at: i64, id: String },
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

    /// How many bytes it takes in a cursor.
    pub fn length(&self) -> usize {
        let mut bytes = Vec::new();
        put_ended(&mut bytes, self);
        bytes.len()
    }

    /// The same, as far as another mark.
    fn until(&self, mark: u64) -> Self {
        let mark = mark.min(self.mark);
        Self { mark, open: self.open.range(..mark).copied().collect() }
    }

    /// The lowest transaction that may still write.
    pub fn floor(&self) -> u64 {
        self.open.first().copied().unwrap_or(self.mark)
    }
}

/// Transactions that are counted at the same time.
const GROUP: usize = 8;

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
    /// The rows in the order of delivery, each with what is finished before it. Of many transactions beyond the range
    /// a few are counted at a time, so that a position stays short.
    pub fn steps(self, from: &Position, xid: impl Fn(&R) -> u64) -> Vec<(Option<Ended>, R)> {
        let Self { rows, end, listed } = self;
        let (range, mut newer): (Vec<R>, Vec<R>) = rows.into_iter().partition(|row| end.has(xid(row)));
        let mut steps: Vec<_> = range.into_iter().map(|row| (None, row)).collect();
        let mut finished = end.mark.max(from.settled.mark);
        let mut firsts: Vec<u64> = Vec::new();
        if listed.is_some() {
            let xids: BTreeSet<u64> = newer.iter().map(&xid).collect();
            firsts = xids.into_iter().step_by(GROUP).collect();
        }
        let group = |xid: u64| firsts.partition_point(|first| *first <= xid);
        newer.sort_by_key(|row| group(xid(row)));
        let mut current = None;
        for row in newer {
            let group = group(xid(&row));
            let mut before = None;
            if current.replace(group) != Some(group) {
                before = Some(end.clone());
                if let Some(listed) = listed.as_ref().filter(|_| group > 1) {
                    let until = listed.until(firsts[group - 1]);
                    if until.mark >= finished {
                        finished = until.mark;
                        before = Some(until);
                    } else {
                        before = None;
                    }
                }
            }
            steps.push((before, row));
        }
        steps
    }
}

/// A place in an event table. See the module for what it means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
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

    /// Level with an answer whose mark was `mark`, when `counted` rows of transactions at or above it were delivered.
    pub fn level(mark: u64, counted: BTreeMap<u64, u64>) -> Self {
        Self { settled: Ended::below(mark), range: None, counted }
    }

    /// After everything that an answer with this mark showed up to `key`.
    pub fn after_key(mark: u64, key: Key, counted: BTreeMap<u64, u64>) -> Self {
        Self { settled: Ended::default(), range: Some((Ended::below(mark), key)), counted }
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

    /// Whether a row was delivered; `nth` counts from 1 among the rows of its transaction, by key.
    #[cfg(test)]
    fn has(&self, xid: u64, key: &Key, nth: u64) -> bool {
        self.settled.has(xid)
            || self.counted.get(&xid).is_some_and(|counted| nth <= *counted)
            || self.range.as_ref().is_some_and(|(end, until)| end.has(xid) && key <= until)
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
                put_ended(&mut bytes, end);
            }
        }
        if bytes.len() > most {
            // a range is delivered again, or all that is not settled without exception
            let settled = if self.range.is_some() { self.settled.clone() } else { Ended::below(self.settled.floor()) };
            let less = Self { settled, range: None, counted: BTreeMap::new() };
            return (less.to_bytes(most).0, true);
        }
        let mut before = self.settled.floor();
        for (xid, count) in &self.counted {
            let length = bytes.len();
            // ranges come and go below the floor of what is settled: then the difference is negative
            put(&mut bytes, zigzag(*xid as i64 - before as i64));
            put(&mut bytes, *count);
            if bytes.len() > most {
                bytes.truncate(length);
                return (bytes, true);
            }
            before = *xid;
        }
        (bytes, false)
    }

    /// `None` for what [`Position::to_bytes`] never wrote.
    pub fn from_bytes(mut bytes: &[u8]) -> Option<Self> {
        let from = &mut bytes;
        let settled = get_ended(from)?;
        let range = match get_key(from)? {
            None => None,
            Some(key) => Some((get_ended(from)?, key)),
        };
        let mut counted = BTreeMap::new();
        let mut before = settled.floor();
        while !from.is_empty() {
            let xid = u64::try_from((before as i64).checked_add(unzigzag(get(from)?))?).ok()?;
            let count = get(from).filter(|count| *count > 0)?;
            if counted.last_key_value().is_some_and(|(last, _)| *last >= xid) || xid > MAX_XID {
                return None;
            }
            counted.insert(xid, count);
            before = xid;
        }
        Some(Self { settled, range, counted })
    }
}

/// More transactions than there will ever be; keeps sums from overflowing.
const MAX_XID: u64 = 1 << 62;

/// So many transactions below a mark are told by a bit each: most of those that are open began lately.
const WINDOW: u64 = 256;

/// The mark; the open of the window below it, as bits; the older ones, by their distances.
fn put_ended(to: &mut Vec<u8>, ended: &Ended) {
    put(to, ended.mark);
    let (mut bits, mut far) = (Vec::new(), Vec::new());
    for xid in ended.open.iter().rev() {
        match ended.mark - 1 - xid {
            below @ ..WINDOW => {
                bits.resize(bits.len().max(below as usize / 8 + 1), 0);
                bits[below as usize / 8] |= 1 << (below % 8);
            }
            _ => far.push(*xid),
        }
    }
    to.push(bits.len() as u8);
    to.extend_from_slice(&bits);
    put(to, far.len() as u64);
    let mut above = ended.mark;
    for xid in far {
        put(to, above - xid);
        above = xid;
    }
}

fn get_ended(from: &mut &[u8]) -> Option<Ended> {
    let mark = get(from).filter(|mark| *mark <= MAX_XID)?;
    let mut open = BTreeSet::new();
    let length = usize::from(take(from, 1)?[0]);
    let bits = take(from, length).filter(|bits| bits.len() as u64 <= WINDOW / 8 && bits.last() != Some(&0))?;
    for below in (0..length * 8).filter(|below| bits[below / 8] & (1 << (below % 8)) != 0) {
        open.insert(mark.checked_sub(1 + below as u64)?);
    }
    let mut above = mark;
    for _ in 0..get(from)? {
        above = above.checked_sub(get(from).filter(|step| *step > 0)?).filter(|xid| mark - 1 - xid >= WINDOW)?;
        open.insert(above);
    }
    Some(Ended { mark, open })
}

fn put_key(to: &mut Vec<u8>, key: &Key) {
    match key {
        Key::Number(number) => {
            to.push(1);
            put(to, zigzag(*number));
        }
        Key::Time { at, id } => {
            let short = short_id(id);
            to.push(if short.is_some() { 2 } else { 3 });
            put(to, zigzag(*at));
            let raw = short.as_ref().map_or(id.as_bytes(), |short| &short[..]);
            put(to, raw.len() as u64);
            to.extend_from_slice(raw);
        }
    }
}

fn get_key(from: &mut &[u8]) -> Option<Option<Key>> {
    Some(match take(from, 1)?[0] {
        0 => None,
        1 => Some(Key::Number(unzigzag(get(from)?))),
        kind @ (2 | 3) => {
            let at = unzigzag(get(from)?);
            let length = usize::try_from(get(from)?).ok()?;
            let raw = take(from, length)?;
            let id = match kind {
                2 => uuid::Uuid::from_slice(raw).ok()?.to_string(),
                _ => std::str::from_utf8(raw).ok().filter(|id| short_id(id).is_none())?.to_string(),
            };
            Some(Key::Time { at, id })
        }
        _ => return None,
    })
}

/// A UUID in its usual spelling takes 16 bytes instead of 36.
fn short_id(id: &str) -> Option<[u8; 16]> {
    let uuid = uuid::Uuid::try_parse(id).ok()?;
    (uuid.to_string() == id).then(|| *uuid.as_bytes())
}

fn put(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

fn get(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = take(from, 1)?[0];
        let bits = u64::from(byte & 0x7f);
        number |= bits.checked_shl(shift).filter(|shifted| shifted >> shift == bits)?;
        if byte < 0x80 {
            // no number has two spellings
            return (byte != 0 || shift == 0).then_some(number);
        }
    }
    None
}

fn take<'a>(from: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(taken)
}

fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

#[cfg(test)]
mod tests {
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
        /// The reader stops after so many rows, and another process goes on from its token.
        Poll {
            stops_after: Option<u8>,
            lists_open: bool,
            counts: bool,
        },
    }

    fn act() -> impl Strategy<Value = Act> {
        let index = any::<prop::sample::Index>;
        prop_oneof![
            2 => Just(Act::Begin),
            4 => (index(), any::<u8>(), prop::option::of(any::<bool>()))
                .prop_map(|(into, key, savepoint)| Act::Insert { into, key, savepoint }),
            3 => (index(), prop::bool::weighted(0.8)).prop_map(|(of, commits)| Act::End { of, commits }),
            3 => (prop::option::of(0..4_u8), prop::bool::weighted(0.3), any::<bool>())
                .prop_map(|(stops_after, lists_open, counts)| Act::Poll { stops_after, lists_open, counts }),
        ]
    }

    type Row = (i64, u64);

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
                    let key = (high << 20) | self.next_row;
                    let xid = if savepoint.is_some() { self.new_xid() } else { self.open[into].xid };
                    self.open[into].subs.extend(savepoint.is_some().then_some(xid));
                    if *savepoint != Some(false) {
                        self.open[into].rows.push((key, xid));
                    }
                }
                Act::End { of, commits } if !self.open.is_empty() => {
                    let ended = self.open.swap_remove(of.index(self.open.len()));
                    if *commits {
                        self.committed.extend(ended.rows);
                        self.committed.sort();
                    }
                }
                Act::Poll { stops_after, lists_open, counts } => {
                    self.poll(stops_after.map(usize::from), *lists_open, *counts);
                }
                _ => {}
            }
        }

        /// One answer of the database, delivered whole or in part; the rest by whoever takes over the token.
        fn poll(&mut self, stops_after: Option<usize>, lists_open: bool, counts: bool) {
            let next = self.next_xid + 100;
            let mark = self.open.iter().map(|open| open.xid).min().unwrap_or(next);
            let open = self.open.iter().flat_map(|open| open.subs.iter().copied().chain([open.xid]));
            let listed = Ended { mark: next, open: open.collect() };
            let end = self.position.range().map_or_else(|| self.position.next_end(mark), |(end, _)| end.clone());
            let mut nth: BTreeMap<u64, u64> = BTreeMap::new();
            let mut rows = Vec::new();
            for (key, xid) in &self.committed {
                let nth = nth.entry(*xid).or_default();
                *nth += 1;
                if !self.position.has(*xid, &Key::Number(*key), *nth) {
                    rows.push((*key, *xid));
                }
            }
            rows.sort_by_key(|(key, xid)| (!end.has(*xid), *key));
            let is_cut = stops_after.is_some_and(|most| most < rows.len());
            let counts = counts && self.position.range().is_none();
            let listed = lists_open.then_some(listed);
            let answer = Answer { rows, end: end.clone(), listed: listed.clone() };
            let steps = answer.steps(&self.position, |(_, xid)| *xid);
            for (before, (key, xid)) in steps.into_iter().take(stops_after.unwrap_or(usize::MAX)) {
                if let Some(ended) = before {
                    self.position.finish(&ended);
                }
                match counts {
                    true => self.position.count(xid),
                    false => self.position.take(xid, Key::Number(key), &end),
                }
                self.delivered.push((key, xid));
            }
            if !is_cut {
                self.position.finish(&end);
                listed
                    .filter(|listed| listed.mark >= self.position.settled.mark)
                    .inspect(|all| self.position.finish(all));
            }
            let (token, left_out) = self.position.to_bytes(usize::MAX);
            assert!(!left_out);
            assert_eq!(Position::from_bytes(&token).as_ref(), Some(&self.position));
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
            model.committed.sort();
            model.poll(None, false, false);
            model.poll(None, false, false);
            let mut delivered = model.delivered;
            delivered.sort();
            prop_assert_eq!(delivered, model.committed);
        }

        #[test]
        fn foreign_bytes_are_no_position_or_one_that_spells_the_same(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Some(position) = Position::from_bytes(&bytes) {
                prop_assert_eq!(position.to_bytes(usize::MAX).0, bytes);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_left_out_from_the_newest_on() {
        let counted: BTreeMap<u64, u64> = (1..100).map(|number| (1_000_000 + number * 1000, 3)).collect();
        let key = Key::Time { at: 1_764_000_000_000_000, id: "01a20d92-66b8-751f-b452-de6e87991467".into() };
        let position =
            Position { settled: Ended::below(1_000_000), range: Some((Ended::below(1_000_000), key)), counted };
        let (bytes, left_out) = position.to_bytes(90);
        assert!(left_out && bytes.len() <= 90);
        let back = Position::from_bytes(&bytes).expect("a position");
        assert!(back.counted.len() > 15 && back.counted.iter().all(|(xid, count)| position.counted[xid] == *count));
        assert_eq!(back.range, position.range);
    }
}
