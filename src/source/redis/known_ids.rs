//! Event ids of the jobs that this process has written to lately. Redis has no index from an event's id to its entry.

use super::entry::EntryId;
use crate::event::JobId;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};

/// Ids in memory, all jobs together.
const MAX_KNOWN_IDS: usize = 1_000_000;

#[derive(Default)]
pub struct KnownIds {
    jobs: Mutex<HashMap<JobId, JobIds>>,
    hasher: RandomState,
}

/// Event ids of one job, complete up to one entry.
#[derive(Default)]
pub struct JobIds {
    pub read_up_to: EntryId,
    /// The entry of each event, by the hash of the event's id.
    entries: HashMap<u64, KnownEntry>,
    hasher: RandomState,
}

/// An entry that was seen, and its ordinal, where this process added it. It may have been deleted since.
#[derive(Clone, Copy, Debug)]
pub struct KnownEntry {
    pub id: EntryId,
    pub ordinal: Option<u64>,
}

impl JobIds {
    /// Returns the entry that may have an event's id: two ids may have one hash.
    pub fn find(&self, event_id: &str) -> Option<KnownEntry> {
        self.entries.get(&self.hasher.hash_one(event_id)).copied()
    }

    /// Forgets everything: the stream is another.
    pub fn forget(&mut self) {
        (self.read_up_to, self.entries) = (EntryId::ZERO, HashMap::new());
    }

    /// Notes the next entry that was read. Of several with one event id, the last counts: others may be deleted.
    pub fn learn(&mut self, event_id: &str, entry: KnownEntry) {
        self.read_up_to = self.read_up_to.max(entry.id);
        self.entries.insert(self.hasher.hash_one(event_id), entry);
    }
}

impl KnownIds {
    /// Takes the ids of a job out. The one write at a time to this job puts them back.
    pub fn take(&self, job: &JobId) -> JobIds {
        let known = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).remove(job);
        known.unwrap_or_else(|| JobIds { hasher: self.hasher.clone(), ..JobIds::default() })
    }

    pub fn put_back(&self, job: &JobId, ids: JobIds) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if jobs.values().map(|ids| ids.entries.len()).sum::<usize>() + ids.entries.len() > MAX_KNOWN_IDS {
            // The next write to each of them reads its stream once.
            jobs.clear();
        }
        jobs.insert(job.clone(), ids);
    }
}
