//! `jobcast bench`: opens subscribers, publishes events at a steady pace, and reports what arrived and how late.
//!
//! Latency counts from the moment at which an event was due, not from the moment at which it was sent, so that a server
//! that makes the publisher wait cannot hide that wait.

mod progress;
mod report;
mod subscriber;

use super::client::{Failure, Jobcast, Trust};
use super::{failed, misused, printed};
use crate::event::JobId;
use futures_util::future::{join_all, try_join};
use progress::{Counts, Progress};
use report::Report;
use reqwest::Method;
use serde_json::{Value, json};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use subscriber::{Latency, Subscriber, Tally};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

#[derive(clap::Args, Clone)]
pub struct Args {
    /// The Jobcast to load; it must take events in
    #[arg(long)]
    url: String,
    /// Streams to open, spread over the jobs
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    subscribers: u64,
    /// Jobs to publish to
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    jobs: u64,
    /// Jobs that each stream watches: with more than one, it is a stream of several jobs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    watch: u64,
    /// Events of each job
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
    #[command(flatten)]
    trust: Trust,
    /// The report as one JSON object
    #[arg(long)]
    json: bool,
    /// Load an address that is not this machine's own
    #[arg(long)]
    yes: bool,
}

/// Streams that are being opened at the same time, at most.
const MAX_OPENING: usize = 256;
/// Events that one request sends in, at most.
const MAX_EVENTS_PER_REQUEST: usize = 100;
/// Time for all streams to open, for the last deliveries once everything is published, and for all streams to end.
const PHASE_TIMEOUT: Duration = Duration::from_secs(60);
/// Files that the process needs besides one for each subscriber.
const OTHER_FILES: u64 = 256;

/// Reason why there is no report.
#[derive(Debug, thiserror::Error)]
enum BenchError {
    #[error(transparent)]
    Request(#[from] Failure),
    #[error("subscribers did not get to the end of their jobs")]
    NeverEnded,
    #[error("stopped")]
    Interrupted,
}

pub async fn run(args: Args) -> ExitCode {
    if !(args.rate.is_finite() && args.rate > 0.0) {
        return misused("--rate must be more than 0");
    }
    if args.watch > args.jobs {
        return misused(format!("--watch {} is more than there are jobs: add --jobs {0} or more", args.watch));
    }
    if !is_loopback(&args.url) && !args.yes {
        return misused(format!("{} is not on this machine: add --yes if you may load it", args.url));
    }
    let files = args.subscribers + OTHER_FILES;
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
        Err(error) => return failed(error),
    };
    let text = if as_json { serde_json::to_string(&report).unwrap_or_default() } else { report.to_string() };
    let exit = if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    printed(text.trim_end(), exit)
}

fn is_loopback(url: &str) -> bool {
    let url = reqwest::Url::parse(url);
    let host = url.as_ref().ok().and_then(reqwest::Url::host_str).unwrap_or_default();
    let ip = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

/// Measures with jobs of its own, and leaves none of them running, however the measurement ends.
async fn bench(args: Args) -> Result<Report, BenchError> {
    let jobcast = Jobcast::new(&args.url, args.token.clone(), &args.trust)?;
    let name = uuid::Uuid::now_v7();
    let jobs = (0..args.jobs).filter_map(|number| format!("bench-{name}-{number}").parse().ok()).collect();
    let bench = Bench { args, jobcast, jobs, counts: Arc::default(), epoch: Instant::now() };
    bench.set_status("RUNNING").await?;
    let (report, status) = tokio::select! {
        report = bench.measure() => {
            let status = if report.is_ok() { "COMPLETED" } else { "CANCELLED" };
            (report, status)
        }
        _ = tokio::signal::ctrl_c() => (Err(BenchError::Interrupted), "CANCELLED"),
    };
    bench.set_status(status).await?;
    report
}

/// One measurement.
struct Bench {
    args: Args,
    jobcast: Jobcast,
    /// Jobs of this measurement only; subscribers are spread over them.
    jobs: Vec<JobId>,
    /// Counts that all subscribers add to.
    counts: Arc<Counts>,
    /// Moment from which the times in events are counted.
    epoch: Instant,
}

impl Bench {
    async fn set_status(&self, status: &str) -> Result<(), Failure> {
        let body = json!({ "status": status });
        for job in &self.jobs {
            self.jobcast.json(Method::PUT, &self.jobcast.job_url(job), Some(&body)).await?;
        }
        Ok(())
    }

    async fn measure(&self) -> Result<Report, BenchError> {
        let latency = Arc::new(Latency::new());
        let mut subscribers = self.subscribe(&latency);
        let progress = Progress::new(&self.counts, self.args.subscribers);
        progress.until("connecting", |counts| &counts.connected, self.args.subscribers, PHASE_TIMEOUT).await;
        let connected_in = self.epoch.elapsed();

        let began = Instant::now();
        try_join(self.publish(), self.deliver(&progress)).await?;
        let delivered_in = began.elapsed();

        // The end of the jobs is the end of the streams.
        self.set_status("COMPLETED").await?;
        progress.until("ending", |counts| &counts.ended, self.args.subscribers, PHASE_TIMEOUT).await;
        progress.clear();
        let tally = tokio::time::timeout(Duration::from_secs(1), Tally::of_all(&mut subscribers)).await;
        let tally = tally.ok().flatten().ok_or(BenchError::NeverEnded)?;
        Ok(Report::new(&self.args, connected_in, delivered_in, &self.counts, tally, latency.total()))
    }

    /// Starts all subscribers; they end with their jobs, or when the set is dropped.
    fn subscribe(&self, latency: &Arc<Latency>) -> JoinSet<Tally> {
        let opening = Arc::new(Semaphore::new(MAX_OPENING));
        let mut subscribers = JoinSet::new();
        for number in 0..self.args.subscribers {
            let subscriber = Subscriber {
                jobcast: self.jobcast.clone(),
                jobs: self.watched_by(number),
                number: number as usize,
                opening: opening.clone(),
                latency: latency.clone(),
                counts: self.counts.clone(),
                epoch: self.epoch,
            };
            subscribers.spawn(subscriber.run(self.args.events));
        }
        subscribers
    }

    /// Returns the jobs that a subscriber watches: as many as asked for, one after the other, beginning where the
    /// subscriber's share of all jobs does. Where each watches all jobs, all watch the same.
    fn watched_by(&self, subscriber: u64) -> Vec<JobId> {
        let first = if self.args.watch == 1 { subscriber } else { subscriber * self.args.jobs / self.args.subscribers };
        let mut numbers: Vec<u64> = (0..self.args.watch).map(|next| (first + next) % self.args.jobs).collect();
        numbers.sort_unstable();
        numbers.into_iter().filter_map(|number| self.jobs.get(number as usize)).cloned().collect()
    }

    async fn publish(&self) -> Result<(), Failure> {
        join_all(self.jobs.iter().map(|job| self.publish_job(job))).await.into_iter().collect()
    }

    /// Publishes one job's events in their order, each when it is due or, if the server is slower than that, as soon as
    /// it can be.
    async fn publish_job(&self, job: &JobId) -> Result<(), Failure> {
        let url = self.jobcast.events_url(job);
        let pad = "x".repeat(self.args.payload);
        let began = Instant::now();
        let due = |number: u64| began + Duration::from_secs_f64(number as f64 / self.args.rate);
        let mut next = 0;
        while next < self.args.events {
            tokio::time::sleep_until(due(next).into()).await;
            let now = Instant::now();
            let mut events = Vec::new();
            while next < self.args.events && due(next) <= now && events.len() < MAX_EVENTS_PER_REQUEST {
                let at = due(next).duration_since(self.epoch).as_nanos() as u64;
                events.push(json!({ "type": "bench.event", "payload": { "n": next, "at": at, "pad": pad } }));
                next += 1;
            }
            self.jobcast.json(Method::POST, &url, Some(&Value::Array(events))).await?;
        }
        Ok(())
    }

    async fn deliver(&self, progress: &Progress<'_>) -> Result<(), Failure> {
        let deliveries = self.args.subscribers * self.args.watch * self.args.events;
        let publishing = Duration::from_secs_f64(self.args.events as f64 / self.args.rate);
        progress.until("delivering", |counts| &counts.delivered, deliveries, publishing + PHASE_TIMEOUT).await;
        Ok(())
    }
}
