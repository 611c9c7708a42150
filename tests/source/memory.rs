//! A store in memory: the smallest source there can be, and an example of one.
//!
//! A job is a list of events, and a position is the number of events before it. Everything is behind one lock, so a read
//! of the tail sees all jobs at one moment.

use async_trait::async_trait;
use jobcast::cursor::{Cursor, varint};
use jobcast::error::SourceError;
use jobcast::event::{Event, JobId, JobStatus};
use jobcast::source::{
    Appended, JobSummary, Joiner, Limit, NewEvent, News, Page, PageBuilder, PageResult, Source, Standing, Tail,
    TailBatch, Wakeup,
};
use jobcast::sse::{JobEnd, Reset};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Notify;

/// The bounds of one read of the tail; small, so that tests meet them.
const READ: Limit = Limit { events: 20, bytes: 1 << 20 };

/// The letter of its cursors; no store of Jobcast's own has it.
const LETTER: char = 'm';

#[derive(Clone, Default)]
pub struct Memory(Arc<Store>);

#[derive(Default)]
struct Store {
    jobs: Mutex<HashMap<JobId, Job>>,
    /// Notified by every write. One tail waits for it.
    changed: Notify,
}

#[derive(Default)]
struct Job {
    events: Vec<Event>,
    status: Option<JobStatus>,
}

impl Job {
    /// Returns the job's final status, once it has one.
    fn ending(&self) -> Option<JobStatus> {
        self.status.filter(|status| status.is_final())
    }
}

impl Store {
    fn jobs(&self) -> MutexGuard<'_, HashMap<JobId, Job>> {
        self.jobs.lock().expect("no writer has panicked")
    }
}

/// Makes the cursor after the first `count` events of a job.
fn seal(job: &JobId, count: usize) -> Cursor {
    let mut inside = Vec::new();
    varint::write(&mut inside, count as u64);
    Cursor::seal(LETTER, job, &inside)
}

fn open(job: &JobId, text: &str) -> Option<usize> {
    let inside = Cursor::open(LETTER, job, text)?;
    let from = &mut &*inside;
    let count = varint::read(from)?;
    from.is_empty().then_some(count as usize)
}

/// Returns the events of a job after its first `after`, each with its cursor.
fn events_after(job: &JobId, stored: &Job, after: usize) -> Vec<(Event, Cursor)> {
    let numbered = stored.events.iter().enumerate().skip(after);
    numbered.map(|(number, event)| (event.clone(), seal(job, number + 1))).collect()
}

#[async_trait]
impl Source for Memory {
    fn kind(&self) -> &'static str {
        "memory"
    }

    fn beginning(&self, job: &JobId) -> Cursor {
        seal(job, 0)
    }

    async fn resolve(&self, job: &JobId, text: &str) -> Result<Option<Cursor>, SourceError> {
        let of_event = || self.0.jobs().get(job)?.events.iter().position(|event| event.id == text).map(|at| at + 1);
        Ok(open(job, text).or_else(of_event).map(|count| seal(job, count)))
    }

    async fn newest(&self, job: &JobId) -> Result<Option<Standing>, SourceError> {
        let jobs = self.0.jobs();
        Ok(jobs.get(job).map(|stored| Standing { cursor: seal(job, stored.events.len()), status: stored.status }))
    }

    async fn page(&self, job: &JobId, after: &Cursor, limit: Limit) -> Result<PageResult, SourceError> {
        let Some(after) = open(job, after.as_str()) else { return Ok(PageResult::Lost(Reset::Unknown)) };
        let jobs = self.0.jobs();
        let Some(stored) = jobs.get(job) else { return Ok(PageResult::NoSuchJob) };
        if after > stored.events.len() {
            return Ok(PageResult::Lost(Reset::Rewound));
        }
        let mut page = PageBuilder::new(limit);
        let mut rest = events_after(job, stored, after).into_iter();
        while !page.is_full()
            && let Some((event, cursor)) = rest.next()
        {
            page.push(event, cursor);
        }
        let is_last = rest.next().is_none();
        Ok(PageResult::Page(Page {
            end: page.end().cloned().unwrap_or_else(|| seal(job, after)),
            events: page.into_events(),
            is_last,
            status: stored.status,
            is_complete: is_last && stored.ending().is_some(),
        }))
    }

    fn tail(&self) -> Box<dyn Tail> {
        Box::new(MemoryTail { store: self.0.clone(), watched: HashMap::new() })
    }

    async fn append(&self, job: &JobId, events: Vec<NewEvent>) -> Result<Vec<Appended>, SourceError> {
        let mut jobs = self.0.jobs();
        let stored =
            jobs.entry(job.clone()).or_insert_with(|| Job { status: Some(JobStatus::Running), ..Job::default() });
        let mut appended = Vec::new();
        for new in events {
            let known = stored.events.iter().position(|event| event.id == new.id);
            let at = known.unwrap_or(stored.events.len());
            if known.is_none() {
                stored.events.push(new.into_event(job.clone()));
            }
            let (event, cursor) = (stored.events[at].clone(), seal(job, at + 1));
            appended.push(Appended { event, cursor, is_new: known.is_none() });
        }
        self.0.changed.notify_one();
        Ok(appended)
    }

    async fn set_status(&self, job: &JobId, status: JobStatus) -> Result<(), SourceError> {
        self.0.jobs().entry(job.clone()).or_default().status = Some(status);
        self.0.changed.notify_one();
        Ok(())
    }

    async fn jobs(&self, status: Option<JobStatus>, limit: usize) -> Result<Vec<JobSummary>, SourceError> {
        let jobs = self.0.jobs();
        let wanted = jobs.iter().filter(|(_, stored)| status.is_none() || stored.status == status);
        let summary = |(job, stored): (&JobId, &Job)| JobSummary {
            job_id: job.clone(),
            status: stored.status,
            last_event_at: stored.events.last().and_then(|event| event.timestamp).map(|at| at.to_string()),
        };
        Ok(wanted.map(summary).take(limit).collect())
    }
}

struct MemoryTail {
    store: Arc<Store>,
    /// Watched jobs, each with the number of its events that were published.
    watched: HashMap<JobId, usize>,
}

impl MemoryTail {
    /// Moves on the watch of one job, as far as the batch takes it. Returns whether something is left.
    fn read_job(&mut self, job: &JobId, stored: &Job, batch: &mut TailBatch) -> bool {
        let published = self.watched.entry(job.clone()).or_default();
        let mut rest = events_after(job, stored, *published).into_iter();
        while !batch.is_full()
            && let Some((event, cursor)) = rest.next()
        {
            *published += 1;
            batch.push(job, event, cursor);
        }
        let is_left = rest.next().is_some();
        if let Some(status) = stored.ending().filter(|_| !is_left) {
            batch.end(job, JobEnd::Complete(status));
            self.watched.remove(job);
        }
        is_left
    }

    /// Returns what a joiner lacks of the published events; `None` where its job is not watched.
    fn catch_up(&self, joiner: &Joiner, stored: &Job) -> Option<Vec<(Event, Cursor)>> {
        let published = *self.watched.get(&joiner.job)?;
        let after = open(&joiner.job, joiner.after.as_str()).filter(|after| *after <= published)?;
        let mut missing = events_after(&joiner.job, stored, after);
        missing.truncate(published - after);
        Some(missing)
    }
}

#[async_trait]
impl Tail for MemoryTail {
    fn watch(&mut self, job: JobId, after: Cursor) {
        let published = open(&job, after.as_str()).unwrap_or(0);
        self.watched.insert(job, published);
    }

    fn unwatch(&mut self, job: &JobId) {
        self.watched.remove(job);
    }

    async fn woken(&mut self) -> Wakeup {
        self.store.changed.notified().await;
        Wakeup::Notify
    }

    async fn read(&mut self, joining: &[Joiner]) -> Result<News, SourceError> {
        let store = self.store.clone();
        let jobs = store.jobs();
        let mut batch = TailBatch::new(READ);
        let mut more = false;
        for job in self.watched.keys().cloned().collect::<Vec<_>>() {
            if let Some(stored) = jobs.get(&job) {
                more |= self.read_job(&job, stored, &mut batch);
            }
        }
        let missing = |joiner: &Joiner| self.catch_up(joiner, jobs.get(&joiner.job)?);
        let caught_up_joiners = joining.iter().map(missing).collect();
        Ok(News { jobs: batch.into_jobs(), caught_up_joiners, more, ..News::nothing(joining) })
    }
}
