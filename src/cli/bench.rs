//! `jobcast bench`: opens subscribers, publishes at a steady pace, and says what arrived and how late.
//!
//! Latency counts from the moment at which an event was *to be* sent, so that a server that makes the publisher wait
//! cannot hide it.

use super::client::{Failure, Jobcast};
use super::{failed, misused};
use crate::event::JobId;
use crate::sse::is_reserved;
use actix_rt::Arbiter;
use awc::http::Method;
use futures_util::future::{join_all, try_join};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, oneshot};

#[derive(clap::Args, Clone)]
pub struct Args {
    /// The Jobcast to load; it must take events in
    #[arg(long)]
    url: String,
    /// StreamContext to open, spread over the jobs
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    subscribers: u64,
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    jobs: u64,
    /// For each job
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    events: u64,
    /// Events a second, for each job
    #[arg(long, default_value_t = 20.0)]
    rate: f64,
    /// Bytes of padding in each event
    #[arg(long, default_value_t = 200)]
    payload: usize,
    /// Sent as `Authorization: Bearer`
    #[arg(long, env = "JOBCAST_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// The report as one JSON object
    #[arg(long)]
    json: bool,
    /// Load an address that is not this machine's own
    #[arg(long)]
    yes: bool,
}

/// StreamContext that are opened at the same time.
const OPENING: usize = 128;
/// How long the last deliveries may take once everything is published.
const PATIENCE: Duration = Duration::from_secs(60);

pub async fn run(args: Args) -> ExitCode {
    if !(args.rate.is_finite() && args.rate > 0.0) {
        return misused("--rate must be more than 0");
    }
    if !is_own(&args.url) && !args.yes {
        return misused(format!("{} is not on this machine: add --yes if you may load it", args.url));
    }
    let files = args.subscribers + 256;
    match rlimit::increase_nofile_limit(files) {
        Ok(limit) if limit < files => {
            return misused(format!(
                "{} subscribers need {files} open files, and this process may have {limit}: raise the limit (ulimit -n), or ask for fewer",
                args.subscribers
            ));
        }
        _ => {}
    }
    let as_json = args.json;
    let report = match bench(args).await {
        Ok(report) => report,
        Err(why) => return failed(why),
    };
    match as_json {
        true => println!("{}", serde_json::to_string(&report).unwrap_or_default()),
        false => print!("{report}"),
    }
    if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn is_own(url: &str) -> bool {
    let host = url.parse::<awc::http::Uri>().ok().and_then(|url| url.host().map(str::to_string)).unwrap_or_default();
    let ip = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

/// What all threads count in while it runs.
#[derive(Default)]
struct Counts {
    connected: AtomicU64,
    delivered: AtomicU64,
    done: AtomicU64,
}

/// What one or all subscribers found.
#[derive(Default)]
struct Found {
    latency: Option<Histogram<u64>>,
    lost: u64,
    repeated: u64,
    misordered: u64,
    /// StreamContext that failed, or ended without telling that the job did; the first reason.
    broken: u64,
    why: Option<String>,
}

impl Found {
    fn add(&mut self, other: Self) {
        match (&mut self.latency, other.latency) {
            (Some(mine), Some(theirs)) => drop(mine.add(theirs)),
            (mine, theirs) => *mine = mine.take().or(theirs),
        }
        self.lost += other.lost;
        self.repeated += other.repeated;
        self.misordered += other.misordered;
        self.broken += other.broken;
        self.why = self.why.take().or(other.why);
    }
}

async fn bench(args: Args) -> Result<Report, String> {
    let name = uuid::Uuid::now_v7();
    let jobs: Vec<JobId> = (0..args.jobs).filter_map(|number| format!("bench-{name}-{number}").parse().ok()).collect();
    let jobcast = Jobcast::new(&args.url, args.token.clone());
    set_status(&jobcast, &jobs, "RUNNING").await?;
    let cancelled = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    tokio::select! {
        report = measure(&args, &jobcast, &jobs) => {
            let status = if report.is_ok() { "COMPLETED" } else { "CANCELLED" };
            // measured already; what is left is to leave no running job behind
            set_status(&jobcast, &jobs, status).await?;
            report
        }
        () = cancelled => {
            set_status(&jobcast, &jobs, "CANCELLED").await?;
            Err("stopped".into())
        }
    }
}

async fn set_status(jobcast: &Jobcast, jobs: &[JobId], status: &str) -> Result<(), String> {
    let body = json!({ "status": status });
    for job in jobs {
        jobcast.json(Method::PUT, &jobcast.job_url(job), Some(&body)).await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

async fn measure(args: &Args, jobcast: &Jobcast, jobs: &[JobId]) -> Result<Report, String> {
    let counts = Arc::new(Counts::default());
    let epoch = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let mut findings = Vec::new();
    let mut arbiters = Vec::new();
    for thread in 0..threads.min(args.subscribers) {
        let (answer, found) = oneshot::channel();
        let watched = (thread..args.subscribers).step_by(threads as usize);
        let jobs: Vec<JobId> = watched.map(|number| jobs[(number % args.jobs) as usize].clone()).collect();
        let (args, counts) = (args.clone(), counts.clone());
        let arbiter = Arbiter::new();
        arbiter.spawn_fn(move || {
            actix_rt::spawn(async move {
                let _ = answer.send(subscribe(args, jobs, counts, epoch).await);
            });
        });
        arbiters.push(arbiter);
        findings.push(found);
    }
    let bar = Bar::new(&counts, args.subscribers);
    bar.until(|counts| &counts.connected, args.subscribers, "connecting", PATIENCE).await;
    let connected_in = epoch.elapsed();

    let began = Instant::now();
    let wanted = args.subscribers * args.events;
    let most = Duration::from_secs_f64(args.events as f64 / args.rate) + PATIENCE;
    let published = async {
        let all = jobs.iter().map(|job| publish(jobcast, job, args, epoch));
        join_all(all).await.into_iter().collect::<Result<(), Failure>>().map_err(|error| error.to_string())
    };
    let delivered = async {
        bar.until(|counts| &counts.delivered, wanted, "delivering", most).await;
        Ok(())
    };
    try_join(published, delivered).await?;
    let delivered_in = began.elapsed();

    // the end of the jobs is the end of the streams
    set_status(jobcast, jobs, "COMPLETED").await?;
    bar.until(|counts| &counts.done, args.subscribers, "ending", PATIENCE).await;
    bar.shown.finish_and_clear();
    let mut all = Found::default();
    for found in findings {
        match tokio::time::timeout(Duration::from_secs(1), found).await {
            Ok(Ok(found)) => all.add(found),
            _ => return Err("subscribers did not get to the end of their jobs".into()),
        }
    }
    for arbiter in arbiters {
        arbiter.stop();
        let _ = arbiter.join();
    }
    Ok(Report::new(args, connected_in, delivered_in, &counts, all))
}

/// Shows how far it is.
struct Bar<'a> {
    shown: ProgressBar,
    counts: &'a Counts,
    subscribers: u64,
}

impl<'a> Bar<'a> {
    fn new(counts: &'a Counts, subscribers: u64) -> Self {
        let shown = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{msg:<10} {bar:40} {human_pos}/{human_len} {elapsed}");
        shown.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { shown, counts, subscribers }
    }

    /// Waits until a count is at `wanted`, or no stream is left, or the time is up.
    async fn until(&self, count: impl Fn(&Counts) -> &AtomicU64, wanted: u64, what: &'static str, most: Duration) {
        self.shown.reset();
        self.shown.set_message(what);
        self.shown.set_length(wanted);
        let began = Instant::now();
        loop {
            let now = count(self.counts).load(Ordering::Relaxed);
            self.shown.set_position(now);
            let is_left = self.counts.done.load(Ordering::Relaxed) < self.subscribers;
            if now >= wanted || !is_left || began.elapsed() > most {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Publishes one job's events in their order, each at its time or, where the server is slower than that, as soon as it
/// can be.
async fn publish(jobcast: &Jobcast, job: &JobId, args: &Args, epoch: Instant) -> Result<(), Failure> {
    let url = jobcast.events_url(job);
    let pad = "x".repeat(args.payload);
    let began = Instant::now();
    let due = |number: u64| began + Duration::from_secs_f64(number as f64 / args.rate);
    let mut next = 0;
    while next < args.events {
        tokio::time::sleep_until(due(next).into()).await;
        let now = Instant::now();
        let mut events = Vec::new();
        while next < args.events && due(next) <= now && events.len() < 100 {
            let at = due(next).duration_since(epoch).as_nanos() as u64;
            events.push(json!({ "type": "bench.event", "payload": { "n": next, "at": at, "pad": pad } }));
            next += 1;
        }
        jobcast.json(Method::POST, &url, Some(&Value::Array(events))).await?;
    }
    Ok(())
}

/// All subscribers of one thread.
async fn subscribe(args: Args, jobs: Vec<JobId>, counts: Arc<Counts>, epoch: Instant) -> Found {
    let jobcast = Jobcast::new(&args.url, args.token.clone());
    let opening = Rc::new(Semaphore::new(OPENING));
    // a microsecond to an hour, to three digits
    let latency = Histogram::new_with_bounds(1, 3_600_000_000, 3).ok();
    let latency = Rc::new(RefCell::new(latency));
    let watched = jobs.iter().map(|job| {
        let (jobcast, opening, latency, counts) = (jobcast.clone(), opening.clone(), latency.clone(), counts.clone());
        async move {
            let mut one = Subscriber { expected: 0, missing: BTreeSet::new(), found: Found::default() };
            let ended = one.watch(&jobcast, job, &opening, &latency, &counts, epoch).await;
            counts.done.fetch_add(1, Ordering::Relaxed);
            one.finish(ended, args.events)
        }
    });
    let mut all = Found::default();
    for found in join_all(watched).await {
        all.add(found);
    }
    all.latency = latency.borrow_mut().take();
    all
}

struct Subscriber {
    expected: u64,
    /// Passed over so far.
    missing: BTreeSet<u64>,
    found: Found,
}

impl Subscriber {
    async fn watch(
        &mut self,
        jobcast: &Jobcast,
        job: &JobId,
        opening: &Semaphore,
        latency: &RefCell<Option<Histogram<u64>>>,
        counts: &Counts,
        epoch: Instant,
    ) -> Result<(), String> {
        let permit = opening.acquire().await.map_err(|error| error.to_string())?;
        let stream = jobcast.stream(job, None, false).await.map_err(|error| error.to_string())?;
        drop(permit);
        let mut stream = stream.ok_or("the job has ended")?;
        counts.connected.fetch_add(1, Ordering::Relaxed);
        while let Some(message) = stream.next().await.map_err(|error| error.to_string())? {
            let Some(data) = message.data else { continue };
            match message.kind.as_str() {
                "stream.complete" => return Ok(()),
                "bench.event" => {}
                // A newer Jobcast may send events of its own that this release does not know.
                other if is_reserved(other) && !matches!(other, "stream.error" | "stream.bye" | "stream.reset") => {
                    continue;
                }
                other => return Err(format!("{other}: {data}")),
            }
            let event: Event = serde_json::from_str(&data).map_err(|error| error.to_string())?;
            let late = (epoch.elapsed().as_nanos() as u64).saturating_sub(event.payload.at);
            if let Some(latency) = latency.borrow_mut().as_mut() {
                latency.saturating_record((late / 1000).max(1));
            }
            counts.delivered.fetch_add(1, Ordering::Relaxed);
            self.count(event.payload.n);
        }
        Err("the stream ended before the job did".into())
    }

    fn count(&mut self, number: u64) {
        if number >= self.expected {
            self.missing.extend(self.expected..number);
            self.expected = number + 1;
        } else if self.missing.remove(&number) {
            self.found.misordered += 1;
        } else {
            self.found.repeated += 1;
        }
    }

    fn finish(mut self, ended: Result<(), String>, events: u64) -> Found {
        self.found.lost = self.missing.len() as u64 + events.saturating_sub(self.expected);
        if let Err(why) = ended {
            self.found.broken = 1;
            self.found.why = Some(why);
        }
        self.found
    }
}

#[derive(serde::Deserialize)]
struct Event {
    payload: Stamp,
}

#[derive(serde::Deserialize)]
struct Stamp {
    n: u64,
    /// Nanoseconds after the start of the bench at which it was to be sent.
    at: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    subscribers: u64,
    jobs: u64,
    events: u64,
    connected_in_ms: f64,
    delivered: u64,
    deliveries_per_second: f64,
    latency_ms: Latency,
    lost: u64,
    repeated: u64,
    misordered: u64,
    broken: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

#[derive(Default, Serialize)]
struct Latency {
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

impl Report {
    fn new(args: &Args, connected_in: Duration, delivered_in: Duration, counts: &Counts, all: Found) -> Self {
        let delivered = counts.delivered.load(Ordering::Relaxed);
        let latency_ms = all.latency.map_or_else(Latency::default, |latency| {
            let at = |quantile| latency.value_at_quantile(quantile) as f64 / 1000.0;
            Latency { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: latency.max() as f64 / 1000.0 }
        });
        Self {
            subscribers: args.subscribers,
            jobs: args.jobs,
            events: args.events,
            connected_in_ms: connected_in.as_secs_f64() * 1e3,
            delivered,
            deliveries_per_second: delivered as f64 / delivered_in.as_secs_f64(),
            latency_ms,
            lost: all.lost,
            repeated: all.repeated,
            misordered: all.misordered,
            broken: all.broken,
            why: all.why,
        }
    }

    fn is_clean(&self) -> bool {
        self.lost + self.repeated + self.misordered + self.broken == 0
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Latency { p50, p90, p99, p999, max } = self.latency_ms;
        writeln!(
            f,
            "subscribers  {} of {} jobs, connected in {:.0} ms",
            self.subscribers, self.jobs, self.connected_in_ms
        )?;
        writeln!(f, "delivered    {} events, {:.0} a second", self.delivered, self.deliveries_per_second)?;
        writeln!(f, "latency ms   p50 {p50:.2}  p90 {p90:.2}  p99 {p99:.2}  p99.9 {p999:.2}  max {max:.2}")?;
        writeln!(f, "             from the time at which each event was to be sent to its arrival")?;
        writeln!(
            f,
            "lost {}  repeated {}  out of order {}  broken streams {}",
            self.lost, self.repeated, self.misordered, self.broken
        )?;
        if let Some(why) = &self.why {
            writeln!(f, "broken, the first of them: {why}")?;
        }
        Ok(())
    }
}
