//! Forgiveness, in front of every source: a password is rotated, a table is migrated, and for a while a source that has
//! worked fails in a way that trying again does not help. For `source.forgive` its readers are told to wait; after that,
//! that it has failed. The failure's code stays what it is, for the log, the metrics and `/readyz`.

use super::{
    Appended, Change, EventKey, JobSummary, Joiner, Limit, NewEvent, News, PageResult, Source, Standing, Tail, Wakeup,
};
use crate::config;
use crate::cursor::Cursor;
use crate::error::SourceError;
use crate::event::{JobId, JobStatus};
use async_trait::async_trait;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A source that is forgiven.
pub struct Forgiving {
    source: Arc<dyn Source>,
    trust: Arc<Trust>,
}

impl Forgiving {
    pub fn new(source: Arc<dyn Source>, forgive: Duration) -> Arc<Self> {
        Arc::new(Self { source, trust: Arc::new(Trust::new(forgive)) })
    }
}

/// A kind of work. Each fails and recovers for itself: the tail of a source that nobody watches may read no table at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Work {
    Tail,
    Page,
    Lookup,
    Job,
    List,
    Write,
}

struct Trust {
    forgive: Duration,
    record: Mutex<Record>,
}

#[derive(Default)]
struct Record {
    /// The source has worked since the start.
    has_worked: bool,
    /// The work that fails in a way that trying again does not help.
    failing: HashMap<Work, Failing>,
}

struct Failing {
    since: Instant,
    last: Instant,
}

impl Trust {
    fn new(forgive: Duration) -> Self {
        Self { forgive, record: Mutex::default() }
    }

    /// Passes a result on, and forgives its failure where that is due.
    fn judge<T>(&self, work: Work, result: Result<T, SourceError>) -> Result<T, SourceError> {
        match result {
            Ok(done) => {
                self.note_success(work);
                Ok(done)
            }
            Err(error) => Err(self.judge_failure(work, error, Instant::now())),
        }
    }

    fn note_success(&self, work: Work) {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        record.has_worked = true;
        record.failing.remove(&work);
    }

    fn judge_failure(&self, work: Work, error: SourceError, now: Instant) -> SourceError {
        // A value that the store refuses is no trouble of the store's.
        if error.is_retryable() || error.is_of_value() {
            return error;
        }
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let has_worked = record.has_worked;
        let failing = record.failing.entry(work).or_insert(Failing { since: now, last: now });
        if now.saturating_duration_since(failing.last) > self.forgive {
            // Nobody has asked for so long: this is another incident.
            failing.since = now;
        }
        failing.last = now;
        let is_due = has_worked && now.saturating_duration_since(failing.since) < self.forgive;
        if is_due { error.forgiven() } else { error }
    }
}

#[async_trait]
impl Source for Forgiving {
    fn kind(&self) -> &'static str {
        self.source.kind()
    }

    fn store(&self) -> String {
        self.source.store()
    }

    fn event_key(&self) -> EventKey {
        self.source.event_key()
    }

    fn beginning(&self, job: &JobId) -> Cursor {
        self.source.beginning(job)
    }

    fn prepare(&self, settings: &config::Source) -> Result<Change, SourceError> {
        self.source.prepare(settings)
    }

    async fn resolve(&self, job: &JobId, text: &str) -> Result<Option<Cursor>, SourceError> {
        self.trust.judge(Work::Lookup, self.source.resolve(job, text).await)
    }

    async fn newest(&self, job: &JobId) -> Result<Option<Standing>, SourceError> {
        self.trust.judge(Work::Lookup, self.source.newest(job).await)
    }

    async fn page(&self, job: &JobId, after: &Cursor, limit: Limit) -> Result<PageResult, SourceError> {
        self.trust.judge(Work::Page, self.source.page(job, after, limit).await)
    }

    async fn pages(&self, wanted: &[(JobId, Cursor)], limit: Limit) -> Result<Vec<PageResult>, SourceError> {
        self.trust.judge(Work::Page, self.source.pages(wanted, limit).await)
    }

    async fn before_last(&self, job: &JobId, count: usize) -> Result<Option<Cursor>, SourceError> {
        self.trust.judge(Work::Lookup, self.source.before_last(job, count).await)
    }

    fn tail(&self) -> Box<dyn Tail> {
        Box::new(ForgivingTail { tail: self.source.tail(), trust: self.trust.clone() })
    }

    async fn append(&self, job: &JobId, events: Vec<NewEvent>) -> Result<Vec<Appended>, SourceError> {
        self.trust.judge(Work::Write, self.source.append(job, events).await)
    }

    async fn set_status(&self, job: &JobId, status: JobStatus) -> Result<(), SourceError> {
        self.trust.judge(Work::Write, self.source.set_status(job, status).await)
    }

    async fn job(&self, job: &JobId) -> Result<Option<JobSummary>, SourceError> {
        self.trust.judge(Work::Job, self.source.job(job).await)
    }

    async fn jobs(&self, status: Option<JobStatus>, limit: usize) -> Result<Vec<JobSummary>, SourceError> {
        self.trust.judge(Work::List, self.source.jobs(status, limit).await)
    }
}

struct ForgivingTail {
    tail: Box<dyn Tail>,
    trust: Arc<Trust>,
}

#[async_trait]
impl Tail for ForgivingTail {
    fn watch(&mut self, job: JobId, after: Cursor) {
        self.tail.watch(job, after);
    }

    fn unwatch(&mut self, job: &JobId) {
        self.tail.unwatch(job);
    }

    fn await_jobs(&mut self, jobs: Vec<JobId>) {
        self.tail.await_jobs(jobs);
    }

    async fn woken(&mut self) -> Wakeup {
        self.tail.woken().await
    }

    async fn read(&mut self, joining: &[Joiner]) -> Result<News, SourceError> {
        let mut news = self.tail.read(joining).await;
        if let Ok(News { outage: outage @ Some(_), .. }) = &mut news {
            // A part of the store fails, and the others go on.
            *outage = outage.take().map(|error| self.trust.judge_failure(Work::Tail, error, Instant::now()));
            return news;
        }
        self.trust.judge(Work::Tail, news)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::SourceCode;

    fn error(code: SourceCode) -> SourceError {
        SourceError::new(code, "reading", "no", "mend it")
    }

    #[test]
    fn a_source_that_has_worked_is_forgiven_for_a_while_in_each_incident_and_any_other_is_not() {
        let (trust, start) = (Trust::new(Duration::from_secs(60)), Instant::now());
        let is_forgiven = |work, code, second| {
            let judged = trust.judge_failure(work, error(code), start + Duration::from_secs(second));
            assert_eq!((judged.code, judged.kind_is_retryable()), (code, false), "the kind stays");
            judged.is_retryable()
        };
        assert!(!is_forgiven(Work::Tail, SourceCode::Credentials, 0), "it has never worked");
        trust.note_success(Work::Tail);
        assert!(is_forgiven(Work::Tail, SourceCode::Credentials, 10));
        assert!(is_forgiven(Work::Tail, SourceCode::Schema, 69));
        assert!(!is_forgiven(Work::Tail, SourceCode::Schema, 70));
        assert!(is_forgiven(Work::Page, SourceCode::Schema, 70), "this has just begun to fail");
        trust.note_success(Work::Tail);
        assert!(is_forgiven(Work::Tail, SourceCode::Rights, 71));
        assert!(!is_forgiven(Work::Write, SourceCode::Refused, 72), "a value that is refused stays refused");
        assert!(is_forgiven(Work::Page, SourceCode::Schema, 125));
        assert!(!is_forgiven(Work::Page, SourceCode::Schema, 185));
        assert!(is_forgiven(Work::Page, SourceCode::Schema, 300), "another incident");
        assert!(!Trust::new(Duration::ZERO).judge_failure(Work::Tail, error(SourceCode::Tls), start).is_retryable());
    }
}
