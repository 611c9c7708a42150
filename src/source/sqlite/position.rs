//! Positions of this source, and the inside of its cursors.
//!
//! A position is the number of an event, `job_events.seq`, and a fingerprint of that event's id: after a restored backup,
//! or in another database, the number may belong to another event, and the fingerprint tells. As a cursor, it is four
//! bytes of fingerprint and then the number, big-endian, without leading zeros, so that 0 has no bytes and a negative one
//! has eight; the beginning is empty.

use crate::cursor::{CHECK_BYTES, Cursor, fingerprint};
use crate::event::JobId;

/// A place among a job's events: after the one with this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub seq: i64,
    /// Fingerprint of the event's id, or of what else tells events of the same number apart.
    event: [u8; CHECK_BYTES],
}

impl Position {
    /// First letter of a cursor of this source.
    pub const LETTER: char = 's';
    /// The position before all events.
    pub const BEGINNING: Self = Self { seq: i64::MIN, event: [0; CHECK_BYTES] };

    /// Returns the position after the event with this number and id.
    pub fn after(seq: i64, id: impl AsRef<[u8]>) -> Self {
        Self { seq, event: fingerprint(id.as_ref()) }
    }

    pub fn seal(self, job: &JobId) -> Cursor {
        let seq = self.seq.to_be_bytes();
        let zeros = seq.iter().take_while(|byte| **byte == 0).count();
        let inside = if self == Self::BEGINNING { Vec::new() } else { [&self.event, &seq[zeros..]].concat() };
        Cursor::seal(Self::LETTER, job, &inside)
    }

    /// Reads a cursor. `None` for anything that [`Position::seal`] does not write: each position has one cursor.
    pub fn open(job: &JobId, text: &str) -> Option<Self> {
        let inside = Cursor::open(Self::LETTER, job, text)?;
        if inside.is_empty() {
            return Some(Self::BEGINNING);
        }
        let (event, digits) = inside.split_first_chunk::<CHECK_BYTES>()?;
        let mut seq = [0; 8];
        seq.get_mut(8_usize.checked_sub(digits.len())?..)?.copy_from_slice(digits);
        let seq = i64::from_be_bytes(seq);
        let is_canonical = seq > i64::MIN && digits.first() != Some(&0);
        is_canonical.then_some(Self { seq, event: *event })
    }

    /// Tells whether the table still has the event of this position under its number; `id` is the id that it has there.
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
        }
        for forged in [&[1, 2, 3][..], &[0; 5], &[0, 0, 0, 0, 128, 0, 0, 0, 0, 0, 0, 0], &[1; 13]] {
            let token = Cursor::seal('s', &job, forged);
            assert_eq!(Position::open(&job, token.as_str()), None, "{forged:?}");
        }
    }
}
