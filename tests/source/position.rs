//! Positions of the store in memory. One says "these slots were received", and so it can lie in every way that a position of
//! a real store can: claim an event that is not there yet, deny one that was given out, or be far ahead. Another says "all that
//! was stored up to this write was received", which is good for any job.

use jobcast::cursor::{Cursor, Level, varint};
use jobcast::event::JobId;
use std::collections::BTreeSet;

/// The letter of its cursors; no store of Jobcast's own has it.
const LETTER: char = 'm';

/// The inside of a cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Slots of the cursor's job.
    Slots(Position),
    /// The number of a write, of all jobs together.
    Write(u64),
}

impl Place {
    pub fn open(job: &JobId, text: &str) -> Option<Self> {
        let inside = Cursor::open(LETTER, job, text)?;
        match inside.split_first() {
            // No set of slots below 0 leaves any out.
            Some((0, mut rest)) if !rest.is_empty() => Some(Self::Write(varint::read(&mut rest)?)),
            _ => Some(Self::Slots(Position::read(&inside)?)),
        }
    }

    /// Returns the place of all jobs after this write.
    pub fn level(write: u64) -> Level {
        let mut inside = vec![0];
        varint::write(&mut inside, write);
        Level { version: LETTER, inside: inside.into() }
    }

    pub fn seal(&self, job: &JobId) -> Cursor {
        match self {
            Self::Slots(position) => position.seal(job),
            Self::Write(write) => Self::level(*write).cursor(job),
        }
    }
}

/// A set of slots: all below a bound but some. The highest of them is in the set, so that each set has one spelling.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    below: usize,
    but: BTreeSet<usize>,
}

impl Position {
    /// Makes any position, true or not.
    pub fn forged(below: usize, but: impl IntoIterator<Item = usize>) -> Self {
        let but = but.into_iter().filter(|slot| *slot < below).collect();
        let mut forged = Self { below, but };
        while forged.below > 0 && forged.but.remove(&(forged.below - 1)) {
            forged.below -= 1;
        }
        forged
    }

    pub fn has(&self, slot: usize) -> bool {
        slot < self.below && !self.but.contains(&slot)
    }

    pub fn add(&mut self, slot: usize) {
        if slot >= self.below {
            self.but.extend(self.below..slot);
            self.below = slot + 1;
        }
        self.but.remove(&slot);
    }

    /// Tells whether `other` has all of its slots.
    pub fn is_within(&self, other: &Self) -> bool {
        (0..self.below).all(|slot| !self.has(slot) || other.has(slot))
    }

    /// Tells whether it has a slot from `count` on.
    pub fn is_beyond(&self, count: usize) -> bool {
        self.below > count
    }

    pub fn seal(&self, job: &JobId) -> Cursor {
        let mut inside = Vec::new();
        varint::write(&mut inside, self.below as u64);
        self.but.iter().for_each(|slot| varint::write(&mut inside, *slot as u64));
        Cursor::seal(LETTER, job, &inside)
    }

    fn read(mut inside: &[u8]) -> Option<Self> {
        let from = &mut inside;
        let below = varint::read(from)? as usize;
        let mut but = BTreeSet::new();
        while !from.is_empty() {
            but.insert(varint::read(from)? as usize);
        }
        Some(Self::forged(below, but))
    }
}
