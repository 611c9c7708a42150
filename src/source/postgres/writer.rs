//! Ingest: writes events and statuses, where it is enabled.

use super::error::QueryError;
use super::page::StoredRow;
use super::session::Session;
use super::sql;
use crate::event::{Event, JobId, JobStatus};
use crate::source::{Appended, NewEvent};
use std::collections::{BTreeMap, BTreeSet};

impl Session<'_> {
    /// Appends all events or none. An id that the job has already is not appended again. If another process appends the
    /// same id at the same time, the table's own constraint decides.
    pub async fn append(&mut self, job: &JobId, events: Vec<NewEvent>) -> Result<Vec<Appended>, QueryError> {
        self.connection.begin().await?;
        let mut stored = self.read_stored(job, &events).await?;
        let mut new_ids: BTreeSet<String> = BTreeSet::new();
        let new_events: Vec<&NewEvent> =
            events.iter().filter(|event| !stored.contains_key(&event.id) && new_ids.insert(event.id.clone())).collect();
        if !new_events.is_empty() {
            let sql = sql::insert_events(&self.tables, &self.store.settings.columns, job, new_events);
            self.connection.query(sql.ok_or(QueryError::NotWritable)?).await?;
        }
        if let Some(jobs) = &self.tables.jobs {
            self.connection.query(sql::insert_job(jobs, job)).await?;
        }
        self.connection.commit().await?;
        stored.extend(self.read_stored(job, &events).await?);
        let mut appended = Vec::with_capacity(events.len());
        for NewEvent { id, .. } in events {
            let cursor = self.find_event(job, &id).await?;
            let (event, cursor) = stored.get(&id).cloned().zip(cursor).ok_or(QueryError::EventNotStored)?;
            // The same id once more in this batch is a repeat.
            appended.push(Appended { event, cursor, is_new: new_ids.remove(&id) });
        }
        Ok(appended)
    }

    /// Reads those of the events that the job has already, by their ids.
    async fn read_stored(&mut self, job: &JobId, events: &[NewEvent]) -> Result<BTreeMap<String, Event>, QueryError> {
        let rows = self.tables.rows(self.tables.best);
        let sql = sql::stored_events(&rows, self.durable_xid(), job, events);
        let answer = self.connection.query(sql).await?;
        let event = |row| StoredRow::parse(row, job, self).map(|stored| (stored.event.id.clone(), stored.event));
        answer.iter().map(event).collect()
    }

    pub async fn set_status(&mut self, job: &JobId, status: JobStatus) -> Result<(), QueryError> {
        let jobs = self.tables.jobs.as_ref().ok_or(QueryError::NoJobsTable)?;
        let sql = sql::upsert_status(jobs, job, self.store.settings.statuses.spelling(status));
        self.connection.query(sql).await.map(drop)
    }
}
