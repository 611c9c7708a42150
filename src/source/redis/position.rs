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
use crate::cursor::{CHECK_BYTES, Cursor, Level, varint};
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

impl StreamSlice {
    /// Returns the position after the whole stream, for a reader that has the entries up to `read`. `None` where there
    /// are more, also where one came between the entries and the state.
    ///
    /// It is made only of what the server said in this very read: `read` may descend from foreign input, and channels
    /// begin at this position.
    pub fn end(&self, read: EntryId) -> Option<Position> {
        let last = self.info.as_ref().and_then(|info| info.last_entry.as_ref());
        let has_all = !self.is_cut && last.is_none_or(|last| last.id <= read);
        has_all.then(|| Position::newest(self.info.as_ref()))
    }
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

    /// Returns the position after an entry with so many `newer` ones after it, for a reader that begins there: what is gone
    /// by now is not lost to it.
    pub fn begin_after(entry: &Entry, newer: u64, info: &StreamInfo) -> Self {
        let ordinal = ordinal_from_end(info, entry, newer);
        let deleted = info.max_deleted_id.unwrap_or_default();
        let is_counted = ordinal.is_some() || deleted <= entry.id;
        let ignore_deleted_up_to = if is_counted { EntryId::ZERO } else { deleted };
        Self { ignore_deleted_up_to, ..Self::after(entry, ordinal) }
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
            return if self.is_before_all() { Ok(Vec::new()) } else { Err(Reset::Expired) };
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
            // It was neither trimmed nor deleted, and is not there: this stream never had the entry.
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
        // This counts forwards from the first entry of the stream, where XDEL deleted none after it.
        let trimmed = Self::trimmed_since(slice, info);
        if self.is_before_all() && max_deleted_id < first.id && trimmed < count && added >= info.length + trimmed {
            return counted_from(added - info.length + 1 - trimmed);
        }
        // This counts backwards from the last entry of the stream, down to the newest that XDEL deleted.
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

    /// The same for every job of one stream.
    pub fn level(&self) -> Level {
        Level { version: Self::VERSION, inside: self.encode().into() }
    }

    /// Returns the position that a cursor of this job holds. `None` for any other text.
    pub fn open(job: &JobId, text: &str) -> Option<Self> {
        let inside = Cursor::open(Self::VERSION, job, text)?;
        // Each position has one encoding; any other was not made here.
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
        // No stream ever holds as many; sums with a smaller number do not overflow.
        let is_plausible = ordinal.is_none_or(|ordinal| ordinal < 1 << 60);
        is_plausible.then_some(Self { id, ordinal, fingerprint, ignore_deleted_up_to })
    }
}

/// Returns the ordinal of an entry with `newer` entries after it, where none of those was deleted.
pub fn ordinal_from_end(info: &StreamInfo, entry: &Entry, newer: u64) -> Option<u64> {
    info.max_deleted_id.filter(|deleted| *deleted < entry.id)?;
    info.entries_added?.checked_sub(newer)
}

fn write_id(to: &mut Vec<u8>, id: EntryId) {
    varint::write(to, id.ms);
    varint::write(to, id.seq);
}

fn read_id(from: &mut &[u8]) -> Option<EntryId> {
    Some(EntryId { ms: varint::read(from)?, seq: varint::read(from)? })
}

#[cfg(test)]
mod tests;
