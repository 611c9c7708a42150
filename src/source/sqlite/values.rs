//! Values as SQLite stores them: any storage class in any column, and any bytes in a text. No row fails to be read; what is
//! no text is lossy, and named as unreadable.

use crate::config::{PayloadKind, TimestampUnit};
use crate::event::{Part, Payload, text_of};
use crate::source::times::{parse_time, zone_of};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, TypeInfo, ValueRef};

/// A value, by its storage class.
#[derive(Clone, Debug, PartialEq)]
pub enum Stored {
    Null,
    Integer(i64),
    Real(f64),
    Text(Vec<u8>),
    Blob(Vec<u8>),
}

impl Stored {
    pub fn read(row: &SqliteRow, column: usize) -> Result<Self, sqlx::Error> {
        let class = {
            let value = row.try_get_raw(column)?;
            if value.is_null() {
                return Ok(Self::Null);
            }
            value.type_info().name().to_string()
        };
        Ok(match &*class {
            "INTEGER" => Self::Integer(row.try_get_unchecked(column)?),
            "REAL" => Self::Real(row.try_get_unchecked(column)?),
            "BLOB" => Self::Blob(row.try_get_unchecked(column)?),
            _ => Self::Text(row.try_get_unchecked(column)?),
        })
    }
}

/// The way in which the value of the payload's column becomes JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadForm {
    /// JSON, or else a text: Jobcast's own column.
    JsonOrText,
    /// JSON. What is none becomes a string, and is said to be unreadable.
    Json,
    /// A string, whatever stands in it.
    Text,
    /// By the storage class: a number is a number, all others are strings.
    Value {
        /// 0 and 1 are false and true.
        is_boolean: bool,
    },
}

impl PayloadForm {
    /// The form for a column of this declared type.
    pub fn of(kind: PayloadKind, declared: &str, is_own: bool) -> Self {
        match kind {
            PayloadKind::Auto if is_own => Self::JsonOrText,
            PayloadKind::Auto if declared.contains("JSON") => Self::Json,
            PayloadKind::Auto => Self::Value { is_boolean: declared.contains("BOOL") },
            PayloadKind::Json => Self::Json,
            PayloadKind::Text | PayloadKind::Bytes => Self::Text,
        }
    }

    pub fn read(self, row: &SqliteRow, column: usize, unreadable: &mut Vec<Part>) -> Result<Payload, sqlx::Error> {
        if let Self::Value { is_boolean } = self {
            match Stored::read(row, column)? {
                Stored::Integer(number @ (0 | 1)) if is_boolean => {
                    return Ok(Payload::from_text((number == 1).to_string()));
                }
                Stored::Integer(_) | Stored::Real(_) => {
                    return Ok(text(row, column, unreadable)?.map_or_else(Payload::null, Payload::from_text));
                }
                Stored::Null | Stored::Text(_) | Stored::Blob(_) => {}
            }
        }
        let Some(text) = text(row, column, unreadable)? else { return Ok(Payload::null()) };
        Ok(match self {
            Self::JsonOrText => Payload::from_text(text),
            Self::Text | Self::Value { .. } => Payload::text(&text),
            Self::Json => Payload::json(&text).unwrap_or_else(|| {
                if !unreadable.contains(&Part::Payload) {
                    unreadable.push(Part::Payload);
                }
                Payload::text(&text)
            }),
        })
    }
}

fn text(row: &SqliteRow, column: usize, unreadable: &mut Vec<Part>) -> Result<Option<String>, sqlx::Error> {
    let bytes: Option<Vec<u8>> = row.try_get_unchecked(column)?;
    Ok(bytes.map(|bytes| text_of(Part::Payload, bytes, unreadable)))
}

/// The way in which the time of an event is stored.
#[derive(Clone, Debug)]
pub struct Times {
    /// Unit of numbers; `None` where a number is no time.
    unit: Option<TimestampUnit>,
    /// Zone of times without one.
    zone: TimeZone,
}

/// Julian days from the year 0 to the year 9999, which no time of our days in seconds is.
const JULIAN_DAYS: std::ops::Range<f64> = 1_721_059.5..5_373_484.5;
/// Julian day of 1970-01-01 00:00 UTC.
const JULIAN_EPOCH: f64 = 2_440_587.5;
const SECONDS_PER_DAY: f64 = 86_400.0;

impl Times {
    /// `None` where no such zone is known: neither an offset such as `+02:00` nor a name of this machine's database.
    pub fn new(unit: Option<TimestampUnit>, zone: &str) -> Option<Self> {
        Some(Self { unit, zone: zone_of(zone).ok()? })
    }

    /// Reads a time; `None` where there is none. An event is not lost for its time.
    pub fn read(
        &self,
        row: &SqliteRow,
        column: usize,
        unreadable: &mut Vec<Part>,
    ) -> Result<Option<Timestamp>, sqlx::Error> {
        let value = Stored::read(row, column)?;
        let is_there = value != Stored::Null;
        let time = self.parse(value);
        if is_there && time.is_none() {
            unreadable.push(Part::Timestamp);
        }
        Ok(time)
    }

    fn parse(&self, value: Stored) -> Option<Timestamp> {
        match value {
            Stored::Null => None,
            Stored::Integer(number) => from_integer(number, self.unit?),
            Stored::Real(number) => from_real(number, self.unit?),
            Stored::Text(bytes) | Stored::Blob(bytes) => {
                let text = str::from_utf8(&bytes).ok()?.trim();
                let number = || match (text.parse(), text.parse()) {
                    (Ok(number), _) => from_integer(number, self.unit?),
                    (_, Ok(number)) => from_real(number, self.unit?),
                    _ => None,
                };
                number().or_else(|| parse_time(text, &self.zone))
            }
        }
    }
}

fn from_integer(number: i64, unit: TimestampUnit) -> Option<Timestamp> {
    match unit {
        TimestampUnit::S => Timestamp::from_second(number),
        TimestampUnit::Ms => Timestamp::from_millisecond(number),
        TimestampUnit::Us => Timestamp::from_microsecond(number),
        TimestampUnit::Ns => Timestamp::from_nanosecond(number.into()),
        TimestampUnit::Auto => return from_integer(number, unit_of(number as f64)),
    }
    .ok()
}

fn from_real(number: f64, unit: TimestampUnit) -> Option<Timestamp> {
    let seconds = match unit {
        TimestampUnit::Auto if JULIAN_DAYS.contains(&number) => (number - JULIAN_EPOCH) * SECONDS_PER_DAY,
        TimestampUnit::Auto => return from_real(number, unit_of(number)),
        TimestampUnit::S => number,
        TimestampUnit::Ms => number / 1e3,
        TimestampUnit::Us => number / 1e6,
        TimestampUnit::Ns => number / 1e9,
    };
    Timestamp::from_duration(SignedDuration::try_from_secs_f64((seconds * 1e3).round() / 1e3).ok()?).ok()
}

/// The unit of a number of our days, by its size.
fn unit_of(number: f64) -> TimestampUnit {
    match number.abs() {
        size if size < 1e11 => TimestampUnit::S,
        size if size < 1e14 => TimestampUnit::Ms,
        size if size < 1e17 => TimestampUnit::Us,
        _ => TimestampUnit::Ns,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_the_shapes_in_which_programs_store_them() {
        let read = |zone: &str, value: Stored| {
            let times = Times::new(Some(TimestampUnit::Auto), zone).expect("a zone");
            times.parse(value).map(|time| format!("{time:.3}"))
        };
        let text = |text: &str| Stored::Text(text.into());
        for (zone, value, expected) in [
            ("UTC", text("2026-11-23T21:00:00Z"), "2026-11-23T21:00:00.000Z"),
            ("UTC", text("2026-11-23 21:00:00"), "2026-11-23T21:00:00.000Z"),
            ("UTC", text("2026-11-23T21:00:00.123456789"), "2026-11-23T21:00:00.123Z"),
            ("UTC", text(" 2026-11-23 21:00 "), "2026-11-23T21:00:00.000Z"),
            ("UTC", text("2026-11-23"), "2026-11-23T00:00:00.000Z"),
            ("UTC", text("2026-11-23 21:00:00+02:00"), "2026-11-23T19:00:00.000Z"),
            ("UTC", text("2026-11-23 21:00:00.5 +0200 CEST"), "2026-11-23T19:00:00.500Z"),
            ("UTC", text("2026-11-23 21:00:00 +0000 UTC"), "2026-11-23T21:00:00.000Z"),
            ("UTC", text("20261123T210000Z"), "2026-11-23T21:00:00.000Z"),
            ("-03:30", text("2026-11-23 21:00:00"), "2026-11-24T00:30:00.000Z"),
            ("-03:30", text("2026-11-23 21:00:00Z"), "2026-11-23T21:00:00.000Z"),
            ("+02", text("2026-11-23"), "2026-11-22T22:00:00.000Z"),
            ("UTC", text("1795467600"), "2026-11-23T21:00:00.000Z"),
            ("UTC", Stored::Integer(1_795_467_600), "2026-11-23T21:00:00.000Z"),
            ("UTC", Stored::Integer(1_795_467_600_123), "2026-11-23T21:00:00.123Z"),
            ("UTC", Stored::Integer(1_795_467_600_123_456), "2026-11-23T21:00:00.123Z"),
            ("UTC", Stored::Integer(1_795_467_600_123_456_789), "2026-11-23T21:00:00.123Z"),
            ("UTC", Stored::Real(1_795_467_600.25), "2026-11-23T21:00:00.250Z"),
            ("UTC", Stored::Real(2_461_368.375), "2026-11-23T21:00:00.000Z"),
        ] {
            assert_eq!(read(zone, value.clone()).as_deref(), Some(expected), "{zone} {value:?}");
        }
        for value in [text(""), text("soon"), text("21:00"), Stored::Blob(vec![255]), Stored::Real(f64::INFINITY)] {
            assert_eq!(read("UTC", value.clone()), None, "{value:?}");
        }
        assert!(Times::new(None, "Mars/Olympus").is_none() && Times::new(None, "+2 hours").is_none());
    }
}
