//! The one writer of this process. Requests that arrive during a commit are committed together by the next one.

use super::database::{Connected, Database};
use super::error::SqliteError;
use super::position::Position;
use crate::error::SourceError;
use crate::event::{JobId, JobStatus, Rfc3339};
use crate::source::{Appended, NewEvent};
use crate::supervise::guarded;
use sqlx::Row;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{Notify, mpsc, oneshot};

const MAX_WAITING_REQUESTS: usize = 1024;
const MAX_REQUESTS_PER_COMMIT: usize = 256;

/// A handle to the writing task.
pub struct Writer(mpsc::Sender<Request>);

enum Request {
    Append(Append),
    SetStatus { job: JobId, status: JobStatus, answer: oneshot::Sender<Result<(), SourceError>> },
}

struct Append {
    job: JobId,
    events: Vec<NewEvent>,
    answer: oneshot::Sender<Result<Vec<Appended>, SourceError>>,
}

impl Writer {
    /// Starts the task. It ends with the last handle, after all requests that were sent.
    pub fn start(database: Arc<Database>, written: Arc<Notify>) -> Self {
        let (requests, inbox) = mpsc::channel(MAX_WAITING_REQUESTS);
        tokio::spawn(Task { database, connection: None, written }.run(inbox));
        Self(requests)
    }

    pub async fn append(&self, job: JobId, events: Vec<NewEvent>) -> Result<Vec<Appended>, SourceError> {
        let (answer, answered) = oneshot::channel();
        self.send(Request::Append(Append { job, events, answer }), answered).await
    }

    pub async fn set_status(&self, job: JobId, status: JobStatus) -> Result<(), SourceError> {
        let (answer, answered) = oneshot::channel();
        self.send(Request::SetStatus { job, status, answer }, answered).await
    }

    async fn send<T>(
        &self,
        request: Request,
        answered: oneshot::Receiver<Result<T, SourceError>>,
    ) -> Result<T, SourceError> {
        let stopped = || SqliteError::WriterStopped.during("writing".into());
        self.0.send(request).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }
}

struct Task {
    database: Arc<Database>,
    /// `None` before the first request.
    connection: Option<Connected>,
    /// Wakes the tail.
    written: Arc<Notify>,
}

impl Task {
    async fn run(mut self, mut inbox: mpsc::Receiver<Request>) {
        let mut requests = Vec::new();
        while inbox.recv_many(&mut requests, MAX_REQUESTS_PER_COMMIT).await > 0 {
            // A panic leaves these requests without an answer, which their senders notice. The next ones are served.
            let _ = guarded("sqlite-writer", self.serve(std::mem::take(&mut requests))).await;
            self.written.notify_one();
        }
    }

    async fn serve(&mut self, requests: Vec<Request>) {
        let mut appends = Vec::new();
        for request in requests {
            match request {
                Request::Append(append) => appends.push(append),
                Request::SetStatus { job, status, answer } => {
                    // The order is that of the requests: events that came before a final status are committed before it.
                    self.append_all(std::mem::take(&mut appends)).await;
                    let result = self.set_status(&job, status).await;
                    let _ = answer.send(result.map_err(|error| self.failed(error)));
                }
            }
        }
        self.append_all(appends).await;
    }

    fn failed(&self, error: SqliteError) -> SourceError {
        error.during(format!("writing to {}", self.database.path().display()))
    }

    /// Appends for several requests by one statement, which costs one commit. Where it fails, each is tried by itself,
    /// so that none of them fails for another.
    async fn append_all(&mut self, appends: Vec<Append>) {
        if appends.is_empty() {
            return;
        }
        let together: Vec<(&JobId, &[NewEvent])> =
            appends.iter().map(|append| (&append.job, &append.events[..])).collect();
        if let Ok(stored) = self.insert(&together).await {
            for (append, stored) in appends.into_iter().zip(stored) {
                let _ = append.answer.send(Ok(stored));
            }
            return;
        }
        for Append { job, events, answer } in appends {
            let result = self.insert(&[(&job, &events)]).await;
            let stored = result.map(|mut stored| stored.pop().unwrap_or_default());
            let _ = answer.send(stored.map_err(|error| self.failed(error)));
        }
    }

    /// Returns a connection to the file that is at the path now.
    async fn connection(&mut self) -> Result<&mut Connected, SqliteError> {
        let file = self.database.current()?;
        let connected = match self.connection.take() {
            Some(connected) if connected.file == file => connected,
            _ => self.database.connect().await?,
        };
        Ok(self.connection.insert(connected))
    }

    /// Inserts events of several jobs. Returns one list for each, with an entry for each of its events. Fails where the
    /// file was removed or replaced before it is over: nobody would see the events.
    async fn insert(&mut self, appends: &[(&JobId, &[NewEvent])]) -> Result<Vec<Vec<Appended>>, SqliteError> {
        let file = self.connection().await?.file;
        let stored = self.insert_into_open_file(appends).await?;
        self.database.confirm(file)?;
        Ok(stored)
    }

    async fn insert_into_open_file(
        &mut self,
        appends: &[(&JobId, &[NewEvent])],
    ) -> Result<Vec<Vec<Appended>>, SqliteError> {
        let mut numbers = self.insert_rows(appends).await?;
        let mut answers = Vec::with_capacity(appends.len());
        for (job, events) in appends {
            let mut stored = Vec::with_capacity(events.len());
            for event in *events {
                // It is removed, so that the same id once more in these requests is a repeat.
                stored.push(match numbers.remove(&(job.to_string(), event.id.clone())) {
                    Some(seq) => Appended {
                        cursor: Position::after(seq, &event.id).seal(job),
                        event: event.clone().into_event((*job).clone()),
                        is_new: true,
                    },
                    None => self.stored(job, &event.id).await?,
                });
            }
            answers.push(stored);
        }
        Ok(answers)
    }

    /// Inserts those events whose id the job does not have yet. Returns their numbers, by job and id.
    async fn insert_rows(
        &mut self,
        appends: &[(&JobId, &[NewEvent])],
    ) -> Result<HashMap<(String, String), i64>, SqliteError> {
        let events = appends.iter().flat_map(|(job, events)| events.iter().map(move |event| (job, event)));
        let rows: Vec<_> = events
            .map(|(job, event)| {
                let timestamp = Rfc3339(event.timestamp).to_string();
                (&event.id, job.as_str(), &event.step_id, &event.kind, timestamp, &event.actor, event.payload.as_json())
            })
            .collect();
        let inserted = sqlx::query(
            "INSERT INTO job_events (id, job_id, step_id, type, timestamp, actor, payload)
             SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6
             FROM json_each(?1) WHERE true ORDER BY key
             ON CONFLICT (job_id, id) DO NOTHING RETURNING job_id, id, seq",
        )
        .bind(serde_json::to_string(&rows)?)
        .fetch_all(&mut self.connection().await?.sqlite)
        .await?;
        let mut numbers = HashMap::with_capacity(inserted.len());
        for row in inserted {
            numbers.insert((row.try_get("job_id")?, row.try_get("id")?), row.try_get("seq")?);
        }
        Ok(numbers)
    }

    /// Reads the event that the job has under this id.
    async fn stored(&mut self, job: &JobId, id: &str) -> Result<Appended, SqliteError> {
        let Connected { sqlite, tables, .. } = self.connection().await?;
        let row = sqlx::query(
            "SELECT seq, id, job_id, step_id, type, timestamp, actor, payload FROM job_events WHERE job_id = ?1 AND id = ?2",
        )
        .bind(job.as_str())
        .bind(id)
        .fetch_one(sqlite)
        .await?;
        let (event, position) = tables.read_event(&row, job)?;
        Ok(Appended { event, cursor: position.seal(job), is_new: false })
    }

    async fn set_status(&mut self, job: &JobId, status: JobStatus) -> Result<(), SqliteError> {
        let Connected { sqlite, file, .. } = self.connection().await?;
        let file = *file;
        sqlx::query(
            "INSERT INTO runner_jobs (id, status) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE
             SET status = excluded.status, updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')",
        )
        .bind(job.as_str())
        .bind(status.as_str())
        .execute(sqlite)
        .await?;
        self.database.confirm(file)
    }
}
