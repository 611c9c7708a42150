//! What a stream is made of: entries, of which most are events, and what the server knows of the whole.
//!
//! Fields that a server does not have yet (`entries-added` and `max-deleted-entry-id` came with 7.0) stay `None`.

use crate::cursor::{CHECK_BYTES, fingerprint};
use crate::event::{Event, JobId, Payload};
use jiff::Timestamp;
use redis::{ErrorKind, RedisError, Value};
use std::fmt;
use std::str::FromStr;

/// An entry's id: milliseconds and a number. Within a stream they only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    pub ms: u64,
    pub seq: u64,
}

impl EntryId {
    pub const ZERO: Self = Self { ms: 0, seq: 0 };
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

impl FromStr for EntryId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (ms, seq) = text.split_once('-').ok_or(())?;
        Ok(Self { ms: ms.parse().map_err(drop)?, seq: seq.parse().map_err(drop)? })
    }
}

/// Tells apart what was written under one id in two lives of a stream.
pub type Print = [u8; CHECK_BYTES];

#[derive(Clone, Debug)]
pub struct Entry {
    pub id: EntryId,
    fields: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    pub fn new(id: EntryId, fields: &[(&str, String)]) -> Self {
        let bytes = |(name, value): &(&str, String)| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        Self { id, fields: fields.iter().map(bytes).collect() }
    }

    pub fn print(&self) -> Print {
        let parts = self.fields.iter().flat_map(|(name, value)| [&name[..], &[0], value, &[0]]);
        fingerprint(&parts.collect::<Vec<_>>().concat())
    }

    fn field(&self, name: &str) -> Option<String> {
        let (_, value) = self.fields.iter().find(|(field, _)| field == name.as_bytes())?;
        (!value.is_empty()).then(|| String::from_utf8_lossy(value).into_owned())
    }

    /// The event's id: its own field, else the entry's.
    pub fn event_id(&self) -> String {
        self.field("id").unwrap_or_else(|| self.id.to_string())
    }

    /// `None` where it has no type: then it is no event.
    pub fn event(&self, job: &JobId) -> Option<Event> {
        let at = i64::try_from(self.id.ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
        Some(Event {
            id: self.event_id(),
            job_id: job.clone(),
            step_id: self.field("stepId"),
            kind: self.field("type")?,
            timestamp: self
                .field("timestamp")
                .and_then(|text| read_timestamp(&text))
                .or(at)
                .unwrap_or(Timestamp::UNIX_EPOCH),
            actor: self.field("actor"),
            payload: Payload::from_text(self.field("payload").unwrap_or_else(|| "{}".into())),
        })
    }

    pub fn kind(&self) -> Option<String> {
        self.field("type")
    }

    /// Bytes of its fields.
    fn size(&self) -> usize {
        self.fields.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

/// Bytes of one of them, on average; at least 1. `None`: there are none.
pub fn mean_size(entries: &[Entry]) -> Option<usize> {
    let all: usize = entries.iter().map(Entry::size).sum();
    Some(all.checked_div(entries.len())?.max(1))
}

/// RFC 3339, or milliseconds since 1970.
fn read_timestamp(text: &str) -> Option<Timestamp> {
    let ms = || text.parse().ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    text.parse().ok().or_else(ms)
}

/// What XINFO STREAM says.
#[derive(Clone, Debug, Default)]
pub struct Info {
    pub length: u64,
    /// The highest id that any entry ever had.
    pub last: EntryId,
    /// How many entries were ever added.
    pub added: Option<u64>,
    /// The highest id of an entry that was deleted one by one; trimming leaves it as it is.
    pub deleted: Option<EntryId>,
    pub first_entry: Option<EntryId>,
    pub last_entry: Option<Entry>,
}

/// The answer to XRANGE or XREVRANGE.
pub fn entries(answer: Value) -> Result<Vec<Entry>, RedisError> {
    let Value::Array(items) = answer else { return Err(odd("a list of entries")) };
    items.into_iter().map(|item| entry(item).ok_or_else(|| odd("an entry"))).collect()
}

fn entry(item: Value) -> Option<Entry> {
    let Value::Array(parts) = item else { return None };
    let [id, fields] = <[Value; 2]>::try_from(parts).ok()?;
    let pairs = match fields {
        Value::Map(pairs) => pairs,
        Value::Array(flat) => {
            let mut flat = flat.into_iter();
            std::iter::from_fn(|| Some((flat.next()?, flat.next()?))).collect()
        }
        _ => return None,
    };
    let pair = |(name, value)| Some((bytes(name)?, bytes(value)?));
    Some(Entry { id: text(&id)?.parse().ok()?, fields: pairs.into_iter().map(pair).collect::<Option<_>>()? })
}

/// The answer to XINFO STREAM. `None`: there is no such stream.
pub fn info(answer: Value) -> Result<Option<Info>, RedisError> {
    let pairs = match answer {
        Value::ServerError(error) if error.details().is_some_and(|why| why.contains("no such key")) => return Ok(None),
        Value::ServerError(error) => return Err(error.into()),
        Value::Map(pairs) => pairs,
        _ => return Err(odd("what a stream is like")),
    };
    let mut info = Info::default();
    for (name, value) in pairs {
        let id = || text(&value).and_then(|id| id.parse().ok());
        match text(&name).unwrap_or_default() {
            "length" => info.length = number(&value).ok_or_else(|| odd("length"))?,
            "last-generated-id" => info.last = id().ok_or_else(|| odd("last-generated-id"))?,
            "entries-added" => info.added = number(&value),
            "max-deleted-entry-id" => info.deleted = id(),
            "first-entry" => info.first_entry = entry(value).map(|entry| entry.id),
            "last-entry" => info.last_entry = entry(value),
            _ => {}
        }
    }
    Ok(Some(info))
}

fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        Value::Int(number) => Some(number.to_string().into_bytes()),
        Value::Okay => Some(b"OK".to_vec()),
        _ => None,
    }
}

pub fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

pub fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        other => text(other)?.parse().ok(),
    }
}

/// The server said something that is not of this command.
pub fn odd(wanted: &'static str) -> RedisError {
    (ErrorKind::UnexpectedReturnType, "an answer that cannot be read", wanted.to_string()).into()
}
