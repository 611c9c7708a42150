//! The one loop that reads the source for all watched jobs, whenever it is woken or its poll is due, and publishes what it
//! reads to every topic that has the job.

mod joins;
mod progress;
mod sets;
mod watches;

pub use progress::Progress;

use crate::backoff::Backoff;
use crate::config;
use crate::cursor::Cursor;
use crate::error::{Incidents, Retry, Scope, SourceCode, SourceError};
use crate::event::{Event, JobId};
use crate::hub::{Ended, Hub, Outage, Published, TailRequest};
use crate::shutdown::{Phase, ShutdownWatch};
use crate::source::{JobNews, News, Source, Tail, Wakeup};
use crate::sse::{self, JobEnd, Reset, Segment, Shape};
use crate::telemetry;
use crate::topic::Topic;
use crate::traces;
use jiff::Timestamp;
use joins::{CaughtUp, JoinQueue};
pub use sets::{MAX_SKIPPED, Rests, Round, Turn};
use sets::{RoundLevel, turns};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::Instrument;
use watches::Watches;

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
    source: Arc<dyn Source>,
    tail: Box<dyn Tail>,
    hub: Hub,
    pace: config::Pace,
    shape: Shape,
    shutdown: ShutdownWatch,
    /// The live topics, and the jobs that are watched for them.
    watches: Watches,
    /// Readers and channels that wait to be caught up.
    joins: JoinQueue,
    /// The jobs whose rows the last read that told could not read.
    faulty: HashSet<JobId>,
    /// The wait after the next failed read.
    backoff: Backoff,
    /// Changes when the source may let in whom it refused.
    renewals: watch::Receiver<()>,
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
            source,
            renewals: hub.renewals(),
            hub,
            shape,
            shutdown,
            watches: Watches::default(),
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
            let joiners = self.joins.begin_read(|topic| self.hub.is_live(topic), |job| self.watches.is_watched(job));
            let began = Instant::now();
            self.progress.begin(began);
            self.renewals.mark_unchanged();
            let span = traces::tail_read(self.kind, wakeup.as_str());
            let read = self.tail.read(&joiners).instrument(span.clone()).await;
            let count = |news: &News| news.jobs.iter().map(|job| job.events.len()).sum();
            traces::note_read(&span, read.as_ref().map(count).map_err(|error| error.code.as_str()));
            match read {
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
            Ok(()) = self.renewals.changed() => Some(Wakeup::Renewed),
            () = tokio::time::sleep(self.pace.poll_interval) => Some(Wakeup::Poll),
        }
    }

    /// Starts the watches that were requested, and stops those that nobody needs any more. Names the jobs that are awaited.
    fn apply_requests(&mut self) {
        for request in self.hub.take_requests() {
            match request {
                TailRequest::Watch { topic, after } => {
                    if self.watches.begin(&topic, &after, &*self.source, &mut *self.tail) {
                        self.joins.push_channel(topic, after);
                    }
                }
                TailRequest::Join(request) => self.joins.push(request),
            }
        }
        self.tail.await_jobs(self.hub.awaited_jobs());
        // Sweep only after taking the requests. A channel may be swept whose watch is still among them: started after the
        // sweep, that watch would go on without a channel, and publish to the job's next one.
        for topic in self.hub.sweep(Instant::now()) {
            self.stop_serving(&topic);
        }
    }

    fn stop_serving(&mut self, topic: &Topic) {
        for job in self.watches.end(topic, &mut *self.tail) {
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
        self.backoff.reset();
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
        let level = news.level.filter(|_| is_whole).map(|level| {
            let excepted: HashSet<JobId> = news.faults.iter().map(|(job, _)| job.clone()).collect();
            RoundLevel { level, excepted }
        });
        self.count(&news.jobs);
        let ends = self.publish(&news.jobs, level.as_ref());
        self.catch_up(news.caught_up_joiners, level.as_ref());
        self.announce_faults(news.faults, is_whole);
        for (job, end) in news.jobs.iter().filter_map(|news| Some((&news.job, news.end?))) {
            self.watches.job_ended(job, end);
        }
        for (topic, end) in ends {
            self.hub.finish(&topic, end);
            self.stop_serving(&topic);
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

    /// Announces the failure of a read, and waits until the next attempt, which new credentials bring on at once.
    async fn on_error(&mut self, error: SourceError) {
        let retry_in = self.backoff.failed();
        self.announce_outage(error, retry_in);
        telemetry::SOURCE_RETRIES.counter(&[]).increment(1);
        tokio::select! {
            () = tokio::time::sleep(retry_in) => {}
            Ok(()) = self.renewals.changed() => self.backoff.reset(),
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
            self.hub.set_fault(&job, Some(&Outage { error, since: Instant::now(), retry_in }));
            self.faulty.insert(job);
        }
        for job in recovered {
            tracing::info!(source = self.kind, job = job.as_str(), "the job's rows can be read again");
            self.hub.set_fault(&job, None);
            SourceError::incidents_end(&Scope::Job(job));
        }
    }

    /// Counts the events that a read found.
    fn count(&self, jobs: &[JobNews]) {
        let (now, age) = (Timestamp::now(), telemetry::EVENT_AGE.histogram());
        count_unreadable(jobs.iter().flat_map(|job| &job.events));
        let mut published = 0;
        for (event, _) in jobs.iter().flat_map(|job| &job.events) {
            published += 1;
            if let Some(seconds) = age_of(event, now) {
                age.record(seconds);
            }
        }
        if published > 0 {
            telemetry::EVENTS.increment(&[("source", self.kind)], published);
        }
    }

    /// Publishes the events and the status of each job to the topics that have it, and returns the ends of topics.
    fn publish(&mut self, jobs: &[JobNews], level: Option<&RoundLevel>) -> Vec<(Topic, Ended)> {
        let read_at = Instant::now();
        let mut ends = Vec::new();
        let mut sets: HashMap<Topic, Vec<&JobNews>> = HashMap::new();
        for news in jobs {
            for topic in self.watches.topics_of(&news.job) {
                let is_behind = self.watches.get(topic).is_some_and(|watched| watched.is_behind);
                match topic {
                    _ if is_behind => self.publish_to_one_behind(topic, news, read_at, &mut ends),
                    Topic::Set(_) => sets.entry(topic.clone()).or_default().push(news),
                    Topic::Job(_) => {
                        if !news.events.is_empty() || news.status.is_some() {
                            let events = encode(&news.events, self.shape);
                            let published =
                                Published { events, status: news.status, ..Published::nothing(news.job.clone()) };
                            self.hub.publish(topic, vec![published], read_at);
                        }
                        ends.extend(news.end.map(|end| (topic.clone(), Ended { job: news.job.clone(), end })));
                    }
                }
            }
        }
        let mut rests = Rests::default();
        for (topic, news) in sets {
            ends.extend(self.publish_to_set(&topic, news, level, &mut rests, read_at).map(|end| (topic, end)));
        }
        ends
    }

    /// A channel that is behind gets the events when it is caught up; a status has no place among them. It cannot be caught up
    /// with a job that has ended meanwhile: then its readers replay.
    fn publish_to_one_behind(&self, topic: &Topic, news: &JobNews, at: Instant, ends: &mut Vec<(Topic, Ended)>) {
        if news.status.is_some() {
            let published = Published { status: news.status, ..Published::nothing(news.job.clone()) };
            self.hub.publish(topic, vec![published], at);
        }
        // The channel may know the end by a page.
        let is_over = self.watches.get(topic).is_some_and(|watched| watched.is_over(&news.job));
        if news.end.is_some() && !is_over {
            let end = JobEnd::Lost(Reset::Unknown);
            ends.push((topic.clone(), Ended { job: news.job.clone(), end }));
        }
    }

    /// Publishes the news of its jobs to a set. Returns its end, if it is the last of them that has ended, or if the watch of
    /// one is lost.
    fn publish_to_set(
        &mut self,
        topic: &Topic,
        mut news: Vec<&JobNews>,
        level: Option<&RoundLevel>,
        rests: &mut Rests,
        read_at: Instant,
    ) -> Option<Ended> {
        news.sort_by_key(|news| topic.index(&news.job));
        let watched = self.watches.get_mut(topic)?;
        let has_more = |news: &JobNews| !news.events.is_empty() || news.status.is_some_and(|status| !status.is_final());
        let more = news.iter().filter(|news| has_more(news)).map(|news| &news.job);
        let going_on: HashSet<&JobId> = more.filter(|job| watched.goes_on(job)).collect();
        let level = level.map(|level| level.of(topic, watched, &watched.positions));
        // The end of a job that is over already was repeated for others.
        let complete = |news: &JobNews| match news.end {
            Some(JobEnd::Complete(status)) if !watched.is_over(&news.job) => Some(status),
            _ => None,
        };
        let open = topic.jobs().iter().filter(|job| !watched.is_over(job)).count();
        let ending = news.iter().filter(|news| complete(news).is_some()).count();
        // A job that is over may be deleted.
        let is_lost = |news: &JobNews| matches!(news.end, Some(JobEnd::Lost(_))) && !watched.is_over(&news.job);
        let lost = news.iter().find(|news| is_lost(news));
        let last = news.iter().rfind(|news| complete(news).is_some()).filter(|_| ending == open);
        let turns: Vec<Turn<'_>> = news
            .iter()
            .filter_map(|news| {
                let over = complete(news).filter(|_| last.is_none_or(|last| last.job != news.job));
                let (index, events, status) = (topic.index(&news.job)?, &news.events[..], news.status);
                Some(Turn { index, events, end: None, status, over, goes_on: going_on.contains(&news.job) })
            })
            .collect();
        let positions = &mut watched.positions;
        let round = Round { topic, shape: self.shape, positions, level };
        let published = round.publish(&turns, rests, &mut watched.skipped);
        self.hub.publish(topic, published, read_at);
        let end = |news: &&JobNews| Some(Ended { job: news.job.clone(), end: news.end? });
        lost.or(last).and_then(end)
    }

    /// Gives channels and readers what they lack. A reader joins its channel after whatever was published to that.
    fn catch_up(&mut self, answers: Vec<Option<Vec<(Event, Cursor)>>>, level: Option<&RoundLevel>) {
        let (channels, readers): (Vec<_>, Vec<_>) =
            self.joins.end_read(answers).into_iter().partition(|caught_up| caught_up.has_channel);
        for caught_up in channels.iter().chain(&readers) {
            let events = caught_up.missing.iter().flat_map(|(_, events)| events);
            count_unreadable(events);
        }
        for caught_up in channels {
            self.catch_up_channel(&caught_up, level);
            self.complete_joins(caught_up, level);
        }
        for caught_up in readers {
            self.complete_joins(caught_up, level);
        }
        for topic in self.joins.take_given_up() {
            let end = Ended { job: topic.jobs()[0].clone(), end: JobEnd::Lost(Reset::Unknown) };
            self.hub.finish(&topic, end);
            self.stop_serving(&topic);
        }
    }

    /// Publishes to a channel that is behind what the tail has read before and in this round.
    fn catch_up_channel(&mut self, caught_up: &CaughtUp, level: Option<&RoundLevel>) {
        let topic = &caught_up.topic;
        let Some(watched) = self.watches.get_mut(topic).filter(|watched| watched.is_behind) else { return };
        watched.is_behind = false;
        let with_more = caught_up.missing.iter().filter(|(_, events)| !events.is_empty());
        for job in with_more.map(|(index, _)| &topic.jobs()[*index]) {
            if watched.goes_on(job) {
                self.hub.publish(
                    topic,
                    vec![Published { goes_on: true, ..Published::nothing(job.clone()) }],
                    Instant::now(),
                );
                // Its next end may be among the news of this round, which the channel has not got.
                self.tail.watch(job.clone(), self.source.beginning(job));
            }
        }
        let published = match topic {
            Topic::Job(job) => {
                let events = caught_up.missing.iter().flat_map(|(_, events)| encode(events, self.shape)).collect();
                vec![Published { events, ..Published::nothing(job.clone()) }]
            }
            Topic::Set(_) => {
                let level = level.map(|level| level.of(topic, watched, &watched.positions));
                let positions = &mut watched.positions;
                let round = Round { topic, shape: self.shape, positions, level };
                round.publish(&turns(&caught_up.missing), &mut Rests::default(), &mut watched.skipped)
            }
        };
        self.hub.publish(topic, published, Instant::now());
    }

    /// Answers the join requests that the read has caught up.
    fn complete_joins(&mut self, caught_up: CaughtUp, level: Option<&RoundLevel>) {
        let CaughtUp { topic, after, readers, missing, .. } = caught_up;
        let Some(watched) = self.watches.get(&topic) else { return };
        if watched.is_behind {
            return self.joins.put_readers_back(readers);
        }
        let missing: Vec<Arc<Segment>> = match &topic {
            Topic::Job(_) => missing.iter().flat_map(|(_, events)| encode(events, self.shape)).collect(),
            Topic::Set(_) => {
                let mut positions = after.position.levels.to_vec();
                let level = level.map(|level| level.of(&topic, watched, &positions));
                let round = Round { topic: &topic, shape: self.shape, positions: &mut positions, level };
                let published = round.publish(&turns(&missing), &mut Rests::default(), &mut 0);
                published.into_iter().flat_map(|published| published.events).collect()
            }
        };
        for request in readers {
            self.hub.complete_join(request, missing.clone());
        }
    }
}

/// Encodes events into segments that subscribers share.
pub fn encode(events: &[(Event, Cursor)], shape: Shape) -> Vec<Arc<Segment>> {
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
pub fn count_unreadable<'a>(events: impl IntoIterator<Item = &'a (Event, Cursor)>) {
    let mut count = 0;
    for (event, _) in events.into_iter().filter(|(event, _)| !event.unreadable.is_empty()) {
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
