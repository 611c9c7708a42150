//! Reads of many jobs beside writers of every kind: by pages, by the tail, and from the end. Two processes serve readers of
//! sets of jobs, who go from one to the other at any event.

use super::torture::Writers;
use super::{LEGACY, RECOMMENDED};
use crate::support::{Postgres, alone};
use jobcast::config::{self, SourceKind};
use jobcast::cursor::{Cursor, Level};
use jobcast::event::{Event, JobId};
use jobcast::source::{self, Joiner, Limit, PageResult, Source, Tail};
use rand::RngExt;
use rand::seq::SliceRandom;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::sleep;

const JOBS: usize = 50;
const PAGE: Limit = Limit { events: 200, bytes: 1 << 20 };

fn job(number: usize) -> JobId {
    format!("job-{number}").parse().expect("a job id")
}

async fn open(server: &Postgres) -> Arc<dyn Source> {
    let mut settings = config::Source { kind: SourceKind::Postgres, ..config::Source::default() };
    settings.postgres.url = serde_json::from_value(server.url("postgres").into()).expect("a url");
    settings.postgres.sweep = Duration::from_secs(1);
    source::open(&settings).await.expect("a source")
}

fn number(event: &Event) -> u64 {
    event.id.strip_prefix("e-").and_then(|number| number.parse().ok()).expect("a number")
}

/// A reader of a set of jobs. It keeps, of each job that it knows, where it stands.
struct Reader {
    set: Vec<JobId>,
    live: BTreeSet<JobId>,
    places: BTreeMap<JobId, Cursor>,
    received: BTreeMap<JobId, HashSet<u64>>,
    /// Bytes that the place in the whole set takes, by event.
    lengths: Vec<usize>,
    /// Events until it leaves.
    stays: usize,
}

impl Reader {
    fn new() -> Self {
        let mut reader = Self {
            set: Vec::new(),
            live: BTreeSet::new(),
            places: BTreeMap::new(),
            received: BTreeMap::new(),
            lengths: Vec::new(),
            stays: 0,
        };
        reader.leave();
        reader
    }

    /// Leaves, and wants another set of jobs next time.
    fn leave(&mut self) {
        let rng = &mut rand::rng();
        let mut jobs: Vec<JobId> = (0..JOBS).map(job).collect();
        jobs.shuffle(rng);
        jobs.truncate(rng.random_range(2..=JOBS));
        (self.set, self.live, self.stays) = (jobs, BTreeSet::new(), rng.random_range(0..400));
    }

    /// Takes an event, unless it is time to leave.
    fn receive(&mut self, event: &Event, cursor: &Cursor) -> bool {
        if self.stays == 0 {
            return false;
        }
        self.stays -= 1;
        let is_new = self.received.entry(event.job_id.clone()).or_default().insert(number(event));
        assert!(is_new, "{} of {} came twice, with {cursor}", event.id, event.job_id);
        self.places.insert(event.job_id.clone(), cursor.clone());
        if self.live.len() == self.set.len() {
            self.lengths.push(self.length());
        }
        true
    }

    /// Bytes of an id that says each place once, and for each job which.
    fn length(&self) -> usize {
        let places: HashSet<Level> = self.set.iter().map(|job| self.places[job].level()).collect();
        let bits = usize::BITS - (places.len() - 1).leading_zeros();
        let inside: usize = places.iter().map(|place| 2 + place.inside.len()).sum();
        1 + (4 + inside + (self.set.len() * bits as usize).div_ceil(8)) * 4 / 3
    }

    /// Reads pages of its set; false if it leaves meanwhile.
    async fn catch_up(&mut self, source: &dyn Source) -> bool {
        let mut left = self.set.clone();
        while !left.is_empty() {
            let place = |job: &JobId| self.places.get(job).cloned().unwrap_or_else(|| source.beginning(job));
            let wanted: Vec<(JobId, Cursor)> = left.iter().map(|job| (job.clone(), place(job))).collect();
            let pages = source.pages(&wanted, PAGE).await.expect("pages");
            assert!(!pages.is_empty());
            for (page, (job, _)) in pages.into_iter().zip(wanted) {
                let PageResult::Page(page) = page else { panic!("{job}: {page:?}") };
                if !page.events.iter().all(|(event, cursor)| self.receive(event, cursor)) {
                    return false;
                }
                self.places.insert(job.clone(), page.end);
                left.retain(|other| !page.is_last || *other != job);
            }
        }
        true
    }
}

/// Facts of a process when it stops.
#[derive(Default)]
struct Served {
    rounds: usize,
    levels: usize,
}

/// A process: a source, its tail, and the readers who are there.
struct Process {
    source: Arc<dyn Source>,
    tail: Box<dyn Tail>,
    watched: BTreeSet<JobId>,
    readers: Vec<Reader>,
    arriving: UnboundedReceiver<Reader>,
    doors: [UnboundedSender<Reader>; 2],
}

impl Process {
    /// Serves until it is to stop, and returns the readers who are there then.
    async fn serve(mut self, stop: Arc<AtomicBool>) -> (Served, Vec<Reader>) {
        let mut served = Served::default();
        while !stop.load(Ordering::Relaxed) {
            while let Ok(mut reader) = self.arriving.try_recv() {
                match reader.catch_up(&*self.source).await {
                    true => self.readers.push(reader),
                    false => self.send_away(reader),
                }
            }
            self.round(&mut served).await;
            sleep(Duration::from_millis(3)).await;
        }
        drop(self.doors);
        while let Some(reader) = self.arriving.recv().await {
            self.readers.push(reader);
        }
        (served, self.readers)
    }

    fn send_away(&self, mut reader: Reader) {
        reader.leave();
        let _ = self.doors[rand::rng().random_range(0..2)].send(reader);
    }

    async fn round(&mut self, served: &mut Served) {
        let mut joining = Vec::new();
        for (place, reader) in self.readers.iter_mut().enumerate() {
            for job in reader.set.iter().filter(|job| !reader.live.contains(*job)).cloned().collect::<Vec<_>>() {
                let after = reader.places[&job].clone();
                if self.watched.insert(job.clone()) {
                    self.tail.watch(job.clone(), after);
                    reader.live.insert(job);
                } else {
                    joining.push((place, Joiner { job, after }));
                }
            }
        }
        let joiners: Vec<Joiner> = joining.iter().map(|(_, joiner)| joiner.clone()).collect();
        let news = self.tail.read(&joiners).await.expect("news");
        served.rounds += usize::from(!news.jobs.is_empty());
        served.levels += usize::from(!news.jobs.is_empty() && news.level.is_some());
        let mut gone = BTreeSet::new();
        for (event, cursor) in news.jobs.iter().flat_map(|news| &news.events) {
            for (place, reader) in self.readers.iter_mut().enumerate() {
                if reader.live.contains(&event.job_id) && !gone.contains(&place) && !reader.receive(event, cursor) {
                    gone.insert(place);
                }
            }
        }
        for ((place, joiner), missing) in joining.into_iter().zip(news.caught_up_joiners) {
            let Some(missing) = missing.filter(|_| !gone.contains(&place)) else { continue };
            let reader = &mut self.readers[place];
            if missing.iter().all(|(event, cursor)| reader.receive(event, cursor)) {
                reader.live.insert(joiner.job);
            } else {
                gone.insert(place);
            }
        }
        for (_, reader) in self.readers.iter_mut().enumerate().filter(|(place, _)| !gone.contains(place)) {
            for job in reader.live.iter().filter(|_| news.level.is_some()) {
                let level = news.level.as_ref().expect("a level");
                reader.places.insert(job.clone(), level.cursor(job));
            }
        }
        for place in gone.into_iter().rev() {
            let reader = self.readers.swap_remove(place);
            self.send_away(reader);
        }
    }
}

/// A place before the last events of a job, and all that was there when it was asked for.
struct FromEnd {
    job: JobId,
    cursor: Cursor,
    count: usize,
    there: HashSet<u64>,
}

/// Asks for places before the last events while others write.
async fn ask_from_end(source: Arc<dyn Source>, stop: Arc<AtomicBool>) -> Vec<FromEnd> {
    let mut asked = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let (job, count) = (job(rand::rng().random_range(0..JOBS)), rand::rng().random_range(0..30));
        if let Some(cursor) = source.before_last(&job, count).await.expect("a place") {
            let there = all_after(&*source, &job, source.beginning(&job)).await.into_iter().collect();
            asked.push(FromEnd { job, cursor, count, there });
        }
        sleep(Duration::from_millis(50)).await;
    }
    asked
}

/// Reads a job to its end, page by page.
async fn all_after(source: &dyn Source, job: &JobId, mut after: Cursor) -> Vec<u64> {
    let mut numbers = Vec::new();
    loop {
        let limit = Limit { events: 7, ..PAGE };
        let PageResult::Page(page) = source.page(job, &after, limit).await.expect("a page") else { panic!("{job}") };
        numbers.extend(page.events.iter().map(|(event, _)| number(event)));
        after = page.end;
        if page.is_last {
            return numbers;
        }
    }
}

/// Sixteen writers, and forty readers at two processes. Returns the share of reads with news after which all stood at one
/// place, and the lengths of ids.
async fn torture(schema: &str, on_standby: bool) -> (f64, Vec<usize>) {
    let _alone = alone();
    let server = Postgres::start().await;
    server.execute(schema).await;
    let jobs = format!("INSERT INTO runner_jobs SELECT 'job-' || n, 'RUNNING' FROM generate_series(0, {}) n", JOBS - 1);
    server.execute(&jobs).await;
    let standby = if on_standby { Some(server.standby().await) } else { None };
    let stop = Arc::new(AtomicBool::new(false));
    let (writers, running) = Writers::start(&server, 16, JOBS);
    let (doors, arriving): (Vec<_>, Vec<_>) = (0..2).map(|_| unbounded_channel()).unzip();
    let doors: [UnboundedSender<Reader>; 2] = doors.try_into().expect("two");
    (0..40).for_each(|number| drop(doors[number % 2].send(Reader::new())));
    let mut processes = Vec::new();
    for (arriving, server) in arriving.into_iter().zip([&server, standby.as_ref().unwrap_or(&server)]) {
        let source = open(server).await;
        let (tail, doors) = (source.tail(), doors.clone());
        let process = Process { source, tail, watched: BTreeSet::new(), readers: Vec::new(), arriving, doors };
        processes.push(tokio::spawn(process.serve(stop.clone())));
    }
    let asking = tokio::spawn(ask_from_end(open(&server).await, stop.clone()));
    sleep(Duration::from_secs(20)).await;
    let committed = writers.stop(&server, running).await;
    drop(doors);
    stop.store(true, Ordering::Relaxed);
    let (mut rounds, mut levels) = (0, 0);
    let mut left = Vec::new();
    for process in processes {
        let (served, readers) = process.await.expect("a process");
        (rounds, levels) = (rounds + served.rounds, levels + served.levels);
        left.extend(readers);
    }
    let source = open(&server).await;
    let mut lengths = Vec::new();
    assert_eq!(left.len(), 40);
    for mut reader in left {
        (reader.set, reader.stays) = ((0..JOBS).map(job).collect(), usize::MAX);
        assert!(reader.catch_up(&*source).await);
        lengths.extend(reader.lengths);
        for (job, numbers) in &committed {
            let received = reader.received.remove(&job.parse().expect("a job id")).unwrap_or_default();
            let wanted: HashSet<u64> = numbers.iter().copied().collect();
            let lost: Vec<_> = wanted.difference(&received).collect();
            let invented: Vec<_> = received.difference(&wanted).collect();
            assert!(lost.is_empty() && invented.is_empty(), "{job}: lost {lost:?}, never committed {invented:?}");
        }
    }
    for FromEnd { job, cursor, count, there } in asking.await.expect("who asks from the end") {
        let read = all_after(&*source, &job, cursor).await;
        let unique: HashSet<u64> = read.iter().copied().collect();
        assert!(unique.len() == read.len() && read.len() >= count.min(there.len()), "{job}: {count} of {read:?}");
        let all = &committed[job.as_str()];
        let left_out = all.iter().filter(|number| !unique.contains(number));
        assert!(
            left_out.clone().all(|number| there.contains(number)),
            "{job}: lost {:?}",
            left_out.collect::<Vec<_>>()
        );
    }
    for number in 0..JOBS {
        let history = all_after(&*source, &job(number), source.beginning(&job(number))).await;
        let cursor = source.before_last(&job(number), 5).await.expect("a place").expect("a job");
        let last = all_after(&*source, &job(number), cursor).await;
        assert_eq!(last, history[history.len().saturating_sub(5)..], "the last five of {number}");
    }
    lengths.sort_unstable();
    println!(
        "{} events of {} jobs, {rounds} reads with news, {levels} levels, {} ids, longest {:?}, median {:?}, over 128: {}",
        committed.values().map(Vec::len).sum::<usize>(),
        committed.len(),
        lengths.len(),
        lengths.last(),
        lengths.get(lengths.len() / 2),
        lengths.iter().filter(|length| **length > Cursor::MAX_BYTES).count(),
    );
    (levels as f64 / rounds as f64, lengths)
}

#[tokio::test]
async fn readers_of_many_jobs_lose_and_repeat_nothing_and_stand_at_one_place_between_reads() {
    let (share, lengths) = torture(RECOMMENDED, false).await;
    assert!(share > 0.95, "{share}");
    assert!(lengths.last().is_some_and(|longest| *longest <= Cursor::MAX_BYTES), "{:?}", lengths.last());
}

#[tokio::test]
async fn readers_of_many_jobs_without_transaction_ids_lose_and_repeat_nothing() {
    torture(LEGACY, false).await;
}

#[tokio::test]
async fn readers_of_many_jobs_who_change_between_a_primary_and_its_standby_lose_and_repeat_nothing() {
    torture(RECOMMENDED, true).await;
}
