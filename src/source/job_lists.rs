//! The list of jobs, in front of every source: read once for all who ask alike, one at a time, and kept for a moment.
//!
//! A list costs a source about as much for one job as for many, so it is read whole, and each caller gets the beginning
//! that it asked for. There are no more lists than statuses.

use super::{Appended, Change, EventKey, JobSummary, Limit, NewEvent, PageResult, Source, Standing, Tail};
use crate::config;
use crate::cursor::Cursor;
use crate::error::{SourceCode, SourceError};
use crate::event::{JobId, JobStatus};
use crate::single_flight::SingleFlight;
use crate::supervise::Panicked;
use async_trait::async_trait;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Longest list of jobs.
pub const MAX_JOBS: usize = 1000;
/// Least time for which a list is given to all who ask alike.
const MIN_LIFETIME: Duration = Duration::from_secs(1);
/// Longest such time.
const MAX_LIFETIME: Duration = Duration::from_secs(60);
/// A list is kept for so many times as long as it took: reading lists takes a tenth of the store's time, at most.
const REST: u32 = 10;

/// A source whose lists of jobs are shared.
pub struct SharedLists {
    source: Arc<dyn Source>,
    lists: Arc<Lists>,
    /// Lists that are being read, by the status that was asked for and the changes before.
    reading: SingleFlight<(Option<JobStatus>, u64), Result<Jobs, SourceError>>,
}

type Jobs = Arc<[JobSummary]>;

#[derive(Default)]
struct Lists {
    /// The newest list for each status that was asked for.
    by_status: Mutex<HashMap<Option<JobStatus>, List>>,
    /// Number of changes by this process that its lists may not show. A list from before one is not given out after it.
    changes: AtomicU64,
    /// Held by whoever reads a list.
    turn: tokio::sync::Mutex<()>,
}

struct List {
    /// Changes before it was read.
    changes: u64,
    read_at: Instant,
    lifetime: Duration,
    jobs: Result<Jobs, SourceError>,
}

/// Returns the time for which an answer is kept, from the question on. Of errors only that a list takes too long, which the
/// store has worked for; any other may have passed.
fn lifetime(took: Duration, jobs: &Result<Jobs, SourceError>) -> Duration {
    match jobs {
        Err(error) if error.code != SourceCode::TimedOut => Duration::ZERO,
        _ => (took * REST).clamp(MIN_LIFETIME, MAX_LIFETIME),
    }
}

impl Lists {
    /// Returns the list for `status`, if there is one that is fresh and from after so many changes.
    fn fresh(&self, status: Option<JobStatus>, changes: u64) -> Option<Result<Jobs, SourceError>> {
        let lists = self.by_status.lock().unwrap_or_else(PoisonError::into_inner);
        let list = lists.get(&status)?;
        (list.changes == changes && list.read_at.elapsed() < list.lifetime).then(|| list.jobs.clone())
    }

    fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    fn note_change(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// Notes events of a job. A job that is in the list may be some places too low for a moment; a new one may not miss.
    fn note_events(&self, job: &JobId) {
        let fresh = self.fresh(None, self.changes()).and_then(Result::ok);
        if !fresh.is_some_and(|jobs| jobs.iter().any(|one| one.job_id == *job)) {
            self.note_change();
        }
    }

    async fn read(&self, source: &dyn Source, status: Option<JobStatus>, changes: u64) -> Result<Jobs, SourceError> {
        let _turn = self.turn.lock().await;
        let read_at = Instant::now();
        let jobs = source.jobs(status, MAX_JOBS).await.map(Jobs::from);
        let lifetime = lifetime(read_at.elapsed(), &jobs);
        let list = List { changes, read_at, lifetime, jobs: jobs.clone() };
        self.by_status.lock().unwrap_or_else(PoisonError::into_inner).insert(status, list);
        jobs
    }
}

impl SharedLists {
    pub fn new(source: Arc<dyn Source>) -> Arc<Self> {
        Arc::new(Self { source, lists: Arc::default(), reading: SingleFlight::default() })
    }
}

#[async_trait]
impl Source for SharedLists {
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
        self.source.resolve(job, text).await
    }

    async fn newest(&self, job: &JobId) -> Result<Option<Standing>, SourceError> {
        self.source.newest(job).await
    }

    async fn page(&self, job: &JobId, after: &Cursor, limit: Limit) -> Result<PageResult, SourceError> {
        self.source.page(job, after, limit).await
    }

    async fn pages(&self, wanted: &[(JobId, Cursor)], limit: Limit) -> Result<Vec<PageResult>, SourceError> {
        self.source.pages(wanted, limit).await
    }

    async fn before_last(&self, job: &JobId, count: usize) -> Result<Option<Cursor>, SourceError> {
        self.source.before_last(job, count).await
    }

    fn tail(&self) -> Box<dyn Tail> {
        self.source.tail()
    }

    async fn append(&self, job: &JobId, events: Vec<NewEvent>) -> Result<Vec<Appended>, SourceError> {
        let appended = self.source.append(job, events).await;
        self.lists.note_events(job);
        appended
    }

    async fn set_status(&self, job: &JobId, status: JobStatus) -> Result<(), SourceError> {
        let set = self.source.set_status(job, status).await;
        self.lists.note_change();
        set
    }

    async fn job(&self, job: &JobId) -> Result<Option<JobSummary>, SourceError> {
        self.source.job(job).await
    }

    /// Returns at most [`MAX_JOBS`] jobs.
    async fn jobs(&self, status: Option<JobStatus>, limit: usize) -> Result<Vec<JobSummary>, SourceError> {
        let changes = self.lists.changes();
        let jobs = match self.lists.fresh(status, changes) {
            Some(jobs) => jobs?,
            None => {
                let (source, lists) = (self.source.clone(), self.lists.clone());
                let read = || async move { lists.read(&*source, status, changes).await };
                let panicked =
                    |panic: Panicked| Err(SourceError::new(SourceCode::Other, "listing jobs", panic.to_string(), ""));
                self.reading.join("jobs", (status, changes), read, panicked).flight.await?
            }
        };
        Ok(jobs.iter().take(limit).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::join_all;
    use tokio::task::yield_now;

    /// A source of one job, which counts how often it is asked for lists.
    #[derive(Default)]
    struct Counting {
        lists: AtomicU64,
        reading: AtomicU64,
    }

    #[async_trait]
    impl Source for Counting {
        fn kind(&self) -> &'static str {
            "counting"
        }

        fn store(&self) -> String {
            "nowhere".into()
        }

        fn event_key(&self) -> EventKey {
            EventKey::Id
        }

        fn prepare(&self, _: &config::Source) -> Result<Change, SourceError> {
            Ok(Box::new(|| {}))
        }

        fn beginning(&self, _: &JobId) -> Cursor {
            unimplemented!("not used by a list")
        }

        async fn resolve(&self, _: &JobId, _: &str) -> Result<Option<Cursor>, SourceError> {
            unimplemented!("not used by a list")
        }

        async fn newest(&self, _: &JobId) -> Result<Option<Standing>, SourceError> {
            unimplemented!("not used by a list")
        }

        async fn job(&self, _: &JobId) -> Result<Option<JobSummary>, SourceError> {
            unimplemented!("not used by a list")
        }

        async fn page(&self, _: &JobId, _: &Cursor, _: Limit) -> Result<PageResult, SourceError> {
            unimplemented!("not used by a list")
        }

        async fn pages(&self, _: &[(JobId, Cursor)], _: Limit) -> Result<Vec<PageResult>, SourceError> {
            unimplemented!("not used")
        }

        async fn before_last(&self, _: &JobId, _: usize) -> Result<Option<Cursor>, SourceError> {
            unimplemented!("not used")
        }

        fn tail(&self) -> Box<dyn Tail> {
            unimplemented!("not used by a list")
        }

        async fn append(&self, _: &JobId, _: Vec<NewEvent>) -> Result<Vec<Appended>, SourceError> {
            Ok(Vec::new())
        }

        async fn set_status(&self, _: &JobId, _: JobStatus) -> Result<(), SourceError> {
            Ok(())
        }

        async fn jobs(&self, status: Option<JobStatus>, _: usize) -> Result<Vec<JobSummary>, SourceError> {
            self.lists.fetch_add(1, Ordering::SeqCst);
            assert_eq!(self.reading.fetch_add(1, Ordering::SeqCst), 0, "one list at a time");
            yield_now().await;
            self.reading.fetch_sub(1, Ordering::SeqCst);
            Ok(vec![JobSummary { job_id: job("listed"), status, last_event_at: None }; 3])
        }
    }

    fn job(id: &str) -> JobId {
        id.parse().expect("an id")
    }

    #[test]
    fn lists_take_a_tenth_of_the_time_of_a_slow_store_at_most_and_an_outage_is_not_kept() {
        let kept = |seconds, jobs: &_| lifetime(Duration::from_secs(seconds), jobs).as_secs();
        let list = Ok(Jobs::from([]));
        assert_eq!((kept(0, &list), kept(2, &list), kept(30, &list)), (1, 20, 60));
        let failed = |code| Err(SourceError::new(code, "listing jobs", "a test", ""));
        assert_eq!((kept(5, &failed(SourceCode::TimedOut)), kept(5, &failed(SourceCode::Unreachable))), (50, 0));
    }

    #[tokio::test]
    async fn a_list_is_read_once_for_all_who_ask_meanwhile_and_one_at_a_time() {
        let source = Arc::new(Counting::default());
        let lists = SharedLists::new(source.clone());
        let ask = |number: usize| {
            let status = [None, Some(JobStatus::Running)][number % 2];
            lists.jobs(status, number)
        };
        for (number, jobs) in join_all((0..50).map(ask)).await.into_iter().enumerate() {
            assert_eq!(jobs.expect("a list").len(), number.min(3));
        }
        assert_eq!(source.lists.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_list_is_kept_but_not_past_a_change_that_it_does_not_show() {
        let source = Arc::new(Counting::default());
        let lists = SharedLists::new(source.clone());
        let read = || source.lists.load(Ordering::SeqCst);
        for _ in 0..100 {
            lists.jobs(None, 50).await.expect("a list");
            lists.append(&job("listed"), Vec::new()).await.expect("appended");
        }
        assert!(read() < 10, "{} lists", read());
        let before = read();
        lists.append(&job("new"), Vec::new()).await.expect("appended");
        lists.jobs(None, 50).await.expect("a list");
        lists.set_status(&job("listed"), JobStatus::Failed).await.expect("set");
        lists.jobs(None, 50).await.expect("a list");
        assert!(read() >= before + 2, "each change is seen");
    }
}
