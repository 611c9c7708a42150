//! All live jobs and sets of jobs of this process. The hub knows neither where events come from nor how they reach a socket: the tail
//! publishes them here, and subscribers are places in a channel's ring.
//!
//! A channel is created by the first reader that has caught up with the source, at the position that the source gave it
//! then. A later reader joins where the ring reaches back to its cursor; otherwise it asks the tail to catch it up. Only the
//! tail removes channels, between two of its reads, so that the events of a read are never published to the channel of a
//! later watch.
//!
//! Invariant, "one reader": a channel, its ring, the tail's watch and every join request begin only at a position that the
//! source made itself, from what it saw. A cursor that a reader sent is compared with the ring's, and goes no further: one
//! that the ring knows by its token is by that one of the source's making. A reader's cursor therefore decides what that
//! reader is given, and nothing else. Replays keep the two kinds apart.
//!
//! Locks, in the order in which they may be nested: `channels` → `requests`, and `channels` → a channel's state. A channel's
//! state and `requests` are never held together, and no lock is held across an await.

mod awaited;
mod channel;
mod channels;
#[cfg(test)]
mod interleavings;
#[cfg(test)]
pub mod model;
mod ring;
mod subscriber;

pub use awaited::Appearance;
pub use channel::{Channel, ChannelId, ChannelListener, Fault, ListenerId, Unread};
pub use ring::{Overtaken, Place, Run};
pub use subscriber::{Listening, Subscription};

use crate::config;
use crate::cursor::Cursor;
use crate::error::SourceError;
use crate::event::{JobId, JobStatus};
use crate::sse::{JobEnd, Segment};
use crate::telemetry;
use crate::topic::{Position, Topic};
use awaited::AwaitedJobs;
use channels::Channels;
use metrics::{Counter, Gauge};
use ring::Ring;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot, watch};

/// The live jobs; cheap to clone.
#[derive(Clone)]
pub struct Hub(Arc<Inner>);

struct Inner {
    /// The bounds of one ring and of all of them.
    limits: config::Hub,
    /// Live channels by topic. A std mutex: no critical section awaits, and each is a few operations on the map.
    channels: Mutex<Channels>,
    /// Requests that the tail has not taken yet, oldest first. Locked after `channels`.
    requests: Mutex<Vec<TailRequest>>,
    /// Wakes the tail when there is a request, or another job to wait for.
    requested: Notify,
    /// Its lock is held with no other one.
    awaited: AwaitedJobs,
    /// The present outage of the source, if there is one. Streams and the admin listener watch it.
    outage: watch::Sender<Option<Arc<Outage>>>,
    /// Changes when the source may let in whom it refused.
    renewals: watch::Sender<()>,
    /// The next channel's id. Counted on its own, so that the channels of consecutive ids are spread evenly over threads.
    next_channel: AtomicU64,
    /// The next listener's id.
    next_listener: AtomicU64,
    /// Events and bytes in the rings of all live channels. Signed, since the parts of one change are counted one by one.
    events: AtomicI64,
    bytes: AtomicI64,
    meters: Meters,
}

struct Meters {
    channels: Gauge,
    ring_events: Gauge,
    ring_bytes: Gauge,
    evictions: Counter,
}

/// News of one job for a channel.
pub struct Published {
    pub job: JobId,
    pub events: Vec<Arc<Segment>>,
    /// The job's status, which subscribers are told where it is another one than before: a final one after the events,
    /// any other before them.
    pub status: Option<JobStatus>,
    /// The job's end, where others of the same set go on. Its position is that of whatever was published before it.
    pub over: Option<JobStatus>,
    /// The job was over in its set, and goes on.
    pub goes_on: bool,
}

impl Published {
    pub fn nothing(job: JobId) -> Self {
        Self { job, events: Vec::new(), status: None, over: None, goes_on: false }
    }
}

/// The end of a channel: that of its job, of the last job of its set, or the loss of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub job: JobId,
    pub end: JobEnd,
}

/// The position of a reader that has caught up with the source. The source made it.
#[derive(Clone, Debug)]
pub struct Standpoint {
    pub position: Position,
    /// The jobs of a set that a page said to be complete.
    pub over: Vec<(JobId, JobStatus)>,
}

impl Standpoint {
    /// The position in one job alone.
    pub fn of_job(cursor: Cursor) -> Self {
        Self { position: Position::of_job(cursor), over: Vec::new() }
    }

    pub fn token(&self) -> &Cursor {
        &self.position.token
    }

    pub fn is_over(&self, job: &JobId) -> bool {
        self.over.iter().any(|(over, _)| over == job)
    }
}

/// A request of the hub to the tail.
pub enum TailRequest {
    /// Watch these jobs, and publish their events after `after`.
    Watch { topic: Topic, after: Standpoint },
    /// Catch this reader up with the topic's channel.
    Join(JoinRequest),
}

/// A reader that has received every event up to `after`, and waits for those that were published to the channel since.
pub struct JoinRequest {
    pub topic: Topic,
    pub after: Standpoint,
    answer: oneshot::Sender<CaughtUp>,
}

/// A reader that has caught up with a channel: it has received, or gets as `missing`, every event before `place`.
pub struct CaughtUp {
    pub missing: Vec<Arc<Segment>>,
    pub subscription: Subscription,
    pub place: Place,
    /// The position at `place`.
    pub cursor: Cursor,
}

/// A time in which the source does not answer: for no job at all, or, as part of a [`Fault`], not for one.
#[derive(Clone, Debug)]
pub struct Outage {
    pub error: SourceError,
    pub since: Instant,
    /// The tail's wait before its next attempt.
    pub retry_in: Duration,
}

/// The answer to a reader that wants to go live.
pub enum Join {
    CaughtUp(CaughtUp),
    /// Resolves when the tail has caught the reader up. Errs if the channel ended or the tail gave up; the caller must
    /// replay again.
    Wait(oneshot::Receiver<CaughtUp>),
}

/// The page that a reader read just before it created a channel. The ring begins with it, so that others who come at the
/// same time find their place. It must descend from a position of the source's own making, since its cursors become the
/// ring's.
pub struct Seed {
    /// The cursor before the first event, made by the source.
    pub base: Cursor,
    pub segments: Vec<Arc<Segment>>,
}

impl Hub {
    pub fn new(limits: config::Hub) -> Self {
        Self(Arc::new(Inner {
            limits,
            channels: Mutex::default(),
            requests: Mutex::default(),
            requested: Notify::new(),
            awaited: AwaitedJobs::default(),
            outage: watch::Sender::new(None),
            renewals: watch::Sender::new(()),
            next_channel: AtomicU64::new(0),
            next_listener: AtomicU64::new(0),
            events: AtomicI64::new(0),
            bytes: AtomicI64::new(0),
            meters: Meters {
                channels: telemetry::CHANNELS.gauge(&[]),
                ring_events: telemetry::RING_EVENTS.gauge(&[]),
                ring_bytes: telemetry::RING_BYTES.gauge(&[]),
                evictions: telemetry::RING_EVICTIONS.counter(&[]),
            },
        }))
    }

    fn channels(&self) -> MutexGuard<'_, Channels> {
        self.0.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn request(&self, request: TailRequest) {
        self.0.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        self.0.requested.notify_one();
    }

    /// Returns an id for a new listener.
    pub fn listener_id(&self) -> ListenerId {
        ListenerId(self.0.next_listener.fetch_add(1, Ordering::Relaxed))
    }

    // ---- for readers

    /// Joins at `cursor` if the topic is live and its ring reaches back to it.
    pub fn join(&self, topic: &Topic, cursor: &Cursor) -> Option<(Subscription, Place)> {
        let channels = self.channels();
        let channel = channels.get(topic)?;
        let place = channel.find(cursor)?;
        Some((Subscription::new(channel), place))
    }

    /// Returns the cursor after the newest event of a live job, and its status, if that is known.
    pub fn newest(&self, job: &JobId) -> Option<(Cursor, Option<JobStatus>)> {
        let channel = self.channel(&Topic::Job(job.clone()))?;
        let status = channel.statuses().pop().map(|(_, status)| status);
        Some((channel.newest().1, status))
    }

    /// Returns the number of live subscribers of a job, alone or in a set.
    pub fn watchers(&self, job: &JobId) -> usize {
        let channels = self.channels();
        let of_job = channels.all().filter(|channel| channel.topic.index(job).is_some());
        of_job.map(|channel| channel.subscribers()).sum()
    }

    /// Makes a reader live that caught up with the source, at `after`, a moment ago. The source made `after` itself; one that
    /// a reader sent would become everybody's. Creates the channel if there is none, with `seed` in its ring and with
    /// `statuses`, which the reader has been told.
    pub fn join_or_create(
        &self,
        topic: &Topic,
        after: &Standpoint,
        seed: Option<Seed>,
        statuses: Vec<(JobId, JobStatus)>,
    ) -> Join {
        let mut channels = self.channels();
        if let Some(channel) = channels.get(topic) {
            if let Some(place) = channel.find(after.token()) {
                let (subscription, cursor) = (Subscription::new(channel), after.token().clone());
                return Join::CaughtUp(CaughtUp { missing: Vec::new(), subscription, place, cursor });
            }
            let (answer, wait) = oneshot::channel();
            let (topic, after) = (topic.clone(), after.clone());
            self.request(TailRequest::Join(JoinRequest { topic, after, answer }));
            return Join::Wait(wait);
        }
        let seed = seed.unwrap_or(Seed { base: after.token().clone(), segments: Vec::new() });
        let id = ChannelId(self.0.next_channel.fetch_add(1, Ordering::Relaxed));
        let channel = Channel::new(id, topic.clone(), Ring::new(seed.base), statuses, after.over.clone());
        channels.insert(channel.clone());
        self.0.meters.channels.set(channels.len() as f64);
        let seeds = Published { events: seed.segments, ..Published::nothing(topic.jobs()[0].clone()) };
        self.append_and_evict(&channel, vec![seeds], Instant::now(), channels.len());
        let (place, cursor) = channel.newest();
        let subscription = Subscription::new(&channel);
        // The watch is requested last, and under the lock, so that nothing is published before the place is taken.
        self.request(TailRequest::Watch { topic: topic.clone(), after: after.clone() });
        drop(channels);
        self.keep_within_total();
        Join::CaughtUp(CaughtUp { missing: Vec::new(), subscription, place, cursor })
    }

    /// Watches the outages of the source.
    pub fn outages(&self) -> watch::Receiver<Option<Arc<Outage>>> {
        self.0.outage.subscribe()
    }

    /// Returns the present outage.
    pub fn outage(&self) -> Option<Arc<Outage>> {
        self.0.outage.borrow().clone()
    }

    /// Watches the moments at which the source may let in whom it refused, so that whoever waits tries again at once.
    pub fn renewals(&self) -> watch::Receiver<()> {
        self.0.renewals.subscribe()
    }

    /// Says that the credentials for the source may have been renewed.
    pub fn announce_renewal(&self) {
        self.0.renewals.send_replace(());
    }

    /// Returns the topic's channel, if it is live.
    pub fn channel(&self, topic: &Topic) -> Option<Arc<Channel>> {
        self.channels().get(topic).cloned()
    }

    /// Returns all live channels.
    pub fn all(&self) -> Vec<Arc<Channel>> {
        self.channels().all().cloned().collect()
    }

    // ---- for the tail

    /// Returns when a request was made since this last returned.
    pub async fn requested(&self) {
        self.0.requested.notified().await;
    }

    /// Returns all requests, oldest first.
    pub fn take_requests(&self) -> Vec<TailRequest> {
        std::mem::take(&mut self.0.requests.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds the news of some jobs to a topic's ring, and wakes the channel's listeners. Does nothing if the topic is not live.
    pub fn publish(&self, topic: &Topic, news: Vec<Published>, read_at: Instant) {
        let (channel, live) = {
            let channels = self.channels();
            let Some(channel) = channels.get(topic).cloned() else { return };
            (channel, channels.len())
        };
        if self.append_and_evict(&channel, news, read_at, live) {
            self.keep_within_total();
            channel.wake_all();
        }
    }

    /// Ends a topic's channel, because the source has stopped its watch. Its subscribers see the end after its last event.
    pub fn finish(&self, topic: &Topic, end: Ended) {
        let Some(channel) = self.channel(topic) else { return };
        // Mark the channel ended before removing it, so that no reader can find it in the map still open.
        channel.finish(end);
        self.remove(&channel);
        channel.wake_all();
    }

    /// Answers a join request. The tail calls this after it has published everything that was visible when it read
    /// `missing`, and before it publishes more.
    pub fn complete_join(&self, join_request: JoinRequest, missing: Vec<Arc<Segment>>) {
        let channels = self.channels();
        let Some(channel) = channels.get(&join_request.topic) else { return };
        let (place, cursor) = channel.newest();
        let subscription = Subscription::new(channel);
        drop(channels);
        // If the reader has left, its subscription is dropped here.
        let _ = join_request.answer.send(CaughtUp { missing, subscription, place, cursor });
    }

    /// Tells if a topic is live, or may become so: with its jobs, no more than `hub.max_jobs` are live.
    pub fn has_room_for(&self, topic: &Topic) -> bool {
        let channels = self.channels();
        channels.jobs() + topic.jobs().len() <= self.0.limits.max_jobs || channels.contains(topic)
    }

    pub fn is_live(&self, topic: &Topic) -> bool {
        self.channels().contains(topic)
    }

    /// Removes the channels that have had no subscriber for `hub.linger`, or at all where there is no room for others, and
    /// returns their topics.
    pub fn sweep(&self, now: Instant) -> Vec<Topic> {
        let idle: Vec<Arc<Channel>> = {
            // The channels are chosen and removed under one lock, so that no reader can join a channel in between.
            let mut channels = self.channels();
            let limits = &self.0.limits;
            let linger = if channels.jobs() < limits.max_jobs { limits.linger } else { Duration::ZERO };
            let is_idle = |channel: &Arc<Channel>| {
                channel.idle_since().is_some_and(|since| now.saturating_duration_since(since) >= linger)
            };
            let idle: Vec<_> = channels.all().filter(|channel| is_idle(channel)).cloned().collect();
            for channel in &idle {
                channels.remove(&channel.topic);
            }
            self.0.meters.channels.set(channels.len() as f64);
            idle
        };
        for channel in &idle {
            self.uncount(channel);
        }
        idle.iter().map(|channel| channel.topic.clone()).collect()
    }

    /// Announces that the source does not answer, or, with `None`, that it is back.
    pub fn set_outage(&self, outage: Option<Outage>) {
        self.0.outage.send_replace(outage.map(Arc::new));
    }

    /// Replaces the present outage by what is now known of it, and tells nobody who was told of it.
    pub fn correct_outage(&self, outage: Outage) {
        self.0.outage.send_if_modified(|known| {
            *known = Some(Arc::new(outage));
            false
        });
    }

    /// Tells the subscribers of a job that its rows cannot be read, or notes that they can again.
    pub fn set_fault(&self, job: &JobId, fault: Option<&Outage>) {
        let all = self.all();
        for channel in all.iter().filter(|channel| channel.topic.index(job).is_some()) {
            if channel.set_fault(job, fault.cloned()) {
                channel.wake_all();
            }
        }
    }

    // ---- inside

    /// Returns true if the ring has grown.
    fn append_and_evict(&self, channel: &Channel, news: Vec<Published>, read_at: Instant, live: usize) -> bool {
        let inner = &*self.0;
        let grown = channel.append(news, read_at);
        inner.events.fetch_add(grown.events as i64, Ordering::Relaxed);
        inner.bytes.fetch_add(grown.bytes as i64, Ordering::Relaxed);
        self.evict(channel, self.share(live));
        inner.meters.ring_events.set(inner.events.load(Ordering::Relaxed) as f64);
        inner.meters.ring_bytes.set(inner.bytes.load(Ordering::Relaxed) as f64);
        grown.events > 0
    }

    /// Returns the number of bytes that each of `live` rings may hold.
    fn share(&self, live: usize) -> usize {
        let limits = &self.0.limits;
        limits.ring_bytes.as_u64().min(limits.total_bytes.as_u64() / live.max(1) as u64) as usize
    }

    /// Cuts all rings to their present share if together they hold too much. A ring is cut only when it grows, and there may
    /// be more channels than there were then.
    fn keep_within_total(&self) {
        if self.0.bytes.load(Ordering::Relaxed) > self.0.limits.total_bytes.as_u64() as i64 {
            let all = self.all();
            for channel in &all {
                self.evict(channel, self.share(all.len()));
            }
        }
    }

    fn evict(&self, channel: &Channel, share: usize) {
        let gone = channel.evict(self.0.limits.ring_events, share);
        self.0.events.fetch_sub(gone.events as i64, Ordering::Relaxed);
        self.0.bytes.fetch_sub(gone.bytes as i64, Ordering::Relaxed);
        self.0.meters.evictions.increment(gone.events as u64);
    }

    fn remove(&self, channel: &Arc<Channel>) {
        let mut channels = self.channels();
        channels.remove(&channel.topic);
        self.0.meters.channels.set(channels.len() as f64);
        drop(channels);
        self.uncount(channel);
    }

    /// Subtracts from the totals what a channel held that has left the map.
    fn uncount(&self, channel: &Channel) {
        let (events, bytes, _) = channel.holds();
        let events = self.0.events.fetch_sub(events as i64, Ordering::Relaxed) - events as i64;
        let bytes = self.0.bytes.fetch_sub(bytes as i64, Ordering::Relaxed) - bytes as i64;
        self.0.meters.ring_events.set(events as f64);
        self.0.meters.ring_bytes.set(bytes as f64);
    }
}
