//! Times as programs write them: zones by name, and texts with or without one.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};

/// Returns the zone of this name: an offset such as `+02:00`, or one of the IANA time zone database. Fails where there is none.
pub fn zone_of(name: &str) -> Result<TimeZone, jiff::Error> {
    match parse_offset(name) {
        Some(offset) => Ok(TimeZone::fixed(offset)),
        None => TimeZone::get(name),
    }
}

/// Returns true for a name such as `UTC+2`. By the rules of POSIX that is two hours to the west, which nobody expects who
/// does not know them. `Etc/GMT+2` is the name of a zone.
pub fn is_misleading(name: &str) -> bool {
    let is_number =
        |end: &str| end.starts_with(|c: char| c.is_ascii_digit()) && end.contains(|c| ('1'..='9').contains(&c));
    let ends_with_number = name.rsplit_once(['+', '-']).is_some_and(|(_, end)| is_number(end));
    ends_with_number && !name.contains('/') && parse_offset(name).is_none()
}

/// Reads `+02:00`, `-0330` or `+02`: the time that is to be taken away for that of Greenwich.
pub fn parse_offset(text: &str) -> Option<Offset> {
    let digits: String = text.strip_prefix(['+', '-'])?.chars().filter(|c| *c != ':').collect();
    if !matches!(digits.len(), 2 | 4) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let hours: i32 = digits[..2].parse().ok()?;
    let minutes: i32 = if digits.len() == 4 { digits[2..].parse().ok()? } else { 0 };
    let seconds = (hours * 60 + minutes) * 60;
    Offset::from_seconds(if text.starts_with('-') { -seconds } else { seconds }).ok()
}

/// Reads RFC 3339 and the like, with or without a zone: `2026-11-23 21:00:00`, `20261123T210000Z`,
/// `2026-11-23 21:00:00.5 +0000 UTC`. `None` for a text that is no time, and for one beyond the calendar.
pub fn parse_time(text: &str, zone: &TimeZone) -> Option<Timestamp> {
    if let Ok(time) = text.parse() {
        return Some(time);
    }
    // A name of the zone after its offset says nothing new, and neither does a space before it.
    let short = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    if let Some((time, offset)) = short.rsplit_once(' ')
        && offset.starts_with(['+', '-'])
    {
        return format!("{time}{offset}").parse().ok();
    }
    let civil: DateTime = text.trim_end_matches(['Z', 'z']).parse().ok()?;
    if text.ends_with(['Z', 'z']) {
        return TimeZone::UTC.to_timestamp(civil).ok();
    }
    zone.to_timestamp(civil).ok()
}
