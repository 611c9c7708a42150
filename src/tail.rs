//! The one loop that reads the source for all watched jobs, whenever it is woken or its poll is due.

mod joins;
mod progress;

pub use progress::Progress;

use crate::backoff::Backoff;
use crate::config;
use crate::cursor::Cursor;
use crate::error::{Incidents, Retry, Scope, SourceCode, SourceError};
use crate::event::{Event, JobId};
use crate::hub::{Hub, Outage, Published, TailRequest};
use crate::shutdown::{Phase, ShutdownWatch};
use crate::source::{JobNews, News, Source, Tail, Wakeup};
use crate::sse::{self, JobEnd, Segment, Shape};
use crate::telemetry;
use jiff::Timestamp;
use joins::JoinQueue;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The jobs with events that could not be read whole, each said once.
static UNREADABLE_JOBS: Incidents<JobId> = Incidents::new();

/// Runs until the process stops. It goes on also after an error that trying again cannot help, since an operator may mend
/// the cause meanwhile.
pub async fn run(
    source: Arc<dyn Source>,
    hub: Hub,
    pace: config::Pace,
    shape: Shape,
    shutdown: ShutdownWatch,
    progress: Progress,
) {
    TailLoop::new(source, hub, pace, shape, shutdown, progress).run().await;
}

/// The loop's state between two reads.
struct TailLoop {
    /// The source's name in metrics and logs.
    kind: &'static str,
    tail: Box<dyn Tail>,
    hub: Hub,
    pace: config::Pace,
    shape: Shape,
    shutdown: ShutdownWatch,
    /// Readers that wait to be caught up.
    joins: JoinQueue,
    /// The jobs whose rows the last read that told could not read.
    faulty: HashSet<JobId>,
    /// The wait after the next failed read.
    backoff: Backoff,
    /// There is work that the last read did not get to: read again at once.
    has_more: bool,
    progress: Progress,
}

impl TailLoop {
    fn new(
        source: Arc<dyn Source>,
        hub: Hub,
        pace: config::Pace,
        shape: Shape,
        shutdown: ShutdownWatch,
        progress: Progress,
    ) -> Self {
        telemetry::SOURCE_UP.gauge(&[]).set(1.0);
        telemetry::EVENTS.increment(&[("source", source.kind())], 0);
        for code in SourceCode::ALL {
            let retryable = if code.retry() == Retry::Yes { "true" } else { "false" };
            telemetry::SOURCE_ERRORS.increment(&[("code", code.as_str()), ("retryable", retryable)], 0);
        }
        Self {
            kind: source.kind(),
            tail: source.tail(),
            hub,
            shape,
            shutdown,
            joins: JoinQueue::default(),
            faulty: HashSet::new(),
            backoff: Backoff::new(pace.retry_initial, pace.retry_max),
            pace,
            has_more: false,
            progress,
        }
    }

    async fn run(mut self) {
        while let Some(wakeup) = self.next_wakeup().await {
            telemetry::SOURCE_WAKEUPS.increment(&[("by", wakeup.as_str())], 1);
            self.apply_requests();
            let joiners = self.joins.begin_read(|job| self.hub.is_live(job));
            let began = Instant::now();
            self.progress.begin(began);
            match self.tail.read(&joiners).await {
                Ok(news) => self.on_news(news, began),
                Err(error) => self.on_error(error).await,
            }
        }
    }

    /// Returns when a read is due; `None` when the process stops.
    async fn next_wakeup(&mut self) -> Option<Wakeup> {
        tokio::select! {
            biased;
            () = self.shutdown.reached(Phase::Stopped) => None,
            () = std::future::ready(()), if self.has_more => Some(Wakeup::More),
            () = self.hub.requested() => Some(Wakeup::Watch),
            wakeup = self.tail.woken() => Some(wakeup),
            () = tokio::time::sleep(self.pace.poll_interval) => Some(Wakeup::Poll),
        }
    }

    /// Starts the watches that were requested, and stops those that nobody needs any more. Names the jobs that are awaited.
    fn apply_requests(&mut self) {
        for request in self.hub.take_requests() {
            match request {
                TailRequest::Watch { job, after } => self.tail.watch(job, after),
                TailRequest::Join(request) => self.joins.push(request),
            }
        }
        self.tail.await_jobs(self.hub.awaited_jobs());
        // Sweep only after taking the requests. A channel may be swept whose watch is still among them: started after the
        // sweep, that watch would go on without a channel, and publish to the job's next one.
        for job in self.hub.sweep(Instant::now()) {
            self.tail.unwatch(&job);
            self.faulty.remove(&job);
        }
    }

    /// Publishes what a read found that began at `began`.
    fn on_news(&mut self, news: News, began: Instant) {
        telemetry::SOURCE_READ.histogram().record(began.elapsed());
        // A job whose rows cannot be read must not keep the tail reading: it waits for the poll.
        let has_moved = news.jobs.iter().any(|job| !job.events.is_empty() || job.end.is_some());
        let is_stuck = !has_moved && !news.faults.is_empty();
        self.has_more = (news.more && !is_stuck) || self.joins.has_waiting();
        self.backoff = Backoff::new(self.pace.retry_initial, self.pace.retry_max);
        self.note_progress(news.outage.is_none());
        // Clear the outage before publishing, so that a subscriber woken by these events does not see a stale outage.
        let is_whole = news.outage.is_none();
        match news.outage {
            Some(error) => self.announce_outage(error, self.pace.poll_interval),
            None => self.end_outage(),
        }
        self.hub.announce_jobs(&news.appeared);
        // The order matters: a reader that is caught up stands after the events just published, and a channel ends after
        // its last event and after its last reader has joined.
        let ends = self.publish(news.jobs);
        self.complete_joins(news.caught_up_joiners);
        self.announce_faults(news.faults, is_whole);
        for (job, end) in ends {
            self.hub.finish(&job, end);
        }
    }

    /// Notes, for the metrics, how far a read came. `is_whole` says that it has read all parts of the source.
    fn note_progress(&self, is_whole: bool) {
        if !is_whole {
            return;
        }
        telemetry::SOURCE_LAST_READ.gauge(&[]).set(Timestamp::now().as_millisecond() as f64 / 1000.0);
        if !self.has_more {
            self.progress.finish();
        }
    }

    /// Says that the source is back, if it was away.
    fn end_outage(&self) {
        let Some(outage) = self.hub.outage() else { return };
        tracing::info!(source = self.kind, outage_s = outage.since.elapsed().as_secs_f64(), "source is back");
        telemetry::SOURCE_UP.gauge(&[]).set(1.0);
        SourceError::incidents_end(&Scope::Source);
        self.hub.set_outage(None);
    }

    /// Announces the failure of a read, and waits until the next attempt.
    async fn on_error(&mut self, error: SourceError) {
        let retry_in = if error.is_retryable() { self.backoff.failed() } else { self.pace.retry_max };
        self.announce_outage(error, retry_in);
        telemetry::SOURCE_RETRIES.counter(&[]).increment(1);
        tokio::select! {
            () = tokio::time::sleep(retry_in) => {}
            () = self.shutdown.reached(Phase::Stopped) => {}
        }
        self.has_more = true;
    }

    /// Announces an outage once, and once more if it turns out that waiting does not help. Where streams are to wait all the
    /// same, since the source is forgiven, only the log and operators are told the second time.
    fn announce_outage(&self, error: SourceError, retry_in: Duration) {
        telemetry::SOURCE_UP.gauge(&[]).set(0.0);
        count_error(&error);
        let is_news = error.begins_incident();
        let known = self.hub.outage();
        let is_told = known.as_ref().is_some_and(|known| !known.error.is_retryable() || error.is_retryable());
        let is_known =
            known.as_ref().is_some_and(|known| !known.error.kind_is_retryable() || error.kind_is_retryable());
        if is_told && is_known {
            return;
        }
        let (source, code, retry_in_s) = (self.kind, error.code.as_str(), retry_in.as_secs_f64());
        match is_news {
            true => tracing::warn!(source, code, %error, retry_in_s, "source went away"),
            // A request has met it first, and said it.
            false => tracing::info!(source, code, %error, retry_in_s, "source went away"),
        }
        let since = known.map_or_else(Instant::now, |known| known.since);
        let outage = Outage { error, since, retry_in };
        if is_told { self.hub.correct_outage(outage) } else { self.hub.set_outage(Some(outage)) }
    }

    /// Tells the subscribers of the jobs whose own rows cannot be read, and nobody else. `is_whole` says that all other
    /// watched jobs were read.
    fn announce_faults(&mut self, faults: Vec<(JobId, SourceError)>, is_whole: bool) {
        let mut recovered = if is_whole { std::mem::take(&mut self.faulty) } else { HashSet::new() };
        for (job, error) in faults {
            count_error(&error);
            recovered.remove(&job);
            let retry_in = self.pace.poll_interval;
            if error.begins_incident() {
                let (source, code) = (self.kind, error.code.as_str());
                let retry_in_s = retry_in.as_secs_f64();
                tracing::warn!(source, code, job = job.as_str(), %error, retry_in_s, "a job's rows cannot be read");
            }
            self.hub.set_fault(&job, Some(Outage { error, since: Instant::now(), retry_in }));
            self.faulty.insert(job);
        }
        for job in recovered {
            tracing::info!(source = self.kind, job = job.as_str(), "the job's rows can be read again");
            self.hub.set_fault(&job, None);
            SourceError::incidents_end(&Scope::Job(job));
        }
    }

    /// Publishes the events and the status of each job, and returns the ends of watches.
    fn publish(&self, jobs: Vec<JobNews>) -> Vec<(JobId, JobEnd)> {
        let (read_at, now) = (Instant::now(), Timestamp::now());
        let age = telemetry::EVENT_AGE.histogram();
        let mut ends = Vec::new();
        let mut published = 0;
        for job in jobs {
            published += job.events.len() as u64;
            for (event, _) in &job.events {
                if let Some(seconds) = age_of(event, now) {
                    age.record(seconds);
                }
            }
            if !job.events.is_empty() || job.status.is_some() {
                let news = Published { events: encode(&job.events, self.shape), status: job.status };
                self.hub.publish(&job.job, news, read_at);
            }
            ends.extend(job.end.map(|end| (job.job, end)));
        }
        if published > 0 {
            telemetry::EVENTS.increment(&[("source", self.kind)], published);
        }
        ends
    }

    /// Answers the join requests that the read has caught up.
    fn complete_joins(&mut self, caught_up: Vec<Option<Vec<(Event, Cursor)>>>) {
        for (missing, requests) in self.joins.end_read(caught_up) {
            let missing = encode(&missing, self.shape);
            for request in requests {
                self.hub.complete_join(request, missing.clone());
            }
        }
    }
}

/// Encodes events into segments that subscribers share.
pub fn encode(events: &[(Event, Cursor)], shape: Shape) -> Vec<Arc<Segment>> {
    count_unreadable(events);
    sse::encode(events.iter().map(|(event, cursor)| (event, cursor)), shape).into_iter().map(Arc::new).collect()
}

/// Returns the seconds since an event's timestamp, where it has one.
fn age_of(event: &Event, now: Timestamp) -> Option<f64> {
    Some(now.duration_since(event.timestamp?).as_secs_f64().max(0.0))
}

/// Counts a failure of the source in the metrics.
pub fn count_error(error: &SourceError) {
    let retryable = if error.kind_is_retryable() { "true" } else { "false" };
    telemetry::SOURCE_ERRORS.increment(&[("code", error.code.as_str()), ("retryable", retryable)], 1);
}

/// Counts the events that could not be read whole, and says the first of a job.
pub fn count_unreadable(events: &[(Event, Cursor)]) {
    let mut count = 0;
    for (event, _) in events.iter().filter(|(event, _)| !event.unreadable.is_empty()) {
        count += 1;
        if UNREADABLE_JOBS.begins(event.job_id.clone()) {
            let (job, parts) = (event.job_id.as_str(), &event.unreadable);
            tracing::warn!(job, event = event.id, unreadable = ?parts, "an event has a part that cannot be read");
        }
    }
    if count > 0 {
        telemetry::UNREADABLE.counter(&[]).increment(count);
    }
}
