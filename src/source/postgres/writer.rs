//! Ingest: writes events and statuses, where it is enabled.

use super::error::QueryError;
use super::page::StoredRow;
use super::position::Position;
use super::session::Session;
use super::sql::{self, XidBound};
use crate::cursor::Cursor;
use crate::event::{Event, JobId, JobStatus};
use crate::source::{Appended, NewEvent};
use sqlx::Row;
use std::collections::{BTreeMap, BTreeSet};

/// Events of a job that were found by their ids.
#[derive(Default)]
struct Stored {
    /// Settled mark of the snapshot that they were read in.
    mark: u64,
    /// In the order of their keys.
    rows: Vec<StoredRow>,
}

impl Session<'_> {
    /// Appends all events or none. An id that the job has already is not appended again. If another process appends the
    /// same id at the same time, the table's own constraint decides. The number of statements does not depend on that of
    /// the events.
    pub async fn append(&mut self, job: &JobId, events: Vec<NewEvent>) -> Result<Vec<Appended>, QueryError> {
        self.connection.begin().await?;
        let stored = self.read_stored(job, &events).await?.rows;
        let mut known: BTreeSet<&str> = stored.iter().map(|row| &*row.event.id).collect();
        let new_events: Vec<&NewEvent> = events.iter().filter(|event| known.insert(&event.id)).collect();
        let mut new_ids: BTreeSet<String> = new_events.iter().map(|event| event.id.clone()).collect();
        if !new_events.is_empty() {
            let sql = sql::insert_events(&self.tables, &self.store.settings.columns, job, new_events);
            self.connection.query(sql.ok_or(QueryError::NotWritable)?).await?;
        }
        if let Some(jobs) = &self.tables.jobs {
            self.connection.query(sql::insert_job(jobs, job)).await?;
        }
        self.connection.commit().await?;
        let stored = self.read_with_cursors(job, &events).await?;
        let appended = events.into_iter().map(|NewEvent { id, .. }| {
            let (event, cursor) = stored.get(&id).cloned().ok_or(QueryError::EventNotStored)?;
            // The same id once more in this batch is a repeat.
            Ok(Appended { event, cursor, is_new: new_ids.remove(&id) })
        });
        appended.collect()
    }

    /// Reads those of the events that the job has, by their ids.
    async fn read_stored(&mut self, job: &JobId, events: &[NewEvent]) -> Result<Stored, QueryError> {
        let rows = self.tables.rows(self.tables.best);
        let sql = sql::stored_events(&rows, self.durable_xid(), job, events);
        let answer = self.connection.query(sql).await?;
        let Some(first) = answer.first() else { return Ok(Stored::default()) };
        let rows = answer.iter().map(|row| StoredRow::parse(row, job, self)).collect::<Result<_, _>>()?;
        Ok(Stored { mark: self.snapshot_of(first)?.mark(), rows })
    }

    /// Reads them with the position after each: that of a reader who was given all events up to it by key.
    async fn read_with_cursors(
        &mut self,
        job: &JobId,
        events: &[NewEvent],
    ) -> Result<BTreeMap<String, (Event, Cursor)>, QueryError> {
        let Stored { mark, rows } = self.read_stored(job, events).await?;
        let mut stored = BTreeMap::new();
        let Some(last) = rows.last() else { return Ok(stored) };
        let newer = self.count_newer(job, mark, Some(&last.key)).await?;
        let (best, end) = (self.tables.best, newer.settled());
        let mut by_place = Vec::new();
        if !newer.counted().is_empty() {
            let ids = rows.iter().map(|row| &*row.event.id);
            let bound = XidBound::Fixed(end.clone());
            let sql = sql::count_by_place(&self.tables.rows(best), self.durable_xid(), job, &bound, ids);
            by_place = self.connection.query(sql).await?;
        }
        let (mut by_place, mut counted) = (by_place.into_iter().peekable(), BTreeMap::new());
        for (place, StoredRow { key, event, .. }) in (0..).zip(rows) {
            while let Some(row) = by_place.peek()
                && row.try_get::<i64, _>("place")? <= place
            {
                *counted.entry(row.try_get::<i64, _>("xid")? as u64).or_default() +=
                    row.try_get::<i64, _>("count")? as u64;
                by_place.next();
            }
            let cursor = Position::new_settled(best, end.clone(), counted.clone()).in_life(self.tables.life);
            let cursor = cursor.up_to_key(key).to_cursor(job);
            stored.entry(event.id.clone()).or_insert((event, cursor));
        }
        Ok(stored)
    }

    pub async fn set_status(&mut self, job: &JobId, status: JobStatus) -> Result<(), QueryError> {
        let jobs = self.tables.jobs.as_ref().ok_or(QueryError::NoJobsTable)?;
        let sql = sql::upsert_status(jobs, job, self.store.settings.statuses.spelling(status));
        self.connection.query(sql).await.map(drop)
    }
}
