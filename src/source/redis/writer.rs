//! Ingest. An id that the job has already is not appended again, and no index leads from an event's id to its entry: so
//! the ids of jobs that were written to lately are remembered, read on from where that ended, and a script appends only if
//! nobody else has appended meanwhile.

use super::entry::{self, Entry, EntryId, number, odd, text};
use super::error::failed;
use super::nodes::{Fault, Request, said};
use super::position::Position;
use super::{CHUNK, Store, info_of};
use crate::error::{SourceCode, SourceError};
use crate::event::{JobId, JobStatus, Rfc3339};
use crate::source::{Appended, NewEvent};
use redis::{RedisError, Value, cmd};
use std::collections::{HashMap, hash_map};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};

/// Appends all of ARGV[2..] (each: how many, then names and values), if ARGV[1] is the last id. Returns how many entries
/// were ever added before (-1: unknown) and the new ids; or nothing.
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

/// How often others may get in between.
const ATTEMPTS: usize = 32;
/// Ids remembered for all jobs together.
const MOST_IDS: usize = 1_000_000;

/// The ids of jobs that this process has written to lately.
#[derive(Default)]
pub struct Known {
    jobs: Mutex<HashMap<JobId, Ids>>,
    hasher: RandomState,
}

/// A job's ids, hashed, each with its entry, up to an entry.
#[derive(Clone, Default)]
struct Ids {
    upto: EntryId,
    entries: HashMap<u64, EntryId>,
}

impl Known {
    fn hash(&self, id: &str) -> u64 {
        self.hasher.hash_one(id)
    }

    fn take(&self, job: &JobId) -> Ids {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).remove(job).unwrap_or_default()
    }

    fn keep(&self, job: &JobId, ids: Ids) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if jobs.values().map(|ids| ids.entries.len()).sum::<usize>() + ids.entries.len() > MOST_IDS {
            // it costs those jobs a reading of their streams, once
            jobs.clear();
        }
        match jobs.entry(job.clone()) {
            hash_map::Entry::Occupied(mut other) if other.get().upto < ids.upto => drop(other.insert(ids)),
            hash_map::Entry::Occupied(_) => {}
            hash_map::Entry::Vacant(place) => drop(place.insert(ids)),
        }
    }
}

impl Store {
    pub async fn append(&self, job: &JobId, events: Vec<NewEvent>) -> Result<Vec<Appended>, Fault> {
        let mut ids = self.known.take(job);
        for _ in 0..ATTEMPTS {
            self.read_on(job, &mut ids).await?;
            if let Some(stored) = self.append_after(job, &mut ids, &events).await? {
                self.known.keep(job, ids);
                self.begin_job(job).await?;
                return Ok(stored);
            }
        }
        let busy = std::io::Error::new(std::io::ErrorKind::TimedOut, "others append to the same stream without pause");
        Err(self.topology.fault(RedisError::from(busy)))
    }

    /// What others have appended since.
    async fn read_on(&self, job: &JobId, ids: &mut Ids) -> Result<(), Fault> {
        loop {
            let after = ids.upto;
            let request = self.on_stream(job, |key| {
                let mut range = cmd("XRANGE");
                range.arg(key).arg(after.to_string()).arg("+").arg("COUNT").arg(CHUNK + 1);
                vec![info_of(key), range]
            });
            let mut answers = self.ask(request).await?;
            let range = answers.pop().unwrap_or(Value::Nil);
            let last = self.info(answers.pop())?.map_or(EntryId::ZERO, |info| info.last);
            let fault = |error| self.topology.fault(error);
            let found = entry::entries(said(range).map_err(fault)?).map_err(fault)?;
            if last < after {
                // another life of the stream
                *ids = Ids::default();
                continue;
            }
            let is_cut = found.len() > CHUNK;
            for entry in found {
                ids.upto = ids.upto.max(entry.id);
                ids.entries.insert(self.known.hash(&entry.event_id()), entry.id);
            }
            if !is_cut {
                // the last may have been deleted
                ids.upto = ids.upto.max(last);
                return Ok(());
            }
        }
    }

    /// `None`: somebody else has appended meanwhile.
    async fn append_after(
        &self,
        job: &JobId,
        ids: &mut Ids,
        events: &[NewEvent],
    ) -> Result<Option<Vec<Appended>>, Fault> {
        // the stored event of an id that was there before; the place, among the new ones, of one that was not
        let mut stored: HashMap<&str, Appended> = HashMap::new();
        let mut places: HashMap<&str, usize> = HashMap::new();
        let mut new: Vec<(&NewEvent, Vec<(&str, String)>)> = Vec::new();
        for event in events {
            if stored.contains_key(&*event.id) || places.contains_key(&*event.id) {
                continue;
            }
            let known = ids.entries.get(&self.known.hash(&event.id)).copied();
            let found = match known {
                Some(at) => self.stored(job, at, &event.id).await?,
                None => None,
            };
            match found {
                Some(found) => drop(stored.insert(&event.id, found)),
                None => {
                    places.insert(&event.id, new.len());
                    new.push((event, fields_of(event)));
                }
            }
        }
        let mut appended = Vec::with_capacity(new.len());
        if !new.is_empty() {
            let Some((before, entry_ids)) = self.run_append(job, ids.upto, &new).await? else { return Ok(None) };
            for (ordinal, ((event, fields), id)) in (1..).zip(new.iter().zip(entry_ids)) {
                ids.upto = id;
                ids.entries.insert(self.known.hash(&event.id), id);
                let position = Position::at(&Entry::new(id, fields), before.map(|before| before + ordinal));
                appended.push(((*event).clone().into_event(job.clone()), position.seal(job)));
            }
        }
        let mut is_told = vec![false; appended.len()];
        let answer = events.iter().filter_map(|event| match places.get(&*event.id) {
            Some(place) => {
                let (event, cursor) = appended.get(*place)?.clone();
                // the same id once more in this batch is a repeat
                Some(Appended { event, cursor, is_new: !std::mem::replace(is_told.get_mut(*place)?, true) })
            }
            None => stored.get(&*event.id).cloned(),
        });
        Ok(Some(answer.collect()))
    }

    async fn run_append(
        &self,
        job: &JobId,
        after: EntryId,
        new: &[(&NewEvent, Vec<(&str, String)>)],
    ) -> Result<Option<(Option<u64>, Vec<EntryId>)>, Fault> {
        let request = self.on_stream(job, |key| {
            let mut eval = cmd("EVAL");
            eval.arg(APPEND).arg(1).arg(key).arg(after.to_string());
            for (_, fields) in new {
                eval.arg(fields.len() * 2);
                for (name, value) in fields {
                    eval.arg(name).arg(value);
                }
            }
            vec![eval]
        });
        let fault = |error| self.topology.fault(error);
        let answer = self.ask(request).await?.pop().unwrap_or(Value::Nil);
        let Value::Array(done) = said(answer).map_err(fault)? else { return Err(fault(odd("new ids"))) };
        let Some((before, done)) = done.split_first() else { return Ok(None) };
        let done: Vec<EntryId> = done.iter().filter_map(|id| text(id)?.parse().ok()).collect();
        if done.len() != new.len() {
            return Err(fault(odd("new ids")));
        }
        Ok(Some((number(before), done)))
    }

    /// What stands at an entry, if it is the event with this id.
    async fn stored(&self, job: &JobId, at: EntryId, id: &str) -> Result<Option<Appended>, Fault> {
        let request = self.on_stream(job, |key| {
            let mut range = cmd("XRANGE");
            range.arg(key).arg(at.to_string()).arg(at.to_string());
            vec![range]
        });
        let fault = |error| self.topology.fault(error);
        let answer = self.ask(request).await?.pop().unwrap_or(Value::Nil);
        let found = entry::entries(said(answer).map_err(fault)?).map_err(fault)?.pop();
        let Some(entry) = found.filter(|entry| entry.event_id() == id) else { return Ok(None) };
        let Some(event) = entry.event(job) else { return Ok(None) };
        // as one who shows events by their ids would mean it
        let cursor = self.find(job, id).await?.unwrap_or_else(|| Position::at(&entry, None).seal(job));
        Ok(Some(Appended { event, cursor, is_new: false }))
    }

    /// A job that was sent events is running, unless something else is said of it.
    async fn begin_job(&self, job: &JobId) -> Result<(), Fault> {
        let Some(template) = &self.job else { return Ok(()) };
        let key = template.key(job);
        let mut set = cmd("HSETNX");
        set.arg(&key).arg("status").arg(JobStatus::Running.as_str());
        let answer = self.ask(Request::of(&key, vec![set])).await?.pop().unwrap_or(Value::Nil);
        said(answer).map(drop).map_err(|error| self.topology.fault(error))
    }

    pub async fn set_status(&self, job: &JobId, status: JobStatus) -> Result<(), SourceError> {
        let Some(template) = &self.job else {
            let help = "name the key of the job's hash, or end jobs by an event of source.redis.final_types";
            return Err(SourceError::new(
                SourceCode::Schema,
                "writing a status",
                "source.redis.job_key is empty",
                help,
            ));
        };
        let key = template.key(job);
        let mut set = cmd("HSET");
        set.arg(&key).arg("status").arg(self.settings.statuses.spelling(status));
        let written = async {
            let answer = self.ask(Request::of(&key, vec![set])).await?.pop().unwrap_or(Value::Nil);
            said(answer).map(drop).map_err(|error| self.topology.fault(error))
        };
        written.await.map_err(|fault| failed("writing a status", fault))
    }
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
