//! The one loop that reads the source for all watched jobs: woken, or because its poll is due.

use crate::config;
use crate::error::SourceError;
use crate::event::Event;
use crate::hub::{Hub, Latecomer, Outage, Request};
use crate::shutdown::{Leaving, Phase};
use crate::source::{Joining, News, Source, Wakeup};
use crate::sse::{self, Segment, Shape};
use crate::telemetry;
use jiff::Timestamp;
use rand::RngExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Latecomers that one read brings level.
const TOGETHER: usize = 256;
/// Reads that need not bring a latecomer level.
const REFUSALS: u8 = 3;

/// Runs until the process leaves. Where the source fails in a way that trying again cannot mend, it still asks now and
/// then: an operator may mend it meanwhile.
pub async fn run(source: Arc<dyn Source>, hub: Hub, pace: config::Source, shape: Shape, leaving: Leaving) {
    let kind = source.kind();
    let mut tail = source.tail();
    let mut latecomers = Vec::new();
    let mut backoff = Backoff::new(pace.retry_initial, pace.retry_max);
    let mut more = false;
    telemetry::SOURCE_UP.gauges(&[]).set(1.0);
    let lag = telemetry::SOURCE_LAG.gauges(&[]);
    let mut behind_since: Option<Instant> = None;
    loop {
        let wakeup = tokio::select! {
            biased;
            () = leaving.reached(Phase::Gone) => return,
            () = std::future::ready(()), if more => Wakeup::More,
            () = hub.requested() => Wakeup::Watch,
            wakeup = tail.woken() => wakeup,
            () = tokio::time::sleep(pace.poll_interval) => Wakeup::Poll,
        };
        telemetry::SOURCE_WAKEUPS.add(&[("by", wakeup.as_str())], 1);
        for request in hub.take_requests() {
            match request {
                Request::Watch { job, after } => tail.watch(job, after),
                Request::Join(latecomer) => latecomers.push(latecomer),
            }
        }
        // after the requests: a channel may be over before its watch began, and what that read would go into the next one
        for job in hub.sweep(Instant::now()) {
            tail.unwatch(&job);
        }
        // one whose channel is gone learns it by the drop, and reads a page again
        latecomers.retain(|latecomer: &Latecomer| hub.is_live(&latecomer.job));
        let joining: Vec<Joining> = latecomers
            .iter()
            .take(TOGETHER)
            .map(|one| Joining { job: one.job.clone(), after: one.after.clone() })
            .collect();
        let began = Instant::now();
        match tail.read(&joining).await {
            Ok(news) => {
                telemetry::SOURCE_READ.observes().record(began.elapsed());
                more = news.more || latecomers.len() > joining.len();
                behind_since = more.then(|| behind_since.unwrap_or(began));
                lag.set(behind_since.map_or(0.0, |since| since.elapsed().as_secs_f64()));
                backoff = Backoff::new(pace.retry_initial, pace.retry_max);
                // first, so that nobody who comes because of the news is told of what is over
                match news.outage.clone() {
                    Some(error) => went_away(&hub, error, pace.poll_interval, kind),
                    None if hub.outage().is_some() => {
                        tracing::info!(source = kind, "source is back");
                        telemetry::SOURCE_UP.gauges(&[]).set(1.0);
                        hub.set_outage(None);
                    }
                    None => {}
                }
                tell(&hub, news, &mut latecomers, shape, kind);
            }
            Err(error) => {
                let retry_in = if error.is_retryable() { backoff.failed() } else { pace.retry_max };
                went_away(&hub, error, retry_in, kind);
                telemetry::SOURCE_RETRIES.counts(&[]).increment(1);
                tokio::select! {
                    () = tokio::time::sleep(retry_in) => more = true,
                    () = leaving.reached(Phase::Gone) => return,
                }
            }
        }
    }
}

/// Told once for each outage, and once more where it turns out that waiting does not mend it.
fn went_away(hub: &Hub, error: SourceError, retry_in: Duration, kind: &'static str) {
    telemetry::SOURCE_UP.gauges(&[]).set(0.0);
    report(&error);
    if hub.outage().is_none_or(|known| known.error.is_retryable() && !error.is_retryable()) {
        tracing::warn!(source = kind, code = error.code.as_str(), %error, ?retry_in, "source went away");
        hub.set_outage(Some(Outage { error, since: Instant::now(), retry_in }));
    }
}

/// Hands on what one read found: events into rings, then ends, then latecomers, who are level as of now.
fn tell(hub: &Hub, news: News, latecomers: &mut Vec<Latecomer>, shape: Shape, kind: &'static str) {
    let read_at = Instant::now();
    let now = Timestamp::now();
    let age = telemetry::EVENT_AGE.observes();
    let mut ends = Vec::new();
    let mut events = 0;
    for job in news.jobs {
        if !job.events.is_empty() {
            events += job.events.len();
            for (event, _) in &job.events {
                age.record(age_of(event, now));
            }
            hub.publish(&job.job, encode(&job.events, shape), read_at);
        }
        ends.extend(job.end.map(|end| (job.job, end)));
    }
    if events > 0 {
        telemetry::EVENTS.add(&[("source", kind)], events as u64);
    }
    let asked = latecomers.len().min(news.joined.len());
    let mut waiting = Vec::new();
    for (mut latecomer, joined) in latecomers.drain(..asked).zip(news.joined) {
        match joined {
            Some(missing) => hub.level(latecomer, encode(&missing, shape)),
            None if latecomer.refused < REFUSALS => {
                latecomer.refused += 1;
                waiting.push(latecomer);
            }
            // too much was written since: it learns by the drop that it is to read pages again
            None => drop(latecomer),
        }
    }
    latecomers.extend(waiting);
    for (job, end) in ends {
        hub.finish(&job, end);
    }
}

pub fn encode(events: &[(Event, crate::cursor::Cursor)], shape: Shape) -> Vec<Arc<Segment>> {
    sse::encode(events.iter().map(|(event, cursor)| (event, cursor)), shape).into_iter().map(Arc::new).collect()
}

fn age_of(event: &Event, now: Timestamp) -> f64 {
    now.duration_since(event.timestamp).as_secs_f64().max(0.0)
}

/// Counts a failure of the source.
pub fn report(error: &SourceError) {
    let retryable = if error.is_retryable() { "true" } else { "false" };
    telemetry::SOURCE_ERRORS.add(&[("code", error.code.as_str()), ("retryable", retryable)], 1);
}

/// Exponential, with jitter, so that many do not come back at once.
pub struct Backoff {
    initial: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    pub fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max, failures: 0 }
    }

    /// How long to wait after one more failure.
    pub fn failed(&mut self) -> Duration {
        let ceiling = self.initial.saturating_mul(1 << self.failures.min(20)).min(self.max);
        self.failures += 1;
        ceiling.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}
