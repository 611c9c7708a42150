//! The values in an entry: its fields, and what is inside of those that hold JSON.

use super::entry::Entry;
use crate::event::{Part, Payload, text_of};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// The place of a value, as a setting names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A field of the entry, or a member of its envelope.
    Name(String),
    /// The steps of a JSON pointer (RFC 6901), at least one. The first is such a name.
    Pointer(Vec<String>),
}

impl Place {
    /// Returns `None` for an empty text: no place is meant.
    pub fn new(text: &str) -> Option<Self> {
        if text.is_empty() {
            return None;
        }
        Some(match text.strip_prefix('/') {
            Some(steps) => Self::Pointer(steps.split('/').map(unescape).collect()),
            None => Self::Name(text.into()),
        })
    }

    /// The name of the value in an object of several.
    pub fn label(&self) -> &str {
        match self {
            Self::Name(name) => name,
            Self::Pointer(steps) => steps.last().map_or("", String::as_str),
        }
    }

    /// The field or member that is this value as a whole.
    pub fn whole(&self) -> Option<&str> {
        match self {
            Self::Name(name) => Some(name),
            Self::Pointer(steps) => steps.first().filter(|_| steps.len() == 1).map(String::as_str),
        }
    }

    fn steps(&self) -> (&str, &[String]) {
        match self {
            Self::Name(name) => (name, &[]),
            Self::Pointer(steps) => steps.split_first().map_or(("", &[]), |(first, rest)| (first, rest)),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Pointer(steps) => steps.iter().try_for_each(|step| write!(f, "/{step}")),
        }
    }
}

fn unescape(step: &str) -> String {
    step.replace("~1", "/").replace("~0", "~")
}

/// A value that was found.
#[derive(Clone, Copy, Debug)]
pub enum Found<'a> {
    /// The bytes of a field.
    Bytes(&'a [u8]),
    /// A value inside of JSON.
    Json(&'a RawValue),
}

impl Found<'_> {
    /// Returns the value as a text, lossy where it is none. `None` where it is empty or null.
    pub fn text(self, part: Part, unreadable: &mut Vec<Part>) -> Option<String> {
        let text = match self {
            Self::Bytes(bytes) => text_of(part, bytes.to_vec(), unreadable),
            Self::Json(raw) if raw.get() == "null" => return None,
            Self::Json(raw) => text_in(raw).unwrap_or_else(|| raw.get().into()),
        };
        (!text.is_empty()).then_some(text)
    }
}

/// Returns the text that a JSON string holds; `None` for any other value, and for one that is no Unicode.
pub fn text_in(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

type Members<'a> = BTreeMap<String, &'a RawValue>;

/// The values of one entry.
pub struct Values<'a> {
    pub entry: &'a Entry,
    /// The JSON of the envelope.
    pub envelope: Option<&'a RawValue>,
    members: Members<'a>,
}

impl<'a> Values<'a> {
    /// The values of an entry, with the text of its envelope, where there is such.
    pub fn new(entry: &'a Entry, envelope: Option<&'a Cow<'a, str>>) -> Self {
        let envelope: Option<&RawValue> = envelope.and_then(|text| serde_json::from_str(text).ok());
        let members = envelope.and_then(members).unwrap_or_default();
        Self { entry, envelope, members }
    }

    /// Returns the names of the members of the envelope, else of the entry's fields.
    pub fn names(&self) -> Vec<String> {
        if self.members.is_empty() {
            self.entry.fields().map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect()
        } else {
            self.members.keys().cloned().collect()
        }
    }

    /// Returns the value at a place: inside of the envelope, else among the entry's own fields.
    pub fn find(&self, place: &Place) -> Option<Found<'a>> {
        let (first, rest) = place.steps();
        if let Some(member) = self.members.get(first) {
            return walk(member, rest).map(Found::Json);
        }
        let bytes = self.entry.field(first)?;
        if rest.is_empty() {
            return Some(Found::Bytes(bytes));
        }
        let json = std::str::from_utf8(bytes).ok()?;
        walk(serde_json::from_str(json).ok()?, rest).map(Found::Json)
    }
}

/// Returns the value at a JSON pointer in a text; `None` where the text is no JSON, or there is none.
pub fn text_at(json: &str, pointer: &str) -> Option<String> {
    let steps: Vec<String> = pointer.strip_prefix('/')?.split('/').map(unescape).collect();
    let found = walk(serde_json::from_str(json).ok()?, &steps)?;
    Found::Json(found).text(Part::Payload, &mut Vec::new())
}

fn walk<'a>(raw: &'a RawValue, steps: &[String]) -> Option<&'a RawValue> {
    let Some((step, rest)) = steps.split_first() else { return Some(raw) };
    let next = match raw.get().as_bytes().first()? {
        b'{' => members(raw)?.get(step).copied(),
        b'[' => {
            let items: Vec<&RawValue> = serde_json::from_str(raw.get()).ok()?;
            items.get(step.parse::<usize>().ok()?).copied()
        }
        _ => None,
    };
    walk(next?, rest)
}

fn members(raw: &RawValue) -> Option<Members<'_>> {
    serde_json::from_str(raw.get()).ok()
}

/// Makes an object of values that are JSON already.
pub fn object<'a>(members: impl Iterator<Item = (Cow<'a, str>, Payload)>) -> Payload {
    let mut json = String::from("{");
    for (name, value) in members {
        if json.len() > 1 {
            json.push(',');
        }
        json.push_str(Payload::text(&name).as_json());
        json.push(':');
        json.push_str(value.as_json());
    }
    json.push('}');
    Payload::json(&json).unwrap_or_else(Payload::null)
}
