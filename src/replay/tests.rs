//! A reader of one job meets its pages and its ring.

use super::*;
use crate::config;
use crate::error::SourceCode;
use crate::event::Event;
use crate::hub::model::{self, cursor, job, number, numbers, topic};
use crate::source::{Appended, Change, EventKey, JobSummary, NewEvent, Page, Tail};
use crate::source::{Limit, PageResult, Source};
use crate::sse::Shape;
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

    fn store(&self) -> String {
        "memory".into()
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
            is_staged: false,
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

    async fn pages(&self, wanted: &[(JobId, Cursor)], limit: Limit) -> Result<Vec<PageResult>, SourceError> {
        crate::source::pages_one_by_one(self, wanted, limit).await
    }

    async fn before_last(&self, _: &JobId, _: usize) -> Result<Option<Cursor>, SourceError> {
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
    let mut replay = Replay::from_beginning(pages.clone(), hub.clone(), topic());
    loop {
        // A step that is not waited for may neither lose nor repeat anything.
        let Some(step) = polled(random.random_range(0..=6), replay.next()).await else { continue };
        let is_live = matches!(step, Step::Live { .. });
        match step {
            Step::Events(segments) => receive(&numbers(&segments), &mut received),
            Step::Reset(_, _, beginning) => received = number(beginning.as_str()),
            Step::Outage(..) => {}
            Step::NoSuchJob => panic!("there is a job"),
            Step::Complete { status, cursor: end, .. } => {
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
            replay = Replay::after(pages.clone(), hub.clone(), topic(), Position::of_job(cursor(received)));
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
        // Of some, only new credentials end the waits.
        let is_patient = seed % 2 == 1;
        let wait = if is_patient { Duration::from_secs(600) } else { Duration::from_micros(10) };
        let pace = config::Pace { poll_interval: wait, retry_initial: wait, retry_max: wait };
        let pages = Pages::new(source.clone(), Shape::Payload, pace, Turns::new(2, 100));
        let readers =
            futures_util::future::join_all((0..READERS).map(|number| {
                read_to_the_end(pages.clone(), hub.clone(), StdRng::seed_from_u64(seed * READERS + number))
            }));
        let everybody_else = async {
            let mut tail = model::Tail::default();
            loop {
                source.written.write(random.random_range(0..=2).min(EVENTS - source.written.written()));
                source.has_ended.store(source.written.written() == EVENTS, Ordering::SeqCst);
                tail.step(&hub, &source.written, &mut random);
                if is_patient {
                    hub.announce_renewal();
                }
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
