//! The past of a job for one subscriber: pages from the source, until the ring of the job's channel reaches back to the
//! subscriber's cursor. Subscribers that need the same page at the same time share one read.
//!
//! A cursor that a subscriber sends is foreign: it may say that events were received that nobody ever gave out. It is spent
//! here, in page reads, and decides what this subscriber is given. It never gets as far as the hub. A replay goes live at a
//! position of the source's own making, which the end of a last page is, and gives a new ring only pages that begin at one;
//! [`Reached`] keeps the two apart.

use crate::backoff::Backoff;
use crate::config;
use crate::cursor::Cursor;
use crate::error::{SourceCode, SourceError};
use crate::event::{JobId, JobStatus};
use crate::hub::{CaughtUp, Hub, Join, Place, Seed, Subscription};
use crate::single_flight::{Flight, SingleFlight};
use crate::source::{Limit, PageResult, Source, Standing};
use crate::sse::{Reset, Segment, Shape};
use crate::supervise::Panicked;
use crate::tail;
use crate::telemetry;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, SemaphorePermit};

/// The size of a page. It is small, since a subscriber that reads nothing holds one of them.
const PAGE: Limit = Limit { events: 512, bytes: 64 * 1024 };

/// Reads and encodes pages. A request for a page that is being read waits for that read.
pub struct Pages {
    source: Arc<dyn Source>,
    shape: Shape,
    /// Gives the waits after failed reads.
    pace: config::Pace,
    /// The reads that have not ended, by the job and the cursor before the page.
    in_flight: SingleFlight<(JobId, Cursor), PageRead>,
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

type PageRead = Result<Arc<EncodedPage>, SourceError>;

enum EncodedPage {
    /// Some of a job's history, up to `end`. `complete` has the job's status where nothing more will come.
    Page {
        segments: Vec<Arc<Segment>>,
        end: Cursor,
        is_last: bool,
        status: Option<JobStatus>,
        complete: Option<JobStatus>,
    },
    NoSuchJob,
    Lost(Reset),
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
        let began = Instant::now();
        let _turn = self.turns.take().await;
        let page = self.source.page(job, after, limit).await;
        telemetry::HISTORY_READ.histogram().record(began.elapsed());
        page
    }

    /// Reads the page after `after`, or joins a read of the same page.
    fn read(self: &Arc<Self>, job: &JobId, after: &Cursor) -> Flight<PageRead> {
        let (pages, key) = (self.clone(), (job.clone(), after.clone()));
        let read = || async move {
            let page = pages.plain(&key.0, &key.1, PAGE).await.map(|result| Arc::new(pages.encode(result)));
            page.inspect_err(tail::count_error)
        };
        let panicked = |panic: Panicked| {
            let error = SourceError::new(SourceCode::Other, "reading history", panic.to_string(), "");
            Err(error).inspect_err(tail::count_error)
        };
        self.in_flight.join("page", (job.clone(), after.clone()), read, panicked).flight
    }

    fn encode(&self, result: PageResult) -> EncodedPage {
        match result {
            PageResult::Page(page) => EncodedPage::Page {
                segments: tail::encode(&page.events, self.shape),
                end: page.end,
                is_last: page.is_last,
                status: page.status,
                complete: page.status.filter(|_| page.is_complete),
            },
            PageResult::NoSuchJob => EncodedPage::NoSuchJob,
            PageResult::Lost(reset) => EncodedPage::Lost(reset),
        }
    }
}

/// One reader on its way to being live.
pub struct Replay {
    pages: Arc<Pages>,
    hub: Hub,
    job: JobId,
    reached: Reached,
    phase: Phase,
    /// The last page that held events, if it began at a position of the source's own. If this reader creates the job's
    /// channel, the ring begins with it.
    seed: Option<Seed>,
    /// The job's status, as a page or the channel had it last.
    status: Option<JobStatus>,
    /// The status that the reader has been told.
    told: Option<JobStatus>,
    /// The source was asked, since the ring did not reach back to the reader.
    has_read: bool,
    /// The reset that the reader was told last.
    last_reset: Option<Reset>,
}

/// The position after everything that a reader got so far, by its lineage.
enum Reached {
    /// The source made it from what it saw itself: the beginning, the end of a last page, or what descends from these.
    Own(Cursor),
    /// It descends from what the reader sent, and may lie.
    Sent(Cursor),
}

impl Reached {
    fn cursor(&self) -> &Cursor {
        match self {
            Self::Own(cursor) | Self::Sent(cursor) => cursor,
        }
    }

    /// Moves on by a page, and returns the position before it if that was the source's own.
    fn advance(&mut self, end: Cursor, is_last: bool) -> Option<Cursor> {
        let next = match self {
            Self::Sent(_) if !is_last => Self::Sent(end),
            Self::Own(_) | Self::Sent(_) => Self::Own(end),
        };
        match std::mem::replace(self, next) {
            Self::Own(before) => Some(before),
            Self::Sent(_) => None,
        }
    }
}

/// The progress of a replay.
enum Phase {
    /// There may be more in the source.
    Reading,
    /// The source does not answer. The next attempt comes after this wait.
    Waiting { backoff: Backoff, wait: Duration },
    /// History is trimmed faster than the reader takes it, again: it goes on at the newest event, rather than be told of
    /// one loss after the other.
    Overrun,
    /// The source had nothing after the cursor, a moment ago: the reader goes live.
    CaughtUp,
    /// The job has ended, and the reader got all of its events.
    Complete(JobStatus),
}

/// One step of a replay.
pub enum Step {
    /// Events of the past.
    Events(Vec<Arc<Segment>>),
    /// The last step: after `missing`, everything is in the ring from `place` on. `cursor` is the position there. `status`
    /// is the job's, where the reader has not been told it.
    Live {
        missing: Vec<Arc<Segment>>,
        status: Option<JobStatus>,
        subscription: Subscription,
        place: Place,
        cursor: Cursor,
    },
    /// The job has ended, and the reader got all of its events.
    Complete(JobStatus, Cursor),
    /// The source cannot go on from the reader's cursor. The next steps give all there is, from the beginning.
    Reset(Reset, Cursor),
    NoSuchJob,
    /// The source does not answer. Given once for each outage; the next step comes when it answers again.
    Outage(SourceError, Duration),
}

impl Replay {
    /// A replay of the job's whole history.
    pub fn from_beginning(pages: Arc<Pages>, hub: Hub, job: JobId) -> Self {
        let reached = Reached::Own(pages.source.beginning(&job));
        let phase = Phase::Reading;
        Self {
            pages,
            hub,
            job,
            reached,
            phase,
            seed: None,
            status: None,
            told: None,
            has_read: false,
            last_reset: None,
        }
    }

    /// A replay of everything after `cursor`, which may be foreign.
    pub fn after(pages: Arc<Pages>, hub: Hub, job: JobId, cursor: Cursor) -> Self {
        Self { reached: Reached::Sent(cursor), ..Self::from_beginning(pages, hub, job) }
    }

    /// A replay of nothing but what comes from now on. `newest` is the job's newest position, as the source gave it just
    /// now.
    pub fn from_newest(pages: Arc<Pages>, hub: Hub, job: JobId, newest: Standing) -> Self {
        let Standing { cursor, status } = newest;
        // A page tells whether the end of a job with a final status is long ago.
        let may_be_over = status.is_some_and(JobStatus::is_final);
        let phase = if may_be_over { Phase::Reading } else { Phase::CaughtUp };
        Self { reached: Reached::Own(cursor), phase, status, ..Self::from_beginning(pages, hub, job) }
    }

    /// Notes the status that the reader has been told already.
    pub fn told(self, status: Option<JobStatus>) -> Self {
        Self { told: status, ..self }
    }

    /// Returns the job's status, if it is known and the reader has not been told it. From then on the reader has.
    pub fn untold_status(&mut self) -> Option<JobStatus> {
        let untold = self.status.filter(|status| self.told != Some(*status))?;
        self.told = Some(untold);
        Some(untold)
    }

    pub fn job(&self) -> &JobId {
        &self.job
    }

    /// The position after everything that the reader got so far.
    pub fn cursor(&self) -> &Cursor {
        self.reached.cursor()
    }

    /// True if the source was asked; false if the ring reached back to the reader from the start.
    pub fn has_read(&self) -> bool {
        self.has_read
    }

    /// Returns the next step. It may be dropped at any time, and called again, without losing or repeating anything.
    pub async fn next(&mut self) -> Step {
        loop {
            if let Phase::Complete(status) = self.phase {
                return Step::Complete(status, self.cursor().clone());
            }
            if let Some((subscription, place)) = self.hub.join(&self.job, self.reached.cursor()) {
                return self.live(CaughtUp { missing: Vec::new(), subscription, place });
            }
            match &self.phase {
                Phase::CaughtUp => {
                    if let Some(caught_up) = self.join_or_create().await {
                        return self.live(caught_up);
                    }
                    self.phase = Phase::Reading;
                }
                Phase::Waiting { wait, .. } => tokio::time::sleep(*wait).await,
                Phase::Overrun => match self.pages.source.newest(&self.job).await {
                    Ok(Some(newest)) => return self.reset(Reset::Trimmed, newest.cursor),
                    Ok(None) => return Step::NoSuchJob,
                    // Reading goes on, and says so.
                    Err(_) => self.phase = Phase::Reading,
                },
                Phase::Reading | Phase::Complete(_) => {}
            }
            self.has_read = true;
            let read = self.pages.read(&self.job, self.reached.cursor()).await;
            if let Some(step) = self.take_page(read) {
                return step;
            }
        }
    }

    /// Makes a reader live that has caught up with the source, and so stands at a position of its making. None if the channel
    /// ended, or the tail gave up, before the reader was caught up with the channel: then it must read on.
    async fn join_or_create(&mut self) -> Option<CaughtUp> {
        let Reached::Own(cursor) = &self.reached else { return None };
        match self.hub.join_or_create(&self.job, cursor, self.seed.take(), self.status) {
            Join::CaughtUp(caught_up) => Some(caught_up),
            Join::Wait(answer) => answer.await.ok(),
        }
    }

    /// Moves on by a page; None if that gives the reader nothing.
    fn take_page(&mut self, read: Result<Arc<EncodedPage>, SourceError>) -> Option<Step> {
        match read.as_deref() {
            Ok(EncodedPage::Page { segments, end, is_last, status, complete }) => {
                // While the job is live, all who watch it are told the same, in the same order.
                self.status = self.hub.status(&self.job).or(*status);
                self.phase = match complete {
                    Some(status) => Phase::Complete(*status),
                    None if *is_last => Phase::CaughtUp,
                    None => Phase::Reading,
                };
                let base = self.reached.advance(end.clone(), *is_last);
                if segments.is_empty() {
                    return None;
                }
                self.seed = base.map(|base| Seed { base, segments: segments.clone() });
                Some(Step::Events(segments.clone()))
            }
            Ok(EncodedPage::NoSuchJob) => Some(Step::NoSuchJob),
            Ok(EncodedPage::Lost(Reset::Trimmed)) if self.last_reset == Some(Reset::Trimmed) => {
                self.phase = Phase::Overrun;
                None
            }
            Ok(EncodedPage::Lost(reset)) => Some(self.reset(*reset, self.pages.source.beginning(&self.job))),
            Err(error) => {
                let (is_first, mut backoff) = match std::mem::replace(&mut self.phase, Phase::Reading) {
                    Phase::Waiting { backoff, .. } => (false, backoff),
                    _ => (true, Backoff::new(self.pages.pace.retry_initial, self.pages.pace.retry_max)),
                };
                let wait = backoff.failed();
                self.phase = Phase::Waiting { backoff, wait };
                is_first.then(|| Step::Outage(error.clone(), wait))
            }
        }
    }

    /// Goes on at `cursor`, a position of the source's own.
    fn reset(&mut self, reset: Reset, cursor: Cursor) -> Step {
        (self.phase, self.seed, self.last_reset) = (Phase::Reading, None, Some(reset));
        self.reached = Reached::Own(cursor.clone());
        Step::Reset(reset, cursor)
    }

    fn live(&mut self, caught_up: CaughtUp) -> Step {
        let CaughtUp { missing, subscription, place } = caught_up;
        if let Some(last) = missing.last() {
            self.reached = Reached::Own(last.end());
        }
        self.status = subscription.channel().status().or(self.status);
        let status = self.untold_status();
        Step::Live { missing, status, subscription, place, cursor: self.cursor().clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use crate::hub::model::{self, cursor, job, number, numbers};
    use crate::source::{Appended, Change, EventKey, JobSummary, NewEvent, Page, Tail};
    use async_trait::async_trait;
    use bytesize::ByteSize;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::task::yield_now;

    const EVENTS: u32 = 120;
    const READERS: u64 = 3;

    /// A source in memory. Its pages come late, fail, or are lost, as the seed wills.
    struct Memory {
        written: model::Source,
        has_ended: AtomicBool,
        random: Mutex<StdRng>,
    }

    impl Memory {
        fn random(&self, range: std::ops::RangeInclusive<u32>) -> u32 {
            self.random.lock().expect("lock").random_range(range)
        }

        fn event(number: u32) -> (Event, Cursor) {
            (Event::sample(job(), number.to_string()), cursor(number))
        }
    }

    #[async_trait]
    impl Source for Memory {
        fn kind(&self) -> &'static str {
            "memory"
        }

        fn event_key(&self) -> EventKey {
            EventKey::Id
        }

        fn prepare(&self, _: &crate::config::Source) -> Result<Change, SourceError> {
            Ok(Box::new(|| {}))
        }

        fn beginning(&self, _: &JobId) -> Cursor {
            cursor(0)
        }

        async fn page(&self, _: &JobId, after: &Cursor, _: Limit) -> Result<PageResult, SourceError> {
            let after = number(after.as_str());
            for _ in 0..self.random(0..=2) {
                yield_now().await;
            }
            match self.random(0..=29) {
                0 => {
                    let (code, help) = (SourceCode::Busy, "wait");
                    return Err(SourceError::new(code, "reading", "a seed", help));
                }
                1 => return Ok(PageResult::Lost(Reset::Rewound)),
                _ => {}
            }
            let (has_ended, written) = (self.has_ended.load(Ordering::SeqCst), self.written.written());
            let end = (after + self.random(1..=40)).min(written);
            for _ in 0..self.random(0..=2) {
                yield_now().await;
            }
            Ok(PageResult::Page(Page {
                events: (after + 1..=end).map(Self::event).collect(),
                end: cursor(end),
                is_last: end == written,
                status: Some(if has_ended { JobStatus::Completed } else { JobStatus::Running }),
                is_complete: has_ended && end == written,
            }))
        }

        async fn resolve(&self, _: &JobId, _: &str) -> Result<Option<Cursor>, SourceError> {
            unimplemented!("not used by a replay")
        }

        async fn newest(&self, _: &JobId) -> Result<Option<Standing>, SourceError> {
            unimplemented!("not used by a replay")
        }

        fn tail(&self) -> Box<dyn Tail> {
            unimplemented!("not used by a replay")
        }

        async fn append(&self, _: &JobId, _: Vec<NewEvent>) -> Result<Vec<Appended>, SourceError> {
            unimplemented!("not used by a replay")
        }

        async fn set_status(&self, _: &JobId, _: JobStatus) -> Result<(), SourceError> {
            unimplemented!("not used by a replay")
        }

        async fn job(&self, _: &JobId) -> Result<Option<JobSummary>, SourceError> {
            unimplemented!("not used by a replay")
        }

        async fn jobs(&self, _: Option<JobStatus>, _: usize) -> Result<Vec<JobSummary>, SourceError> {
            unimplemented!("not used by a replay")
        }
    }

    /// Polls a future so many times more, and gives up on it then.
    async fn polled<T>(times: u32, future: impl Future<Output = T>) -> Option<T> {
        let patience = async {
            for _ in 0..times {
                yield_now().await;
            }
        };
        tokio::select! {
            biased;
            output = future => Some(output),
            () = patience => None,
        }
    }

    /// Follows the job to its end, through lost connections, and checks each event.
    async fn read_to_the_end(pages: Arc<Pages>, hub: Hub, mut random: StdRng) {
        let mut received = 0;
        let receive = |events: &[u32], received: &mut u32| {
            for number in events {
                assert_eq!(*number, *received + 1, "an event is lost or repeated");
                *received = *number;
            }
        };
        let mut replay = Replay::from_beginning(pages.clone(), hub.clone(), job());
        loop {
            // A step that is not waited for may neither lose nor repeat anything.
            let Some(step) = polled(random.random_range(0..=6), replay.next()).await else { continue };
            let is_live = matches!(step, Step::Live { .. });
            match step {
                Step::Events(segments) => receive(&numbers(&segments), &mut received),
                Step::Reset(_, beginning) => received = number(beginning.as_str()),
                Step::Outage(..) => {}
                Step::NoSuchJob => panic!("there is a job"),
                Step::Complete(status, end) => {
                    assert_eq!((status, received, end), (JobStatus::Completed, EVENTS, cursor(EVENTS)));
                    return;
                }
                Step::Live { missing, subscription, mut place, cursor: reached, .. } => {
                    receive(&numbers(&missing), &mut received);
                    assert_eq!(reached, cursor(received));
                    for _ in 0..random.random_range(0..20) {
                        let Ok(unread) = subscription.channel().read_from(place) else { break };
                        receive(&numbers(&unread.run.segments)[unread.run.skip..], &mut received);
                        place = unread.end;
                        yield_now().await;
                    }
                }
            }
            // Its connection is lost, or the ring has overtaken it: it comes back with its cursor.
            if is_live || random.random_bool(0.1) {
                replay = Replay::after(pages.clone(), hub.clone(), job(), cursor(received));
            }
        }
    }

    #[test]
    fn a_reader_gets_every_event_once_through_pages_rings_outages_and_lost_connections() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        for seed in 0..60 {
            let bytes = ByteSize::mib(1);
            let limits = config::Hub {
                ring_events: 9,
                ring_bytes: bytes,
                total_bytes: bytes,
                linger: Duration::ZERO,
                max_jobs: 100,
            };
            let (hub, mut random) = (Hub::new(limits), StdRng::seed_from_u64(seed));
            let source = Arc::new(Memory {
                written: model::Source::default(),
                has_ended: AtomicBool::new(false),
                random: Mutex::new(StdRng::seed_from_u64(seed + 1)),
            });
            let wait = Duration::from_micros(10);
            let pace = config::Pace { poll_interval: wait, retry_initial: wait, retry_max: wait };
            let pages = Pages::new(source.clone(), Shape::Payload, pace, Turns::new(2, 100));
            let readers = futures_util::future::join_all((0..READERS).map(|number| {
                read_to_the_end(pages.clone(), hub.clone(), StdRng::seed_from_u64(seed * READERS + number))
            }));
            let everybody_else = async {
                let mut tail = model::Tail::default();
                loop {
                    source.written.write(random.random_range(0..=2).min(EVENTS - source.written.written()));
                    source.has_ended.store(source.written.written() == EVENTS, Ordering::SeqCst);
                    tail.step(&hub, &source.written, &mut random);
                    yield_now().await;
                }
            };
            let finished = runtime.block_on(async {
                let race = async {
                    tokio::select! {
                        _ = readers => {}
                        () = everybody_else => {}
                    }
                };
                tokio::time::timeout(Duration::from_secs(60), race).await
            });
            assert!(finished.is_ok(), "seed {seed}: a reader waits for an event that does not come");
        }
    }
}
