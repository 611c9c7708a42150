//! Ingest: appends events, each id once for a job.
//!
//! Redis has no index from an event's id to its entry. So the ids of jobs that were written to lately are kept in
//! memory, with the entry up to which the stream was read for them. A write first reads on from there, and then runs a
//! script that appends only if no other process has appended meanwhile.

use super::entry::{Entry, EntryId};
use super::error::failed;
use super::position::Position;
use super::reply::{number, text, unexpected_reply};
use super::topology::NodeError;
use super::{MAX_ENTRIES_PER_REQUEST, Store, info_command};
use crate::cursor::Cursor;
use crate::error::{SourceCode, SourceError};
use crate::event::{Event, JobId, JobStatus, Rfc3339};
use crate::source::{Appended, NewEvent};
use redis::{Value, cmd};
use std::collections::{HashMap, hash_map};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};

/// Appends the entries in ARGV[2..] (each: a count, then so many names and values) if ARGV[1] is the last id. Returns
/// the number of entries ever added before (-1 where the server does not count), then the new ids; or nothing.
const APPEND: &str = "
    local last, added = '0-0', 0
    if redis.call('EXISTS', KEYS[1]) == 1 then
        local info = redis.call('XINFO', 'STREAM', KEYS[1])
        added = -1
        for at = 1, #info, 2 do
            if info[at] == 'last-generated-id' then last = info[at + 1] end
            if info[at] == 'entries-added' then added = info[at + 1] end
        end
    end
    if last ~= ARGV[1] then return {} end
    local done, at = {added}, 2
    while at <= #ARGV do
        local count = tonumber(ARGV[at])
        done[#done + 1] = redis.call('XADD', KEYS[1], '*', unpack(ARGV, at + 1, at + count))
        at = at + count + 1
    end
    return done";

/// Attempts at one write, while others append to the same stream.
const MAX_ATTEMPTS: usize = 32;
/// Ids in memory, all jobs together.
const MAX_KNOWN_IDS: usize = 1_000_000;

/// Event ids of the jobs that this process has written to lately.
#[derive(Default)]
pub struct KnownIds {
    jobs: Mutex<HashMap<JobId, JobIds>>,
    hasher: RandomState,
}

/// Event ids of one job, complete up to one entry.
#[derive(Clone, Default)]
struct JobIds {
    read_up_to: EntryId,
    /// The entry of each event, by the hash of the event's id.
    entries: HashMap<u64, EntryId>,
}

impl KnownIds {
    fn hash(&self, id: &str) -> u64 {
        self.hasher.hash_one(id)
    }

    fn take(&self, job: &JobId) -> JobIds {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).remove(job).unwrap_or_default()
    }

    /// Puts the ids of a job back. Where another write did so meanwhile, those that reach further stay.
    fn put_back(&self, job: &JobId, ids: JobIds) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if jobs.values().map(|ids| ids.entries.len()).sum::<usize>() + ids.entries.len() > MAX_KNOWN_IDS {
            // the next write to each of them reads its stream once
            jobs.clear();
        }
        match jobs.entry(job.clone()) {
            hash_map::Entry::Occupied(mut other) => {
                if other.get().read_up_to < ids.read_up_to {
                    other.insert(ids);
                }
            }
            hash_map::Entry::Vacant(place) => {
                place.insert(ids);
            }
        }
    }
}

/// The events of a write, by their ids.
#[derive(Default)]
struct Sorted<'a> {
    /// Events that the job has already, as they are stored.
    stored: HashMap<&'a str, Appended>,
    /// Events to append, each id once.
    new: Vec<&'a NewEvent>,
    /// The place of each id in `new`.
    places: HashMap<&'a str, usize>,
}

/// The result of the script: the number of entries ever added before, and the ids of the new ones.
struct ScriptResult {
    added_before: Option<u64>,
    ids: Vec<EntryId>,
}

impl Store {
    pub(super) async fn append(&self, job: &JobId, events: Vec<NewEvent>) -> Result<Vec<Appended>, SourceError> {
        match self.try_append(job, &events).await {
            Ok(Some(appended)) => Ok(appended),
            Ok(None) => {
                let operation = format!("writing events ({})", self.topology.deployment());
                let cause = format!("other writers came first {MAX_ATTEMPTS} times");
                let help = "others write to the same job without pause";
                Err(SourceError::new(SourceCode::Conflict, operation, cause, help))
            }
            Err(error) => Err(failed("writing events", error)),
        }
    }

    /// Returns `None` where others appended before each attempt.
    async fn try_append(&self, job: &JobId, events: &[NewEvent]) -> Result<Option<Vec<Appended>>, NodeError> {
        let mut ids = self.known_ids.take(job);
        for _ in 0..MAX_ATTEMPTS {
            self.read_new_ids(job, &mut ids).await?;
            let sorted = self.sort(job, &ids, events).await?;
            let Some(appended) = self.append_new(job, &mut ids, &sorted.new).await? else { continue };
            self.known_ids.put_back(job, ids);
            self.set_running(job).await?;
            return Ok(Some(in_order(events, sorted, appended)));
        }
        Ok(None)
    }

    /// Reads the ids of events that others have appended since the last time.
    async fn read_new_ids(&self, job: &JobId, ids: &mut JobIds) -> Result<(), NodeError> {
        loop {
            let after = ids.read_up_to;
            let request = self.events_request(job, |key| {
                let mut range = cmd("XRANGE");
                range.arg(key).arg(after.to_string()).arg("+").arg("COUNT").arg(MAX_ENTRIES_PER_REQUEST + 1);
                vec![info_command(key), range]
            });
            let mut replies = self.send(request).await?;
            let found = self.parse_range(replies.pop())?;
            let last_id = self.parse_info(replies.pop())?.map_or(EntryId::ZERO, |info| info.last_id);
            if last_id < after {
                // the stream was deleted or rolled back
                *ids = JobIds::default();
                continue;
            }
            let is_cut = found.len() > MAX_ENTRIES_PER_REQUEST;
            for entry in found {
                ids.read_up_to = ids.read_up_to.max(entry.id);
                ids.entries.insert(self.known_ids.hash(&entry.event_id()), entry.id);
            }
            if !is_cut {
                // the entry with the last id may have been deleted
                ids.read_up_to = ids.read_up_to.max(last_id);
                return Ok(());
            }
        }
    }

    /// Sorts events into those that the job has already and those that are new.
    async fn sort<'a>(&self, job: &JobId, ids: &JobIds, events: &'a [NewEvent]) -> Result<Sorted<'a>, NodeError> {
        let mut sorted = Sorted::default();
        for event in events {
            let id = event.id.as_str();
            if sorted.stored.contains_key(id) || sorted.places.contains_key(id) {
                continue;
            }
            let stored = match ids.entries.get(&self.known_ids.hash(id)) {
                Some(entry) => self.read_stored(job, *entry, id).await?,
                None => None,
            };
            if let Some(stored) = stored {
                sorted.stored.insert(id, stored);
            } else {
                sorted.places.insert(id, sorted.new.len());
                sorted.new.push(event);
            }
        }
        Ok(sorted)
    }

    /// Appends new events, and notes their ids. `None`: somebody else has appended meanwhile.
    async fn append_new(
        &self,
        job: &JobId,
        ids: &mut JobIds,
        new: &[&NewEvent],
    ) -> Result<Option<Vec<(Event, Cursor)>>, NodeError> {
        if new.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let fields: Vec<Vec<(&str, String)>> = new.iter().map(|event| fields_of(event)).collect();
        let Some(result) = self.run_script(job, ids.read_up_to, &fields).await? else { return Ok(None) };
        let mut appended = Vec::with_capacity(new.len());
        for (number, ((event, fields), id)) in (1..).zip(new.iter().zip(&fields).zip(result.ids)) {
            ids.read_up_to = id;
            ids.entries.insert(self.known_ids.hash(&event.id), id);
            let ordinal = result.added_before.map(|before| before + number);
            let position = Position::after(&Entry::new(id, fields), ordinal);
            appended.push(((*event).clone().into_event(job.clone()), position.seal(job)));
        }
        Ok(Some(appended))
    }

    /// Runs [`APPEND`]. `None`: `after` is not the last id any more.
    async fn run_script(
        &self,
        job: &JobId,
        after: EntryId,
        entries: &[Vec<(&str, String)>],
    ) -> Result<Option<ScriptResult>, NodeError> {
        let key = self.events_key.key(job);
        let mut eval = cmd("EVAL");
        eval.arg(APPEND).arg(1).arg(&key).arg(after.to_string());
        for fields in entries {
            eval.arg(fields.len() * 2);
            for (name, value) in fields {
                eval.arg(name).arg(value);
            }
        }
        let malformed = || self.topology.node_error(unexpected_reply("new ids"));
        let Value::Array(parts) = self.send_command(&key, eval).await? else { return Err(malformed()) };
        let Some((added_before, ids)) = parts.split_first() else { return Ok(None) };
        let ids: Vec<EntryId> = ids.iter().filter_map(|id| text(id)?.parse().ok()).collect();
        if ids.len() != entries.len() {
            return Err(malformed());
        }
        Ok(Some(ScriptResult { added_before: number(added_before), ids }))
    }

    /// Returns the event at an entry, if it has this id: two ids may have one hash.
    async fn read_stored(&self, job: &JobId, at: EntryId, id: &str) -> Result<Option<Appended>, NodeError> {
        let request = self.events_request(job, |key| {
            let mut range = cmd("XRANGE");
            range.arg(key).arg(at.to_string()).arg(at.to_string());
            vec![range]
        });
        let found = self.parse_range(self.send(request).await?.pop())?.pop();
        let Some(entry) = found.filter(|entry| entry.event_id() == id) else { return Ok(None) };
        let Some(event) = entry.event(job) else { return Ok(None) };
        // the cursor that a reader gets who resumes by this event id
        let cursor = self.find(job, id).await?.unwrap_or_else(|| Position::after(&entry, None).seal(job));
        Ok(Some(Appended { event, cursor, is_new: false }))
    }

    /// Sets the status of a job that has none: it has events, so it is running.
    async fn set_running(&self, job: &JobId) -> Result<(), NodeError> {
        let Some(job_key) = &self.job_key else { return Ok(()) };
        let key = job_key.key(job);
        let mut set = cmd("HSETNX");
        set.arg(&key).arg("status").arg(JobStatus::Running.as_str());
        self.send_command(&key, set).await.map(drop)
    }

    pub(super) async fn set_status(&self, job: &JobId, status: JobStatus) -> Result<(), SourceError> {
        const OPERATION: &str = "writing a status";
        let Some(job_key) = &self.job_key else {
            let help = "name the key of the job's hash, or end jobs by an event of source.redis.final_types";
            return Err(SourceError::new(SourceCode::Schema, OPERATION, "source.redis.job_key is empty", help));
        };
        let key = job_key.key(job);
        let mut set = cmd("HSET");
        set.arg(&key).arg("status").arg(self.settings.statuses.spelling(status));
        self.send_command(&key, set).await.map(drop).map_err(|error| failed(OPERATION, error))
    }
}

/// Returns one result for each event of a write, in their order. Of several with one new id, the first was appended.
fn in_order(events: &[NewEvent], sorted: Sorted<'_>, appended: Vec<(Event, Cursor)>) -> Vec<Appended> {
    let mut is_first = vec![true; appended.len()];
    let results = events.iter().filter_map(|event| {
        let Some(place) = sorted.places.get(event.id.as_str()) else {
            return sorted.stored.get(event.id.as_str()).cloned();
        };
        let (event, cursor) = appended.get(*place)?.clone();
        let is_new = std::mem::take(is_first.get_mut(*place)?);
        Some(Appended { event, cursor, is_new })
    });
    results.collect()
}

fn fields_of(event: &NewEvent) -> Vec<(&'static str, String)> {
    let mut fields = vec![
        ("id", event.id.clone()),
        ("type", event.kind.clone()),
        ("timestamp", Rfc3339(event.timestamp).to_string()),
    ];
    fields.extend(event.actor.clone().map(|actor| ("actor", actor)));
    fields.extend(event.step_id.clone().map(|step| ("stepId", step)));
    fields.push(("payload", event.payload.as_json().to_string()));
    fields
}
