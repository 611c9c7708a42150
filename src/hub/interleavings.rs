//! Tests of the hub's protocol: readers join, lag, leave and come back while the tail publishes, sweeps and ends channels.
//! Each reader must get every event exactly once, in order. A seed decides what everybody does, and, where one thread plays
//! all of them, in which order.

use super::model::{Source, Tail, cursor, numbers, segments, topic};
use super::{CaughtUp, Hub, Join, Place, Seed, Standpoint, Subscription};
use crate::config;
use bytesize::ByteSize;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::oneshot::{Receiver, error::TryRecvError};

const EVENTS: u32 = 200;
const READERS: u64 = 4;

fn hub() -> Hub {
    let bytes = ByteSize::mib(1);
    Hub::new(config::Hub {
        ring_events: 9,
        ring_bytes: bytes,
        total_bytes: bytes,
        linger: Duration::ZERO,
        max_jobs: 100,
    })
}

/// A subscriber, from its first page of history to the ring.
struct Reader {
    random: StdRng,
    /// Loses its connection now and then. One that does not must learn from the channel alone that it has to read pages.
    is_flapping: bool,
    /// The events up to this one were received.
    received: u32,
    state: State,
}

enum State {
    Reading,
    Waiting(Receiver<CaughtUp>),
    Live { subscription: Subscription, place: Place },
}

impl Reader {
    fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            is_flapping: seed.is_multiple_of(2),
            received: 0,
            state: State::Reading,
        }
    }

    fn receive(&mut self, events: &[u32]) {
        for number in events {
            assert_eq!(*number, self.received + 1, "an event is lost or repeated");
            self.received = *number;
        }
    }

    fn go_live(&mut self, caught_up: CaughtUp) {
        self.receive(&numbers(&caught_up.missing));
        self.state = State::Live { subscription: caught_up.subscription, place: caught_up.place };
    }

    fn step(&mut self, hub: &Hub, source: &Source) {
        match std::mem::replace(&mut self.state, State::Reading) {
            State::Reading => self.read_page(hub, source),
            State::Waiting(mut answer) => match answer.try_recv() {
                Ok(caught_up) => self.go_live(caught_up),
                Err(TryRecvError::Empty) => self.state = State::Waiting(answer),
                Err(TryRecvError::Closed) => {}
            },
            // Its connection is lost: it comes back with its cursor.
            State::Live { .. } if self.is_flapping && self.random.random_bool(0.05) => {}
            State::Live { subscription, place } => {
                // Overtaken, it reads pages again.
                let Ok(unread) = subscription.channel().read_from(place) else { return };
                let events = numbers(&unread.run.segments);
                self.receive(&events[unread.run.skip..]);
                if unread.ended.is_none() {
                    self.state = State::Live { subscription, place: unread.end };
                }
            }
        }
    }

    fn read_page(&mut self, hub: &Hub, source: &Source) {
        if let Some((subscription, place)) = hub.join(&topic(), &cursor(self.received)) {
            self.state = State::Live { subscription, place };
            return;
        }
        let written = source.written();
        let (before, until) = (self.received, self.random.random_range(self.received..=written));
        self.received = until;
        if until < written {
            return;
        }
        let page = || Seed { base: cursor(before), segments: segments(before, until) };
        let seed = self.random.random_bool(0.5).then(page);
        match hub.join_or_create(&topic(), &Standpoint::of_job(cursor(until)), seed, Vec::new()) {
            Join::CaughtUp(caught_up) => self.go_live(caught_up),
            Join::Wait(answer) => self.state = State::Waiting(answer),
        }
    }
}

#[test]
fn every_reader_gets_every_event_once_whatever_the_order_of_steps() {
    for seed in 0..300 {
        let (hub, source, mut tail) = (hub(), Source::default(), Tail::default());
        let mut random = StdRng::seed_from_u64(seed);
        let mut readers: Vec<Reader> = (0..READERS).map(|number| Reader::new(seed * READERS + number)).collect();
        let mut steps = 0;
        while readers.iter().any(|reader| reader.received < EVENTS) {
            steps += 1;
            assert!(steps < 100_000, "seed {seed}: a reader waits for an event that does not come");
            match random.random_range(0..4) {
                0 => source.write(random.random_range(0..=4).min(EVENTS - source.written())),
                1 => tail.step(&hub, &source, &mut random),
                _ => {
                    let reader = random.random_range(0..READERS) as usize;
                    readers[reader].step(&hub, &source);
                }
            }
        }
    }
}

#[test]
fn every_reader_gets_every_event_once_while_the_tail_runs_on_another_thread() {
    let most = Duration::from_secs(60);
    for seed in 0..8 {
        let (hub, source) = (hub(), Source::default());
        let (is_done, began) = (AtomicBool::new(false), Instant::now());
        std::thread::scope(|scope| {
            let tail = scope.spawn(|| {
                let (mut tail, mut random) = (Tail::default(), StdRng::seed_from_u64(seed));
                while !is_done.load(Ordering::Relaxed) {
                    source.write(random.random_range(0..=2).min(EVENTS - source.written()));
                    tail.step(&hub, &source, &mut random);
                    std::thread::yield_now();
                }
            });
            let readers: Vec<_> = (0..READERS)
                .map(|number| {
                    let (hub, source) = (&hub, &source);
                    scope.spawn(move || {
                        let mut reader = Reader::new(seed * READERS + number);
                        while reader.received < EVENTS {
                            assert!(
                                began.elapsed() < most,
                                "seed {seed}: a reader waits for an event that does not come"
                            );
                            reader.step(hub, source);
                            std::thread::yield_now();
                        }
                    })
                })
                .collect();
            let results: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
            is_done.store(true, Ordering::Relaxed);
            tail.join().expect("the tail");
            assert!(results.iter().all(Result::is_ok), "seed {seed}");
        });
    }
}
