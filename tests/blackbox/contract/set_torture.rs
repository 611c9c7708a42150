//! Subscribers of a set of 50 jobs that come and go as a browser does, over two daemons and with another set each time, while
//! 16 writers write. With `TORTURE=28` in the environment, 28 times as long: 10,000 reconnects on the three stores together.

use crate::support::store::Store;
use crate::support::{Daemon, Message, PATIENCE, Stream, alone};
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

const JOBS: usize = 54;
/// Jobs that are not there when the subscribers come.
const LATE_JOBS: usize = 10;
const IN_SET: usize = 50;
const WRITERS: usize = 16;
/// Writes at a time: of more, one could wait for its lock for too long on a busy machine.
const WRITES_AT_ONCE: usize = 4;
const EVENTS: u64 = 20;
/// A writer waits for less than this before each write.
const PAUSE: Duration = Duration::from_millis(60);
const SUBSCRIBERS: u64 = 4;
const CONNECTIONS: usize = 30;
/// A connection ends after fewer ids than this.
const STAYS: usize = 30;
/// A connection ends where nothing comes for so long, and twice as long after each in which nothing came: a read may take long on
/// a busy machine.
const QUIET: Duration = Duration::from_millis(500);

/// The length of the run, as a multiple of that in a run of all tests.
fn times() -> usize {
    std::env::var("TORTURE").ok().and_then(|times| times.parse().ok()).unwrap_or(1)
}

/// The events of each job.
fn events() -> u64 {
    EVENTS * times() as u64
}

/// One who reads a set, with what a browser keeps of it.
struct Subscriber {
    random: StdRng,
    set: BTreeSet<String>,
    others: Vec<String>,
    /// The number of events that it has of each job.
    seen: BTreeMap<String, u64>,
    /// The last id, and the set that it was given with.
    last: Option<(String, BTreeSet<String>)>,
    complete: BTreeSet<String>,
    /// The length of each id.
    lengths: Vec<usize>,
    quiet: Duration,
}

/// The end of one connection.
#[derive(PartialEq, Eq)]
enum Left {
    /// It was closed since all jobs have ended.
    Complete,
    Open,
}

fn name(job: usize) -> String {
    format!("job-{job}")
}

/// Writes some jobs in turns, each in its order, and ends them. Some begin only when others are half done.
async fn write(store: &impl Store, turns: &Semaphore, mut random: StdRng, jobs: Vec<usize>) {
    let mut next: BTreeMap<usize, u64> = jobs.iter().map(|job| (*job, 0)).collect();
    while !next.is_empty() {
        let written: u64 = next.values().sum();
        let is_early = next.len() == jobs.len() && written < events() / 2;
        let may = |job: &usize| !is_early || *job < JOBS - LATE_JOBS;
        let ready: Vec<usize> = next.keys().filter(|job| may(job)).copied().collect();
        let job = *ready.choose(&mut random).expect("a job");
        sleep(random.random_range(Duration::ZERO..PAUSE)).await;
        let first = next[&job];
        let _turn = turns.acquire().await.expect("a turn");
        let end = (first + random.random_range(1..4)).min(events());
        if end == events() {
            store.append_and_end(&name(job), first..end, 0, "COMPLETED").await;
            next.remove(&job);
        } else {
            store.append(&name(job), first..end).await;
            next.insert(job, end);
        }
    }
}

impl Subscriber {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut jobs: Vec<String> = (0..JOBS).map(name).collect();
        jobs.shuffle(&mut random);
        let others = jobs.split_off(IN_SET);
        Self {
            random,
            set: jobs.into_iter().collect(),
            others,
            seen: BTreeMap::new(),
            last: None,
            complete: BTreeSet::new(),
            lengths: Vec::new(),
            quiet: QUIET,
        }
    }

    /// Reads its set to the end, coming and going on these daemons.
    async fn read(mut self, daemons: [&Daemon; 2]) -> Self {
        for _ in 0..CONNECTIONS * times() {
            let is_known = self.last.as_ref().is_some_and(|(_, set)| *set == self.set);
            if is_known {
                self.change_set();
            }
            let stays = self.random.random_range(1..STAYS);
            self.connect(daemons, stays).await;
        }
        let to_the_end = async { while self.connect(daemons, usize::MAX).await == Left::Open {} };
        timeout(PATIENCE * times() as u32, to_the_end).await.expect("the end of all jobs");
        self
    }

    /// Takes a job out of the set, or another one in.
    fn change_set(&mut self) {
        if self.set.len() < IN_SET {
            let coming = self.others.swap_remove(self.random.random_range(0..self.others.len()));
            self.set.insert(coming);
        } else {
            let set: Vec<&String> = self.set.iter().collect();
            let leaving = set.choose(&mut self.random).expect("a job").to_string();
            self.set.remove(&leaving);
            self.others.push(leaving);
        }
    }

    async fn connect(&mut self, daemons: [&Daemon; 2], stays: usize) -> Left {
        let named: Vec<String> = self.set.iter().map(|job| format!("job={job}")).collect();
        let path = format!("/runner-jobs/events/stream?{}", named.join("&"));
        let (came_with, known) = self.last.clone().unwrap_or_default();
        // The cursor knows nothing of the others, which therefore begin.
        self.seen.retain(|job, _| known.contains(job));
        self.complete.clear();
        let headers: Vec<(&str, &str)> = self.last.iter().map(|(last, _)| ("Last-Event-ID", last.as_str())).collect();
        let daemon = daemons.choose(&mut self.random).expect("a daemon");
        let mut stream = Stream::open(daemon.http, &path, &headers).await;
        match stream.head.status {
            204 => return Left::Complete,
            status => assert_eq!(status, 200, "{}", stream.head.text()),
        }
        let mut ids = 0;
        while ids < stays {
            let Ok(next) = timeout(self.quiet, stream.try_next()).await else {
                self.quiet = (2 * self.quiet).min(PATIENCE / 4);
                return Left::Open;
            };
            let Some(message) = next.expect("a whole stream") else {
                assert_eq!(self.complete, self.set, "the stream was closed");
                return Left::Complete;
            };
            if message.id.is_some() {
                (ids, self.quiet) = (ids + 1, QUIET);
            }
            self.take(message, &known, &came_with);
        }
        Left::Open
    }

    fn take(&mut self, message: Message, known: &BTreeSet<String>, came_with: &str) {
        if let Some(id) = &message.id {
            self.lengths.push(id.len());
            self.last = Some((id.clone(), self.set.clone()));
        }
        if message.data.is_none() {
            return;
        }
        let json = message.json();
        let job = json["jobId"].as_str().unwrap_or_else(|| panic!("of no job: {message:?}")).to_string();
        match message.event.as_deref() {
            Some("stream.complete") => assert!(self.complete.insert(job), "{message:?} came twice"),
            Some("stream.reset") => {
                let is_new = !known.is_empty() && !known.contains(&job);
                assert!(is_new && json["reason"] == "unknown", "{message:?} after {came_with:?}");
            }
            Some(kind) if kind.starts_with("stream.") => panic!("{message:?}"),
            _ => {
                let seen = self.seen.entry(job).or_default();
                assert_eq!(message.number(), *seen, "{message:?} after {:?}", self.last);
                *seen += 1;
            }
        }
    }
}

pub async fn subscribers_of_changing_sets_that_come_and_go_lose_nothing_repeat_nothing_and_keep_each_order<S: Store>() {
    let _alone = alone();
    let store = S::start().await;
    let daemons = [store.daemon(&[]).await, store.daemon(&[]).await];
    for job in 0..JOBS - LATE_JOBS {
        store.set_status(&name(job), "PENDING").await;
    }
    let turns = Semaphore::new(WRITES_AT_ONCE);
    let of_writer = |writer: usize| (0..JOBS).filter(|job| job % WRITERS == writer).collect();
    let writers =
        (0..WRITERS).map(|writer| write(&store, &turns, StdRng::seed_from_u64(writer as u64), of_writer(writer)));
    let readers = (0..SUBSCRIBERS).map(|seed| Subscriber::new(100 + seed).read([&daemons[0], &daemons[1]]));
    let (_, readers) = tokio::join!(join_all(writers), join_all(readers));
    let mut lengths = Vec::new();
    for reader in readers {
        let expected: BTreeMap<String, u64> = reader.set.iter().map(|job| (job.clone(), events())).collect();
        assert_eq!(reader.seen, expected);
        lengths.extend(reader.lengths);
    }
    lengths.sort_unstable();
    let long = lengths.iter().filter(|length| **length > 128).count();
    let (all, median) = (lengths.len(), lengths[lengths.len() / 2]);
    let longest = lengths.last().copied().unwrap_or_default();
    eprintln!("{all} ids, {long} of them over 128 bytes, median {median}, longest {longest}");
    assert!(longest <= S::LONGEST_SET_ID, "the longest of {all} ids has {longest} bytes");
    // However often a subscriber leaves in the middle of what it missed, it stands at few places where the store has levels.
    assert!(long as f64 <= all as f64 * S::LONG_SET_IDS, "{long} of {all} ids are over 128 bytes");
}
