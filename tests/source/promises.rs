//! The promises of a source on many jobs at once, tried on random schedules beside plain lists of what was written: pages of
//! several jobs, levels of the tail, and the place before a job's last events.

use jobcast::cursor::Cursor;
use jobcast::event::{Event, JobId};
use jobcast::source::{Limit, Page, PageResult, Source, Tail};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

const JOBS: usize = 7;
const STEPS: usize = 60;
/// The places of a reader who reads its jobs in one order, where the source has levels: two of these, one between them, and the
/// beginning of jobs without events.
const MAX_PLACES: usize = 4;
/// Longer than a poll of any source in these tests.
const POLL: Duration = Duration::from_millis(200);
/// Longer than any wait should ever take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A store to be tried.
pub struct Tried<'a> {
    /// Processes that read it, and each other's cursors.
    pub replicas: &'a [Arc<dyn Source>],
    /// It has one place for all jobs.
    pub has_levels: bool,
    /// Events of which no read gives all.
    pub many: u64,
}

/// The reader of a set of jobs, who comes and goes.
struct Reader<'a, A> {
    store: &'a Tried<'a>,
    /// Appends events to a job, with the ids `e-0`, `e-1` and so on.
    append: &'a A,
    random: StdRng,
    /// The number of events that were written of each job.
    written: BTreeMap<JobId, u64>,
    /// The position of each job, and the ids that were received of it.
    jobs: BTreeMap<JobId, (Cursor, Vec<String>)>,
}

/// The order in which a reader names its jobs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Any,
    /// As a set has them.
    Same,
}

/// Reads one set of jobs in every way, beside writers, and compares. Another one it leaves again and again.
pub async fn keep_on_many_jobs<A: AsyncFn(&JobId, Range<u64>)>(seed: u64, store: &Tried<'_>, append: &A) {
    let mut reader = Reader::new(("set", seed), store, append);
    for _ in 0..STEPS {
        match reader.random.random_range(0..8) {
            0..3 => reader.write().await,
            3..5 => drop(reader.read_pages(Order::Any).await),
            5..7 => timeout(PATIENCE, reader.follow()).await.expect("an event that does not come"),
            _ => reader.look_back().await,
        }
    }
    reader.read_to_end().await;
    reader.has_all();
    let mut leaver = Reader::new(("left", seed), store, append);
    for step in 0..STEPS {
        for _ in 0..leaver.random.random_range(0..4) {
            leaver.write().await;
        }
        leaver.read_pages(Order::Same).await;
        let places = leaver.jobs.values().map(|(at, _)| at.level().inside).collect::<HashSet<_>>().len();
        assert!(!store.has_levels || places <= MAX_PLACES, "{places} places in step {step} of seed {seed}");
    }
    leaver.read_to_end().await;
    leaver.has_all();
}

fn ids(numbers: Range<u64>) -> Vec<String> {
    numbers.map(|number| format!("e-{number}")).collect()
}

impl<'a, A: AsyncFn(&JobId, Range<u64>)> Reader<'a, A> {
    fn new((name, seed): (&str, u64), store: &'a Tried<'a>, append: &'a A) -> Self {
        let job = |number: usize| format!("{name}-{seed}-{number}").parse::<JobId>().expect("an id");
        let jobs: Vec<JobId> = (0..JOBS).map(job).collect();
        let begin = |job: &JobId| (job.clone(), (store.replicas[0].beginning(job), Vec::new()));
        Self {
            store,
            append,
            random: StdRng::seed_from_u64(seed),
            written: jobs.iter().map(|job| (job.clone(), 0)).collect(),
            jobs: jobs.iter().map(begin).collect(),
        }
    }

    fn has_all(&self) {
        for (job, (_, received)) in &self.jobs {
            assert_eq!(received, &ids(0..self.written[job]), "{job:?}");
        }
    }

    fn any_replica(&mut self) -> Arc<dyn Source> {
        self.store.replicas[self.random.random_range(0..self.store.replicas.len())].clone()
    }

    fn any_job(&mut self) -> JobId {
        let chosen = self.random.random_range(0..self.jobs.len());
        self.jobs.keys().nth(chosen).expect("a job").clone()
    }

    async fn write(&mut self) {
        let job = self.any_job();
        let count = if self.random.random_range(0..30) == 0 { self.store.many } else { self.random.random_range(1..5) };
        let first = self.written[&job];
        (self.append)(&job, first..first + count).await;
        self.written.insert(job, first + count);
    }

    fn take(&mut self, job: &JobId, (event, cursor): (Event, Cursor)) {
        let (at, received) = self.jobs.get_mut(job).expect("a job of the set");
        assert_eq!(event.id, format!("e-{}", received.len()), "of {job:?}, after {at}");
        *at = cursor;
        received.push(event.id);
    }

    /// Reads one answer of pages of all jobs, in some order; the reader may leave within it. Returns the jobs whose page was
    /// the last, and those that nobody knows.
    async fn read_pages(&mut self, order: Order) -> HashSet<JobId> {
        let mut wanted: Vec<(JobId, Cursor)> =
            self.jobs.iter().map(|(job, (at, _))| (job.clone(), at.clone())).collect();
        if order == Order::Any {
            wanted.shuffle(&mut self.random);
        }
        let events = if self.random.random() { self.random.random_range(1..20) } else { 2 * self.store.many as usize };
        let limit = Limit { events, bytes: 1 << 24 };
        let source = self.any_replica();
        let results = source.pages(&wanted, limit).await.expect("pages");
        let total = self.judge(&wanted, &results, limit);
        let mut stays =
            if self.random.random_range(0..3) == 0 { self.random.random_range(0..=total) } else { usize::MAX };
        let mut done = HashSet::new();
        for ((job, _), result) in wanted.iter().zip(results) {
            let page = match result {
                PageResult::Page(page) => page,
                PageResult::NoSuchJob => {
                    done.insert(job.clone());
                    continue;
                }
                PageResult::Unreadable(error) => panic!("{job:?} cannot be read: {error}"),
                PageResult::Lost(reset) => panic!("{job:?} was reset: {reset:?}"),
            };
            for event in page.events {
                if stays == 0 {
                    return HashSet::new();
                }
                stays -= 1;
                self.take(job, event);
            }
            self.jobs.get_mut(job).expect("a job of the set").0 = page.end;
            if page.is_last {
                done.insert(job.clone());
            }
        }
        done
    }

    /// Checks an answer's shape, and returns the number of its events.
    fn judge(&self, wanted: &[(JobId, Cursor)], results: &[PageResult], limit: Limit) -> usize {
        let pages: Vec<(&JobId, &Page)> = wanted.iter().zip(results).filter_map(of_page).collect();
        let total = pages.iter().map(|(_, page)| page.events.len()).sum();
        assert!(!results.is_empty() && total <= limit.events, "{total} events in {} results", results.len());
        let cut = pages.iter().position(|(_, page)| !page.is_last && !page.is_staged);
        assert!(cut.is_none_or(|cut| cut + 1 == pages.len()), "only the last page is cut short");
        assert!(results.len() == wanted.len() || cut.is_some() || total == limit.events, "all that fits was read");
        for ((job, _), result) in wanted.iter().zip(results) {
            let is_staged = matches!(result, PageResult::Page(page) if page.is_staged);
            let is_none = matches!(result, PageResult::NoSuchJob);
            assert!(is_staged || is_none == (self.written[job] == 0), "{job:?}");
        }
        let are_staged = pages.iter().any(|(_, page)| page.is_staged);
        assert!(!are_staged || pages.iter().all(|(_, page)| !page.is_last), "all of them are staged");
        let ends = pages.iter().filter(|(_, page)| page.is_last).map(|(_, page)| page.end.level().inside);
        let kinds = ends.collect::<HashSet<_>>().len();
        assert!(!self.store.has_levels || kinds <= 1, "{kinds} ends of pages that were read at one moment");
        total
    }

    async fn read_to_end(&mut self) {
        while self.read_pages(Order::Any).await.len() < self.jobs.len() {}
    }

    /// Reads pages to their end and then follows the tail, which the reader may leave after any event.
    async fn follow(&mut self) {
        self.read_to_end().await;
        let source = self.any_replica();
        let mut tail = source.tail();
        for (job, (at, _)) in self.jobs.iter().filter(|(job, _)| self.written[*job] > 0) {
            tail.watch(job.clone(), at.clone());
        }
        let watched: HashSet<JobId> = self.jobs.keys().filter(|job| self.written[*job] > 0).cloned().collect();
        for _ in 0..self.random.random_range(1..5) {
            self.write().await;
            if !self.follow_to_end(&mut *tail, &watched).await {
                return;
            }
        }
    }

    /// Reads news until it has all that was written of these jobs, or the reader has left. Tells if it has stayed.
    async fn follow_to_end(&mut self, tail: &mut dyn Tail, watched: &HashSet<JobId>) -> bool {
        loop {
            let news = tail.read(&[]).await.expect("news");
            for job in news.jobs {
                assert_eq!(job.end, None, "the watch of {:?}", job.job);
                for event in job.events {
                    if self.random.random_range(0..40) == 0 {
                        return false;
                    }
                    self.take(&job.job, event);
                }
            }
            if let Some(level) = &news.level {
                for job in watched {
                    self.jobs.get_mut(job).expect("a job of the set").0 = level.cursor(job);
                }
            }
            if news.more {
                continue;
            }
            let has_all = watched.iter().all(|job| self.jobs[job].1.len() as u64 == self.written[job]);
            assert!(
                news.level.is_some() || !self.store.has_levels || watched.is_empty(),
                "of what was read to its end"
            );
            if has_all {
                return true;
            }
            // The tail is read as it is run: when it is woken, and at each poll.
            let _ = timeout(POLL, tail.woken()).await;
        }
    }

    /// Compares the place before a job's last events with the list of all.
    async fn look_back(&mut self) {
        let (job, source) = (self.any_job(), self.any_replica());
        let written = self.written[&job];
        let count = self.random.random_range(0..written.min(1000) + 3);
        let found = source.before_last(&job, count as usize).await.expect("an answer");
        assert_eq!(found.is_some(), written > 0, "{job:?}");
        let Some(mut at) = found else { return };
        let mut given = Vec::new();
        loop {
            let limit = Limit { events: 500, bytes: 1 << 20 };
            let PageResult::Page(page) = source.page(&job, &at, limit).await.expect("a page") else {
                panic!("no page")
            };
            given.extend(page.events.into_iter().map(|(event, _)| event.id));
            at = page.end;
            if page.is_last {
                break;
            }
        }
        assert_eq!(given, ids(written.saturating_sub(count)..written), "the last {count} of {job:?}");
    }
}

fn of_page<'a>(((job, _), result): (&'a (JobId, Cursor), &'a PageResult)) -> Option<(&'a JobId, &'a Page)> {
    match result {
        PageResult::Page(page) => Some((job, page)),
        PageResult::NoSuchJob | PageResult::Unreadable(_) | PageResult::Lost(_) => None,
    }
}
