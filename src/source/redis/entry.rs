//! Entries of a stream, and the state of the stream as the server knows it.

use super::reply::{bytes, check_reply, is_no_such_key, number, text, unexpected_reply};
use crate::cursor::{CHECK_BYTES, fingerprint_of};
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

/// An entry of a stream.
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

    #[cfg(test)]
    pub fn of(id: EntryId, fields: Vec<(Vec<u8>, Vec<u8>)>) -> Self {
        Self { id, fields }
    }

    pub fn fingerprint(&self) -> Fingerprint {
        fingerprint_of(self.fields.iter().flat_map(|(name, value)| [&name[..], &[0], value, &[0]]))
    }

    /// Returns the bytes of a field, the first of this name.
    pub fn field(&self, name: &str) -> Option<&[u8]> {
        self.fields().find(|(field, _)| *field == name.as_bytes()).map(|(_, value)| value)
    }

    /// Returns names and values, in the order of writing.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter().map(|(name, value)| (&name[..], &value[..]))
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
    fn an_entry_is_read_from_a_list_and_from_a_map() {
        let flat = Value::Array(vec![text("type"), text("x"), text("payload"), text("{}")]);
        let map = Value::Map(vec![(text("note"), Value::Int(1))]);
        let entry = |id, fields| Value::Array(vec![text(id), fields]);
        let reply = Value::Array(vec![entry("1500-2", flat), entry("1500-3", map)]);
        let entries = parse_entries(reply).expect("two entries");
        assert_eq!((entries[0].id, entries[0].field("payload")), (EntryId { ms: 1500, seq: 2 }, Some(&b"{}"[..])));
        assert_eq!((entries[1].field("note"), entries[1].field("type")), (Some(&b"1"[..]), None));
        for malformed in [Value::Nil, Value::Array(vec![text("1-0")]), Value::Array(vec![entry("1", Value::Nil)])] {
            assert!(parse_entries(malformed).is_err());
        }
    }
}
