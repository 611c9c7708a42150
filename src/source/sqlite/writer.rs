//! The one writer of this process: what arrives while a commit is under way is committed together by the next.

use super::{Position, failed, read_event};
use crate::error::SourceError;
use crate::event::{JobId, JobStatus, Rfc3339};
use crate::source::{Appended, NewEvent};
use sqlx::{Row, SqliteConnection};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{Notify, mpsc, oneshot};

/// Requests that may wait, and how many one commit may take.
const QUEUE: usize = 1024;
const TOGETHER: usize = 256;

pub struct Writer(mpsc::Sender<Request>);

enum Request {
    Append { job: JobId, events: Vec<NewEvent>, answer: oneshot::Sender<Result<Vec<Appended>, SourceError>> },
    Status { job: JobId, status: JobStatus, answer: oneshot::Sender<Result<(), SourceError>> },
}

impl Writer {
    /// The task ends with the last handle to it, after everything that was asked.
    pub fn start(connection: SqliteConnection, path: PathBuf, written: Arc<Notify>) -> Self {
        let (requests, inbox) = mpsc::channel(QUEUE);
        tokio::spawn(Task { connection, path, written }.run(inbox));
        Self(requests)
    }

    pub async fn append(&self, job: JobId, events: Vec<NewEvent>) -> Result<Vec<Appended>, SourceError> {
        let (answer, answered) = oneshot::channel();
        self.ask(Request::Append { job, events, answer }, answered).await
    }

    pub async fn set_status(&self, job: JobId, status: JobStatus) -> Result<(), SourceError> {
        let (answer, answered) = oneshot::channel();
        self.ask(Request::Status { job, status, answer }, answered).await
    }

    async fn ask<T>(
        &self,
        request: Request,
        answered: oneshot::Receiver<Result<T, SourceError>>,
    ) -> Result<T, SourceError> {
        let gone = || failed("writing".into(), sqlx::Error::WorkerCrashed);
        self.0.send(request).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

struct Task {
    connection: SqliteConnection,
    path: PathBuf,
    written: Arc<Notify>,
}

type Append = (JobId, Vec<NewEvent>, oneshot::Sender<Result<Vec<Appended>, SourceError>>);

impl Task {
    async fn run(mut self, mut inbox: mpsc::Receiver<Request>) {
        let mut batch = Vec::new();
        while inbox.recv_many(&mut batch, TOGETHER).await > 0 {
            let mut appends = Vec::new();
            for request in batch.drain(..) {
                match request {
                    Request::Append { job, events, answer } => appends.push((job, events, answer)),
                    Request::Status { job, status, answer } => {
                        self.append_together(std::mem::take(&mut appends)).await;
                        let result = self.set_status(&job, status).await;
                        let _ = answer.send(result.map_err(|error| self.failed(error)));
                    }
                }
            }
            self.append_together(appends).await;
            self.written.notify_one();
        }
    }

    fn failed(&self, error: sqlx::Error) -> SourceError {
        failed(format!("writing to {}", self.path.display()), error)
    }

    /// One statement for all: they cost one commit. Where it fails each is tried alone, so that none pays for another.
    async fn append_together(&mut self, appends: Vec<Append>) {
        let wanted: Vec<(&JobId, &[NewEvent])> = appends.iter().map(|(job, events, _)| (job, &events[..])).collect();
        if wanted.is_empty() {
            return;
        }
        if let Ok(stored) = self.insert(&wanted).await {
            for ((_, _, answer), stored) in appends.into_iter().zip(stored) {
                let _ = answer.send(Ok(stored));
            }
            return;
        }
        for (job, events, answer) in appends {
            let result = self.insert(&[(&job, &events)]).await;
            let stored = result.map(|mut stored| stored.pop().unwrap_or_default());
            let _ = answer.send(stored.map_err(|error| self.failed(error)));
        }
    }

    async fn insert(&mut self, wanted: &[(&JobId, &[NewEvent])]) -> Result<Vec<Vec<Appended>>, sqlx::Error> {
        let rows: Vec<_> = wanted
            .iter()
            .flat_map(|(job, events)| events.iter().map(move |event| (job, event)))
            .map(|(job, event)| {
                let timestamp = Rfc3339(event.timestamp).to_string();
                (&event.id, job.as_str(), &event.step_id, &event.kind, timestamp, &event.actor, event.payload.as_json())
            })
            .collect();
        let rows = serde_json::to_string(&rows).map_err(|error| sqlx::Error::Encode(error.into()))?;
        let inserted = sqlx::query(
            "INSERT INTO job_events (id, job_id, step_id, type, timestamp, actor, payload)
             SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6
             FROM json_each(?1) WHERE true ORDER BY key
             ON CONFLICT (job_id, id) DO NOTHING RETURNING job_id, id, seq",
        )
        .bind(rows)
        .fetch_all(&mut self.connection)
        .await?;
        let mut numbers: HashMap<(String, String), i64> = HashMap::with_capacity(inserted.len());
        for row in inserted {
            numbers.insert((row.try_get(0)?, row.try_get(1)?), row.try_get(2)?);
        }
        let mut answers = Vec::with_capacity(wanted.len());
        for (job, events) in wanted {
            let mut stored = Vec::with_capacity(events.len());
            for event in *events {
                // taken out: the same id once more in this batch is a repeat
                match numbers.remove(&(job.to_string(), event.id.clone())) {
                    Some(seq) => stored.push(appended(job, event.clone(), seq)),
                    None => stored.push(self.stored(job, &event.id).await?),
                }
            }
            answers.push(stored);
        }
        Ok(answers)
    }

    async fn stored(&mut self, job: &JobId, id: &str) -> Result<Appended, sqlx::Error> {
        let row = sqlx::query(
            "SELECT seq, id, job_id, step_id, type, timestamp, actor, payload FROM job_events WHERE job_id = ?1 AND id = ?2",
        )
        .bind(job.as_str())
        .bind(id)
        .fetch_one(&mut self.connection)
        .await?;
        let (event, position) = read_event(&row, job)?;
        Ok(Appended { event, cursor: position.seal(job), is_new: false })
    }

    async fn set_status(&mut self, job: &JobId, status: JobStatus) -> Result<(), sqlx::Error> {
        sqlx::query(
            "INSERT INTO runner_jobs (id, status) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE
             SET status = excluded.status, updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')",
        )
        .bind(job.as_str())
        .bind(status.as_str())
        .execute(&mut self.connection)
        .await?;
        Ok(())
    }
}

fn appended(job: &JobId, new: NewEvent, seq: i64) -> Appended {
    let cursor = Position::of(seq, &new.id).seal(job);
    Appended { event: new.into_event(job.clone()), cursor, is_new: true }
}
