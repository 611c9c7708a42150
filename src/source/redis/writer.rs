//! Ingest: writes events and statuses.
//!
//! The appends of this process to one job stand in line. One task serves the line: it takes all writes that wait and
//! appends them in one call of a script (see [`super::script`]), while further writes come to wait.

use super::Store;
use super::error::is_wrong_type;
use super::topology::NodeError;
use crate::error::{SourceCode, SourceError};
use crate::event::{JobId, JobStatus};
use crate::source::{Appended, Limit, NewEvent};
use redis::cmd;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

const OPERATION: &str = "writing events";

/// Bounds of the events that are appended together, unless one write alone has more.
const BATCH: Limit = Limit { events: 1024, bytes: 1 << 20 };

/// The writes that wait, by job. A job is in here for as long as a task serves its line.
#[derive(Default)]
pub struct Lines(Mutex<HashMap<JobId, VecDeque<Write>>>);

/// Events to append, all or none.
struct Write {
    events: Vec<NewEvent>,
    answer: oneshot::Sender<Result<Vec<Appended>, SourceError>>,
}

impl Lines {
    fn lines(&self) -> MutexGuard<'_, HashMap<JobId, VecDeque<Write>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a write at the end of its line. Returns true where nobody serves that line yet.
    fn push(&self, job: &JobId, write: Write) -> bool {
        let mut lines = self.lines();
        let is_new = !lines.contains_key(job);
        lines.entry(job.clone()).or_default().push_back(write);
        is_new
    }

    /// Takes the next writes of a line. Ends the line, and returns none, where none waits.
    fn take_batch(&self, job: &JobId) -> Vec<Write> {
        let mut lines = self.lines();
        let mut batch = Vec::new();
        let (mut events, mut bytes) = (0, 0);
        if let Some(line) = lines.get_mut(job) {
            while !BATCH.is_reached_by(events, bytes)
                && let Some(write) = line.pop_front()
            {
                events += write.events.len();
                bytes += write.events.iter().map(|event| event.payload.as_json().len()).sum::<usize>();
                batch.push(write);
            }
        }
        if batch.is_empty() {
            lines.remove(job);
        }
        batch
    }
}

/// The task that serves one line. Where it panics the line ends as well: its writers get an error, and the next write
/// begins a new one.
struct Server {
    store: Arc<Store>,
    job: JobId,
    /// The line has ended, and may have begun anew since.
    has_ended: bool,
}

impl Server {
    async fn serve(mut self) {
        loop {
            let batch = self.store.lines.take_batch(&self.job);
            if batch.is_empty() {
                self.has_ended = true;
                return;
            }
            self.store.append_batch(&self.job, batch).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.has_ended {
            self.store.lines.lines().remove(&self.job);
        }
    }
}

impl Store {
    /// Appends events as soon as the writes before them are done. A caller that leaves does not take them back.
    pub(super) async fn append(
        self: &Arc<Self>,
        job: &JobId,
        events: Vec<NewEvent>,
    ) -> Result<Vec<Appended>, SourceError> {
        if !self.settings.has_own_shape() {
            let cause = "source.redis.fields, envelope or job_id_field describe entries that others write";
            return Err(SourceError::new(SourceCode::Schema, OPERATION, cause, "let the runners write their events"));
        }
        let (answer, answered) = oneshot::channel();
        if self.lines.push(job, Write { events, answer }) {
            tokio::spawn(Server { store: self.clone(), job: job.clone(), has_ended: false }.serve());
        }
        answered.await.unwrap_or_else(|_| {
            let cause = "the task that writes ended early";
            Err(SourceError::new(SourceCode::Other, OPERATION, cause, "see the log"))
        })
    }

    async fn append_batch(&self, job: &JobId, batch: Vec<Write>) {
        let mut events = Vec::new();
        let mut waiting = Vec::with_capacity(batch.len());
        for write in batch {
            waiting.push((write.answer, write.events.len()));
            events.extend(write.events);
        }
        // A writer that has left needs no answer.
        match self.append_events(job, &events).await {
            Ok(appended) => {
                let mut appended = appended.into_iter();
                for (answer, count) in waiting {
                    let _ = answer.send(Ok(appended.by_ref().take(count).collect()));
                }
            }
            Err(error) => {
                let error = self.failed_for(job, OPERATION, error).await;
                for (answer, _) in waiting {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
    }

    async fn append_events(&self, job: &JobId, events: &[NewEvent]) -> Result<Vec<Appended>, NodeError> {
        let mut ids = self.known_ids.take(job);
        let appended = self.append_once(job, &mut ids, events).await;
        self.known_ids.put_back(job, ids);
        let appended = appended?;
        self.set_running(job).await?;
        Ok(appended)
    }

    /// Sets the status of a job that has none: it has events, so it is running.
    async fn set_running(&self, job: &JobId) -> Result<(), NodeError> {
        let (Some(job_key), Some(field)) = (&self.job_key, self.status.hash_field()) else { return Ok(()) };
        let key = job_key.key(job);
        let mut set = cmd("HSETNX");
        set.arg(&key).arg(field).arg(JobStatus::Running.as_str());
        match self.send_command(&key, set).await {
            // A key of another type is not this job's: the events stand, and have no status.
            Err(error) if is_wrong_type(&error.error) => Ok(()),
            other => other.map(drop),
        }
    }

    pub(super) async fn set_status(&self, job: &JobId, status: JobStatus) -> Result<(), SourceError> {
        const OPERATION: &str = "writing a status";
        let Some(job_key) = &self.job_key else {
            let help = "name the key of the job's hash, or end jobs by an event of source.redis.final_types";
            return Err(SourceError::new(SourceCode::Schema, OPERATION, "source.redis.job_key is empty", help));
        };
        let Some(field) = self.status.hash_field() else {
            let (cause, help) =
                ("it stands in no field of a hash", "let the runners write it as source.redis reads it");
            return Err(SourceError::new(SourceCode::Schema, OPERATION, cause, help));
        };
        let key = job_key.key(job);
        let mut set = cmd("HSET");
        set.arg(&key).arg(field).arg(self.settings.statuses.spelling(status));
        match self.send_command(&key, set).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.failed_for(job, OPERATION, error).await),
        }
    }
}
