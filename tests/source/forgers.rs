//! Half of the readers of a job lie about where they were, in every way in which a position can. The honest ones beside them
//! lose nothing, repeat nothing and are never reset, through the real hub, tail and replay.

use super::job;
use super::memory::Memory;
use super::position::Position;
use jobcast::config;
use jobcast::event::{JobStatus, Payload};
use jobcast::hub::{Hub, Listening, Overtaken};
use jobcast::replay::{self, Pages, Replay, Step, Turns};
use jobcast::shutdown::Shutdown;
use jobcast::source::{NewEvent, Source};
use jobcast::sse::{JobEnd, Segment, Shape};
use jobcast::tail;
use jobcast::topic::Topic;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::yield_now;

/// Worlds, each with an order of steps of its own.
const SEEDS: u64 = 150;
const SLOTS: usize = 120;
const HONEST: u64 = 2;
const FORGERS: u64 = 2;
/// Slots that are reserved at a time: transactions that are open.
const MAX_RESERVED: usize = 5;
/// Much longer than one world takes, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone)]
struct World {
    store: Memory,
    hub: Hub,
    pages: Arc<Pages>,
    slots: Arc<AtomicUsize>,
}

/// The reason why a reader stopped following.
#[derive(Debug, PartialEq, Eq)]
enum Stopped {
    /// It has got all that it stays for.
    Left,
    Complete,
    Reset,
}

fn event(slot: usize) -> NewEvent {
    NewEvent {
        id: format!("e-{slot}"),
        step_id: None,
        kind: "x".into(),
        timestamp: jiff::Timestamp::now(),
        actor: None,
        payload: Payload::from_text(slot.to_string()),
    }
}

/// The slots and the cursors of a segment's events; a status has none.
fn read(segment: &Segment) -> impl Iterator<Item = (usize, String)> {
    (0..segment.len()).filter_map(|index| {
        let text = String::from_utf8(segment.event(index).to_vec()).expect("UTF-8");
        if text.starts_with("event: stream.status") {
            return None;
        }
        let slot = text.split("data: ").nth(1).and_then(|data| data.trim().parse().ok()).expect("a number");
        Some((slot, segment.cursor(index).to_string()))
    })
}

impl World {
    fn new() -> Self {
        let store = Memory::default();
        let wait = Duration::from_millis(1);
        let pace = config::Pace { poll_interval: wait, retry_initial: wait, retry_max: wait };
        let limits = config::Hub { ring_events: 9, linger: Duration::ZERO, ..config::Hub::default() };
        let pages = Pages::new(Arc::new(store.clone()), Shape::Payload, pace, Turns::new(2, 100));
        Self { store, hub: Hub::new(limits), pages, slots: Arc::default() }
    }

    async fn replay(&self, token: Option<&str>) -> Replay {
        let (pages, hub) = (self.pages.clone(), self.hub.clone());
        let Some(token) = token else { return Replay::from_beginning(pages, hub, Topic::Job(job())) };
        let cursor = self.store.resolve(&job(), token).await.expect("memory does not fail");
        Replay::after(pages, hub, Topic::Job(job()), replay::Position::of_job(cursor.expect("a cursor")))
    }

    /// Follows a replay and then the ring for so many steps, and returns why it stopped.
    async fn follow(&self, mut replay: Replay, mut stays: usize, mut receive: impl FnMut(usize, String)) -> Stopped {
        let mut take = |segment: &Segment, skip| read(segment).skip(skip).for_each(|(slot, at)| receive(slot, at));
        while stays > 0 {
            yield_now().await;
            stays -= 1;
            match replay.next().await {
                Step::Events(segments) => segments.iter().for_each(|segment| take(segment, 0)),
                Step::Complete { .. } => return Stopped::Complete,
                Step::Reset(..) => return Stopped::Reset,
                Step::NoSuchJob | Step::Outage(..) => panic!("the job is there, and memory does not fail"),
                Step::Live { missing, subscription, mut place, .. } => {
                    missing.iter().for_each(|segment| take(segment, 0));
                    let listening = Listening::new(&self.hub, subscription);
                    while stays > 0 {
                        stays -= 1;
                        let unread = match listening.channel().read_from(place) {
                            Ok(unread) => unread,
                            Err(Overtaken) => return Stopped::Left,
                        };
                        let skips = std::iter::once(unread.run.skip).chain(std::iter::repeat(0));
                        unread.run.segments.iter().zip(skips).for_each(|(segment, skip)| take(segment, skip));
                        place = unread.end;
                        match unread.ended.map(|ended| ended.end) {
                            Some(JobEnd::Complete(_)) => return Stopped::Complete,
                            Some(JobEnd::Lost(_)) => return Stopped::Reset,
                            None if unread.run.is_empty() => listening.changed().await,
                            None => yield_now().await,
                        }
                    }
                }
            }
        }
        Stopped::Left
    }

    /// Reads the whole job, coming and going, and returns how often it was given each slot.
    async fn read_honestly(self, mut random: StdRng) {
        let (mut seen, mut last) = (BTreeSet::new(), None);
        loop {
            let replay = self.replay(last.as_deref()).await;
            let stopped = self
                .follow(replay, random.random_range(1..12), |slot, cursor| {
                    assert!(seen.insert(slot), "event {slot} came twice");
                    last = Some(cursor);
                })
                .await;
            match stopped {
                Stopped::Left => {}
                Stopped::Complete => break,
                Stopped::Reset => panic!("an honest reader was reset after {last:?}"),
            }
        }
        assert_eq!(seen, (0..SLOTS).collect(), "events were lost");
    }

    /// Comes with one position after the other that nobody gave it.
    async fn lie(self, mut random: StdRng) {
        loop {
            let slots = self.slots.load(Ordering::SeqCst);
            let below = match random.random_range(0..3) {
                0 => slots,
                1 => random.random_range(0..=slots),
                _ => random.random_range(0..=slots + 4),
            };
            let denied = random.random_range(0..=4);
            let but: Vec<usize> = (0..denied).map(|_| random.random_range(0..=below)).collect();
            let cursor = Position::forged(below, but).seal(&job());
            let replay = self.replay(Some(cursor.as_str())).await;
            self.follow(replay, random.random_range(1..12), |_, _| {}).await;
            yield_now().await;
        }
    }

    /// Fills the job, some slots later than those after them, and ends it.
    async fn write(&self, mut random: StdRng) {
        let mut reserved = Vec::new();
        while self.slots.load(Ordering::SeqCst) < SLOTS {
            match random.random_range(0..4) {
                0 if reserved.len() < MAX_RESERVED => {
                    reserved.push(self.store.reserve(&job()));
                    self.slots.fetch_add(1, Ordering::SeqCst);
                }
                1 if !reserved.is_empty() => {
                    let slot = reserved.swap_remove(random.random_range(0..reserved.len()));
                    self.store.fill(&job(), slot, event(slot));
                }
                _ => {
                    let slot = self.slots.fetch_add(1, Ordering::SeqCst);
                    self.store.append(&job(), vec![event(slot)]).await.expect("appended");
                }
            }
            for _ in 0..random.random_range(0..8) {
                yield_now().await;
            }
        }
        for slot in reserved {
            self.store.fill(&job(), slot, event(slot));
        }
        self.store.set_status(&job(), JobStatus::Completed).await.expect("a status");
    }
}

#[test]
fn honest_readers_lose_and_repeat_nothing_beside_readers_whose_every_position_is_a_lie() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    for seed in 0..SEEDS {
        let random = |number: u64| StdRng::seed_from_u64(seed * 100 + number);
        let (world, shutdown) = (World::new(), Shutdown::default());
        let wait = Duration::from_millis(1);
        let pace = config::Pace { poll_interval: wait, retry_initial: wait, retry_max: wait };
        let source = Arc::new(world.store.clone());
        runtime.block_on(async {
            world.store.append(&job(), Vec::new()).await.expect("a job");
            let tail =
                tail::run(source, world.hub.clone(), pace, Shape::Payload, shutdown.watch(), tail::Progress::default());
            let liars = (0..FORGERS).map(|number| world.clone().lie(random(number)));
            let honest = (0..HONEST).map(|number| world.clone().read_honestly(random(10 + number)));
            let done = async {
                tokio::join!(world.write(random(20)), futures_util::future::join_all(honest));
            };
            tokio::select! {
                () = done => {}
                () = tail => panic!("the tail ended"),
                _ = futures_util::future::join_all(liars) => {}
                () = tokio::time::sleep(PATIENCE) => panic!("seed {seed}: an event that does not come"),
            }
        });
    }
}

#[tokio::test]
async fn a_ring_never_begins_with_a_page_that_was_read_from_a_readers_own_position() {
    let (world, shutdown, wait) = (World::new(), Shutdown::default(), Duration::from_millis(1));
    let pace = config::Pace { poll_interval: wait, retry_initial: wait, retry_max: wait };
    let source = Arc::new(world.store.clone());
    let tail = tokio::spawn(tail::run(
        source,
        world.hub.clone(),
        pace,
        Shape::Payload,
        shutdown.watch(),
        tail::Progress::default(),
    ));
    for slot in 0..5 {
        match slot {
            2 => assert_eq!(world.store.reserve(&job()), slot),
            _ => drop(world.store.append(&job(), vec![event(slot)]).await.expect("appended")),
        }
    }
    // A lie now, which comes true: slot 2 is not there yet.
    let token = Position::forged(4, []).seal(&job());
    let mut liar = world.replay(Some(token.as_str())).await;
    let _live = loop {
        if let Step::Live { subscription, .. } = liar.next().await {
            break subscription;
        }
    };
    world.store.fill(&job(), 2, event(2));
    let mut seen = Vec::new();
    let honest = world.replay(Some(token.as_str())).await;
    let end = async {
        for _ in 0..50 {
            yield_now().await;
        }
        world.store.append(&job(), vec![event(5)]).await.expect("appended");
        world.store.set_status(&job(), JobStatus::Completed).await.expect("a status");
    };
    let (stopped, ()) = tokio::join!(world.follow(honest, 100, |slot, _| seen.push(slot)), end);
    assert_eq!((stopped, seen), (Stopped::Complete, vec![4, 5]), "slot 2 was received before");
    tail.abort();
}
