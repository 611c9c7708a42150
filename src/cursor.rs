//! A position in a source, as a token that may leave the house and come back as foreign input.
//!
//! The token is a letter for its source and version, then base64url of a checksum and of what the source put in. The
//! checksum covers the job, so a token that was cut, garbled or given out for another job is told from a real one before
//! anybody acts on it. It is no secret and no signature: whoever may read a job may resume it anywhere.

pub mod varint;

use crate::event::JobId;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::fmt;
use std::sync::Arc;

/// At most [`Cursor::MAX_BYTES`] bytes, all of `A-Z a-z 0-9 - _`; only its own source reads what is inside.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cursor(Arc<str>);

impl Cursor {
    /// More would cost every cross-origin reconnect a preflight (Fetch, "CORS-safelisted request-header").
    pub const MAX_BYTES: usize = 128;
    /// What a source may put in: the rest is the letter and the checksum.
    pub const MAX_INSIDE: usize = (Self::MAX_BYTES - 1) * 3 / 4 - CHECK_BYTES;

    /// Makes the token that [`Cursor::open`] takes apart again for the same `version` and `job`.
    pub fn seal(version: char, job: &JobId, inside: &[u8]) -> Self {
        debug_assert!(inside.len() <= Self::MAX_INSIDE, "a cursor must stay within {} bytes", Self::MAX_BYTES);
        let mut bytes = checksum(job, inside).to_vec();
        bytes.extend_from_slice(inside);
        let mut token = String::from(version);
        URL_SAFE_NO_PAD.encode_string(&bytes, &mut token);
        Self(token.into())
    }

    /// What is inside of foreign `text`, if it is a token that was sealed for just this job.
    pub fn open(version: char, job: &JobId, text: &str) -> Option<Vec<u8>> {
        if text.len() > Self::MAX_BYTES {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(version)?).ok()?;
        let (check, inside) = bytes.split_first_chunk::<CHECK_BYTES>()?;
        (*check == checksum(job, inside)).then(|| inside.to_vec())
    }

    /// Takes back a token that this process made itself, out of an event that it encoded.
    pub fn trusted(token: &str) -> Self {
        debug_assert!(token.len() <= Self::MAX_BYTES);
        Self(token.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
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

pub const CHECK_BYTES: usize = 4;

fn checksum(job: &JobId, inside: &[u8]) -> [u8; CHECK_BYTES] {
    fingerprint(&[job.as_str().as_bytes(), &[0], inside].concat())
}

/// 32 bits that tell texts apart, the same in every release and on every machine (FNV-1a, folded).
pub fn fingerprint(bytes: &[u8]) -> [u8; CHECK_BYTES] {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    ((hash >> 32) as u32 ^ hash as u32).to_be_bytes()
}

/// Where a subscriber wants to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// The job's first event.
    Beginning,
    /// What comes from now on.
    Now,
    /// After a cursor or a bare event id, as foreign text.
    After(String),
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
