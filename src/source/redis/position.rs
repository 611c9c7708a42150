//! The position of a reader in a job's stream, and the check that no entry after it is gone.
//!
//! Ids only grow, so the id of an entry is a position. Three more values go with it, to notice a stream that is no
//! longer what it was:
//!
//! - `ordinal`: the number of entries ever added, up to this one. `entries_added − length` entries are gone; where
//!   those are more than `ordinal`, an entry after the position is among them.
//! - `fingerprint`: a hash of the entry. A stream that was deleted and written anew has another entry under the same
//!   id.
//! - `ignore_deleted_up_to`: the highest id that XDEL had deleted when the reader began. Those entries are not lost to
//!   it.
//!
//! A server before 7.0 does not count. There the ordinal is unknown, and a position whose own entry is gone is taken
//! for a loss; an entry that was gone before the first event of a reader is not noticed.

use super::entry::{Entry, EntryId, Fingerprint, StreamInfo};
use crate::cursor::{CHECK_BYTES, Cursor, varint};
use crate::event::JobId;
use crate::sse::Reset;
use std::cmp::Ordering;

/// The position after one entry, or before all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub id: EntryId,
    ordinal: Option<u64>,
    fingerprint: Option<Fingerprint>,
    ignore_deleted_up_to: EntryId,
}

/// The part of a stream after a position, as one request found it.
#[derive(Debug)]
pub struct StreamSlice {
    /// Fingerprint of the entry at the position; `None` where that entry is gone.
    pub at_position: Option<Fingerprint>,
    /// The entries after the position.
    pub entries: Vec<Entry>,
    /// The stream has more entries than these.
    pub is_cut: bool,
    /// The state of the stream, read after the entries. `None`: there is no such stream.
    pub info: Option<StreamInfo>,
}

impl Position {
    pub const VERSION: char = 'r';

    /// The position before the first entry that is still there. Entries that are gone are not lost to a reader from
    /// here.
    pub const BEGINNING: Self =
        Self { id: EntryId::ZERO, ordinal: None, fingerprint: None, ignore_deleted_up_to: EntryId::ZERO };
    /// The position before the first entry that was ever added.
    pub const EMPTY: Self = Self { ordinal: Some(0), ..Self::BEGINNING };

    /// Returns the position after an entry.
    pub fn after(entry: &Entry, ordinal: Option<u64>) -> Self {
        Self { id: entry.id, ordinal, fingerprint: Some(entry.fingerprint()), ignore_deleted_up_to: EntryId::ZERO }
    }

    /// Returns the position after everything that was ever added.
    pub fn newest(info: Option<&StreamInfo>) -> Self {
        let Some(info) = info.filter(|info| info.last_id > EntryId::ZERO) else { return Self::EMPTY };
        let entry = info.last_entry.as_ref().filter(|entry| entry.id == info.last_id);
        Self {
            id: info.last_id,
            ordinal: info.entries_added,
            fingerprint: entry.map(Entry::fingerprint),
            ignore_deleted_up_to: EntryId::ZERO,
        }
    }

    fn is_before_all(&self) -> bool {
        self.id == EntryId::ZERO
    }

    /// Returns the position after each entry in `slice`. Fails with the reset to send where an entry after this position
    /// was lost, or where the stream is not the one that the reader was reading.
    pub fn follow(&self, slice: &StreamSlice) -> Result<Vec<Self>, Reset> {
        let Some(info) = &slice.info else {
            return if self.is_before_all() { Ok(Vec::new()) } else { Err(Reset::Rewound) };
        };
        if *self != Self::BEGINNING {
            self.check_same_stream(slice, info)?;
            self.check_no_gap(slice, info)?;
        }
        let max_deleted_id = info.max_deleted_id.unwrap_or_default().max(self.ignore_deleted_up_to);
        let positions = slice.entries.iter().zip(self.ordinals(slice, info)).map(|(entry, ordinal)| {
            let is_counted = ordinal.is_some() || max_deleted_id <= entry.id;
            let ignore_deleted_up_to = if is_counted { EntryId::ZERO } else { max_deleted_id };
            Self { ignore_deleted_up_to, ..Self::after(entry, ordinal) }
        });
        Ok(positions.collect())
    }

    /// Tells a position in the part of the stream that is still there from one that was trimmed.
    fn is_within(&self, info: &StreamInfo) -> bool {
        info.first_id.is_some_and(|first| first <= self.id)
    }

    /// Refuses a stream that is shorter than it was, or that was deleted and written anew.
    fn check_same_stream(&self, slice: &StreamSlice, info: &StreamInfo) -> Result<(), Reset> {
        let is_shorter =
            info.last_id < self.id || info.entries_added.zip(self.ordinal).is_some_and(|(added, own)| added < own);
        let is_another = match slice.at_position {
            Some(found) => self.fingerprint.is_some_and(|own| own != found),
            // neither trimmed nor deleted, and yet not there: this stream never had the entry
            None => self.is_within(info) && info.max_deleted_id.is_none_or(|deleted| deleted < self.id),
        };
        if is_shorter || is_another { Err(Reset::Rewound) } else { Ok(()) }
    }

    /// Refuses a stream in which an entry after this position is gone that the reader has not received.
    fn check_no_gap(&self, slice: &StreamSlice, info: &StreamInfo) -> Result<(), Reset> {
        let counted = self.ordinal.map(|own| own + slice.entries.len() as u64);
        if !slice.is_cut && counted.is_some() && counted == info.entries_added {
            return Ok(());
        }
        if self.is_within(info) {
            let seen_up_to = self.id.max(self.ignore_deleted_up_to);
            let has_gap = info.max_deleted_id.is_some_and(|deleted| deleted > seen_up_to);
            return if has_gap { Err(Reset::Trimmed) } else { Ok(()) };
        }
        match (self.ordinal, info.entries_added) {
            (Some(own), Some(added)) => {
                let gone = added.saturating_sub(info.length);
                match gone.cmp(&(own + Self::trimmed_since(slice, info))) {
                    Ordering::Less => Err(Reset::Rewound),
                    Ordering::Equal => Ok(()),
                    Ordering::Greater => Err(Reset::Trimmed),
                }
            }
            _ if info.last_id == self.id || *self == Self::EMPTY => Ok(()),
            _ => Err(Reset::Trimmed),
        }
    }

    /// Counts the entries in `slice` that were trimmed before `info` was read.
    fn trimmed_since(slice: &StreamSlice, info: &StreamInfo) -> u64 {
        let is_gone = |entry: &&Entry| info.first_id.is_none_or(|first| entry.id < first);
        slice.entries.iter().take_while(is_gone).count() as u64
    }

    /// Returns the ordinal of each entry in `slice`, where it can be known.
    fn ordinals(&self, slice: &StreamSlice, info: &StreamInfo) -> Vec<Option<u64>> {
        let count = slice.entries.len() as u64;
        let counted_from = |first: u64| (first..first + count).map(Some).collect();
        let unknown = || vec![None; slice.entries.len()];
        if *self != Self::BEGINNING
            && let Some(own) = self.ordinal.filter(|_| info.entries_added.is_some())
        {
            return counted_from(own + 1);
        }
        let (Some(added), Some(first), Some(last)) = (info.entries_added, slice.entries.first(), slice.entries.last())
        else {
            return unknown();
        };
        let max_deleted_id = info.max_deleted_id.unwrap_or_default();
        // forwards from the first entry of the stream, where XDEL deleted none after it
        let trimmed = Self::trimmed_since(slice, info);
        if self.is_before_all() && max_deleted_id < first.id && trimmed < count && added >= info.length + trimmed {
            return counted_from(added - info.length + 1 - trimmed);
        }
        // backwards from the last entry of the stream, down to the newest that XDEL deleted
        if !slice.is_cut && last.id == info.last_id && added >= count {
            let ordinals = slice.entries.iter().zip(added - count + 1..);
            return ordinals.map(|(entry, ordinal)| (entry.id > max_deleted_id).then_some(ordinal)).collect();
        }
        unknown()
    }

    // ---- as a cursor

    const HAS_ORDINAL: u8 = 1;
    const HAS_FINGERPRINT: u8 = 2;
    const HAS_IGNORED: u8 = 4;

    pub fn seal(&self, job: &JobId) -> Cursor {
        Cursor::seal(Self::VERSION, job, &self.encode())
    }

    /// Returns the position that a cursor of this job holds. `None` for any other text.
    pub fn open(job: &JobId, text: &str) -> Option<Self> {
        let inside = Cursor::open(Self::VERSION, job, text)?;
        // each position has one encoding; any other was not made here
        Self::decode(&inside).filter(|position| position.encode() == inside)
    }

    fn encode(&self) -> Vec<u8> {
        let ignored = Some(self.ignore_deleted_up_to).filter(|id| *id > EntryId::ZERO);
        let flags = [
            (self.ordinal.is_some(), Self::HAS_ORDINAL),
            (self.fingerprint.is_some(), Self::HAS_FINGERPRINT),
            (ignored.is_some(), Self::HAS_IGNORED),
        ];
        let mut to = vec![flags.iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag).sum()];
        write_id(&mut to, self.id);
        if let Some(ordinal) = self.ordinal {
            varint::write(&mut to, ordinal);
        }
        to.extend(self.fingerprint.iter().flatten());
        if let Some(ignored) = ignored {
            write_id(&mut to, ignored);
        }
        to
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (flags, mut rest) = bytes.split_first()?;
        let from = &mut rest;
        let has = |flag| flags & flag != 0;
        let id = read_id(from)?;
        let ordinal = if has(Self::HAS_ORDINAL) { Some(varint::read(from)?) } else { None };
        let fingerprint = if has(Self::HAS_FINGERPRINT) {
            let (fingerprint, after) = from.split_first_chunk::<CHECK_BYTES>()?;
            *from = after;
            Some(*fingerprint)
        } else {
            None
        };
        let ignore_deleted_up_to = if has(Self::HAS_IGNORED) { read_id(from)? } else { EntryId::ZERO };
        // no stream ever holds as many; sums with a smaller number do not overflow
        let is_plausible = ordinal.is_none_or(|ordinal| ordinal < 1 << 60);
        is_plausible.then_some(Self { id, ordinal, fingerprint, ignore_deleted_up_to })
    }
}

fn write_id(to: &mut Vec<u8>, id: EntryId) {
    varint::write(to, id.ms);
    varint::write(to, id.seq);
}

fn read_id(from: &mut &[u8]) -> Option<EntryId> {
    Some(EntryId { ms: varint::read(from)?, seq: varint::read(from)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// A stream as a server keeps it, and everything that was ever added to it.
    #[derive(Clone, Default)]
    struct Model {
        ever: Vec<Entry>,
        live: BTreeMap<EntryId, Entry>,
        deleted: EntryId,
    }

    fn entry(number: u64) -> Entry {
        let id = EntryId { ms: number, seq: 0 };
        Entry::new(id, &[("type", "x".into()), ("id", format!("e-{number}"))])
    }

    impl Model {
        fn add(&mut self) {
            let entry = entry(self.ever.len() as u64 + 1);
            self.ever.push(entry.clone());
            self.live.insert(entry.id, entry);
        }

        fn trim(&mut self, count: usize) {
            for _ in 0..count {
                self.live.pop_first();
            }
        }

        fn delete(&mut self, which: usize) {
            let Some(id) = self.live.keys().nth(which % self.live.len().max(1)).copied() else { return };
            self.live.remove(&id);
            self.deleted = self.deleted.max(id);
        }

        fn info(&self, counts: bool) -> Option<StreamInfo> {
            Some(StreamInfo {
                length: self.live.len() as u64,
                last_id: self.ever.last()?.id,
                entries_added: counts.then_some(self.ever.len() as u64),
                max_deleted_id: counts.then_some(self.deleted),
                first_id: self.live.keys().next().copied(),
                last_entry: self.live.values().last().cloned(),
            })
        }

        fn slice(&self, after: &Position, count: usize, counts: bool) -> StreamSlice {
            let mut entries: Vec<Entry> = self
                .live
                .range(after.id..)
                .filter(|(id, _)| **id != after.id)
                .map(|(_, entry)| entry.clone())
                .collect();
            let is_cut = entries.len() > count;
            entries.truncate(count);
            let at_position = self.live.get(&after.id).map(Entry::fingerprint);
            StreamSlice { at_position, entries, is_cut, info: self.info(counts) }
        }

        fn gone_after(&self, after: EntryId) -> impl Iterator<Item = EntryId> {
            self.ever.iter().map(|entry| entry.id).filter(move |id| *id > after && !self.live.contains_key(id))
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Add(usize),
        Trim(usize),
        Delete(usize),
        Read(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (1..6usize).prop_map(Step::Add),
            1 => (1..5usize).prop_map(Step::Trim),
            1 => (0..20usize).prop_map(Step::Delete),
            4 => (1..5usize).prop_map(Step::Read),
        ];
        proptest::collection::vec(step, 1..40)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        /// One reader begins before the first entry, the other when some are gone already. A reset is due exactly where
        /// an entry is gone that was there when the reader began and that comes after its position.
        #[test]
        fn a_reset_is_sent_when_and_only_when_an_entry_was_lost(steps in steps(), late in 0..10usize) {
            let mut model = Model::default();
            let mut readers = [Position::EMPTY, Position::BEGINNING];
            // entries that were gone before the reader began: not lost to it
            let mut ignored = [EntryId::ZERO; 2];
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Add(count) => (0..count).for_each(|_| model.add()),
                    Step::Trim(count) => model.trim(count),
                    Step::Delete(which) => model.delete(which),
                    Step::Read(count) => for (index, reader) in readers.iter_mut().enumerate() {
                        if index == 1 && number < late {
                            continue;
                        }
                        if *reader == Position::BEGINNING {
                            ignored[index] = model.gone_after(EntryId::ZERO).max().unwrap_or_default();
                        }
                        let slice = model.slice(reader, count, true);
                        let lost = model.gone_after(reader.id).any(|id| id > ignored[index]);
                        match reader.follow(&slice) {
                            Ok(positions) => {
                                prop_assert!(!lost, "{reader:?} gets no reset");
                                prop_assert_eq!(positions.len(), slice.entries.len());
                                for position in &positions {
                                    prop_assert!(position.ordinal.is_none_or(|ordinal| ordinal == position.id.ms));
                                    let job = "job".parse().expect("a job");
                                    prop_assert_eq!(Position::open(&job, position.seal(&job).as_str()), Some(*position));
                                }
                                *reader = positions.last().copied().unwrap_or(*reader);
                            }
                            Err(reset) => {
                                prop_assert_eq!(reset, Reset::Trimmed);
                                // without an ordinal a reset is right where an entry may be lost
                                prop_assert!(lost || reader.ordinal.is_none(), "{reader:?} gets a reset without cause");
                                *reader = Position::newest(model.info(true).as_ref());
                                ignored[index] = EntryId::ZERO;
                            }
                        }
                    }
                }
            }
        }

        /// There may be more resets than losses.
        #[test]
        fn trimming_is_noticed_although_the_server_does_not_count(steps in steps()) {
            let mut model = Model::default();
            let mut reader: Option<Position> = None;
            for step in steps {
                match step {
                    Step::Add(count) => (0..count).for_each(|_| model.add()),
                    Step::Trim(count) => model.trim(count),
                    Step::Delete(_) => {}
                    Step::Read(count) => {
                        let at = reader.unwrap_or(Position::BEGINNING);
                        let slice = model.slice(&at, count, false);
                        match at.follow(&slice) {
                            Ok(positions) => {
                                let lost = reader.is_some() && model.gone_after(at.id).next().is_some();
                                prop_assert!(!lost, "{at:?} gets no reset");
                                reader = positions.last().copied().or(reader);
                            }
                            Err(_) => reader = None,
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_stream_that_was_made_anew_or_rolled_back_is_noticed() {
        let mut model = Model::default();
        (0..10).for_each(|_| model.add());
        let at = |number: u64| Position::after(&entry(number), Some(number));
        let follow = |model: &Model, number| at(number).follow(&model.slice(&at(number), 100, true));
        assert!(follow(&model, 4).is_ok());
        // deleted and made anew: its ids are above the old ones
        let mut anew = Model { ever: Vec::new(), ..model.clone() };
        anew.live.clear();
        for number in 20..25 {
            anew.ever.push(entry(number));
            anew.live.insert(entry(number).id, entry(number));
        }
        assert_eq!(follow(&anew, 4), Err(Reset::Rewound));
        // rolled back, as by a failover, and written to since: another entry has the same id
        let mut back = model.clone();
        back.ever.truncate(8);
        back.live.retain(|id, _| id.ms <= 8);
        assert!(follow(&back, 8).is_ok());
        assert_eq!(follow(&back, 9), Err(Reset::Rewound));
        let other = Entry::new(entry(9).id, &[("type", "another".into())]);
        back.ever.push(other.clone());
        back.live.insert(other.id, other);
        assert_eq!(follow(&back, 9), Err(Reset::Rewound));
        assert!(follow(&back, 8).is_ok());
        // deleted
        let slice = StreamSlice { at_position: None, entries: Vec::new(), is_cut: false, info: None };
        assert_eq!(at(3).follow(&slice), Err(Reset::Rewound));
        assert_eq!(Position::EMPTY.follow(&slice), Ok(Vec::new()));
    }
}
