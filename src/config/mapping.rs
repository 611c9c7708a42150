//! Settings that say which columns of other people's tables, or fields of their entries, an event is made of, and how
//! their values are read.

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// The origin of one part of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// `""`: the store has no such part.
    Absent,
    /// The name of a column.
    Column(String),
    /// `"= text"`: the same text for every event.
    Constant(String),
}

impl Field {
    pub fn column(&self) -> Option<&str> {
        if let Self::Column(name) = self { Some(name) } else { None }
    }
}

impl From<&str> for Field {
    fn from(text: &str) -> Self {
        match text.strip_prefix('=') {
            Some(constant) => Self::Constant(constant.trim().into()),
            None if text.is_empty() => Self::Absent,
            None => Self::Column(text.into()),
        }
    }
}

impl Serialize for Field {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Absent => to.serialize_str(""),
            Self::Column(name) => to.serialize_str(name),
            Self::Constant(text) => to.collect_str(&format_args!("= {text}")),
        }
    }
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Self::from(&*String::deserialize(from)?))
    }
}

/// The columns that an event's payload is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PayloadColumns {
    /// `""`: the payload is null.
    Absent,
    /// The value of one column.
    One(String),
    /// An object of these columns; in a variable they are comma-separated.
    Object(Vec<String>),
    /// `"*"`: an object of the whole row.
    Row,
}

impl From<&str> for PayloadColumns {
    fn from(text: &str) -> Self {
        match text.trim() {
            "" => Self::Absent,
            "*" => Self::Row,
            list if list.contains(',') => Self::Object(list.split(',').map(|name| name.trim().into()).collect()),
            name => Self::One(name.into()),
        }
    }
}

impl Serialize for PayloadColumns {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Absent => to.serialize_str(""),
            Self::One(name) => to.serialize_str(name),
            Self::Object(names) => names.serialize(to),
            Self::Row => to.serialize_str("*"),
        }
    }
}

impl<'de> Deserialize<'de> for PayloadColumns {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = PayloadColumns;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a column, a list of columns, or \"*\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<PayloadColumns, E> {
                Ok(text.into())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<PayloadColumns, A::Error> {
                let mut list = Vec::new();
                while let Some(name) = names.next_element()? {
                    list.push(name);
                }
                Ok(PayloadColumns::Object(list))
            }
        }

        from.deserialize_any(Either)
    }
}

/// Permission to make Jobcast's own tables in a database file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Create {
    /// In a file that is not there yet, has no tables, or has Jobcast's own.
    #[default]
    Auto,
    /// In any file.
    Always,
    Never,
}

/// The way in which a payload's column is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PayloadKind {
    /// By the column's type: json and jsonb are JSON, numbers and booleans too; bytea is UTF-8; all others are text.
    #[default]
    Auto,
    /// JSON, also in a column of text or bytes.
    Json,
    /// Text, which becomes a JSON string whatever stands in it.
    Text,
    /// Bytes that are UTF-8, and become a JSON string.
    Bytes,
}

/// The unit of a timestamp that is a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimestampUnit {
    /// By its size: a number of today is seconds below 1e11, milliseconds below 1e14, microseconds below 1e17.
    #[default]
    Auto,
    S,
    Ms,
    Us,
    Ns,
}

/// The order of a job's events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventOrder {
    /// By the column seq, where there is one, else by the timestamp.
    #[default]
    Seq,
    /// By the timestamp, then by the id.
    Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_a_column_a_constant_or_nothing_and_is_printed_as_it_is_written() {
        for (text, field) in
            [("", Field::Absent), ("level", Field::Column("level".into())), ("= log", Field::Constant("log".into()))]
        {
            assert_eq!(Field::from(text), field);
            assert_eq!(serde_json::to_value(&field).expect("JSON"), text);
        }
    }

    #[test]
    fn a_payload_is_a_column_an_object_of_columns_or_the_row() {
        let read = |value: serde_json::Value| serde_json::from_value::<PayloadColumns>(value).expect("columns");
        let two = PayloadColumns::Object(vec!["a".into(), "b".into()]);
        assert_eq!(read("line".into()), PayloadColumns::One("line".into()));
        assert_eq!(read("*".into()), PayloadColumns::Row);
        assert_eq!(read("".into()), PayloadColumns::Absent);
        assert_eq!(read(serde_json::json!(["a", "b"])), two);
        assert_eq!(read("a, b".into()), two, "as a variable has it");
        assert_eq!(read(serde_json::to_value(&two).expect("JSON")), two);
    }
}
