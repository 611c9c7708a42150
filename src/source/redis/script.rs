//! The script that appends: one call decides on repeated ids, and appends what is new.

use super::Store;
use super::entry::{Entry, EntryId, parse_entry};
use super::known_ids::{JobIds, KnownEntry};
use super::position::Position;
use super::reply::{bytes, number, text, unexpected_reply};
use super::topology::NodeError;
use crate::event::{JobId, Rfc3339};
use crate::source::{Appended, NewEvent};
use redis::{Value, cmd};

const APPEND: &str = include_str!("append.lua");

/// Entries that one call reads for their ids. A longer one would make the server's other clients wait.
const MAX_UNREAD: usize = 1024;

/// The reply to one call.
enum ScriptReply {
    /// The stream is shorter than it was: it was deleted, or rolled back.
    Rewound,
    /// There are more entries that others appended than one call reads.
    Unread,
    /// The number of entries ever added before, where the server counts, and one result for each event.
    Appended { added_before: Option<u64>, results: Vec<Value> },
}

impl Store {
    /// Appends events, each id once. Others may append meanwhile: the script itself reads what the caller does not know
    /// yet, so nothing is tried again because they were quicker.
    pub(super) async fn append_once(
        &self,
        job: &JobId,
        ids: &mut JobIds,
        events: &[NewEvent],
    ) -> Result<Vec<Appended>, NodeError> {
        let fields: Vec<Vec<(&str, String)>> = events.iter().map(fields_of).collect();
        let mut max_unread = MAX_UNREAD;
        loop {
            match self.call(job, ids, &fields, max_unread).await? {
                ScriptReply::Rewound => {}
                ScriptReply::Unread => {
                    while let ScriptReply::Unread = self.call(job, ids, &[], MAX_UNREAD).await? {}
                    // It is twice as many each time, so that however much others append the script reaches the end.
                    max_unread *= 2;
                }
                ScriptReply::Appended { added_before, results } if results.len() == events.len() => {
                    return self.take_results(job, ids, events.iter().zip(&fields).zip(results), added_before);
                }
                ScriptReply::Appended { .. } => return Err(self.malformed()),
            }
        }
    }

    fn malformed(&self) -> NodeError {
        self.topology.node_error(unexpected_reply("results of an append"))
    }

    /// Calls the script once, and notes the ids that it read.
    async fn call(
        &self,
        job: &JobId,
        ids: &mut JobIds,
        events: &[Vec<(&str, String)>],
        max_unread: usize,
    ) -> Result<ScriptReply, NodeError> {
        let key = self.events_key.key(job);
        let mut eval = cmd("EVAL");
        eval.arg(APPEND).arg(1).arg(&key).arg(ids.read_up_to.to_string()).arg(max_unread);
        for fields in events {
            let event_id = fields.first().map_or("", |(_, id)| id);
            let known = ids.find(event_id).map(|entry| entry.id.to_string()).unwrap_or_default();
            let mut packed = Vec::new();
            pack(&mut packed, &known);
            for (name, value) in fields {
                pack(&mut packed, name);
                pack(&mut packed, value);
            }
            eval.arg(packed);
        }
        let Value::Array(parts) = self.send_command(&key, eval).await? else { return Err(self.malformed()) };
        let mut parts = parts.into_iter();
        let state = parts.next();
        let state = state.as_ref().and_then(text).unwrap_or_default();
        if state == "rewound" {
            ids.forget();
            return Ok(ScriptReply::Rewound);
        }
        let Some(Value::Array(read)) = parts.next() else { return Err(self.malformed()) };
        let mut read = read.into_iter();
        while let (Some(entry), Some(event_id)) = (read.next(), read.next()) {
            let entry = text(&entry).and_then(|id| id.parse().ok()).ok_or_else(|| self.malformed())?;
            let event_id = bytes(event_id).unwrap_or_default();
            ids.learn(&String::from_utf8_lossy(&event_id), KnownEntry { id: entry, ordinal: None });
        }
        if state == "unread" {
            return Ok(ScriptReply::Unread);
        }
        let added_before = parts.next().as_ref().and_then(number);
        Ok(ScriptReply::Appended { added_before, results: parts.collect() })
    }

    /// Makes the results of the script those of the write, and notes the ids of new events.
    fn take_results<'a>(
        &self,
        job: &JobId,
        ids: &mut JobIds,
        results: impl Iterator<Item = ((&'a NewEvent, &'a Vec<(&'a str, String)>), Value)>,
        added_before: Option<u64>,
    ) -> Result<Vec<Appended>, NodeError> {
        let mut appended: Vec<Appended> = Vec::new();
        let mut new = 0;
        for ((event, fields), result) in results {
            appended.push(match result {
                Value::Int(first) => {
                    let first = usize::try_from(first).ok().and_then(|first| appended.get(first.checked_sub(1)?));
                    Appended { is_new: false, ..first.ok_or_else(|| self.malformed())?.clone() }
                }
                stored @ Value::Array(_) => {
                    let entry = parse_entry(stored).ok_or_else(|| self.malformed())?;
                    let known = ids.find(&event.id).filter(|known| known.id == entry.id);
                    let cursor = Position::after(&entry, known.and_then(|known| known.ordinal)).seal(job);
                    let event = self.mapping.read(&entry, job).event;
                    Appended { event, cursor, is_new: false }
                }
                id => {
                    let id: EntryId = text(&id).and_then(|id| id.parse().ok()).ok_or_else(|| self.malformed())?;
                    new += 1;
                    let ordinal = added_before.map(|before| before + new);
                    ids.learn(&event.id, KnownEntry { id, ordinal });
                    let cursor = Position::after(&Entry::new(id, fields), ordinal).seal(job);
                    Appended { event: event.clone().into_event(job.clone()), cursor, is_new: true }
                }
            });
        }
        Ok(appended)
    }
}

/// Appends a text with its length before it.
fn pack(to: &mut Vec<u8>, text: &str) {
    to.extend(text.len().to_string().bytes());
    to.push(b':');
    to.extend(text.bytes());
}

/// Returns the fields of an event's entry, its id first.
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
