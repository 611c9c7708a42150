//! A cursor: a position in a job's events, as a token that clients keep and send back.
//!
//! The token is a letter for the kind of store and the version of its inside, then base64url of a checksum and of the
//! inside, which only the source can read:
//!
//! ```text
//! token = letter base64url(checksum[4] inside[0..])            at most 128 bytes
//! ```
//!
//! The checksum covers the job and the inside. A token that was cut, garbled or given out for another job is therefore
//! refused before anybody acts on it. It is neither a secret nor a signature: a client that may read a job may resume it
//! at any position.

pub mod set;
mod sketch;
pub mod varint;

use crate::event::JobId;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::fmt;
use std::sync::Arc;

/// A token of at most [`Cursor::MAX_BYTES`] bytes, all of `A-Z a-z 0-9 - _`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cursor(Arc<str>);

impl Cursor {
    /// The longest token. With a longer one, every cross-origin reconnect would cost a preflight (Fetch,
    /// "CORS-safelisted request-header").
    pub const MAX_BYTES: usize = 128;
    /// The most bytes that a source may put inside; the letter and the checksum take the rest.
    pub const MAX_INSIDE: usize = (Self::MAX_BYTES - 1) * 3 / 4 - CHECK_BYTES;

    /// Makes a token, which [`Cursor::open`] takes apart again for the same `version` and `job`.
    pub fn seal(version: char, job: &JobId, inside: &[u8]) -> Self {
        debug_assert!(inside.len() <= Self::MAX_INSIDE, "a cursor must stay within {} bytes", Self::MAX_BYTES);
        let mut bytes = checksum(job, inside).to_vec();
        bytes.extend_from_slice(inside);
        let mut token = String::from(version);
        URL_SAFE_NO_PAD.encode_string(&bytes, &mut token);
        Self(token.into())
    }

    /// Returns the inside of foreign `text`. `None` unless it is a whole token that was sealed for this job.
    pub fn open(version: char, job: &JobId, text: &str) -> Option<Vec<u8>> {
        if text.len() > Self::MAX_BYTES {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(version)?).ok()?;
        let (check, inside) = bytes.split_first_chunk::<CHECK_BYTES>()?;
        (*check == checksum(job, inside)).then(|| inside.to_vec())
    }

    /// Takes foreign `text` for a cursor, if it is a whole token that was sealed for this job, whatever its version.
    pub fn of_job(job: &JobId, text: &str) -> Option<Self> {
        let version = text.chars().next()?;
        Self::open(version, job, text).map(|_| Self(text.into()))
    }

    /// Makes a cursor of a token that this process has sealed, without a check.
    pub fn trusted(token: &str) -> Self {
        debug_assert!(token.len() <= Self::MAX_BYTES || token.starts_with(set::LETTER));
        Self(token.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Takes apart a token that this process has sealed.
    pub fn level(&self) -> Level {
        let mut letters = self.0.chars();
        let version = letters.next().unwrap_or_default();
        let bytes = URL_SAFE_NO_PAD.decode(letters.as_str()).unwrap_or_default();
        Level { version, inside: bytes.get(CHECK_BYTES..).unwrap_or_default().into() }
    }
}

/// The inside of a position, without its job: of any number of jobs that stand at the same place of their source.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Level {
    /// The kind of store and the version of the inside.
    pub version: char,
    pub inside: Arc<[u8]>,
}

impl Level {
    /// Makes the token of `job` at this place.
    pub fn cursor(&self, job: &JobId) -> Cursor {
        Cursor::seal(self.version, job, &self.inside)
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl serde::Serialize for Cursor {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

/// The length of a checksum, and of every other fingerprint.
pub const CHECK_BYTES: usize = 4;

fn checksum(job: &JobId, inside: &[u8]) -> [u8; CHECK_BYTES] {
    fingerprint_of([job.as_str().as_bytes(), &[0], inside])
}

/// Hashes bytes to 32 bits: FNV-1a, folded. Cursors hold such hashes, so the function must never change.
pub fn fingerprint(bytes: &[u8]) -> [u8; CHECK_BYTES] {
    fingerprint_of([bytes])
}

/// Hashes bytes that lie in several places as if they were one after the other.
pub fn fingerprint_of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; CHECK_BYTES] {
    let hash = parts
        .into_iter()
        .flatten()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    ((hash >> 32) as u32 ^ hash as u32).to_be_bytes()
}

/// The place where a subscriber wants to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Before the job's first event.
    Beginning,
    /// After the job's newest event.
    Now,
    /// Before so many of the job's newest events.
    Last(usize),
    /// After the event that foreign text means: a cursor, or a bare event id. Jobs of a set that it says nothing of begin as
    /// the other start has it.
    After(String, Box<Start>),
}

impl Start {
    pub fn after(text: impl Into<String>) -> Self {
        Self::After(text.into(), Box::new(Self::Beginning))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_only_for_the_job_it_was_sealed_for_and_only_whole() {
        let (job, other): (JobId, JobId) = ("job-7".parse().expect("id"), "job-8".parse().expect("id"));
        let token = Cursor::seal('s', &job, &[7; Cursor::MAX_INSIDE]);
        assert!(token.as_str().len() <= Cursor::MAX_BYTES);
        assert_eq!(Cursor::open('s', &job, token.as_str()), Some(vec![7; Cursor::MAX_INSIDE]));
        assert_eq!(Cursor::open('s', &other, token.as_str()), None);
        assert_eq!(Cursor::open('p', &job, token.as_str()), None);
        for cut in 0..token.as_str().len() {
            assert_eq!(Cursor::open('s', &job, &token.as_str()[..cut]), None);
        }
    }
}
