//! Positions of the store in memory. One says "these slots were received", and so it can lie in every way that a position of
//! a real store can: claim an event that is not there yet, deny one that was given out, or be far ahead.

use jobcast::cursor::{Cursor, varint};
use jobcast::event::JobId;
use std::collections::BTreeSet;

/// The letter of its cursors; no store of Jobcast's own has it.
const LETTER: char = 'm';

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

    pub fn open(job: &JobId, text: &str) -> Option<Self> {
        let inside = Cursor::open(LETTER, job, text)?;
        let from = &mut &*inside;
        let below = varint::read(from)? as usize;
        let mut but = BTreeSet::new();
        while !from.is_empty() {
            but.insert(varint::read(from)? as usize);
        }
        Some(Self::forged(below, but))
    }
}
