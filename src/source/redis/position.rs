//! A place in a job's stream, and what can be said of the entries after it.
//!
//! Ids only grow, so an entry's id is the place. Three more things go with it, by which a stream that is not what it was
//! is told from one that is:
//!
//! - the *ordinal*: how many entries were ever added up to here. `entries-added − length` of them are gone; where the place
//!   itself is gone, that says to the entry whether any after it went, too;
//! - the *print* of the entry: another life of the stream may have another entry under the same id;
//! - *excused*: the highest id that had been deleted when this reader began. What was gone before is not lost to it.
//!
//! A server before 7.0 counts nothing: there the ordinal is unknown, and a place that is gone means that entries may be;
//! what went before a reader's very first event cannot be told.

use super::entry::{Entry, EntryId, Info, Print};
use crate::cursor::{CHECK_BYTES, Cursor, varint};
use crate::event::JobId;
use crate::sse::Reset;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub id: EntryId,
    ordinal: Option<u64>,
    print: Option<Print>,
    excused: EntryId,
}

/// What a stream held at one moment, from a position on.
#[derive(Debug)]
pub struct Seen {
    /// The print of the entry at the position, where it is still there.
    pub here: Option<Print>,
    /// After the position.
    pub entries: Vec<Entry>,
    /// There are more.
    pub is_cut: bool,
    /// Asked after the entries. `None`: there is no such stream.
    pub info: Option<Info>,
}

impl Position {
    pub const VERSION: char = 'r';

    /// Before whatever there is.
    pub const BEGINNING: Self = Self { id: EntryId::ZERO, ordinal: None, print: None, excused: EntryId::ZERO };
    /// Before the first entry that was ever added.
    pub const EMPTY: Self = Self { ordinal: Some(0), ..Self::BEGINNING };

    /// Of an entry of which nothing else is known.
    pub fn at(entry: &Entry, ordinal: Option<u64>) -> Self {
        Self { id: entry.id, ordinal, print: Some(entry.print()), excused: EntryId::ZERO }
    }

    /// After everything that was ever added.
    pub fn newest(info: Option<&Info>) -> Self {
        let Some(info) = info.filter(|info| info.last > EntryId::ZERO) else { return Self::EMPTY };
        let entry = info.last_entry.as_ref().filter(|entry| entry.id == info.last);
        Self { id: info.last, ordinal: info.added, print: entry.map(Entry::print), excused: EntryId::ZERO }
    }

    fn is_before_all(&self) -> bool {
        self.id == EntryId::ZERO
    }

    /// The positions after each of the entries, if those are all that were ever added after this one.
    pub fn follow(&self, seen: &Seen) -> Result<Vec<Self>, Reset> {
        let Some(info) = &seen.info else {
            return if self.is_before_all() { Ok(Vec::new()) } else { Err(Reset::Rewound) };
        };
        if *self != Self::BEGINNING {
            self.check_life(seen, info)?;
            self.check_whole(seen, info)?;
        }
        let ordinals = self.ordinals(seen, info);
        let deleted = info.deleted.unwrap_or_default().max(self.excused);
        let place = |(entry, ordinal): (&Entry, Option<u64>)| {
            let excused = if ordinal.is_none() && deleted > entry.id { deleted } else { EntryId::ZERO };
            Self { excused, ..Self::at(entry, ordinal) }
        };
        Ok(seen.entries.iter().zip(ordinals).map(place).collect())
    }

    /// Whether it lies in the part of the stream that is still there.
    fn is_within(&self, info: &Info) -> bool {
        info.first_entry.is_some_and(|first| first <= self.id)
    }

    /// Whether it is still the same stream, no shorter than it was.
    fn check_life(&self, seen: &Seen, info: &Info) -> Result<(), Reset> {
        let is_behind = info.last < self.id || info.added.zip(self.ordinal).is_some_and(|(added, own)| added < own);
        let is_another = match seen.here {
            Some(here) => self.print.is_some_and(|print| print != here),
            // gone from the middle without having been deleted: it was never there in this life
            None => self.is_within(info) && info.deleted.is_none_or(|deleted| deleted < self.id),
        };
        if is_behind || is_another { Err(Reset::Rewound) } else { Ok(()) }
    }

    /// Whether any entry after this one went before it was seen.
    fn check_whole(&self, seen: &Seen, info: &Info) -> Result<(), Reset> {
        let counted = self.ordinal.map(|own| own + seen.entries.len() as u64);
        if !seen.is_cut && counted.is_some() && counted == info.added {
            return Ok(());
        }
        if self.is_within(info) {
            let is_whole = info.deleted.is_none_or(|deleted| deleted <= self.id.max(self.excused));
            return if is_whole { Ok(()) } else { Err(Reset::Trimmed) };
        }
        match (self.ordinal, info.added) {
            (Some(own), Some(added)) => {
                let gone = added.saturating_sub(info.length);
                let since_seen = self.gone_since(seen, info);
                match gone.cmp(&(own + since_seen)) {
                    std::cmp::Ordering::Less => Err(Reset::Rewound),
                    std::cmp::Ordering::Equal => Ok(()),
                    std::cmp::Ordering::Greater => Err(Reset::Trimmed),
                }
            }
            _ if info.last == self.id || *self == Self::EMPTY => Ok(()),
            _ => Err(Reset::Trimmed),
        }
    }

    /// How many of the entries were trimmed between the reading of them and of `info`.
    fn gone_since(&self, seen: &Seen, info: &Info) -> u64 {
        let is_gone = |entry: &&Entry| info.first_entry.is_none_or(|first| entry.id < first);
        seen.entries.iter().take_while(is_gone).count() as u64
    }

    fn ordinals(&self, seen: &Seen, info: &Info) -> Vec<Option<u64>> {
        let count = seen.entries.len() as u64;
        let from = |first: u64| (first..first + count).map(Some).collect();
        let nothing = || vec![None; seen.entries.len()];
        if *self != Self::BEGINNING
            && let Some(own) = self.ordinal.filter(|_| info.added.is_some())
        {
            return from(own + 1);
        }
        let (Some(added), Some(first), Some(last)) = (info.added, seen.entries.first(), seen.entries.last()) else {
            return nothing();
        };
        let deleted = info.deleted.unwrap_or_default();
        // from the front: nothing after the first that is there was deleted
        let gone_since = self.gone_since(seen, info);
        if self.is_before_all() && deleted < first.id && gone_since < count && added >= info.length + gone_since {
            return from(added - info.length + 1 - gone_since);
        }
        // from the end: nothing was added after the last
        if !seen.is_cut && last.id == info.last && added >= count {
            let ordinals = seen.entries.iter().zip(added - count + 1..);
            return ordinals.map(|(entry, ordinal)| (entry.id > deleted).then_some(ordinal)).collect();
        }
        nothing()
    }

    // ---- as a cursor

    const HAS_ORDINAL: u8 = 1;
    const HAS_PRINT: u8 = 2;
    const HAS_EXCUSED: u8 = 4;

    pub fn seal(&self, job: &JobId) -> Cursor {
        Cursor::seal(Self::VERSION, job, &self.encode())
    }

    pub fn open(job: &JobId, text: &str) -> Option<Self> {
        let inside = Cursor::open(Self::VERSION, job, text)?;
        // one spelling for each position
        Self::decode(&inside).filter(|position| position.encode() == inside)
    }

    fn encode(&self) -> Vec<u8> {
        let is_excused = self.excused > EntryId::ZERO;
        let flags = [
            (self.ordinal.is_some(), Self::HAS_ORDINAL),
            (self.print.is_some(), Self::HAS_PRINT),
            (is_excused, Self::HAS_EXCUSED),
        ];
        let mut to = vec![flags.iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag).sum()];
        varint::write(&mut to, self.id.ms);
        varint::write(&mut to, self.id.seq);
        if let Some(ordinal) = self.ordinal {
            varint::write(&mut to, ordinal);
        }
        to.extend(self.print.iter().flatten());
        if is_excused {
            varint::write(&mut to, self.excused.ms);
            varint::write(&mut to, self.excused.seq);
        }
        to
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (flags, mut rest) = bytes.split_first()?;
        let from = &mut rest;
        let has = |flag| flags & flag != 0;
        let id = EntryId { ms: varint::read(from)?, seq: varint::read(from)? };
        let ordinal = if has(Self::HAS_ORDINAL) { Some(varint::read(from)?) } else { None };
        let print = match has(Self::HAS_PRINT) {
            true => {
                let (print, after) = from.split_first_chunk::<CHECK_BYTES>()?;
                *from = after;
                Some(*print)
            }
            false => None,
        };
        let excused = match has(Self::HAS_EXCUSED) {
            true => EntryId { ms: varint::read(from)?, seq: varint::read(from)? },
            false => EntryId::ZERO,
        };
        // more than anybody ever adds, and no sum of it overflows
        let is_sane = ordinal.is_none_or(|ordinal| ordinal < 1 << 60);
        is_sane.then_some(Self { id, ordinal, print, excused })
    }
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

        fn info(&self, counts: bool) -> Option<Info> {
            Some(Info {
                length: self.live.len() as u64,
                last: self.ever.last()?.id,
                added: counts.then_some(self.ever.len() as u64),
                deleted: counts.then_some(self.deleted),
                first_entry: self.live.keys().next().copied(),
                last_entry: self.live.values().last().cloned(),
            })
        }

        fn see(&self, after: &Position, count: usize, counts: bool) -> Seen {
            let mut entries: Vec<Entry> = self
                .live
                .range(after.id..)
                .filter(|(id, _)| **id != after.id)
                .map(|(_, entry)| entry.clone())
                .collect();
            let is_cut = entries.len() > count;
            entries.truncate(count);
            Seen { here: self.live.get(&after.id).map(Entry::print), entries, is_cut, info: self.info(counts) }
        }

        fn gone_after(&self, after: EntryId) -> impl Iterator<Item = EntryId> {
            self.ever.iter().map(|entry| entry.id).filter(move |id| *id > after && !self.live.contains_key(id))
        }
    }

    #[derive(Clone, Debug)]
    enum Deed {
        Add(usize),
        Trim(usize),
        Delete(usize),
        Read(usize),
    }

    fn deeds() -> impl Strategy<Value = Vec<Deed>> {
        let deed = prop_oneof![
            3 => (1..6usize).prop_map(Deed::Add),
            1 => (1..5usize).prop_map(Deed::Trim),
            1 => (0..20usize).prop_map(Deed::Delete),
            4 => (1..5usize).prop_map(Deed::Read),
        ];
        proptest::collection::vec(deed, 1..40)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        /// One reader from the first entry on, one that comes when much is gone already: each is told of a loss when, and
        /// only when, an entry after its position went that was there when it began.
        #[test]
        fn a_loss_is_told_when_and_only_when_there_was_one(deeds in deeds(), late in 0..10usize) {
            let mut model = Model::default();
            let mut readers = [Position::EMPTY, Position::BEGINNING];
            // gone before the reader began: not lost to it
            let mut excused = [EntryId::ZERO; 2];
            for (step, deed) in deeds.into_iter().enumerate() {
                match deed {
                    Deed::Add(count) => (0..count).for_each(|_| model.add()),
                    Deed::Trim(count) => model.trim(count),
                    Deed::Delete(which) => model.delete(which),
                    Deed::Read(count) => for (index, reader) in readers.iter_mut().enumerate() {
                        if index == 1 && step < late {
                            continue;
                        }
                        if *reader == Position::BEGINNING {
                            excused[index] = model.gone_after(EntryId::ZERO).max().unwrap_or_default();
                        }
                        let seen = model.see(reader, count, true);
                        let lost = model.gone_after(reader.id).any(|id| id > excused[index]);
                        match reader.follow(&seen) {
                            Ok(positions) => {
                                prop_assert!(!lost, "{reader:?} is not told");
                                prop_assert_eq!(positions.len(), seen.entries.len());
                                for position in &positions {
                                    prop_assert!(position.ordinal.is_none_or(|ordinal| ordinal == position.id.ms));
                                    let job = "job".parse().expect("a job");
                                    prop_assert_eq!(Position::open(&job, position.seal(&job).as_str()), Some(*position));
                                }
                                *reader = positions.last().copied().unwrap_or(*reader);
                            }
                            Err(reset) => {
                                prop_assert_eq!(reset, Reset::Trimmed);
                                // one whose place is not known by number is told when it might have been
                                prop_assert!(lost || reader.ordinal.is_none(), "{reader:?} is told without cause");
                                *reader = Position::newest(model.info(true).as_ref());
                                excused[index] = EntryId::ZERO;
                            }
                        }
                    }
                }
            }
        }

        /// Where the server counts nothing, a loss by trimming is told too, if more often than there was one.
        #[test]
        fn a_server_that_does_not_count_hides_no_trimming(deeds in deeds()) {
            let mut model = Model::default();
            let mut reader: Option<Position> = None;
            for deed in deeds {
                match deed {
                    Deed::Add(count) => (0..count).for_each(|_| model.add()),
                    Deed::Trim(count) => model.trim(count),
                    Deed::Delete(_) => {}
                    Deed::Read(count) => {
                        let at = reader.unwrap_or(Position::BEGINNING);
                        let seen = model.see(&at, count, false);
                        match at.follow(&seen) {
                            Ok(positions) => {
                                let lost = reader.is_some() && model.gone_after(at.id).next().is_some();
                                prop_assert!(!lost, "{at:?} is not told");
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
    fn a_stream_that_is_not_what_it_was_is_told_from_one_that_is() {
        let mut model = Model::default();
        (0..10).for_each(|_| model.add());
        let at = |number: u64| Position::at(&entry(number), Some(number));
        let follow = |model: &Model, number| at(number).follow(&model.see(&at(number), 100, true));
        assert!(follow(&model, 4).is_ok());
        // made anew: ids go on above the old ones
        let mut anew = Model { ever: Vec::new(), ..model.clone() };
        anew.live.clear();
        for number in 20..25 {
            anew.ever.push(entry(number));
            anew.live.insert(entry(number).id, entry(number));
        }
        assert_eq!(follow(&anew, 4), Err(Reset::Rewound));
        // taken back, and written to since: under the same id stands another
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
        // gone altogether
        let seen = Seen { here: None, entries: Vec::new(), is_cut: false, info: None };
        assert_eq!(at(3).follow(&seen), Err(Reset::Rewound));
        assert_eq!(Position::EMPTY.follow(&seen), Ok(Vec::new()));
    }
}
