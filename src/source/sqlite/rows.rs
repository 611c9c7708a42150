//! Rows as other writers may have stored them: columns are read as bytes, and no row fails to be read.

use super::error::NoInteger;
use super::ids::uuid_text;
use super::position::Position;
use super::tables::{Numbering, Tables};
use super::values::Stored;
use crate::event::{Event, JobId, JobStatus, Part, text_of};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

/// Returns a column's bytes: of a text in UTF-8, of a BLOB as they are, of a number in digits. `None` for NULL.
pub fn bytes_of(row: &SqliteRow, column: usize) -> Result<Option<Vec<u8>>, sqlx::Error> {
    row.try_get_unchecked(column)
}

/// Returns a column as a number; `None` for NULL, 0 for everything else that is none.
pub fn number_of(row: &SqliteRow, column: usize) -> Result<Option<i64>, sqlx::Error> {
    row.try_get_unchecked(column)
}

/// Reads a job id. `None` where no job can have it.
pub fn job_of(bytes: Option<Vec<u8>>) -> Option<JobId> {
    let bytes = bytes?;
    match str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok()) {
        Some(job) => Some(job),
        None => uuid_text(&bytes)?.parse().ok(),
    }
}

impl Tables {
    /// Returns the number of a row, of which others decide where each job has numbers of its own; `None` for NULL. Fails for
    /// what is no integer: SQLite would take a part of it for one, and rows would stand in no order.
    pub fn number_in(&self, row: &SqliteRow, column: usize) -> Result<Option<i64>, sqlx::Error> {
        if self.events.numbering != Numbering::Job {
            return number_of(row, column);
        }
        match Stored::read(row, column)? {
            Stored::Integer(number) => Ok(Some(number)),
            Stored::Null => Ok(None),
            Stored::Real(_) | Stored::Text(_) | Stored::Blob(_) => {
                Err(sqlx::Error::Decode(Box::new(NoInteger { column: self.events.number.clone() })))
            }
        }
    }

    /// Reads a row that begins with [`super::tables::EventTable::list`]. The caller knows the job.
    ///
    /// Columns are read by number: this runs for every event, and a name would be looked up each time.
    pub fn read_event(&self, row: &SqliteRow, job: &JobId) -> Result<(Event, Position), sqlx::Error> {
        let mut unreadable = Vec::new();
        let position = self.position_of(row)?;
        let id = self.id_text(Part::Id, bytes_of(row, 1)?, &mut unreadable);
        let step_id = self.id_text(Part::StepId, bytes_of(row, 3)?, &mut unreadable);
        let kind = required(Part::Type, optional(Part::Type, bytes_of(row, 4)?, &mut unreadable), &mut unreadable);
        let event = Event {
            id: required(Part::Id, id, &mut unreadable),
            job_id: job.clone(),
            step_id,
            kind: self.types.get(&kind).cloned().unwrap_or(kind),
            timestamp: self.events.times.read(row, 5, &mut unreadable)?,
            actor: optional(Part::Actor, bytes_of(row, 6)?, &mut unreadable),
            payload: self.events.payload.read(row, 7, &mut unreadable)?,
            unreadable,
        };
        Ok((event, position))
    }

    /// Reads the position of one job after a row that begins with [`super::tables::EventTable::list`].
    fn position_of(&self, row: &SqliteRow) -> Result<Position, sqlx::Error> {
        Ok(Position::after(self.number_in(row, 0)?.unwrap_or_default(), self.identity_of(row)?))
    }

    /// Reads the position of all jobs after such a row.
    pub fn place_of(&self, row: &SqliteRow) -> Result<Position, sqlx::Error> {
        let job = bytes_of(row, 2)?.unwrap_or_default();
        Ok(Position::after_any(number_of(row, 0)?.unwrap_or_default(), &job, &self.identity_of(row)?))
    }

    fn identity_of(&self, row: &SqliteRow) -> Result<Vec<u8>, sqlx::Error> {
        Ok(bytes_of(row, if self.events.identity.is_some() { 8 } else { 1 })?.unwrap_or_default())
    }

    /// Reads a status. `None` where it is none that the settings or Jobcast know.
    pub fn status(&self, bytes: Option<&[u8]>) -> Option<JobStatus> {
        self.statuses.resolve(str::from_utf8(bytes?).ok()?)
    }

    /// Reads an id, which others may store as the bytes of a UUID.
    fn id_text(&self, part: Part, bytes: Option<Vec<u8>>, unreadable: &mut Vec<Part>) -> Option<String> {
        let bytes = bytes?;
        let uuid = if self.is_own { None } else { uuid_text(&bytes) };
        Some(uuid.unwrap_or_else(|| text_of(part, bytes, unreadable)))
    }
}

/// Returns a part that every event has; where it is NULL, it is empty and unreadable.
fn required(part: Part, text: Option<String>, unreadable: &mut Vec<Part>) -> String {
    text.unwrap_or_else(|| {
        unreadable.push(part);
        String::new()
    })
}

fn optional(part: Part, bytes: Option<Vec<u8>>, unreadable: &mut Vec<Part>) -> Option<String> {
    Some(text_of(part, bytes?, unreadable))
}
