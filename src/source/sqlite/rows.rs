//! Rows as other writers may have stored them. SQLite keeps any storage class in any column, and any bytes in a text, so
//! columns are read as bytes, and no row fails to be read: a part that is no text is lossy, and named as unreadable.

use super::position::Position;
use crate::event::{Event, JobId, JobStatus, Part, Payload, text_of};
use jiff::Timestamp;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

/// Returns a column's bytes: of a text in UTF-8, of a BLOB as they are, of a number in digits. `None` for NULL.
pub fn bytes_of(row: &SqliteRow, column: usize) -> Result<Option<Vec<u8>>, sqlx::Error> {
    row.try_get_unchecked(column)
}

/// Returns a column as a number; 0 for everything that is none.
pub fn number_of(row: &SqliteRow, column: usize) -> Result<i64, sqlx::Error> {
    Ok(row.try_get_unchecked::<Option<i64>, _>(column)?.unwrap_or_default())
}

/// Reads a job id. `None` where no job can have it.
pub fn job_of(bytes: Option<Vec<u8>>) -> Option<JobId> {
    str::from_utf8(&bytes?).ok()?.parse().ok()
}

/// Reads a status. `None` where it is none of ours.
pub fn status_of(bytes: Option<&[u8]>) -> Option<JobStatus> {
    str::from_utf8(bytes?).ok()?.parse().ok()
}

/// Reads a row that begins with `seq, id, job_id, step_id, type, timestamp, actor, payload`. The caller knows the job.
///
/// Columns are read by number: this runs for every event, and a name would be looked up each time.
pub fn read_event(row: &SqliteRow, job: &JobId) -> Result<(Event, Position), sqlx::Error> {
    let mut unreadable = Vec::new();
    let id = bytes_of(row, 1)?;
    let position = Position::after(number_of(row, 0)?, id.as_deref().unwrap_or_default());
    let event = Event {
        id: required(Part::Id, id, &mut unreadable),
        job_id: job.clone(),
        step_id: optional(Part::StepId, bytes_of(row, 3)?, &mut unreadable),
        kind: required(Part::Type, bytes_of(row, 4)?, &mut unreadable),
        timestamp: timestamp(bytes_of(row, 5)?, &mut unreadable),
        actor: optional(Part::Actor, bytes_of(row, 6)?, &mut unreadable),
        payload: optional(Part::Payload, bytes_of(row, 7)?, &mut unreadable)
            .map_or_else(Payload::null, Payload::from_text),
        unreadable,
    };
    Ok((event, position))
}

/// Returns a part that every event has; where it is NULL, it is empty and unreadable.
fn required(part: Part, bytes: Option<Vec<u8>>, unreadable: &mut Vec<Part>) -> String {
    optional(part, bytes, unreadable).unwrap_or_else(|| {
        unreadable.push(part);
        String::new()
    })
}

fn optional(part: Part, bytes: Option<Vec<u8>>, unreadable: &mut Vec<Part>) -> Option<String> {
    Some(text_of(part, bytes?, unreadable))
}

/// Returns a time, or `None`: an event is not lost for its timestamp.
pub fn timestamp(bytes: Option<Vec<u8>>, unreadable: &mut Vec<Part>) -> Option<Timestamp> {
    let read = str::from_utf8(&bytes?).ok().and_then(read_timestamp);
    if read.is_none() {
        unreadable.push(Part::Timestamp);
    }
    read
}

/// Reads RFC 3339, or UTC as SQLite's own functions write it (`2026-11-23 21:00:00`).
fn read_timestamp(text: &str) -> Option<Timestamp> {
    text.parse().or_else(|_| format!("{}Z", text.trim_end_matches('Z')).parse()).ok()
}
