//! Reads of many jobs beside writers of every kind: by pages, by the tail, and from the end. Two processes serve readers of
//! sets of jobs, who go from one to the other at any event.

use super::torture::{NUMBERS_ALONE, Writers};
use super::{LEGACY, RECOMMENDED, daemon_on};
use crate::support::{Message, Postgres, Stream, alone};
use jobcast::config::{self, SourceKind};
use jobcast::cursor::Cursor;
use jobcast::event::{Event, JobId};
use jobcast::source::{self, Joiner, Limit, PageResult, Source, Tail};
use rand::RngExt;
use rand::seq::SliceRandom;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep, timeout_at};

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
        true
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
            if let Ok(mut reader) = self.arriving.try_recv() {
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
        let is_whole = !news.jobs.is_empty() && !news.more;
        served.rounds += usize::from(is_whole);
        served.levels += usize::from(is_whole && news.level.is_some());
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

/// Sixteen writers, and forty readers at two processes. Returns the share of reads with news after which all jobs stood at
/// one place, of those that were not cut short.
async fn torture(schema: &str, on_standby: bool) -> f64 {
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
    assert_eq!(left.len(), 40);
    for mut reader in left {
        (reader.set, reader.stays) = ((0..JOBS).map(job).collect(), usize::MAX);
        assert!(reader.catch_up(&*source).await);
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
    let events: usize = committed.values().map(Vec::len).sum();
    println!("{events} events, {rounds} reads with news, {levels} with a level");
    levels as f64 / rounds as f64
}

/// The sets of jobs that are watched over HTTP: some overlap, and one is of all jobs.
fn set_of(watcher: usize) -> Vec<String> {
    let jobs = (0..JOBS).filter(|job| watcher.is_multiple_of(4) || (job + watcher).is_multiple_of(watcher % 7 + 2));
    jobs.map(|job| format!("job-{job}")).collect()
}

/// Watches a set until all of its jobs have ended, now on one daemon, now on another, leaving at random in the middle of
/// anything. Returns the numbers that it was given by job, the times that it came, and the lengths of the ids.
async fn watch(daemons: [SocketAddr; 2], jobs: Vec<String>) -> (BTreeMap<String, Vec<u64>>, usize, Vec<usize>) {
    let named: Vec<String> = jobs.iter().map(|job| format!("job={job}")).collect();
    let path = format!("/runner-jobs/events/stream?{}", named.join("&"));
    let mut received: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let (mut known, mut last, mut came, mut lengths) = (HashSet::new(), None::<Message>, 0, Vec::new());
    let until_all = Instant::now() + Duration::from_secs(180);
    while Instant::now() < until_all {
        let (to, events, stays, away) = {
            let mut rng = rand::rng();
            (
                daemons[rng.random_range(0..2)],
                rng.random_range(1..150),
                rng.random_range(0..1500),
                rng.random_range(0..60),
            )
        };
        let cursor = last.as_ref().map(|message| message.cursor().to_string());
        let headers: Vec<(&str, &str)> = cursor.iter().map(|cursor| ("Last-Event-ID", &**cursor)).collect();
        let until = Instant::now() + Duration::from_millis(stays);
        if let Ok(Ok(mut stream)) = timeout_at(until, Stream::try_open(to, &path, &headers)).await {
            came += 1;
            if stream.head.status == 204 {
                return (received, came, lengths);
            }
            let mut left = events;
            while left > 0
                && let Ok(Ok(Some(message))) = timeout_at(until, stream.try_next()).await
            {
                assert!(!message.is("stream.reset"), "{message:?} after {cursor:?}");
                let is_own = message.event.as_deref().is_none_or(|event| !event.starts_with("stream."));
                if message.data.is_some() && message.id.is_some() && is_own {
                    let (job, number) =
                        (message.json()["jobId"].as_str().expect("a job").to_string(), message.number());
                    assert!(known.insert(number), "{message:?} came twice, after {cursor:?}");
                    lengths.push(message.cursor().len());
                    received.entry(job).or_default().push(number);
                    left -= 1;
                }
                if message.id.is_some() {
                    last = Some(message);
                }
            }
        }
        sleep(Duration::from_millis(away)).await;
    }
    panic!("a set has not ended");
}

#[tokio::test]
async fn streams_of_sets_beside_sixteen_writers_lose_and_repeat_nothing_and_hardly_an_id_is_over_128_bytes() {
    let _alone = alone();
    let server = Postgres::start().await;
    server.execute(RECOMMENDED).await;
    server.make_reader().await;
    let jobs = format!("INSERT INTO runner_jobs SELECT 'job-' || n, 'RUNNING' FROM generate_series(0, {}) n", JOBS - 1);
    server.execute(&jobs).await;
    let daemons = [daemon_on(&server, &[]).await, daemon_on(&server, &[]).await];
    let (writers, running) = Writers::start(&server, 16, JOBS);
    let addresses = [daemons[0].http, daemons[1].http];
    let watchers: Vec<_> = (0..24).map(|watcher| tokio::spawn(watch(addresses, set_of(watcher)))).collect();
    sleep(Duration::from_secs(25)).await;
    let committed = writers.stop(&server, running).await;
    server.execute("UPDATE runner_jobs SET status = 'COMPLETED'").await;
    let (mut visits, mut all) = (0, Vec::new());
    for (watcher, watching) in watchers.into_iter().enumerate() {
        let (mut received, came, lengths) = watching.await.expect("a watcher");
        visits += came;
        all.extend(lengths);
        for job in set_of(watcher) {
            let mut numbers = received.remove(&job).unwrap_or_default();
            numbers.sort_unstable();
            assert_eq!(numbers, committed.get(&job).cloned().unwrap_or_default(), "{job}");
        }
        assert!(received.is_empty(), "{received:?}");
    }
    all.sort_unstable();
    let longer = all.iter().filter(|length| **length > Cursor::MAX_BYTES).count();
    println!(
        "{} events written, {} received in {visits} visits, ids of {:?} bytes, median {:?}, {longer} over 128",
        committed.values().map(Vec::len).sum::<usize>(),
        all.len(),
        all.last(),
        all.get(all.len() / 2),
    );
    // A reader that leaves within its replay stands at more places than a short cursor has room for.
    assert!(all.get(all.len() / 2).is_some_and(|median| *median <= Cursor::MAX_BYTES), "{longer} of {}", all.len());
}

#[tokio::test]
async fn readers_of_many_jobs_lose_and_repeat_nothing_and_stand_at_one_place_between_reads() {
    let share = torture(RECOMMENDED, false).await;
    assert!(share > 0.9, "{share}");
}

#[tokio::test]
async fn readers_of_many_jobs_without_transaction_ids_lose_and_repeat_nothing() {
    torture(LEGACY, false).await;
}

#[tokio::test]
async fn readers_of_many_jobs_whose_new_rows_are_found_by_number_lose_and_repeat_nothing() {
    torture(NUMBERS_ALONE, false).await;
}

#[tokio::test]
async fn readers_of_many_jobs_who_change_between_a_primary_and_its_standby_lose_and_repeat_nothing() {
    torture(RECOMMENDED, true).await;
}
