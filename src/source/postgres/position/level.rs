//! Levels: positions that mean the same for every job.
//!
//! A settled position says which *transactions* were delivered, and nothing of a job. A count says how many rows *of one
//! job* were, and a range by its key which. So many jobs can share a position only if it is settled: the list of the
//! transactions that had ended at one moment. Everything that was visible then, and nothing else, is of those:
//!
//! ```text
//! snapshot 700:745:740,743                  open are 740, 743, and whatever is to come
//! level    { mark: 745, open: {740, 743} }  of every job
//! ```
//!
//! The mark must survive a crash, and so it is cut down to what is durable. That loses nothing where each visible row is of
//! a durable transaction: it has committed, and so all numbers up to its own are given out for good. What is cut off has
//! ended without a row, or is open. A snapshot lists top-level transactions only, so the list says enough only of the
//! column's ids, and only on a primary. Elsewhere the server is asked which transactions are open *before* the rows are read:
//! all others have ended, and all their rows are visible to what is read later.
//!
//! So a level needs no snapshot that is held while all jobs are read. It is fixed first, and then each job is read by a
//! statement of its own, up to there and no further: a row that commits meanwhile is of a transaction that is open in the
//! level, or beyond it, and is left for the next time. What a reader claims decides which rows it is given, and nothing
//! of the level, which is the server's word.

#[cfg(test)]
mod tests;

use super::{CursorScheme, EndedXids, Life, Position};
use std::collections::BTreeMap;

impl Position {
    /// The position after all rows of these transactions.
    pub fn at_level(scheme: CursorScheme, ended: EndedXids, life: Option<Life>) -> Self {
        Self::new_settled(scheme, ended, BTreeMap::new()).in_life(life)
    }

    /// Returns true for a position that says nothing but which transactions were delivered.
    pub fn is_level(&self) -> bool {
        self.range.is_none() && self.counted.is_empty() && self.above.is_none()
    }

    /// Returns true if a level holds all that was delivered at this position, so that a reader can go on to it.
    pub fn is_below(&self, level: &Self) -> bool {
        let covers_range = self.range.as_ref().is_none_or(|range| level.settled.covers(&range.end));
        let covers_counts = self.counted.keys().all(|xid| level.settled.contains(*xid));
        let covers_above = self.above.as_ref().is_none_or(|above| above.is_within(&level.settled));
        let covers_rows = covers_range && covers_counts && covers_above;
        self.scheme == level.scheme && level.settled.covers(&self.settled) && covers_rows
    }
}
