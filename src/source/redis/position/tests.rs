//! Positions beside a model of a stream: what is lost is noticed, whoever lies.

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
        let mut entries: Vec<Entry> =
            self.live.range(after.id..).filter(|(id, _)| **id != after.id).map(|(_, entry)| entry.clone()).collect();
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
    /// A reader sends a position that was never given out. So many entries come between the entries that it is
    /// given and the state.
    Lie(Position, usize),
}

/// Any position: every field is drawn at random, near the truth or far from it.
fn positions() -> impl Strategy<Value = Position> {
    let number = || prop_oneof![0..120u64, any::<u64>()];
    let id = move || (number(), prop_oneof![Just(0), any::<u64>()]).prop_map(|(ms, seq)| EntryId { ms, seq });
    let ordinal = proptest::option::of(prop_oneof![0..120u64, 0..1u64 << 60]);
    let fingerprint = (proptest::option::of(any::<Fingerprint>()), any::<bool>());
    (id(), ordinal, fingerprint, id()).prop_map(|(id, ordinal, (random, is_true), ignore_deleted_up_to)| {
        let fingerprint = if is_true { Some(entry(id.ms).fingerprint()) } else { random };
        Position { id, ordinal, fingerprint, ignore_deleted_up_to }
    })
}

fn steps_and_lies() -> impl Strategy<Value = Vec<Step>> {
    let lie = (positions(), 0..2usize).prop_map(|(position, between)| Step::Lie(position, between));
    proptest::collection::vec(prop_oneof![step(), lie], 1..60)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..6usize).prop_map(Step::Add),
        1 => (1..5usize).prop_map(Step::Trim),
        1 => (0..20usize).prop_map(Step::Delete),
        4 => (1..5usize).prop_map(Step::Read),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// One reader begins before the first entry, the other when some are gone already. A reset is due exactly where
    /// an entry is gone that was there when the reader began and that comes after its position.
    #[test]
    fn a_reset_is_sent_when_and_only_when_an_entry_was_lost(steps in steps(), late in 0..10usize) {
        let mut model = Model::default();
        let mut readers = [Position::EMPTY, Position::BEGINNING];
        // Entries that were gone before the reader began: not lost to it.
        let mut ignored = [EntryId::ZERO; 2];
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Add(count) => (0..count).for_each(|_| model.add()),
                Step::Trim(count) => model.trim(count),
                Step::Delete(which) => model.delete(which),
                Step::Lie(..) => {}
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
                            // Without an ordinal a reset is right where an entry may be lost.
                            prop_assert!(lost || reader.ordinal.is_none(), "{reader:?} gets a reset without cause");
                            *reader = Position::newest(model.info(true).as_ref());
                            ignored[index] = EntryId::ZERO;
                        }
                    }
                }
            }
        }
    }

    /// Channels begin where the pages of liars end. An honest reader of each channel gets every entry that is added
    /// since, once, and a reset exactly where one of those is gone.
    #[test]
    fn a_channel_that_begins_where_the_pages_of_a_liar_end_loses_and_repeats_nothing(steps in steps_and_lies()) {
        let mut model = Model::default();
        let mut channels: Vec<Position> = Vec::new();
        for step in steps {
            match step {
                Step::Add(count) => (0..count).for_each(|_| model.add()),
                Step::Trim(count) => model.trim(count),
                Step::Delete(which) => model.delete(which),
                Step::Lie(lie, between) => {
                    let mut slice = model.slice(&lie, 1000, true);
                    (0..between).for_each(|_| model.add());
                    slice.info = model.info(true);
                    let Ok(positions) = lie.follow(&slice) else { continue };
                    let read = positions.last().unwrap_or(&lie);
                    match slice.end(read.id) {
                        Some(end) => {
                            prop_assert_eq!(end, Position::newest(model.info(true).as_ref()));
                            prop_assert_eq!(end.ordinal, Some(model.ever.len() as u64));
                            channels.push(end);
                        }
                        None => prop_assert!(between > 0, "{lie:?} has got everything"),
                    }
                }
                Step::Read(count) => for channel in &mut channels {
                    let slice = model.slice(channel, count, true);
                    let lost = model.gone_after(channel.id).next().is_some();
                    match channel.follow(&slice) {
                        Ok(positions) => {
                            prop_assert!(!lost, "{channel:?} gets no reset");
                            let after = channel.ordinal.expect("a channel counts");
                            let wanted: Vec<_> = (after + 1..).take(positions.len()).map(Some).collect();
                            let got: Vec<_> = positions.iter().map(|position| position.ordinal).collect();
                            prop_assert_eq!(got, wanted);
                            prop_assert!(positions.iter().all(|position| position.ordinal == Some(position.id.ms)));
                            *channel = positions.last().copied().unwrap_or(*channel);
                        }
                        Err(reset) => {
                            prop_assert_eq!(reset, Reset::Trimmed);
                            prop_assert!(lost, "{channel:?} gets a reset without cause");
                            *channel = Position::newest(model.info(true).as_ref());
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
                Step::Delete(_) | Step::Lie(..) => {}
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
    // Deleted and made anew: its ids are above the old ones.
    let mut anew = Model { ever: Vec::new(), ..model.clone() };
    anew.live.clear();
    for number in 20..25 {
        anew.ever.push(entry(number));
        anew.live.insert(entry(number).id, entry(number));
    }
    assert_eq!(follow(&anew, 4), Err(Reset::Rewound));
    // Rolled back, as by a failover, and written to since: another entry has the same id.
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
    // Deleted.
    let slice = StreamSlice { at_position: None, entries: Vec::new(), is_cut: false, info: None };
    assert_eq!(at(3).follow(&slice), Err(Reset::Expired));
    assert_eq!(Position::EMPTY.follow(&slice), Ok(Vec::new()));
}
