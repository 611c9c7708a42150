//! The rule of settled and counted positions against a model of what PostgreSQL lets a snapshot see.

use super::super::tables::{RowOrder, XidSource};
use super::*;
use proptest::prelude::*;

/// One thing that a writer, the server or the reader does.
#[derive(Clone, Debug)]
enum Act {
    Begin,
    /// Inserts a row in one of the open transactions. In a savepoint it has an xid of its own, and is kept or rolled
    /// back.
    Insert {
        into: prop::sample::Index,
        key: u8,
        savepoint: Option<bool>,
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
        /// So far below the last transaction the list ends: less is known to be on the disk than the time before, or it
        /// has no room for more.
        list_lacks: u8,
        counts: bool,
        /// There are many rows, so those that are listed are delivered by key.
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
        30 => (prop::option::of(0..4_u8), prop::bool::weighted(0.3), prop_oneof![Just(0), 0..8_u8], flag(), flag(), flag())
            .prop_map(|(stops_after, lists_open, list_lacks, counts, is_long, is_fresh)| {
                Act::Poll { stops_after, lists_open, list_lacks, counts, is_long, is_fresh }
            }),
    ]
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
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

/// A list of the open transactions, read before the rows are.
#[derive(Clone, Copy)]
struct List {
    /// The settled part ends with it.
    is_end: bool,
    /// Transactions between the last one and the list's mark.
    lacks: u64,
}

struct Open {
    xid: u64,
    rows: Vec<Row>,
    /// Ids of savepoints, also of those that were rolled back.
    subs: Vec<u64>,
}

#[derive(Default)]
struct Model {
    next_xid: u64,
    next_row: i64,
    has_columns: bool,
    /// Lowest id that may be given out after a crash.
    on_disk: u64,
    /// Mark that the reader knows to be on the disk.
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
            Act::Poll { stops_after, lists_open, list_lacks, counts, is_long, is_fresh } => {
                let list = lists_open.then(|| List { is_end: *is_long, lacks: u64::from(*list_lacks) });
                self.poll(stops_after.map(usize::from), list, *counts, *is_fresh);
            }
            _ => {}
        }
    }

    /// The settled mark of a snapshot taken now.
    fn mark(&self) -> u64 {
        self.open.iter().map(|open| open.xid).min().unwrap_or(self.next_xid + 100)
    }

    /// Delivers one answer of the database, whole or in part. Whoever takes over the token delivers the rest.
    ///
    /// Returns the mark of the server, and true if the position that the answer begins at leaves no trace.
    fn poll(&mut self, stops_after: Option<usize>, list: Option<List>, counts: bool, is_fresh: bool) -> (u64, bool) {
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
        let listed = EndedXids { mark: next, open: open.collect() }.truncated(known);
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
            if !self.position.has_delivered(row.xid(scheme), &row.key(scheme), *nth) {
                rows.push(row.clone());
            }
        }
        rows.sort_by_key(|row| (!end.contains(row.xid(scheme)), rank(row)));
        let is_cut = stops_after.is_some_and(|most| most < rows.len());
        let counts = counts && self.position.range().is_none() && !ends_with_list;
        let listed = Some(listed).filter(|_| list.is_some() && !ends_with_list);
        let answer = UndeliveredRows { rows, end: end.clone(), listed: listed.clone() };
        let steps = answer.into_steps(&self.position, |position| position.counted.len() <= 1, |row| row.xid(scheme));
        for DeliveryStep { finished, row } in steps.into_iter().take(stops_after.unwrap_or(usize::MAX)) {
            if let Some(ended) = finished {
                self.position.finish(&ended);
            }
            if counts {
                self.position.count(row.xid(scheme));
            } else {
                self.position.advance(row.xid(scheme), row.key(scheme), &end);
            }
            self.delivered.push(row);
        }
        if !is_cut {
            self.position.finish_all(&end, listed.as_ref());
            self.position.adopt(best);
        }
        let (token, left_out) = self.position.to_bytes(usize::MAX);
        assert!(!left_out);
        assert_eq!(Position::from_bytes(self.position.scheme, &token).as_ref(), Some(&self.position));
        (mark, is_superseded)
    }

    /// Begins a channel where the last page of a reader ends, as `build_page` does it, whatever position the reader came
    /// with. From here on `delivered` is what honest readers beside it have.
    fn begin_channel(&mut self, foreign: Position, lists: bool) {
        let best = if self.has_columns { CursorScheme::default() } else { OLD };
        self.delivered.clear();
        self.position = foreign.clone();
        let (mark, is_superseded) = self.poll(None, lists.then_some(List { is_end: false, lacks: 0 }), false, true);
        if self.delivered.is_empty() && foreign.is_reached_mark(mark, best) {
            self.position = foreign;
        } else if !is_superseded || self.position.scheme != best {
            let mut counted = BTreeMap::new();
            for row in self.committed.iter().filter(|row| row.xid(best) >= mark) {
                *counted.entry(row.xid(best)).or_default() += 1;
            }
            self.position = Position::new_settled(best, EndedXids::below(mark), counted);
        }
        self.delivered = self.committed.clone();
    }

    /// Ends all transactions, and reads to the end.
    fn finish(&mut self) {
        for open in std::mem::take(&mut self.open) {
            self.committed.extend(open.rows);
        }
        for is_fresh in [false, true, true] {
            self.poll(None, None, false, is_fresh);
        }
        self.delivered.sort();
        self.committed.sort();
    }
}

const OLD: CursorScheme = CursorScheme { xids: XidSource::System, order: RowOrder::Time };

/// A position with every field drawn at random, around the transactions of the model.
fn foreign_position() -> impl Strategy<Value = Position> {
    let xid = || 90..130_u64;
    let ended = move || {
        (xid(), prop::collection::btree_set(xid(), 0..3))
            .prop_map(|(mark, open)| EndedXids { mark, open }.truncated(mark))
    };
    let key = prop_oneof![
        (0..300_i64).prop_map(Key::Number),
        (0..600_i64).prop_map(|high| Key::Time { at: high << 20, id: KeyId::of("") }),
    ];
    let range = prop::option::of((ended(), key).prop_map(|(end, key)| Range { end, key }));
    let counted = prop::collection::btree_map(xid(), 1..5_u64, 0..4);
    (any::<bool>(), ended(), range, counted).prop_map(|(is_old, settled, range, counted)| {
        let scheme = if is_old { OLD } else { CursorScheme::default() };
        let life = counted.keys().next().map(|xid| Life(*xid as u16));
        Position { scheme, life, settled, range, counted }
    })
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
        model.finish();
        prop_assert_eq!(model.delivered, model.committed);
    }

    #[test]
    fn readers_beside_one_who_lies_lose_nothing_and_repeat_nothing(
        before in prop::collection::vec(act(), 1..30),
        lie in prop::option::of(foreign_position()),
        lists in any::<bool>(),
        after in prop::collection::vec(act(), 1..30),
    ) {
        let mut model = Model::default();
        for one in &before {
            model.act(one);
        }
        let mut first = lie.unwrap_or_else(|| model.position.clone());
        if !model.has_columns {
            first.scheme = OLD;
        }
        model.begin_channel(first, lists);
        for one in &after {
            model.act(one);
        }
        model.finish();
        prop_assert_eq!(model.delivered, model.committed);
    }

    #[test]
    fn foreign_bytes_are_no_position_or_one_that_spells_the_same(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        if let Some(position) = Position::from_bytes(CursorScheme::default(), &bytes) {
            prop_assert_eq!(position.to_bytes(usize::MAX).0, bytes);
        }
    }
}

#[test]
fn counts_that_do_not_fit_are_left_out_from_the_newest_on() {
    let counted: BTreeMap<u64, u64> = (1..100).map(|number| (1_000_000 + number * 1000, 3)).collect();
    let key = Key::Time { at: 1_764_000_000_000_000, id: KeyId::of("01a20d92-66b8-751f-b452-de6e87991467") };
    let range = Some(Range { end: EndedXids::below(1_000_000), key });
    let position = Position { settled: EndedXids::below(1_000_000), range, counted, ..Position::default() };
    let (bytes, left_out) = position.to_bytes(90);
    assert!(left_out && bytes.len() <= 90);
    let back = Position::from_bytes(CursorScheme::default(), &bytes).expect("a position");
    assert!(back.counted.len() > 15 && back.counted.iter().all(|(xid, count)| position.counted[xid] == *count));
    assert_eq!(back.range, position.range);
}
