//! What `types`, `last`, `from` and a cursor select, in random cases, beside a plain filter of the whole history.

use super::sets::set_path;
use crate::support::daemon::stream_path;
use crate::support::store::Store;
use crate::support::{Daemon, Stream};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

const CASES: usize = 70;
const JOBS: [&str; 3] = ["a", "b", "c"];
const TYPES: [&str; 5] = ["step.output", "step.output.error", "step", "job.failed", "log"];
/// Some name no event, and some name the events of several types.
const PATTERNS: [&str; 9] =
    ["step.output", "step", "step.*", "step.output.*", "job.*", "job.failed", "log", "log.*", "nothing.*"];
/// Most answers without an event before the next one.
const MAX_EMPTY: usize = 500;

/// An event by its number within its job, and its type.
type Plain = (u64, &'static str);

/// All events of each job, in their order.
#[derive(Default)]
struct History {
    events: BTreeMap<&'static str, Vec<Plain>>,
    /// One who watches each job at each daemon.
    watchers: BTreeMap<&'static str, Vec<Stream>>,
}

impl History {
    /// Appends events of these types in one request. They are live at both daemons when this returns: `from=now` begins after
    /// what a daemon has published.
    async fn append(&mut self, daemons: &[Daemon; 2], random: &mut StdRng, job: &'static str, types: &[&'static str]) {
        let events = self.events.entry(job).or_default();
        let first = events.len() as u64;
        let new: Vec<Plain> = (first..).zip(types.iter().copied()).collect();
        let body: Vec<Value> = new
            .iter()
            .map(|(number, kind)| json!({ "id": format!("e-{number}"), "type": kind, "payload": { "n": number } }))
            .collect();
        let daemon = daemons.choose(random).expect("a daemon");
        let answer = daemon.send("POST", &format!("/runner-jobs/{job}/events"), &body.into()).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        let numbers = Vec::from_iter(first..first + new.len() as u64);
        events.extend(new);
        let watchers = self.watchers.entry(job).or_default();
        if watchers.is_empty() {
            for daemon in daemons {
                watchers.push(daemon.stream(job).await);
            }
        }
        for watcher in watchers {
            assert_eq!(crate::support::numbers(&watcher.take(numbers.len()).await), numbers);
        }
    }

    /// The events of some jobs, each from its own place on, that are of the wanted types.
    fn select(&self, from: &BTreeMap<&'static str, usize>, types: &Types) -> BTreeMap<String, Vec<Plain>> {
        let selected = from.iter().map(|(job, from)| {
            let events = self.events[job][*from..].iter().copied().filter(|(_, kind)| types.has(kind)).collect();
            (job.to_string(), events)
        });
        selected.filter(|(_, events): &(String, Vec<Plain>)| !events.is_empty()).collect()
    }
}

/// The patterns of a request; `None` for all.
#[derive(Clone, Debug)]
struct Types(Option<Vec<&'static str>>);

impl Types {
    fn random(random: &mut StdRng) -> Self {
        let mut patterns: Vec<&str> = PATTERNS.into_iter().filter(|_| random.random_bool(0.3)).collect();
        patterns.shuffle(random);
        Self((!patterns.is_empty()).then_some(patterns))
    }

    fn has(&self, kind: &str) -> bool {
        let is_wanted = |pattern: &&str| match pattern.strip_suffix('*') {
            Some(prefix) => kind.starts_with(prefix),
            None => kind == *pattern,
        };
        self.0.as_ref().is_none_or(|patterns| patterns.iter().any(is_wanted))
    }
}

/// The beginning that a query names.
#[derive(Clone, Copy, Debug)]
enum Begins {
    AtTheFirst,
    Last(usize),
    Now,
}

impl Begins {
    fn random(random: &mut StdRng) -> Self {
        match random.random_range(0..4) {
            0 => Self::AtTheFirst,
            1 => Self::Now,
            _ => Self::Last(*[0, 1, 2, 7, 30, 1000].choose(random).expect("a count")),
        }
    }

    /// The place in a job of so many events.
    fn place(self, events: usize) -> usize {
        match self {
            Self::AtTheFirst => 0,
            Self::Last(count) => events.saturating_sub(count),
            Self::Now => events,
        }
    }
}

/// An address that gives events.
#[derive(Clone, Copy, Debug)]
enum Way {
    Stream,
    /// With so many events of an answer at most.
    Pages(usize),
}

impl Way {
    fn random(random: &mut StdRng) -> Self {
        match random.random_bool(0.5) {
            true => Self::Stream,
            false => Self::Pages(*[1, 3, 10, 1000].choose(random).expect("a limit")),
        }
    }
}

/// One request, and what follows it.
#[derive(Clone, Debug)]
struct Request {
    to: SocketAddr,
    jobs: Vec<&'static str>,
    /// One job alone may be asked for as a set, too.
    as_set: bool,
    way: Way,
    types: Types,
    begins: Begins,
    after: Option<String>,
}

impl Request {
    /// The path of the stream, or of the JSON, and the query without a cursor.
    fn path(&self) -> String {
        let (mut path, mut mark) = match self.as_set {
            true => (set_path(&self.jobs, ""), '&'),
            false => (stream_path(self.jobs[0]), '?'),
        };
        if let Way::Pages(_) = self.way {
            path = path.replace("/stream", "");
        }
        let types = self.types.0.as_ref().map(|patterns| format!("types={}", patterns.join(",")));
        let begins = match self.begins {
            Begins::AtTheFirst => None,
            Begins::Last(count) => Some(format!("last={count}")),
            Begins::Now => Some("from=now".to_string()),
        };
        for parameter in types.into_iter().chain(begins) {
            path = format!("{path}{mark}{parameter}");
            mark = '&';
        }
        path
    }

    async fn send(self) -> Reader {
        let path = self.path();
        match self.way {
            Way::Stream => {
                let headers: Vec<(&str, &str)> = self.after.iter().map(|id| ("Last-Event-ID", id.as_str())).collect();
                let stream = Stream::open(self.to, &path, &headers).await;
                assert_eq!(stream.head.status, 200, "{self:?}: {:?}", stream.head);
                Reader::Stream(stream)
            }
            Way::Pages(limit) => {
                let mut pages = Pages { to: self.to, path, limit, cursor: self.after, ready: VecDeque::new() };
                // The place of `from=now` is that of the first request.
                pages.ask().await;
                Reader::Pages(pages)
            }
        }
    }
}

/// One who reads events, from either address.
enum Reader {
    Stream(Stream),
    Pages(Pages),
}

struct Pages {
    to: SocketAddr,
    path: String,
    limit: usize,
    cursor: Option<String>,
    ready: VecDeque<Value>,
}

impl Pages {
    async fn ask(&mut self) {
        let mark = if self.path.contains('?') { '&' } else { '?' };
        let after = self.cursor.as_ref().map(|cursor| format!("&after={cursor}")).unwrap_or_default();
        let path = format!("{}{mark}limit={}{after}", self.path, self.limit);
        let page = crate::support::http::request(self.to, "GET", &path, &[], b"").await.json();
        assert!(page.get("reset").is_none() && page.get("resets").is_none(), "{path}: {page}");
        self.ready.extend(page["events"].as_array().unwrap_or_else(|| panic!("{path}: {page}")).iter().cloned());
        self.cursor = Some(page["cursor"].as_str().expect("a cursor").to_string());
    }
}

/// An event as a reader was given it.
struct Received {
    job: String,
    event: Plain,
    cursor: String,
}

impl Received {
    fn new(event: &Value, cursor: &str) -> Self {
        let text = |name: &str| event[name].as_str().unwrap_or_else(|| panic!("no {name}: {event}"));
        let kind = TYPES.into_iter().find(|kind| *kind == text("type")).expect("a type of ours");
        let number = event["payload"]["n"].as_u64().expect("a number");
        Self { job: text("jobId").to_string(), event: (number, kind), cursor: cursor.to_string() }
    }
}

impl Reader {
    async fn next(&mut self) -> Received {
        match self {
            Self::Stream(stream) => loop {
                let message = stream.next().await.expect("the stream is open");
                if message.data.is_some() {
                    assert!(!message.event.as_deref().unwrap_or_default().starts_with("stream."), "{message:?}");
                    return Received::new(&message.json(), message.cursor());
                }
            },
            Self::Pages(pages) => {
                for _ in 0..MAX_EMPTY {
                    if let Some(event) = pages.ready.pop_front() {
                        return Received::new(&event, event["cursor"].as_str().expect("a cursor"));
                    }
                    pages.ask().await;
                }
                panic!("{MAX_EMPTY} answers of {} had no event", pages.path);
            }
        }
    }

    async fn take(&mut self, count: usize) -> Vec<Received> {
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            taken.push(self.next().await);
        }
        taken
    }

    /// Expects that there is nothing more, where that can be known.
    async fn has_all(self) {
        if let Self::Pages(mut pages) = self {
            pages.limit = 1000;
            pages.ask().await;
            assert_eq!(pages.ready, Vec::<Value>::new(), "{}", pages.path);
        }
    }
}

fn count(events: &BTreeMap<String, Vec<Plain>>) -> usize {
    events.values().map(Vec::len).sum()
}

fn by_job(received: &[Received]) -> BTreeMap<String, Vec<Plain>> {
    let mut by_job: BTreeMap<String, Vec<Plain>> = BTreeMap::new();
    for one in received {
        by_job.entry(one.job.clone()).or_default().push(one.event);
    }
    by_job
}

/// Reads a random part of some jobs as `earlier` asks, and returns the last id with the place in each job that it stands for.
async fn leave_somewhere(
    earlier: Request,
    history: &History,
    random: &mut StdRng,
) -> Option<(String, BTreeMap<&'static str, usize>)> {
    let mut places: BTreeMap<&str, usize> = earlier.jobs.iter().map(|job| (*job, 0)).collect();
    let all = count(&history.select(&places, &earlier.types));
    let received = earlier.send().await.take(random.random_range(0..=all)).await;
    for one in &received {
        *places.get_mut(one.job.as_str()).expect("a job that was asked for") = one.event.0 as usize + 1;
    }
    Some((received.last()?.cursor.clone(), places))
}

/// `last` counts all events of a job, of whatever type; where there is a cursor, it alone says where to begin.
pub async fn any_types_and_beginning_and_cursor_give_what_a_filter_of_the_whole_history_gives<S: Store>() {
    let store = S::start().await;
    // Some is given from the ring, and some from the store.
    let small = [("hub.ring_events", "30")];
    let daemons = [store.daemon(&small).await, store.daemon(&small).await];
    let mut random = StdRng::seed_from_u64(21);
    let mut history = History::default();
    let kinds = |random: &mut StdRng, count: usize| -> Vec<&'static str> {
        (0..count).map(|_| *TYPES.choose(random).expect("a type")).collect()
    };
    for _ in 0..12 {
        for job in JOBS {
            let new = random.random_range(1..6);
            let new = kinds(&mut random, new);
            history.append(&daemons, &mut random, job, &new).await;
        }
    }
    let mut resumed = 0;
    for case in 0..CASES {
        let mut jobs: Vec<&str> = JOBS.into_iter().filter(|_| random.random_bool(0.5)).collect();
        if jobs.is_empty() {
            jobs.push(JOBS[0]);
        }
        jobs.shuffle(&mut random);
        let mut request = Request {
            to: daemons.choose(&mut random).expect("a daemon").http,
            as_set: jobs.len() > 1 || random.random_bool(0.3),
            jobs,
            way: Way::random(&mut random),
            types: Types::random(&mut random),
            begins: Begins::random(&mut random),
            after: None,
        };
        let mut places: BTreeMap<&str, usize> =
            request.jobs.iter().map(|job| (*job, request.begins.place(history.events[job].len()))).collect();
        if random.random_bool(0.5) {
            // An id of a set says exactly where the jobs stand whose events were wanted.
            let types = match random.random_range(0..3) {
                0 => Types(None),
                1 if request.jobs.len() == 1 => Types::random(&mut random),
                _ => request.types.clone(),
            };
            let (way, to) = (Way::random(&mut random), daemons.choose(&mut random).expect("a daemon").http);
            let earlier = Request { to, way, types, begins: Begins::AtTheFirst, ..request.clone() };
            if let Some((id, left_at)) = leave_somewhere(earlier, &history, &mut random).await {
                (request.after, places, resumed) = (Some(id), left_at, resumed + 1);
            }
        }
        let shown = format!("case {case}: {request:?}");
        let (jobs, types) = (request.jobs.clone(), request.types.clone());
        let mut reader = request.send().await;
        let before = history.select(&places, &types);
        let received = reader.take(count(&before)).await;
        assert_eq!(by_job(&received), before, "{shown}");
        // What is written from now on is filtered alike, and shows that there was no more.
        let ends: BTreeMap<&str, usize> = jobs.iter().map(|job| (*job, history.events[job].len())).collect();
        for job in jobs {
            let mut each = TYPES.to_vec();
            each.shuffle(&mut random);
            history.append(&daemons, &mut random, job, &each).await;
        }
        let live = history.select(&ends, &types);
        let received = reader.take(count(&live)).await;
        assert_eq!(by_job(&received), live, "{shown}, live");
        reader.has_all().await;
    }
    assert!(resumed > CASES / 4, "{resumed} cases came back with an id");
}
