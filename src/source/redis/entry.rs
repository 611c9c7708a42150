//! Entries of a stream, the events that most of them are, and the state of the stream as the server knows it.

use super::reply::{bytes, check_reply, is_no_such_key, number, text, unexpected_reply};
use crate::cursor::{CHECK_BYTES, fingerprint};
use crate::event::{Event, JobId, Part, Payload, text_of};
use jiff::Timestamp;
use redis::{RedisError, Value};
use std::fmt;
use std::str::FromStr;

/// The id of an entry: milliseconds, and a number within the millisecond. Ids of a stream only grow.
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

/// The error for a text that does not have the form `milliseconds-number`.
#[derive(Debug, thiserror::Error)]
#[error("an entry id has the form milliseconds-number")]
pub struct InvalidEntryId;

impl FromStr for EntryId {
    type Err = InvalidEntryId;

    fn from_str(text: &str) -> Result<Self, InvalidEntryId> {
        let (ms, seq) = text.split_once('-').ok_or(InvalidEntryId)?;
        let number = |text: &str| text.parse().map_err(|_| InvalidEntryId);
        Ok(Self { ms: number(ms)?, seq: number(seq)? })
    }
}

/// A hash of an entry's fields. A stream that was deleted and written anew may have another entry under the same id.
pub type Fingerprint = [u8; CHECK_BYTES];

/// An entry of a stream; an event where it has a field `type`.
#[derive(Clone, Debug)]
pub struct Entry {
    pub id: EntryId,
    /// Names and values, in the order of writing.
    fields: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    pub fn new(id: EntryId, fields: &[(&str, String)]) -> Self {
        let bytes = |(name, value): &(&str, String)| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        Self { id, fields: fields.iter().map(bytes).collect() }
    }

    pub fn fingerprint(&self) -> Fingerprint {
        let parts = self.fields.iter().flat_map(|(name, value)| [&name[..], &[0], value, &[0]]);
        fingerprint(&parts.collect::<Vec<_>>().concat())
    }

    /// Returns the bytes of a field; `None` where it is missing or empty.
    fn field(&self, name: &str) -> Option<&[u8]> {
        let (_, value) = self.fields.iter().find(|(field, _)| field == name.as_bytes())?;
        (!value.is_empty()).then_some(value)
    }

    /// Returns the text of a field, lossy where it is no UTF-8.
    fn text(&self, name: &str) -> Option<String> {
        Some(String::from_utf8_lossy(self.field(name)?).into_owned())
    }

    /// Returns the event's id: the field `id`, else the id of the entry.
    pub fn event_id(&self) -> String {
        self.text("id").unwrap_or_else(|| self.id.to_string())
    }

    /// Returns the event that the entry is; `None` where it has no type. A part that cannot be read hurts no other.
    pub fn event(&self, job: &JobId) -> Option<Event> {
        let mut unreadable = Vec::new();
        let mut text = |part, name| Some(text_of(part, self.field(name)?.to_vec(), &mut unreadable));
        let id = text(Part::Id, "id").unwrap_or_else(|| self.id.to_string());
        let step_id = text(Part::StepId, "stepId");
        let kind = text(Part::Type, "type")?;
        let actor = text(Part::Actor, "actor");
        let payload = Payload::from_text(text(Part::Payload, "payload").unwrap_or_else(|| "{}".into()));
        let timestamp = self.timestamp();
        if timestamp.is_none() {
            unreadable.push(Part::Timestamp);
        }
        Some(Event { id, job_id: job.clone(), step_id, kind, timestamp, actor, payload, unreadable })
    }

    /// Returns the event's time: that of its field, else that of the entry. `None` where it is no time, or beyond the
    /// calendar.
    fn timestamp(&self) -> Option<Timestamp> {
        match self.field("timestamp") {
            Some(bytes) => parse_timestamp(std::str::from_utf8(bytes).ok()?),
            None => Timestamp::from_millisecond(i64::try_from(self.id.ms).ok()?).ok(),
        }
    }

    /// Returns the event's type.
    pub fn kind(&self) -> Option<String> {
        self.text("type")
    }

    /// Returns the bytes of all names and values.
    pub fn size(&self) -> usize {
        self.fields.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

/// Returns the mean bytes of an entry, at least 1; `None` where there are no entries.
pub fn mean_size(entries: &[Entry]) -> Option<usize> {
    let all: usize = entries.iter().map(Entry::size).sum();
    Some(all.checked_div(entries.len())?.max(1))
}

/// Parses RFC 3339, or milliseconds since 1970.
fn parse_timestamp(text: &str) -> Option<Timestamp> {
    let ms = || text.parse().ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    text.parse().ok().or_else(ms)
}

/// The state of a stream, as XINFO STREAM reports it.
#[derive(Clone, Debug, Default)]
pub struct StreamInfo {
    pub length: u64,
    /// The highest id that any entry ever had.
    pub last_id: EntryId,
    /// The number of entries ever added. `None`: the server is older than 7.0.
    pub entries_added: Option<u64>,
    /// The highest id that was deleted by XDEL; trimming does not change it. `None`: the server is older than 7.0.
    pub max_deleted_id: Option<EntryId>,
    pub first_id: Option<EntryId>,
    pub last_entry: Option<Entry>,
}

/// Parses the reply to XRANGE or XREVRANGE.
pub fn parse_entries(reply: Value) -> Result<Vec<Entry>, RedisError> {
    let Value::Array(items) = check_reply(reply)? else { return Err(unexpected_reply("a list of entries")) };
    items.into_iter().map(|item| parse_entry(item).ok_or_else(|| unexpected_reply("an entry"))).collect()
}

/// Parses one entry. `None`: it is none.
pub fn parse_entry(item: Value) -> Option<Entry> {
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

/// Parses the reply to XINFO STREAM. `None`: there is no such stream.
pub fn parse_info(reply: Value) -> Result<Option<StreamInfo>, RedisError> {
    let pairs = match check_reply(reply) {
        Ok(Value::Map(pairs)) => pairs,
        Ok(_) => return Err(unexpected_reply("what a stream is like")),
        Err(error) if is_no_such_key(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut info = StreamInfo::default();
    for (name, value) in pairs {
        let id = || text(&value).and_then(|id| id.parse().ok());
        match text(&name).unwrap_or_default() {
            "length" => info.length = number(&value).ok_or_else(|| unexpected_reply("length"))?,
            "last-generated-id" => info.last_id = id().ok_or_else(|| unexpected_reply("last-generated-id"))?,
            "entries-added" => info.entries_added = number(&value),
            "max-deleted-entry-id" => info.max_deleted_id = id(),
            "first-entry" => info.first_id = parse_entry(value).map(|entry| entry.id),
            "last-entry" => info.last_entry = parse_entry(value),
            _ => {}
        }
    }
    Ok(Some(info))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn an_entry_is_read_from_a_list_and_from_a_map_and_is_an_event_where_it_has_a_type() {
        let flat = Value::Array(vec![text("type"), text("x"), text("payload"), text("{\"n\":1}")]);
        let map = Value::Map(vec![(text("note"), Value::Int(1))]);
        let entry = |id, fields| Value::Array(vec![text(id), fields]);
        let reply = Value::Array(vec![entry("1500-2", flat), entry("1500-3", map)]);
        let entries = parse_entries(reply).expect("two entries");
        let job: JobId = "job".parse().expect("an id");
        let event = entries[0].event(&job).expect("an event");
        assert_eq!((event.id.as_str(), event.kind.as_str()), ("1500-2", "x"));
        assert_eq!(
            event.timestamp.map(Timestamp::as_millisecond),
            Some(1500),
            "without a field, its time is that of the entry"
        );
        assert_eq!(event.payload.as_json(), "{\"n\":1}");
        assert!(entries[1].event(&job).is_none());
        for malformed in [Value::Nil, Value::Array(vec![text("1-0")]), Value::Array(vec![entry("1", Value::Nil)])] {
            assert!(parse_entries(malformed).is_err());
        }
    }

    #[test]
    fn a_part_that_cannot_be_read_is_named_and_hurts_no_other() {
        let job: JobId = "job".parse().expect("an id");
        let event = |id, fields: &[(&str, &[u8])]| {
            let field = |(name, value): &(&str, &[u8])| (name.as_bytes().to_vec(), value.to_vec());
            Entry { id, fields: fields.iter().map(field).collect() }.event(&job).expect("an event")
        };
        let at = EntryId { ms: 1500, seq: 0 };
        for (field, part) in [
            ("id", Part::Id),
            ("stepId", Part::StepId),
            ("actor", Part::Actor),
            ("payload", Part::Payload),
            ("timestamp", Part::Timestamp),
        ] {
            assert_eq!(event(at, &[("type", b"x"), (field, b"\xff7")]).unreadable, [part], "{field}");
        }
        let odd = event(at, &[("type", b"\xffx"), ("payload", b"{\"n\":\"\xe9\"}"), ("actor", "é".as_bytes())]);
        assert_eq!((&*odd.kind, &odd.unreadable[..]), ("\u{fffd}x", &[Part::Type, Part::Payload][..]));
        assert_eq!((odd.payload.as_json(), odd.actor.as_deref()), ("{\"n\":\"\u{fffd}\"}", Some("é")));
        assert!(event(at, &[("type", b"x"), ("timestamp", b"2026-11-26T14:00:00Z")]).unreadable.is_empty());
        for time in ["soon", "999999999999999999", "-999999999999999999", "12026-11-26T14:00:00Z"] {
            let event = event(at, &[("type", b"x"), ("timestamp", time.as_bytes())]);
            assert_eq!((event.timestamp, &event.unreadable[..]), (None, &[Part::Timestamp][..]), "{time}");
        }
        let beyond = event(EntryId { ms: u64::MAX, seq: 7 }, &[("type", b"x")]);
        assert_eq!((beyond.timestamp, &beyond.unreadable[..]), (None, &[Part::Timestamp][..]));
    }
}
