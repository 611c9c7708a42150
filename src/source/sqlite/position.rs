//! Positions of this source, and the inside of its cursors.
//!
//! A position is the number of an event, `job_events.seq`, and a fingerprint of that event's id: after a restored backup,
//! or in another database, the number may belong to another event, and the fingerprint tells. As a cursor, it is four
//! bytes of fingerprint and then the number, big-endian, without leading zeros, so that 0 has no bytes and a negative one
//! has eight; the beginning is empty.
//!
//! The event may be of any job, where one number orders the rows of all jobs. Then the fingerprint is one of its job and its
//! id, and a zero stands before the number. Such a position is good for all jobs of the table that have a row at or before it:
//! where one of them has none, its rows were trimmed up to there, and perhaps beyond. A job that had none yet therefore stays
//! at its beginning.

use crate::cursor::{CHECK_BYTES, Cursor, Level, fingerprint};
use crate::event::JobId;

/// A place among a job's events: after the one with this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub seq: i64,
    pub of: Of,
    /// Fingerprint of the event's id, or of what else tells events of the same number apart.
    event: [u8; CHECK_BYTES],
}

/// The job that the event of a position belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// The position's own job.
    Job,
    /// Any job of the table.
    Any,
}

impl Position {
    /// First letter of a cursor of this source.
    pub const LETTER: char = 's';
    /// The position before all events.
    pub const BEGINNING: Self = Self { seq: i64::MIN, of: Of::Job, event: [0; CHECK_BYTES] };

    /// Returns the position after the event with this number and id.
    pub fn after(seq: i64, id: impl AsRef<[u8]>) -> Self {
        Self { seq, of: Of::Job, event: fingerprint(id.as_ref()) }
    }

    /// Returns the position after the event with this number and id, whatever its job: one for all jobs of the table. The
    /// job is as it is stored; empty where the row has none.
    pub fn after_any(seq: i64, job: &[u8], id: &[u8]) -> Self {
        Self { seq, of: Of::Any, event: fingerprint(&[job, &[0], id].concat()) }
    }

    pub fn seal(self, job: &JobId) -> Cursor {
        Cursor::seal(Self::LETTER, job, &self.inside())
    }

    pub fn level(self) -> Level {
        Level { version: Self::LETTER, inside: self.inside().into() }
    }

    fn inside(self) -> Vec<u8> {
        if self == Self::BEGINNING {
            return Vec::new();
        }
        let seq = self.seq.to_be_bytes();
        let zeros = seq.iter().take_while(|byte| **byte == 0).count();
        let mark: &[u8] = match self.of {
            Of::Job => &[],
            Of::Any => &[0],
        };
        [&self.event, mark, &seq[zeros..]].concat()
    }

    /// Reads a cursor. `None` for anything that [`Position::seal`] does not write: each position has one cursor.
    pub fn open(job: &JobId, text: &str) -> Option<Self> {
        let inside = Cursor::open(Self::LETTER, job, text)?;
        if inside.is_empty() {
            return Some(Self::BEGINNING);
        }
        let (event, rest) = inside.split_first_chunk::<CHECK_BYTES>()?;
        let (of, digits) = match rest.split_first() {
            Some((0, digits)) => (Of::Any, digits),
            _ => (Of::Job, rest),
        };
        let mut seq = [0; 8];
        seq.get_mut(8_usize.checked_sub(digits.len())?..)?.copy_from_slice(digits);
        let seq = i64::from_be_bytes(seq);
        let is_canonical = seq > i64::MIN && digits.first() != Some(&0);
        is_canonical.then_some(Self { seq, of, event: *event })
    }

    /// Tells whether the table still has the event of this position of one job under its number; `id` is the id that it has
    /// there.
    pub fn is_held_by(self, id: Option<&[u8]>) -> bool {
        self == Self::BEGINNING || id.is_some_and(|id| fingerprint(id) == self.event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_of_an_earlier_release_still_means_its_position() {
        let job: JobId = "job-7".parse().expect("id");
        assert_eq!(Position::open(&job, "sdgWDZiliPYwBEXA"), Some(Position::after(70_000, "e")));
        assert_eq!(Position::open(&job, "s5RLX4g"), Some(Position::BEGINNING));
    }

    #[test]
    fn a_position_comes_back_from_its_token_and_a_forged_one_does_not() {
        let job: JobId = "job-7".parse().expect("id");
        for seq in [i64::MIN, i64::MIN + 1, -1, 0, 1, 255, 256, 70_000, i64::MAX] {
            let position = if seq == i64::MIN { Position::BEGINNING } else { Position::after(seq, "e") };
            assert_eq!(Position::open(&job, position.seal(&job).as_str()), Some(position));
            let of_any = Position::after_any(seq.max(i64::MIN + 1), b"job-8", b"e");
            assert_eq!(Position::open(&job, of_any.seal(&job).as_str()), Some(of_any));
            assert_eq!(of_any.level().cursor(&job), of_any.seal(&job));
        }
        for forged in [&[1, 2, 3][..], &[0; 6], &[0; 7], &[0, 0, 0, 0, 128, 0, 0, 0, 0, 0, 0, 0], &[1; 13]] {
            let token = Cursor::seal('s', &job, forged);
            assert_eq!(Position::open(&job, token.as_str()), None, "{forged:?}");
        }
    }
}
