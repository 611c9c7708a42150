//! A model of what PostgreSQL lets a snapshot see, and of a reader that goes on from tokens.

use super::super::super::tables::{RowOrder, XidSource};
use super::super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// One thing that a writer, the server or the reader does.
#[derive(Clone, Debug)]
pub enum Act {
    Begin,
    /// Inserts a row in one of the open transactions. In a savepoint it has an xid of its own, and is kept or rolled
    /// back.
    Insert {
        into: prop::sample::Index,
        key: u8,
        savepoint: Option<bool>,
    },
    /// Makes a new version of a committed row in one of the open transactions, unless another has it.
    Update {
        row: prop::sample::Index,
        by: prop::sample::Index,
    },
    /// Ends one of the open transactions. A prepared transaction is one that stays open, so it needs no model.
    End {
        of: prop::sample::Index,
        commits: bool,
    },
    /// Brings all that was written so far to the disk, and tells the reader.
    Flush,
    /// Loses the open transactions. Ids that the disk does not know of are given out once more.
    Crash,
    /// Adds columns for transactions and numbers, which new rows fill. Waits for all who write to the table.
    Migrate,
    /// Reads. The reader stops after so many rows, and another process goes on from its token: one that has seen
    /// today's columns, or one that began before them.
    Poll {
        stops_after: Option<u8>,
        lists_open: bool,
        /// Transactions by which the list ends below the last one: less is known to be on the disk than the time before,
        /// or it has no room for more.
        list_lacks: u8,
        counts: bool,
        /// There are many rows, so those that are listed are delivered by key.
        is_long: bool,
        is_fresh: bool,
        /// The answer itself has no more rows.
        is_limited: bool,
    },
}

pub fn act() -> impl Strategy<Value = Act> {
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
        30 => poll(),
    ]
}

fn poll() -> impl Strategy<Value = Act> {
    let flag = any::<bool>;
    let list = (prop::bool::weighted(0.3), prop_oneof![Just(0), 0..8_u8]);
    (prop::option::of(0..4_u8), list, [flag(), flag(), flag(), flag()]).prop_map(
        |(stops_after, (lists_open, list_lacks), [counts, is_long, is_fresh, is_limited])| Act::Poll {
            stops_after,
            lists_open,
            list_lacks,
            counts,
            is_long,
            is_fresh,
            is_limited,
        },
    )
}

pub fn update() -> impl Strategy<Value = Act> {
    let index = any::<prop::sample::Index>;
    (index(), index()).prop_map(|(row, by)| Act::Update { row, by })
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    at: i64,
    /// Id of the transaction, or of its savepoint.
    xmin: u64,
    /// Values of the columns: id of the transaction, and the row's number.
    columns: Option<(u64, i64)>,
}

impl Row {
    fn xid(&self, scheme: CursorScheme) -> u64 {
        match scheme.xids {
            XidSource::System => self.xmin,
            XidSource::Column => self.columns.map_or(0, |(top, _)| top),
        }
    }

    fn key(&self, scheme: CursorScheme) -> Key {
        match self.columns {
            Some((_, number)) if scheme.order == RowOrder::Number => Key::Number(number),
            _ => Key::Time { at: self.at, id: KeyId::of("") },
        }
    }
}

struct Open {
    xid: u64,
    rows: Vec<Row>,
    /// Rows that have a new version here.
    updated: BTreeSet<i64>,
    /// Ids of savepoints, also of those that were rolled back.
    subs: Vec<u64>,
}

#[derive(Default)]
pub struct Model {
    next_xid: u64,
    next_row: i64,
    pub has_columns: bool,
    /// Lowest id that may be given out after a crash.
    on_disk: u64,
    /// Mark that the reader knows to be on the disk.
    durable: u64,
    open: Vec<Open>,
    pub committed: Vec<Row>,
    pub delivered: Vec<Row>,
    /// Only first versions are delivered.
    dedupes: bool,
    /// The transactions that wrote the rows, before any UPDATE.
    first_versions: BTreeMap<i64, u64>,
    pub position: Position,
}

/// A list of the open transactions, read before the rows are.
#[derive(Clone, Copy)]
struct List {
    /// The settled part ends with it.
    is_end: bool,
    /// Transactions between the last one and the list's mark.
    lacks: u64,
}

/// A way to read one answer of the database.
#[derive(Clone, Copy)]
pub struct Poll {
    /// Rows after which the reader is gone. Whoever takes over the token goes on from there.
    stops_after: Option<usize>,
    list: Option<List>,
    counts: bool,
    is_fresh: bool,
    /// The answer has no more rows than that.
    is_limited: bool,
}

pub const WHOLE: Poll = Poll { stops_after: None, list: None, counts: false, is_fresh: true, is_limited: false };

impl Model {
    pub fn with_dedupe() -> Self {
        Self { dedupes: true, ..Self::default() }
    }

    fn new_xid(&mut self) -> u64 {
        self.next_xid += 1;
        self.next_xid + 99
    }

    pub fn act(&mut self, act: &Act) {
        match act {
            Act::Begin => {
                let xid = self.new_xid();
                self.open.push(Open { xid, rows: Vec::new(), updated: BTreeSet::new(), subs: Vec::new() });
            }
            Act::Insert { into, key, savepoint } if !self.open.is_empty() => {
                let into = into.index(self.open.len());
                self.next_row += 1;
                // Most keys grow, some come from another clock; the low part keeps them apart.
                let high = if key % 3 == 0 { i64::from(*key) } else { 256 + self.next_row };
                let at = (high << 20) | self.next_row;
                let top = self.open[into].xid;
                let xmin = if savepoint.is_some() { self.new_xid() } else { top };
                self.open[into].subs.extend(savepoint.is_some().then_some(xmin));
                if *savepoint != Some(false) {
                    let columns = self.has_columns.then_some((top, self.next_row));
                    self.open[into].rows.push(Row { at, xmin, columns });
                }
            }
            Act::Update { row, by } if !self.open.is_empty() && !self.committed.is_empty() => {
                let at = self.committed[row.index(self.committed.len())].at;
                if self.open.iter().all(|open| !open.updated.contains(&at)) {
                    let by = by.index(self.open.len());
                    self.open[by].updated.insert(at);
                }
            }
            Act::End { of, commits } if !self.open.is_empty() => {
                let ended = self.open.swap_remove(of.index(self.open.len()));
                if *commits {
                    let last = ended.subs.iter().copied().fold(ended.xid, u64::max);
                    self.on_disk = self.on_disk.max(last + 1);
                    self.commit(ended);
                }
            }
            Act::Flush => {
                self.durable = self.mark();
                // The disk does not know of a transaction that has written nothing yet.
                let silent = |xid| {
                    let is = |open: &Open| open.xid == xid && open.rows.is_empty() && open.subs.is_empty();
                    self.open.iter().any(is)
                };
                self.on_disk =
                    (self.on_disk..=self.durable).rev().find(|next| !silent(next - 1)).unwrap_or(0).max(self.on_disk);
            }
            Act::Crash => {
                self.open.clear();
                self.next_xid = self.on_disk.max(100) - 100;
            }
            Act::Migrate => self.has_columns |= self.open.iter().all(|open| open.rows.is_empty()),
            Act::Poll { stops_after, lists_open, list_lacks, counts, is_long, is_fresh, is_limited } => {
                let list = lists_open.then(|| List { is_end: *is_long, lacks: u64::from(*list_lacks) });
                let stops_after = stops_after.map(usize::from);
                self.poll(Poll { stops_after, list, counts: *counts, is_fresh: *is_fresh, is_limited: *is_limited });
            }
            _ => {}
        }
    }

    fn commit(&mut self, ended: Open) {
        for row in self.committed.iter_mut().filter(|row| ended.updated.contains(&row.at)) {
            row.xmin = ended.xid;
        }
        for row in &ended.rows {
            self.first_versions.insert(row.at, row.xmin);
        }
        self.committed.extend(ended.rows);
        self.committed.sort();
    }

    /// The transaction of a row's first version, which a process knows that has read it.
    fn first_xid(&self, row: &Row, scheme: CursorScheme) -> u64 {
        match scheme.xids {
            XidSource::System => self.first_versions[&row.at],
            XidSource::Column => row.xid(scheme),
        }
    }

    /// The settled mark of a snapshot taken now.
    fn mark(&self) -> u64 {
        self.open.iter().map(|open| open.xid).min().unwrap_or(self.next_xid + 100)
    }

    /// Delivers one answer of the database, whole or in part.
    ///
    /// Returns the mark of the server, and true if the position that the answer begins at leaves no trace.
    pub fn poll(&mut self, how: Poll) -> (u64, bool) {
        let Poll { stops_after, list, counts, is_fresh, is_limited } = how;
        let (old, new) = (CursorScheme { xids: XidSource::System, order: RowOrder::Time }, CursorScheme::default());
        let is_in_columns = self.position.scheme == new && !self.position.is_beginning();
        let best = if self.has_columns && (is_fresh || is_in_columns) { new } else { old };
        if self.position.is_beginning() {
            self.position.adopt(best);
        }
        let scheme = self.position.scheme;
        let next = self.next_xid + 100;
        let last = self.committed.iter().map(|row| row.xid(scheme)).max();
        let reached = self.durable.max(last.map_or(0, |last| last + 1)).min(next);
        let mark = self.mark().min(reached);
        let subs = |open: &Open| if scheme.xids == XidSource::System { open.subs.clone() } else { Vec::new() };
        let open = self.open.iter().flat_map(|open| subs(open).into_iter().chain([open.xid]));
        let known = reached.saturating_sub(list.map_or(0, |list| list.lacks));
        let listed = EndedXids::listed(next, open.collect()).truncated(known);
        let next_end = self.position.next_end(mark);
        let ends_with_list = list.is_some_and(|list| list.is_end);
        let end = match self.position.range() {
            Some(range) => range.end.clone(),
            None if ends_with_list && listed.mark > next_end.mark => listed.clone(),
            None => next_end,
        };
        let is_superseded = self.position.is_superseded_by(&end, mark);
        let mut nth: BTreeMap<u64, u64> = BTreeMap::new();
        let rank = |row: &Row| (matches!(row.key(scheme), Key::Number(_)), row.key(scheme));
        self.committed.sort_by_key(rank);
        let mut rows = Vec::new();
        for row in &self.committed {
            let nth = nth.entry(row.xid(scheme)).or_default();
            *nth += 1;
            let is_delivered = self.position.has_delivered(row.xid(scheme), &row.key(scheme), *nth);
            if !is_delivered {
                rows.push(row.clone());
            }
        }
        rows.sort_by_key(|row| (!end.contains(row.xid(scheme)), rank(row)));
        let is_cut = stops_after.is_some_and(|most| most < rows.len());
        let is_whole = !(is_cut && is_limited);
        if let Some(most) = stops_after.filter(|_| !is_whole) {
            rows.truncate(most);
        }
        let mut one_each = BTreeSet::new();
        let mut settled = rows.iter().map(|row| row.xid(scheme)).filter(|xid| end.contains(*xid));
        let can_count = scheme.xids == XidSource::Column || settled.all(|xid| one_each.insert(xid));
        let counts_settled = counts && can_count && is_whole && self.position.range().is_none() && !ends_with_list;
        let listed = Some(listed).filter(|_| list.is_some() && !ends_with_list && is_whole);
        let is_repeat = |row: &Row| self.dedupes && self.position.has_delivered_all_of(self.first_xid(row, scheme));
        let repeats: BTreeSet<i64> = rows.iter().filter(|row| is_repeat(row)).map(|row| row.at).collect();
        let answer = UndeliveredRows { rows, end: end.clone(), listed: listed.clone(), is_whole, counts_settled };
        let steps = answer.into_steps(&self.position, |position| position.counted.len() <= 1, |row| row.xid(scheme));
        for DeliveryStep { finished, row, advance } in steps.into_iter().take(stops_after.unwrap_or(usize::MAX)) {
            if let Some(ended) = finished {
                self.position.finish(&ended);
            }
            self.position.advance(row.xid(scheme), row.key(scheme), &advance);
            if repeats.contains(&row.at) {
                let is_known = self.delivered.iter().any(|delivered| delivered.at == row.at);
                assert!(is_known, "left out: {row:?}");
            } else {
                self.delivered.push(row);
            }
        }
        if !is_cut {
            self.position.finish_all(&end, listed.as_ref());
            self.position.adopt(best);
            if self.dedupes {
                self.position.note_moment();
            }
        }
        let (token, left_out) = self.position.to_bytes(usize::MAX);
        assert!(!left_out);
        assert_eq!(Position::from_bytes(self.position.scheme, &token).as_ref(), Some(&self.position));
        (mark, is_superseded)
    }

    /// Rows, whatever their versions.
    pub fn without_versions(rows: &[Row]) -> BTreeSet<i64> {
        rows.iter().map(|row| row.at).collect()
    }

    /// Begins a channel where the last page of a reader ends, as `build_page` does it, whatever position the reader came
    /// with. From here on `delivered` is what honest readers beside it have.
    pub fn begin_channel(&mut self, foreign: Position, lists: bool) {
        let best = if self.has_columns { CursorScheme::default() } else { OLD };
        self.delivered.clear();
        self.position = foreign.clone();
        let (mark, is_superseded) =
            self.poll(Poll { list: lists.then_some(List { is_end: false, lacks: 0 }), ..WHOLE });
        if self.delivered.is_empty() && foreign.is_reached_mark(mark, best) {
            self.position = foreign;
        } else if !is_superseded || self.position.scheme != best {
            let mut counted = BTreeMap::new();
            for row in self.committed.iter().filter(|row| row.xid(best) >= mark) {
                *counted.entry(row.xid(best)).or_default() += 1;
            }
            self.position = Position::new_settled(best, EndedXids::below(mark), counted);
            if best == OLD {
                self.position = std::mem::take(&mut self.position).with_whole_transactions();
            }
        }
        self.delivered = self.committed.clone();
    }

    /// Ends all transactions, and reads to the end.
    pub fn finish(&mut self) {
        for open in std::mem::take(&mut self.open) {
            self.commit(open);
        }
        for is_fresh in [false, false, true, true, true] {
            self.poll(Poll { is_fresh, ..WHOLE });
        }
        self.delivered.sort();
        self.committed.sort();
    }
}

pub const OLD: CursorScheme = CursorScheme { xids: XidSource::System, order: RowOrder::Time };
