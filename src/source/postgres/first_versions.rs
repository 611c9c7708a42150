//! The first versions of events, for `source.dedupe`.
//!
//! An UPDATE makes a new version of a row, written by another transaction, which nothing in the row tells from an INSERT that
//! committed late. So the process remembers which transaction wrote the version of an event that it read first. A later
//! version is left out for a reader whose position says that it was given all that this transaction wrote
//! ([`Position::has_delivered_all_of`]). A position can say so only after a read that saw everything in one statement: while
//! a history is read page by page, an UPDATE may take a row away from the part that is being read, before its turn has come.
//! What a process has not read, or has forgotten since, is delivered: rather twice than never.
//!
//! A transaction's id means something in one life of the database only, and a server that was recovered to a point in time
//! gives ids out once more. So an event is known by the life, too, and all are forgotten when a statement sees fewer
//! transactions than one before it.

use super::page::StoredRow;
use super::position::{Key, Life, Position};
use crate::event::JobId;
use sha2::{Digest, Sha256};
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most events that are remembered, some 50 bytes each.
const MAX_EVENTS: usize = 200_000;

/// The transactions that wrote the events that were read last.
#[derive(Default)]
pub struct FirstVersions {
    events: Mutex<Events>,
}

#[derive(Default)]
struct Events {
    /// By the digest of job and id.
    xids: HashMap<[u8; 16], u64>,
    /// The oldest first.
    order: VecDeque<[u8; 16]>,
    /// Transaction that none had reached in the newest snapshot.
    xmax: u64,
}

impl FirstVersions {
    /// The transaction that none has reached in any snapshot so far.
    pub fn xmax(&self) -> u64 {
        self.lock().xmax
    }

    /// Takes over the `xmax` of a snapshot that was taken when another had been seen before. If it is lower, the database has
    /// gone back, and all is forgotten.
    pub fn follow(&self, before: u64, xmax: u64) {
        let mut events = self.lock();
        match xmax < before {
            true => *events = Events { xmax, ..Events::default() },
            false => events.xmax = events.xmax.max(xmax),
        }
    }

    /// Returns true for a version of an event that was delivered at `position` in this version or another. `life` is the one
    /// of the database.
    pub fn repeats(&self, row: &StoredRow, position: &Position, life: Option<Life>) -> bool {
        let number = match &row.key {
            Key::Number(number) => number.to_string(),
            // An UPDATE may change the time.
            Key::Time { .. } => String::new(),
        };
        // Schemes do not number the transactions alike.
        let scheme = position.scheme.letter();
        let ids_of = life.map_or_else(|| scheme.to_string(), |Life(life)| format!("{scheme}{life}"));
        let first = self.first_xid(&row.event.job_id, [&number, &ids_of, &row.event.id], row.xid);
        position.has_delivered_all_of(first)
    }

    /// Returns the transaction of the version that was read first, which is this one if none was.
    fn first_xid(&self, job: &JobId, known_by: [&str; 3], xid: u64) -> u64 {
        let mut digest = Sha256::new_with_prefix(job.as_str());
        known_by.iter().for_each(|part| digest.update([b"\0", part.as_bytes()].concat()));
        let digest = digest.finalize();
        let mut key = [0; 16];
        key.copy_from_slice(&digest[..16]);
        let Events { xids, order, .. } = &mut *self.lock();
        if let Some(first) = xids.get(&key) {
            return *first;
        }
        if order.len() == MAX_EVENTS
            && let Some(oldest) = order.pop_front()
        {
            xids.remove(&oldest);
        }
        xids.insert(key, xid);
        order.push_back(key);
        xid
    }

    fn lock(&self) -> MutexGuard<'_, Events> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_events_are_forgotten_and_the_others_keep_their_first_transaction() {
        let (known, job) = (FirstVersions::default(), "job".parse().expect("an id"));
        let first = |id: u64, xid| known.first_xid(&job, ["", "v", &id.to_string()], xid);
        for number in 0..=MAX_EVENTS as u64 {
            assert_eq!(first(number, number), number);
        }
        assert_eq!(first(7, 1_000_000), 7);
        assert_eq!(first(7, 1_000_001), 7);
        assert_eq!(first(7, 7), 7);
        assert_eq!(first(0, 1_000_000), 1_000_000, "forgotten");
        assert_eq!(known.lock().xids.len(), MAX_EVENTS);
    }

    #[test]
    fn all_is_forgotten_when_the_database_has_gone_back_and_not_because_an_answer_comes_late() {
        let (known, job) = (FirstVersions::default(), "job".parse().expect("an id"));
        let first = |xid| known.first_xid(&job, ["", "v", "event"], xid);
        known.follow(0, 700);
        let before = known.xmax();
        known.follow(before, 705);
        assert_eq!(first(690), 690);
        known.follow(before, 701);
        assert_eq!((first(704), known.xmax()), (690, 705), "asked before 705 was seen");
        known.follow(known.xmax(), 704);
        assert_eq!((first(703), known.xmax()), (703, 704), "gone back");
    }
}
