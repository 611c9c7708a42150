//! The newest entries of a shared stream, in memory and by job.
//!
//! Invariant: `kept` holds every entry that was added after the one before its first, up to `end`, in order. So a loss is
//! said of those jobs alone that had an entry among what left it.

use super::super::MAX_ENTRIES_PER_REQUEST;
use super::super::connections::Nodes;
use super::super::entry::{Entry, EntryId, StreamInfo, mean_size};
use super::super::history::older_entries_command;
use super::super::position::{Position, StreamSlice};
use super::super::topology::NodeError;
use super::super::{Store, info_command};
use crate::event::{JobId, JobStatus};
use crate::source::Limit;
use crate::sse::Reset;
use crate::telemetry;
use redis::Value;
use std::collections::{HashMap, VecDeque};

/// Bounds of what a mirror holds, and of what is read to load it.
const HELD: Limit = Limit { events: 20_000, bytes: 16 << 20 };
/// Jobs of which it is remembered that entries of theirs were here.
const MAX_JOBS: usize = 40_000;
/// Bytes of one request.
const REQUEST_BYTES: usize = 1 << 20;
/// Entries in the first request, while their size is not known.
const FIRST_REQUEST_ENTRIES: usize = 32;

/// An entry, with the position after it.
pub struct Kept {
    /// `None`: the entry names no job.
    pub job: Option<JobId>,
    pub entry: Entry,
    pub position: Position,
}

/// The entries of one job.
#[derive(Default)]
struct JobRecord {
    /// Numbers of its entries that are held, ascending.
    numbers: VecDeque<u64>,
    /// The newest of its entries that was held and is not any more.
    gone_up_to: EntryId,
    /// The final status, where an entry said that the job has ended.
    end: Option<JobStatus>,
}

/// The end of a life of the stream: it was trimmed faster than it was read, or is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    pub number: u64,
    /// The reason why the life before it ended.
    pub reason: Reset,
}

pub struct Mirror {
    kept: VecDeque<Kept>,
    /// The number of the first entry in `kept`. Numbers go on over all lives.
    first_number: u64,
    bytes: usize,
    jobs: HashMap<JobId, JobRecord>,
    /// All that left the mirror after this entry is in `jobs`.
    known_since: EntryId,
    /// The position after the last entry; `None` before the first load.
    end: Option<Position>,
    /// The state of the stream at the last read.
    info: Option<StreamInfo>,
    life: Life,
}

impl Default for Mirror {
    fn default() -> Self {
        Self {
            kept: VecDeque::new(),
            first_number: 0,
            bytes: 0,
            jobs: HashMap::new(),
            known_since: EntryId::ZERO,
            end: None,
            info: None,
            life: Life { number: 0, reason: Reset::Unknown },
        }
    }
}

impl Mirror {
    /// Reads on to the end of the stream, over these connections.
    pub async fn refresh(&mut self, store: &Store, nodes: &Nodes) -> Result<(), NodeError> {
        loop {
            let Some(end) = self.end else {
                self.load(store, nodes).await?;
                continue;
            };
            let size = mean_size_of(&self.kept);
            let count = size.map_or(FIRST_REQUEST_ENTRIES, |size| REQUEST_BYTES / size);
            let count = count.clamp(1, MAX_ENTRIES_PER_REQUEST);
            let replies = nodes.send(&[store.shared_request(&end, count)]).await.pop();
            let slice = store.parse_stream(replies.unwrap_or_else(|| Ok(Vec::new())), &end, count)?;
            let positions = match end.follow(&slice) {
                Ok(positions) => positions,
                Err(reason) => {
                    self.begin_anew(reason);
                    continue;
                }
            };
            let StreamSlice { entries, is_cut, info, .. } = slice;
            for (entry, position) in entries.into_iter().zip(positions) {
                self.push(store, entry, position);
            }
            self.info = info;
            if !is_cut {
                return Ok(());
            }
        }
    }

    /// Reads the newest entries, from the last one back.
    async fn load(&mut self, store: &Store, nodes: &Nodes) -> Result<(), NodeError> {
        let replies = nodes.send(&[store.shared_commands(|key| vec![info_command(key)])]).await.pop();
        let info = store.parse_info(replies.transpose()?.and_then(|replies| replies.into_iter().next()))?;
        let mut loaded: Vec<(Entry, Position)> = Vec::new();
        let (mut bytes, mut count) = (0, FIRST_REQUEST_ENTRIES);
        let mut from = info.as_ref().map(|info| info.last_id.to_string());
        while let (Some(newest), Some(info)) = (&from, &info)
            && !HELD.is_reached_by(loaded.len(), bytes)
        {
            let request = store.shared_commands(|key| vec![older_entries_command(key, newest, count)]);
            let replies: Option<Vec<Value>> = nodes.send(&[request]).await.pop().transpose()?;
            let entries = store.parse_range(replies.and_then(|mut replies| replies.pop()))?;
            from = entries.last().filter(|_| entries.len() == count).map(|entry| format!("({}", entry.id));
            let size = mean_size(&entries).unwrap_or(1);
            bytes += size * entries.len();
            count = (REQUEST_BYTES / size).clamp(1, MAX_ENTRIES_PER_REQUEST);
            for entry in entries {
                let position = Position::begin_after(&entry, loaded.len() as u64, info);
                loaded.push((entry, position));
            }
        }
        self.known_since = loaded.last().map_or(EntryId::ZERO, |(entry, _)| entry.id);
        for (entry, position) in loaded.into_iter().rev() {
            self.push(store, entry, position);
        }
        self.end = Some(Position::newest(info.as_ref()));
        self.info = info;
        Ok(())
    }

    fn begin_anew(&mut self, reason: Reset) {
        let life = Life { number: self.life.number + 1, reason };
        *self = Self { first_number: self.next_number(), life, ..Self::default() };
    }

    fn push(&mut self, store: &Store, entry: Entry, position: Position) {
        let job = store.mapping.job_of(&entry);
        match &job {
            Some(job) => {
                let end = store.mapping.end_of(&entry, job);
                let number = self.next_number();
                let record = self.jobs.entry(job.clone()).or_default();
                record.numbers.push_back(number);
                record.end = end.or(record.end);
            }
            None => telemetry::SKIPPED.counter(&[]).increment(1),
        }
        self.bytes += entry.size();
        self.end = Some(position);
        self.kept.push_back(Kept { job, entry, position });
        while HELD.is_reached_by(self.kept.len() - 1, self.bytes) {
            self.let_go();
        }
    }

    /// Lets go of the oldest entry.
    fn let_go(&mut self) {
        let Some(oldest) = self.kept.pop_front() else { return };
        self.first_number += 1;
        self.bytes -= oldest.entry.size();
        if let Some(record) = oldest.job.and_then(|job| self.jobs.get_mut(&job)) {
            record.numbers.pop_front();
            record.gone_up_to = oldest.entry.id;
        }
        if self.jobs.len() > MAX_JOBS {
            self.jobs.retain(|_, record| !record.numbers.is_empty());
            self.known_since = oldest.entry.id;
        }
    }

    // ---- what it knows

    /// The number that the next entry will have.
    pub fn next_number(&self) -> u64 {
        self.first_number + self.kept.len() as u64
    }

    pub fn life(&self) -> Life {
        self.life
    }

    /// The position after the last entry.
    pub fn end(&self) -> Position {
        self.end.unwrap_or(Position::EMPTY)
    }

    /// Tells if an entry of the job was ever here.
    pub fn holds(&self, job: &JobId) -> bool {
        self.jobs.contains_key(job)
    }

    /// Returns the final status that an entry of the job said.
    pub fn end_of(&self, job: &JobId) -> Option<JobStatus> {
        self.jobs.get(job)?.end
    }

    /// Returns the entry with this number, if it is held.
    pub fn entry(&self, number: u64) -> Option<&Kept> {
        self.kept.get(usize::try_from(number.checked_sub(self.first_number)?).ok()?)
    }

    /// The number of the oldest entry that is held.
    pub fn first_number(&self) -> u64 {
        self.first_number
    }

    /// Returns the entries of a job, in their order.
    pub fn all_of(&self, job: &JobId) -> impl DoubleEndedIterator<Item = &Kept> {
        let numbers = self.jobs.get(job).map(|record| &record.numbers);
        numbers.into_iter().flatten().filter_map(|number| self.entry(*number))
    }

    /// Returns the entries of a job after one of them, in their order.
    pub fn after(&self, job: &JobId, after: EntryId) -> impl Iterator<Item = &Kept> {
        self.all_of(job).skip_while(move |kept| kept.entry.id <= after)
    }

    /// Returns all jobs with entries here, the one with the newest entry first.
    pub fn jobs(&self) -> Vec<JobId> {
        let mut jobs: Vec<(&JobId, Option<&u64>)> =
            self.jobs.iter().map(|(job, record)| (job, record.numbers.back())).collect();
        jobs.sort_by(|(_, a), (_, b)| b.cmp(a));
        jobs.into_iter().map(|(job, _)| job.clone()).collect()
    }

    /// Tells whether the stream has the entry of this position, under this name of the place.
    pub fn has_place(&self, position: &Position) -> bool {
        let at = self.kept.binary_search_by_key(&position.id, |kept| kept.entry.id).ok();
        at.and_then(|at| self.kept.get(at)).is_some_and(|kept| kept.position == *position)
    }

    /// Refuses a position of a reader of this job after which an entry of the job is gone, and one of another stream.
    pub fn judge(&self, job: &JobId, after: &Position) -> Result<(), Reset> {
        let first = self.kept.front().map(|kept| kept.entry.id);
        let is_behind = first.is_none_or(|first| after.id < first);
        if is_behind && after.id > EntryId::ZERO && after.id >= self.known_since && after.id <= self.end().id {
            let gone_up_to = self.jobs.get(job).map_or(EntryId::ZERO, |record| record.gone_up_to);
            return if gone_up_to > after.id { Err(Reset::Trimmed) } else { Ok(()) };
        }
        let at = self.kept.binary_search_by_key(&after.id, |kept| kept.entry.id).ok();
        let info = self.info.clone().map(|info| StreamInfo {
            // The mirror is such a stream itself, trimmed where it begins.
            length: self.kept.len() as u64,
            first_id: first,
            last_entry: None,
            ..info
        });
        let slice = StreamSlice {
            at_position: at.and_then(|at| self.kept.get(at)).map(|kept| kept.entry.fingerprint()),
            entries: Vec::new(),
            is_cut: after.id < self.end().id,
            info,
        };
        after.follow(&slice).map(drop)
    }
}

fn mean_size_of(kept: &VecDeque<Kept>) -> Option<usize> {
    let newest = kept.iter().rev().take(FIRST_REQUEST_ENTRIES);
    let (count, bytes) = newest.fold((0, 0), |(count, bytes), kept| (count + 1, bytes + kept.entry.size()));
    Some(usize::checked_div(bytes, count)?.max(1))
}
