//! Pages of history: read once for all who need the same one, and encoded.

use super::Position;
use crate::config;
use crate::cursor::{Cursor, Level};
use crate::error::{SourceCode, SourceError};
use crate::event::{JobId, JobStatus};
use crate::single_flight::{Flight, SingleFlight};
use crate::source::{Limit, Page, PageResult, PagesRoom, Source};
use crate::sse::{ControlEvent, Reset, Segment, Shape};
use crate::supervise::Panicked;
use crate::tail::{self, MAX_SKIPPED, Rests, Round, Turn};
use crate::telemetry;
use crate::topic::Topic;
use crate::traces;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::Instrument;

/// Reads and encodes pages. A request for a page that is being read waits for that read.
pub struct Pages {
    pub(super) source: Arc<dyn Source>,
    shape: Shape,
    /// Gives the waits after failed reads.
    pub(super) pace: config::Pace,
    /// The reads that have not ended, by the topic, the token before the page, and the first job that it is about.
    in_flight: SingleFlight<(Topic, Cursor, usize), PageRead>,
    turns: Turns,
}

/// The line of reads: so many at a time, the others in the order in which they came. A replay has a turn for each page,
/// and so they all get on, and a subscriber that reads slowly has none while it does.
pub struct Turns {
    free: Semaphore,
    waiting: AtomicUsize,
    /// The most that may wait before new subscribers are told to come back later.
    max_waiting: usize,
}

impl Turns {
    pub fn new(at_a_time: usize, max_waiting: usize) -> Self {
        let free = Semaphore::new(at_a_time.min(Semaphore::MAX_PERMITS));
        Self { free, waiting: AtomicUsize::new(0), max_waiting }
    }

    /// Waits for a turn, which ends when it is dropped.
    async fn take(&self) -> Option<SemaphorePermit<'_>> {
        if let Ok(turn) = self.free.try_acquire() {
            return Some(turn);
        }
        let _waiting = Waiting::new(&self.waiting);
        // Never closed.
        self.free.acquire().await.ok()
    }
}

/// One read that waits in line.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) type PageRead = Result<Arc<EncodedPage>, SourceError>;

pub(super) enum EncodedPage {
    Page(Encoded),
    NoSuchJob,
    Lost(Reset),
}

/// Some of the history of a topic.
pub(super) struct Encoded {
    pub segments: Vec<Arc<Segment>>,
    pub end: Position,
    /// Nothing was left of any job after this page.
    pub is_last: bool,
    /// The first job that the next page is to be about.
    pub next: usize,
    pub statuses: Vec<(JobId, JobStatus)>,
    /// The jobs of which nothing more will come, with their status.
    pub over: Vec<(JobId, JobStatus)>,
    /// The jobs of a set that begin again, which the segments say.
    pub resets: Vec<(JobId, Reset)>,
    /// The jobs of a set whose rows could not be read: they stand where they stood.
    pub faults: Vec<(JobId, SourceError)>,
    /// The jobs of a set with events.
    pub moved: Vec<JobId>,
}

/// The number of events of a page.
fn events_of(page: &PageResult) -> usize {
    match page {
        PageResult::Page(page) => page.events.len(),
        PageResult::NoSuchJob | PageResult::Unreadable(_) | PageResult::Lost(_) => 0,
    }
}

impl Pages {
    pub fn new(source: Arc<dyn Source>, shape: Shape, pace: config::Pace, turns: Turns) -> Arc<Self> {
        Arc::new(Self { source, shape, pace, in_flight: SingleFlight::default(), turns })
    }

    /// Tells if so many reads wait in line that no more should come.
    pub fn is_queue_full(&self) -> bool {
        self.turns.waiting.load(Ordering::Relaxed) >= self.turns.max_waiting
    }

    /// Reads a page as its source gives it, for a caller that has no use for it encoded.
    pub async fn plain(&self, job: &JobId, after: &Cursor, limit: Limit) -> Result<PageResult, SourceError> {
        self.timed(self.source.page(job, after, limit), events_of).await
    }

    /// As [`Pages::plain`], for several jobs of a set, in their order, until the limit is reached: see [`Source::pages`]. A job
    /// whose rows cannot be read stops none of the others.
    pub async fn plain_of_set(
        &self,
        topic: &Topic,
        wanted: &[(JobId, Cursor)],
        limit: Limit,
    ) -> Result<Vec<SetPage>, SourceError> {
        let count = |pages: &Vec<PageResult>| pages.iter().map(events_of).sum();
        let (mut results, mut room) = (Vec::new(), PagesRoom::new(limit));
        while let (Some((first, _)), Some(rest)) = (wanted.get(results.len()), room.rest()) {
            let read = self.source.pages(&wanted[results.len()..], rest);
            match self.timed(read, count).await {
                Ok(pages) => {
                    pages.iter().for_each(|page| room.take(page));
                    results.extend(pages.into_iter().map(Ok));
                }
                Err(error) if topic.jobs().len() > 1 && error.is_of_job(first) => {
                    tail::count_error(&error);
                    results.push(Err(error));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(results)
    }

    /// Reads when it is its turn, and tells the metrics and the traces of it. `count` says how many events were read.
    async fn timed<T>(
        &self,
        read: impl Future<Output = Result<T, SourceError>>,
        count: impl FnOnce(&T) -> usize,
    ) -> Result<T, SourceError> {
        let began = Instant::now();
        let _turn = self.turns.take().await;
        let span = traces::history_read();
        let result = read.instrument(span.clone()).await;
        traces::note_read(&span, result.as_ref().map(count).map_err(|error| error.code.as_str()));
        telemetry::HISTORY_READ.histogram().record(began.elapsed());
        result
    }

    /// Reads the page after `after`, or joins a read of the same page. Of a set it is about the jobs from `from` on.
    pub(super) fn read(self: &Arc<Self>, topic: &Topic, after: &Position, from: usize) -> Flight<PageRead> {
        let (pages, wanted, before) = (self.clone(), topic.clone(), after.clone());
        let read = || async move {
            let page = match &wanted {
                Topic::Job(job) => {
                    pages.plain(job, &before.token, Limit::PAGE).await.map(|result| pages.encode(job, result))
                }
                Topic::Set(_) => {
                    let cursors = before.cursors(&wanted);
                    let jobs: Vec<_> = wanted.jobs().iter().cloned().zip(cursors).skip(from).collect();
                    let results = pages.plain_of_set(&wanted, &jobs, Limit::PAGE).await;
                    results.map(|results| pages.encode_set(&wanted, &before, from, results))
                }
            };
            page.map(Arc::new).inspect_err(tail::count_error)
        };
        let panicked = |panic: Panicked| {
            let error = SourceError::new(SourceCode::Other, "reading history", panic.to_string(), "");
            Err(error).inspect_err(tail::count_error)
        };
        self.in_flight.join("page", (topic.clone(), after.token.clone(), from), read, panicked).flight
    }

    fn encode(&self, job: &JobId, result: PageResult) -> EncodedPage {
        match result {
            PageResult::Page(page) => {
                tail::count_unreadable(&page.events);
                let status = page.status.map(|status| (job.clone(), status));
                EncodedPage::Page(Encoded {
                    segments: tail::encode(&page.events, self.shape),
                    end: Position::of_job(page.end),
                    is_last: page.is_last,
                    next: 0,
                    over: status.iter().filter(|_| page.is_complete).cloned().collect(),
                    statuses: status.into_iter().collect(),
                    resets: Vec::new(),
                    faults: Vec::new(),
                    moved: Vec::new(),
                })
            }
            PageResult::NoSuchJob | PageResult::Unreadable(_) => EncodedPage::NoSuchJob,
            PageResult::Lost(reset) => EncodedPage::Lost(reset),
        }
    }

    /// Joins the pages of a set's jobs, in their order. A job that there is not yet is one without events.
    fn encode_set(&self, topic: &Topic, before: &Position, from: usize, results: Vec<SetPage>) -> EncodedPage {
        let is_none = |result: &SetPage| matches!(result, Ok(PageResult::NoSuchJob | PageResult::Unreadable(_)));
        if from == 0 && results.iter().all(is_none) {
            return EncodedPage::NoSuchJob;
        }
        let read = ReadSet::new(self, topic, before, from, results);
        let mut levels = before.levels.to_vec();
        let mut skipped = MAX_SKIPPED;
        let turns: Vec<Turn<'_>> = read.pages.iter().map(turn).collect();
        let round = Round { topic, shape: self.shape, positions: &mut levels, level: None };
        let published = round.publish(&turns, &mut Rests::default(), &mut skipped);
        let mut segments: Vec<Arc<Segment>> = published.into_iter().flat_map(|published| published.events).collect();
        let end = topic.position(levels);
        for (job, reason) in &read.resets {
            let reset = ControlEvent::ResetOf { job: job.clone(), reason: *reason, cursor: end.token.clone() };
            segments.push(Arc::new(Segment::control(&reset, end.token.clone())));
        }
        let next = read.next();
        let with_events = read.pages.iter().filter(|part| !part.page.events.is_empty());
        let moved = with_events.map(|part| topic.jobs()[part.index].clone()).collect();
        let ReadSet { resets, faults, statuses, over, is_last, .. } = read;
        EncodedPage::Page(Encoded { segments, end, is_last, next, statuses, over, resets, faults, moved })
    }
}

/// The page of one job of a set, or the reason why its rows cannot be read.
pub type SetPage = Result<PageResult, SourceError>;

/// One job's part of the pages of a set.
struct JobPage {
    index: usize,
    page: Page,
}

fn turn(part: &JobPage) -> Turn<'_> {
    let end = Some(part.page.end.level());
    Turn { index: part.index, events: &part.page.events, end, status: None, over: None, goes_on: false }
}

/// The pages of a set's jobs, sorted out.
struct ReadSet {
    pages: Vec<JobPage>,
    resets: Vec<(JobId, Reset)>,
    faults: Vec<(JobId, SourceError)>,
    statuses: Vec<(JobId, JobStatus)>,
    over: Vec<(JobId, JobStatus)>,
    is_last: bool,
    from: usize,
    /// The level before the first event of any job.
    beginning: Level,
}

impl ReadSet {
    fn new(pages: &Pages, topic: &Topic, before: &Position, from: usize, results: Vec<SetPage>) -> Self {
        let jobs = topic.jobs();
        let mut read = Self {
            pages: Vec::new(),
            resets: Vec::new(),
            faults: Vec::new(),
            statuses: Vec::new(),
            over: Vec::new(),
            is_last: from + results.len() == jobs.len(),
            from,
            beginning: pages.source.beginning(&jobs[0]).level(),
        };
        for (offset, result) in results.into_iter().enumerate() {
            let index = from + offset;
            let job = &jobs[index];
            let beginning = || pages.source.beginning(job);
            match result {
                Ok(PageResult::Page(page)) => {
                    tail::count_unreadable(&page.events);
                    read.is_last &= page.is_last;
                    read.statuses.extend(page.status.map(|status| (job.clone(), status)));
                    read.over.extend(page.status.filter(|_| page.is_complete).map(|status| (job.clone(), status)));
                    read.pages.push(JobPage { index, page });
                }
                // Its reader goes live, and the tail says what is wrong with it.
                Ok(PageResult::Unreadable(_)) if before.levels[index] == beginning().level() => {
                    read.pages.push(JobPage { index, page: nothing(beginning(), true) });
                }
                Ok(PageResult::NoSuchJob) => {
                    if before.levels[index] != beginning().level() {
                        read.resets.push((job.clone(), Reset::Unknown));
                    }
                    read.pages.push(JobPage { index, page: nothing(beginning(), true) });
                }
                Ok(PageResult::Lost(reset)) => {
                    read.is_last = false;
                    read.resets.push((job.clone(), reset));
                    read.pages.push(JobPage { index, page: nothing(beginning(), false) });
                }
                Ok(PageResult::Unreadable(error)) | Err(error) => {
                    read.faults.push((job.clone(), error));
                    read.pages.push(JobPage { index, page: nothing(before.levels[index].cursor(job), true) });
                }
            }
        }
        read
    }

    /// The first job that the next pages are to be about. Where the source has levels, they are about all jobs: it brings those
    /// behind to the level of the others first, so that cursors stay short. Elsewhere that would only be read again.
    fn next(&self) -> usize {
        let done: Vec<&JobPage> = self.pages.iter().take_while(|part| part.page.is_last).collect();
        let mut ends: Vec<Level> = done.iter().map(|part| part.page.end.level()).collect();
        // A job that has nothing stays at its beginning.
        ends.retain(|end| *end != self.beginning);
        let is_level = self.from == 0 && !ends.is_empty() && ends.windows(2).all(|pair| pair[0] == pair[1]);
        let is_staged = self.pages.iter().any(|part| part.page.is_staged);
        if is_level || is_staged { 0 } else { self.from + done.len() }
    }
}

fn nothing(end: Cursor, is_last: bool) -> Page {
    Page { events: Vec::new(), end, is_last, is_staged: false, status: None, is_complete: false }
}
