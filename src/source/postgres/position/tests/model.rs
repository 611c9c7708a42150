//! A model of what PostgreSQL lets a snapshot see, and of a reader that goes on from tokens.

mod reader;

use super::super::super::tables::{RowOrder, XidSource};
use super::super::*;
use proptest::prelude::*;
use reader::List;
pub use reader::{Poll, WHOLE};
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
    /// Makes a new version of a committed row in one of the open transactions, unless another has it, perhaps with another
    /// number.
    Update {
        row: prop::sample::Index,
        by: prop::sample::Index,
        number: Option<u16>,
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
        /// Only rows above a floor are read: this one, if the position does not know of one. With `source.dedupe`, by a column of
        /// transactions, and within a range of all rows, all are read.
        floor: Option<Floor>,
    },
}

/// A floor in the midst of the model's numbers, or of its times.
pub fn floor() -> impl Strategy<Value = Floor> {
    (0..300_i64, any::<bool>())
        .prop_map(|(floor, is_time)| if is_time { Floor::Time(floor) } else { Floor::Number(floor) })
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
    let floor = prop::option::of(floor());
    (prop::option::of(0..4_u8), list, [flag(), flag(), flag(), flag()], floor).prop_map(
        |(stops_after, (lists_open, list_lacks), [counts, is_long, is_fresh, is_limited], floor)| Act::Poll {
            stops_after,
            lists_open,
            list_lacks,
            counts,
            is_long,
            is_fresh,
            is_limited,
            floor,
        },
    )
}

pub fn update() -> impl Strategy<Value = Act> {
    let index = any::<prop::sample::Index>;
    (index(), index(), prop::option::of(0..300_u16)).prop_map(|(row, by, number)| Act::Update { row, by, number })
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    at: i64,
    /// Id of the transaction, or of its savepoint.
    xmin: u64,
    /// Values of the columns: id of the transaction, and the row's number.
    columns: Option<(u64, i64)>,
    /// The number that new rows are looked for by.
    number: i64,
}

impl Row {
    fn xid(&self, scheme: CursorScheme) -> u64 {
        match scheme.xids {
            XidSource::System => self.xmin,
            XidSource::Column => self.columns.map_or(0, |(top, _)| top),
        }
    }

    /// The formula of the module.
    fn is_delivered(&self, position: &Position, nth: u64) -> bool {
        position.has_delivered(self.xid(position.scheme), &self.key(position.scheme), &self.floors(), nth)
    }

    /// The values that floors are compared with.
    fn floors(&self) -> [Floor; 2] {
        [Floor::Number(self.number), Floor::Time(self.at >> 20)]
    }

    fn is_above(&self, floor: Floor) -> bool {
        let [number, time] = self.floors();
        match floor {
            Floor::Number(_) => number > floor,
            Floor::Time(_) => time > floor,
        }
    }

    fn key(&self, scheme: CursorScheme) -> Key {
        match self.columns {
            Some((_, number)) if scheme.order == RowOrder::Number => Key::Number(number),
            _ => Key::Time { at: self.at, id: KeyId::of("") },
        }
    }
}

#[derive(Clone)]
struct Open {
    xid: u64,
    rows: Vec<Row>,
    /// Rows that have a new version here, and their new numbers.
    updated: BTreeMap<i64, Option<u16>>,
    /// Ids of savepoints, also of those that were rolled back.
    subs: Vec<u64>,
}

#[derive(Clone, Default)]
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
    /// Only rows that were delivered here are read, as who joins does.
    published: Option<Position>,
}

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
                self.open.push(Open { xid, rows: Vec::new(), updated: BTreeMap::new(), subs: Vec::new() });
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
                    // Some numbers were taken long before.
                    let number = if key % 5 == 0 { i64::from(*key) } else { 200 + self.next_row };
                    self.open[into].rows.push(Row { at, xmin, columns, number });
                }
            }
            Act::Update { row, by, number } if !self.open.is_empty() && !self.committed.is_empty() => {
                let at = self.committed[row.index(self.committed.len())].at;
                if self.open.iter().all(|open| !open.updated.contains_key(&at)) {
                    let by = by.index(self.open.len());
                    self.open[by].updated.insert(at, *number);
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
            Act::Poll { stops_after, lists_open, list_lacks, counts, is_long, is_fresh, is_limited, floor } => {
                let list = lists_open.then(|| List { is_end: *is_long, lacks: u64::from(*list_lacks) });
                let (stops_after, floor) = (stops_after.map(usize::from), *floor);
                let (counts, is_fresh, is_limited) = (*counts, *is_fresh, *is_limited);
                self.poll(Poll { stops_after, list, counts, is_fresh, is_limited, floor });
            }
            _ => {}
        }
    }

    /// The same act, if it is one of writers or of the server.
    pub fn act_of_writers(&mut self, act: &Act) {
        if !matches!(act, Act::Poll { .. }) {
            self.act(act);
        }
    }

    fn commit(&mut self, ended: Open) {
        for row in &mut self.committed {
            if let Some(number) = ended.updated.get(&row.at) {
                row.xmin = ended.xid;
                row.number = number.map_or(row.number, i64::from);
            }
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

    /// Rows, whatever their versions.
    pub fn without_versions(rows: &[Row]) -> BTreeSet<i64> {
        rows.iter().map(|row| row.at).collect()
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
