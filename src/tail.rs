//! The one loop that reads the source for all watched jobs: woken, or because its poll is due.

use crate::backoff::Backoff;
use crate::config;
use crate::error::SourceError;
use crate::event::Event;
use crate::hub::{Hub, JoinRequest, Outage, TailRequest};
use crate::shutdown::{Phase, ShutdownWatch};
use crate::source::{Joiner, News, Source, Wakeup};
use crate::sse::{self, Segment, Shape};
use crate::telemetry;
use jiff::Timestamp;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Latecomers that one read brings level.
const MAX_JOINS_PER_READ: usize = 256;
/// Reads that need not bring a join_request level.
const MAX_JOIN_ATTEMPTS: u8 = 3;

/// Runs until the process leaves. Where the source fails in a way that trying again cannot mend, it still asks now and
/// then: an operator may mend it meanwhile.
pub async fn run(source: Arc<dyn Source>, hub: Hub, pace: config::Pace, shape: Shape, shutdown: ShutdownWatch) {
    let kind = source.kind();
    let mut tail = source.tail();
    let mut join_requests = Vec::new();
    let mut backoff = Backoff::new(pace.retry_initial, pace.retry_max);
    let mut more = false;
    telemetry::SOURCE_UP.gauge(&[]).set(1.0);
    let lag = telemetry::SOURCE_LAG.gauge(&[]);
    let mut behind_since: Option<Instant> = None;
    loop {
        let wakeup = tokio::select! {
            biased;
            () = shutdown.reached(Phase::Stopped) => return,
            () = std::future::ready(()), if more => Wakeup::More,
            () = hub.requested() => Wakeup::Watch,
            wakeup = tail.woken() => wakeup,
            () = tokio::time::sleep(pace.poll_interval) => Wakeup::Poll,
        };
        telemetry::SOURCE_WAKEUPS.increment(&[("by", wakeup.as_str())], 1);
        for request in hub.take_requests() {
            match request {
                TailRequest::Watch { job, after } => tail.watch(job, after),
                TailRequest::Join(join_request) => join_requests.push(join_request),
            }
        }
        // after the requests: a channel may be over before its watch began, and what that read would go into the next one
        for job in hub.sweep(Instant::now()) {
            tail.unwatch(&job);
        }
        // one whose channel is gone learns it by the drop, and reads a page again
        join_requests.retain(|join_request: &JoinRequest| hub.is_live(&join_request.job));
        let joining: Vec<Joiner> = join_requests
            .iter()
            .take(MAX_JOINS_PER_READ)
            .map(|one| Joiner { job: one.job.clone(), after: one.after.clone() })
            .collect();
        let began = Instant::now();
        match tail.read(&joining).await {
            Ok(news) => {
                telemetry::SOURCE_READ.histogram().record(began.elapsed());
                more = news.more || join_requests.len() > joining.len();
                behind_since = more.then(|| behind_since.unwrap_or(began));
                lag.set(behind_since.map_or(0.0, |since| since.elapsed().as_secs_f64()));
                backoff = Backoff::new(pace.retry_initial, pace.retry_max);
                // first, so that nobody who comes because of the news is told of what is over
                match news.outage.clone() {
                    Some(error) => went_away(&hub, error, pace.poll_interval, kind),
                    None if hub.outage().is_some() => {
                        tracing::info!(source = kind, "source is back");
                        telemetry::SOURCE_UP.gauge(&[]).set(1.0);
                        hub.set_outage(None);
                    }
                    None => {}
                }
                tell(&hub, news, &mut join_requests, shape, kind);
            }
            Err(error) => {
                let retry_in = if error.is_retryable() { backoff.failed() } else { pace.retry_max };
                went_away(&hub, error, retry_in, kind);
                telemetry::SOURCE_RETRIES.counter(&[]).increment(1);
                tokio::select! {
                    () = tokio::time::sleep(retry_in) => more = true,
                    () = shutdown.reached(Phase::Stopped) => return,
                }
            }
        }
    }
}

/// Told once for each outage, and once more where it turns out that waiting does not mend it.
fn went_away(hub: &Hub, error: SourceError, retry_in: Duration, kind: &'static str) {
    telemetry::SOURCE_UP.gauge(&[]).set(0.0);
    report(&error);
    if hub.outage().is_none_or(|known| known.error.is_retryable() && !error.is_retryable()) {
        tracing::warn!(source = kind, code = error.code.as_str(), %error, ?retry_in, "source went away");
        hub.set_outage(Some(Outage { error, since: Instant::now(), retry_in }));
    }
}

/// Hands on what one read found: events into rings, then ends, then join_requests, who are level as of now.
fn tell(hub: &Hub, news: News, join_requests: &mut Vec<JoinRequest>, shape: Shape, kind: &'static str) {
    let read_at = Instant::now();
    let now = Timestamp::now();
    let age = telemetry::EVENT_AGE.histogram();
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
        telemetry::EVENTS.increment(&[("source", kind)], events as u64);
    }
    let asked = join_requests.len().min(news.caught_up_joiners.len());
    let mut waiting = Vec::new();
    for (mut join_request, caught_up_joiners) in join_requests.drain(..asked).zip(news.caught_up_joiners) {
        match caught_up_joiners {
            Some(missing) => hub.complete_join(join_request, encode(&missing, shape)),
            None if join_request.attempts < MAX_JOIN_ATTEMPTS => {
                join_request.attempts += 1;
                waiting.push(join_request);
            }
            // too much was written since: it learns by the drop that it is to read pages again
            None => drop(join_request),
        }
    }
    join_requests.extend(waiting);
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
    telemetry::SOURCE_ERRORS.increment(&[("code", error.code.as_str()), ("retryable", retryable)], 1);
}
