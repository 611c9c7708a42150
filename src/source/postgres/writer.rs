//! Ingest: events and statuses, where this is enabled.

use super::link::Link;
use super::table::Tables;
use super::tell::read_row;
use super::{Store, literal};
use crate::event::{Event, JobId, JobStatus};
use crate::source::{Appended, NewEvent};
use std::collections::{BTreeMap, BTreeSet};

impl Store {
    /// All or none. Where another process appends the same id at the same time, the table's own constraint decides.
    pub async fn append(
        &self,
        link: &mut Link,
        tables: &Tables,
        job: &JobId,
        events: Vec<NewEvent>,
    ) -> Result<Vec<Appended>, sqlx::Error> {
        link.begin("").await?;
        let mut known = self.stored(link, tables, job, &events).await?;
        let mut fresh: BTreeSet<String> = BTreeSet::new();
        let new: Vec<&NewEvent> =
            events.iter().filter(|event| !known.contains_key(&event.id) && fresh.insert(event.id.clone())).collect();
        if !new.is_empty() {
            link.ask(tables.insert(job.as_str(), new.into_iter())).await?;
        }
        if let Some(jobs) = &tables.jobs {
            let [id, status] = &jobs.names;
            let sql = format!(
                "INSERT INTO {table} ({id}, {status}) SELECT {job}, 'RUNNING'
                 WHERE NOT EXISTS (SELECT FROM {table} j WHERE {}) ON CONFLICT DO NOTHING",
                jobs.id.is(job.as_str()),
                table = jobs.table,
                job = jobs.id.value(job.as_str()),
            );
            link.ask(sql).await?;
        }
        link.commit().await?;
        known.extend(self.stored(link, tables, job, &events).await?);
        let mut stored = Vec::with_capacity(events.len());
        for event in events {
            let cursor = self.find(link, tables, job, &event.id).await?;
            let found = known.get(&event.id).cloned().zip(cursor).ok_or(sqlx::Error::RowNotFound)?;
            // the same id once more in this batch is a repeat
            stored.push(Appended { event: found.0, cursor: found.1, is_new: fresh.remove(&event.id) });
        }
        Ok(stored)
    }

    /// Those that the job has already, by their ids.
    pub async fn stored(
        &self,
        link: &mut Link,
        tables: &Tables,
        job: &JobId,
        events: &[NewEvent],
    ) -> Result<BTreeMap<String, Event>, sqlx::Error> {
        let sql = format!(
            "{} SELECT {} FROM {} e WHERE {} AND {}",
            self.snapshot(tables, None),
            tables.row(),
            tables.events,
            tables.job_id.is(job.as_str()),
            tables.id.is_any(events.iter().map(|event| &*event.id)),
        );
        let rows = link.ask(sql).await?;
        let event = |row| read_row(row, 1, job).map(|stored| (stored.event.id.clone(), stored.event));
        rows.iter().map(event).collect()
    }

    pub async fn set_status(
        &self,
        link: &mut Link,
        tables: &Tables,
        job: &JobId,
        status: JobStatus,
    ) -> Result<(), sqlx::Error> {
        let Some(jobs) = &tables.jobs else {
            return Err(sqlx::Error::ColumnNotFound("source.postgres.jobs_table".into()));
        };
        let [id, status_name] = &jobs.names;
        let sql = format!(
            "INSERT INTO {table} ({id}, {status_name}) VALUES ({job}, {own})
             ON CONFLICT ({id}) DO UPDATE SET {status_name} = excluded.{status_name}",
            table = jobs.table,
            job = jobs.id.value(job.as_str()),
            own = literal(self.settings.statuses.spelling(status)),
        );
        link.ask(sql).await.map(drop)
    }
}
