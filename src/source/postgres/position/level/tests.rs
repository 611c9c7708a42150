//! Levels against a model of several jobs: two processes tail them, and readers of sets that overlap go from one to the
//! other at any event, while writers commit, roll back, and the server crashes.

use super::super::{Key, UndeliveredRows};
use super::*;
use proptest::prelude::*;
use proptest::sample::Index;
use std::collections::BTreeSet;
use std::collections::btree_map::Entry;

const JOBS: u8 = 4;
const FIRST_XID: u64 = 100;

/// One thing that a writer, the server, a process or a reader does.
#[derive(Clone, Debug)]
enum Act {
    Begin,
    Insert {
        into: Index,
        job: u8,
    },
    End {
        of: Index,
        commits: bool,
    },
    /// Brings everything to the disk that has ended.
    Flush,
    /// Loses the open transactions. Ids that the disk does not know of are given out once more.
    Crash,
    /// A process looks, and reads so many rows. Readers who follow it may leave after so many of the events.
    Round {
        process: usize,
        most: Option<u8>,
        stays: [Option<u8>; 2],
        counts: bool,
    },
    /// A reader comes to a process with a set of jobs, reads pages, leaves after so many events or follows.
    Come {
        reader: usize,
        process: usize,
        set: u8,
        stays: Option<u8>,
        counts: bool,
    },
    /// A process forgets a job that nobody watches.
    Unwatch {
        process: usize,
        job: u8,
    },
}

fn act() -> impl Strategy<Value = Act> {
    let (index, flag) = (any::<Index>, any::<bool>);
    let stays = || prop::option::weighted(0.4, 0..6_u8);
    prop_oneof![
        20 => Just(Act::Begin),
        40 => (index(), 0..JOBS).prop_map(|(into, job)| Act::Insert { into, job }),
        30 => (index(), prop::bool::weighted(0.8)).prop_map(|(of, commits)| Act::End { of, commits }),
        5 => Just(Act::Flush),
        5 => Just(Act::Crash),
        40 => (0..2_usize, prop::option::weighted(0.2, 0..5_u8), [stays(), stays()], flag())
            .prop_map(|(process, most, stays, counts)| Act::Round { process, most, stays, counts }),
        20 => (0..2_usize, 0..2_usize, 1..1_u8 << JOBS, stays(), flag())
            .prop_map(|(reader, process, set, stays, counts)| Act::Come { reader, process, set, stays, counts }),
        5 => (0..2_usize, 0..JOBS).prop_map(|(process, job)| Act::Unwatch { process, job }),
    ]
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    job: u8,
    number: i64,
    xid: u64,
}

/// The transactions that a snapshot of a primary shows.
#[derive(Clone, Debug)]
struct Seen {
    listed: EndedXids,
    durable: u64,
}

impl Seen {
    fn level(&self, known: u64) -> Position {
        Position::at_level(CursorScheme::default(), self.listed.truncated(self.durable.max(known)), None)
    }

    /// The condition of [`EventRows::not_visible_in`](super::super::super::sql::EventRows::not_visible_in).
    fn may_lack(&self, xid: u64) -> bool {
        xid >= self.durable.min(self.listed.mark) || self.listed.open.contains(&xid)
    }
}

/// The tail of a process, and what it knows of the server.
#[derive(Default)]
struct Process {
    durable: u64,
    positions: BTreeMap<u8, Position>,
    pending: BTreeSet<u8>,
    seen: Option<Seen>,
}

/// A reader of a set of jobs. It keeps, of each job that it knows, where it stands.
#[derive(Default)]
struct Reader {
    at: Option<usize>,
    live: BTreeSet<u8>,
    joining: BTreeSet<u8>,
    tokens: BTreeMap<u8, Vec<u8>>,
    received: Vec<Row>,
}

impl Reader {
    fn leave(&mut self) {
        (self.at, self.live, self.joining) = (None, BTreeSet::new(), BTreeSet::new());
    }

    fn position(&self, job: u8) -> Position {
        self.tokens.get(&job).map_or_else(Position::beginning, |token| {
            Position::from_bytes(CursorScheme::default(), token).expect("a position")
        })
    }

    fn receive(&mut self, row: &Row, token: Vec<u8>) {
        self.received.push(row.clone());
        self.tokens.insert(row.job, token);
    }

    fn stand_at(&mut self, job: u8, position: &Position) {
        self.tokens.insert(job, token(position));
    }
}

fn token(position: &Position) -> Vec<u8> {
    position.to_bytes(usize::MAX).0
}

#[derive(Default)]
struct Model {
    begun: u64,
    ended_below: u64,
    rows: i64,
    is_flushed: bool,
    on_disk: u64,
    open: Vec<(u64, Vec<Row>)>,
    committed: Vec<Row>,
    processes: [Process; 2],
    readers: [Reader; 2],
}

impl Model {
    fn snapshot(&mut self, process: usize) -> Seen {
        let xmax = self.ended_below.max(FIRST_XID);
        let open: BTreeSet<u64> = self.open.iter().map(|(xid, _)| *xid).filter(|xid| *xid < xmax).collect();
        let last = self.committed.iter().map(|row| row.xid + 1).max().unwrap_or(0);
        let known = &mut self.processes[process].durable;
        let durable = if self.is_flushed { xmax } else { xmax.min(last.max(*known)) };
        if self.is_flushed {
            *known = (*known).max(open.first().copied().unwrap_or(xmax));
        }
        Seen { listed: EndedXids::listed(xmax, open), durable }
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Begin => {
                self.begun += 1;
                self.open.push((FIRST_XID + self.begun - 1, Vec::new()));
            }
            Act::Insert { into, job } if !self.open.is_empty() => {
                self.is_flushed = false;
                self.rows += 1;
                let into = into.index(self.open.len());
                let (xid, rows) = &mut self.open[into];
                rows.push(Row { job: *job, number: self.rows, xid: *xid });
            }
            Act::End { of, commits } if !self.open.is_empty() => {
                let (xid, rows) = self.open.swap_remove(of.index(self.open.len()));
                self.ended_below = self.ended_below.max(xid + 1);
                self.is_flushed = false;
                if *commits {
                    self.on_disk = self.on_disk.max(xid + 1);
                    self.committed.extend(rows);
                    self.committed.sort();
                }
            }
            Act::Flush => {
                self.is_flushed = true;
                self.on_disk = self.on_disk.max(self.ended_below);
            }
            Act::Crash => {
                self.open.clear();
                self.is_flushed = true;
                self.begun = self.on_disk.max(FIRST_XID) - FIRST_XID;
                self.ended_below = FIRST_XID + self.begun;
                self.processes.iter_mut().for_each(|process| process.seen = None);
            }
            Act::Round { process, most, stays, counts } => {
                self.round(*process, *most, stays.map(|stays| stays.map(usize::from)), *counts);
            }
            Act::Come { reader, process, set, stays, counts } => {
                self.come(*reader, *process, *set, stays.map(usize::from), *counts);
            }
            Act::Unwatch { process, job } => {
                let is_of = |reader: &Reader| {
                    reader.at == Some(*process) && (reader.live.contains(job) || reader.joining.contains(job))
                };
                if !self.readers.iter().any(is_of) {
                    self.processes[*process].positions.remove(job);
                    self.processes[*process].pending.remove(job);
                }
            }
            _ => {}
        }
    }

    /// Returns the rows of a job between a position and a level, up to `most`, each with its token, and moves the position
    /// past them. True if they are all.
    fn read(
        &self,
        job: u8,
        position: &mut Position,
        level: &Position,
        most: usize,
        counts: bool,
    ) -> (Vec<(Row, Vec<u8>)>, bool) {
        let mut read = Vec::new();
        loop {
            let end = position.range().map_or(level.settled(), |range| &range.end).clone();
            let mut nth: BTreeMap<u64, u64> = BTreeMap::new();
            let mut rows = Vec::new();
            for row in self.committed.iter().filter(|row| row.job == job) {
                let nth = nth.entry(row.xid).or_default();
                *nth += 1;
                let is_lacking = !position.has_delivered(row.xid, &Key::Number(row.number), &[], *nth);
                if is_lacking && level.settled().contains(row.xid) && end.contains(row.xid) {
                    rows.push(row.clone());
                }
            }
            let counts = counts && position.range().is_none();
            let undelivered = UndeliveredRows {
                rows,
                end: end.clone(),
                listed: None,
                is_whole: true,
                is_above_floor: false,
                counts_settled: counts,
            };
            for step in undelivered.into_steps(position, |_| true, |row| row.xid) {
                if read.len() == most {
                    return (read, false);
                }
                position.advance(step.row.xid, Key::Number(step.row.number), &step.advance);
                read.push((step.row, token(position)));
            }
            position.finish(&end);
            if end == *level.settled() {
                return (read, true);
            }
        }
    }

    fn round(&mut self, at: usize, most: Option<u8>, stays: [Option<usize>; 2], counts: bool) {
        let seen = self.snapshot(at);
        let process = &self.processes[at];
        let known = process.positions.values().map(Position::ceiling).max().unwrap_or(0);
        let since = process.positions.values().map(|position| position.settled().lowest_open()).min();
        let level = seen.level(known);
        let is_new = |row: &&Row| match &process.seen {
            Some(before) => before.may_lack(row.xid),
            None => row.xid >= since.unwrap_or(0),
        };
        let found: BTreeSet<u8> = self.committed.iter().filter(is_new).map(|row| row.job).collect();
        let joined = self.readers.iter().filter(|reader| reader.at == Some(at)).flat_map(|reader| &reader.joining);
        let wanted: BTreeSet<u8> = found.iter().chain(&process.pending).chain(joined).copied().collect();
        let (mut events, mut done, mut left) = (Vec::new(), BTreeSet::new(), most.map_or(usize::MAX, usize::from));
        let (mut positions, mut pending) = (process.positions.clone(), BTreeSet::new());
        for (job, position) in &mut positions {
            assert!(position.is_below(&level), "a position of the source's own is within what is visible");
            if !wanted.contains(job) {
                *position = level.clone();
                continue;
            }
            let (more, has_all) = self.read(*job, position, &level, left, counts);
            left -= more.len();
            events.extend(more);
            if has_all {
                assert_eq!(*position, level);
                done.insert(*job);
            } else {
                pending.insert(*job);
            }
        }
        let told = pending.is_empty().then_some(&level);
        for (number, stays) in stays.into_iter().enumerate() {
            if self.readers[number].at == Some(at) {
                self.publish(number, &events, &positions, &done, told, stays.unwrap_or(usize::MAX));
            }
        }
        self.processes[at] = Process { durable: self.processes[at].durable, positions, pending, seen: Some(seen) };
    }

    /// Gives one reader what a round has read, and what it lacks where it joins.
    fn publish(
        &mut self,
        number: usize,
        events: &[(Row, Vec<u8>)],
        positions: &BTreeMap<u8, Position>,
        done: &BTreeSet<u8>,
        level: Option<&Position>,
        mut stays: usize,
    ) {
        let mut reader = std::mem::take(&mut self.readers[number]);
        let lacking = reader.joining.intersection(done).copied().collect::<Vec<_>>();
        let mut given: Vec<(Row, Vec<u8>)> =
            events.iter().filter(|(row, _)| reader.live.contains(&row.job)).cloned().collect();
        for job in &lacking {
            let (missing, has_all) = self.read(*job, &mut reader.position(*job), &positions[job], usize::MAX, false);
            assert!(has_all);
            given.extend(missing);
        }
        for (row, token) in given {
            if stays == 0 {
                reader.leave();
                break;
            }
            stays -= 1;
            reader.receive(&row, token);
        }
        if reader.at.is_some() {
            for job in lacking {
                reader.joining.remove(&job);
                reader.live.insert(job);
            }
            for job in reader.live.clone() {
                level.into_iter().for_each(|level| reader.stand_at(job, level));
            }
        }
        self.readers[number] = reader;
    }

    fn come(&mut self, number: usize, at: usize, set: u8, stays: Option<usize>, counts: bool) {
        let seen = self.snapshot(at);
        let level = seen.level(0);
        let mut reader = std::mem::take(&mut self.readers[number]);
        reader.leave();
        let (mut left, mut is_cut) = (stays.unwrap_or(usize::MAX), false);
        let jobs: Vec<u8> = (0..JOBS).filter(|job| set & (1 << job) != 0).collect();
        for job in &jobs {
            let (events, has_all) = self.read(*job, &mut reader.position(*job), &level, left, counts);
            left -= events.len();
            events.iter().for_each(|(row, token)| reader.receive(row, token.clone()));
            if !has_all {
                is_cut = true;
                break;
            }
            reader.stand_at(*job, &level);
        }
        if !is_cut {
            reader.at = Some(at);
            let process = &mut self.processes[at];
            for job in jobs {
                match process.positions.entry(job) {
                    Entry::Occupied(_) => drop(reader.joining.insert(job)),
                    Entry::Vacant(free) => {
                        free.insert(level.clone());
                        process.pending.insert(job);
                        reader.live.insert(job);
                    }
                }
            }
        }
        self.readers[number] = reader;
    }

    /// Ends all transactions, and lets each reader read all jobs to the end.
    fn finish(&mut self) {
        for (xid, rows) in std::mem::take(&mut self.open) {
            self.ended_below = self.ended_below.max(xid + 1);
            self.committed.extend(rows);
        }
        self.committed.sort();
        for number in 0..2 {
            self.come(number, number, (1 << JOBS) - 1, None, false);
            self.readers[number].received.sort();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 50_000, ..ProptestConfig::default() })]

    #[test]
    fn readers_of_sets_of_jobs_are_given_every_row_once_wherever_they_leave_and_whoever_goes_on(
        acts in prop::collection::vec(act(), 1..80)
    ) {
        let mut model = Model::default();
        for one in &acts {
            model.act(one);
        }
        model.finish();
        for reader in &model.readers {
            prop_assert_eq!(&reader.received, &model.committed);
        }
    }

    #[test]
    fn who_begins_before_the_last_rows_is_given_these_and_all_that_commit_later(
        before in prop::collection::vec(act(), 1..40),
        after in prop::collection::vec(act(), 1..40),
        count in 0..6_usize,
    ) {
        let mut model = Model::default();
        for one in &before {
            model.act(one);
        }
        let level = model.snapshot(0).level(0);
        let visible: Vec<Row> = model.committed.iter().filter(|row| row.job == 0).cloned().collect();
        let start = match visible.iter().rev().nth(count) {
            Some(row) => level.up_to_key(Key::Number(row.number)),
            None => Position::beginning(),
        };
        for one in &after {
            model.act(one);
        }
        model.finish();
        let level = model.snapshot(1).level(0);
        let (read, _) = model.read(0, &mut start.clone(), &level, usize::MAX, false);
        let early = visible.len().saturating_sub(count);
        let wanted = model.committed.iter().filter(|row| row.job == 0 && !visible[..early].contains(row));
        prop_assert_eq!(read.iter().map(|(row, _)| row).cloned().collect::<BTreeSet<_>>(), wanted.cloned().collect());
        if !start.is_beginning() {
            let first: Vec<&Row> = read.iter().take(count).map(|(row, _)| row).collect();
            prop_assert_eq!(first, visible[early..].iter().collect::<Vec<_>>(), "and these come first");
        }
    }
}
