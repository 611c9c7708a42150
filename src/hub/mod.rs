//! All live jobs of this process. The hub knows neither where events come from nor how they reach a socket: the tail
//! puts them in, subscribers are places in a channel's ring.
//!
//! A channel begins when the first reader is level with the source, at that reader's own position; later readers join
//! where its ring reaches back to them, else ask the tail to bring them level. Channels leave the map only by the tail's
//! own hand, between two reads, so that no read can find its events in the channel of another watch.
//!
//! Locks: the map's before a channel's, never the other way round.

mod channel;
mod ring;
mod subscriber;

pub use channel::{Channel, ChannelListener, ListenerId, Unread};
pub use ring::{Overtaken, Place, Run};
pub use subscriber::{Listening, Subscription};

use crate::config;
use crate::cursor::Cursor;
use crate::error::SourceError;
use crate::event::JobId;
use crate::sse::{JobEnd, Segment};
use crate::telemetry;
use metrics::{Counter, Gauge};
use ring::Ring;
use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot, watch};

#[derive(Clone)]
pub struct Hub(Arc<Inner>);

struct Inner {
    limits: config::Hub,
    channels: Mutex<HashMap<JobId, Arc<Channel>>>,
    /// For the tail, in the order of asking.
    requests: Mutex<Vec<TailRequest>>,
    requested: Notify,
    outage: watch::Sender<Option<Arc<Outage>>>,
    numbers: AtomicU64,
    /// Held in all rings.
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

/// What the hub asks of the tail.
pub enum TailRequest {
    /// Watch this job from here on.
    Watch { job: JobId, after: Cursor },
    /// Bring this reader level with the job's channel.
    Join(JoinRequest),
}

/// A reader that has read up to `after`, and waits to be told what it lacks and where in the ring it stands then.
pub struct JoinRequest {
    pub job: JobId,
    pub after: Cursor,
    /// Reads that did not bring it level.
    pub attempts: u8,
    answer: oneshot::Sender<CaughtUp>,
}

/// What brings a reader level with a channel.
pub struct CaughtUp {
    pub missing: Vec<Arc<Segment>>,
    pub subscription: Subscription,
    pub place: Place,
}

/// The source does not answer.
#[derive(Clone, Debug)]
pub struct Outage {
    pub error: SourceError,
    pub since: Instant,
    pub retry_in: Duration,
}

/// What a reader who wants to be live gets.
pub enum Join {
    CaughtUp(CaughtUp),
    /// The tail will tell; an error if the channel went away meanwhile: then read a page again.
    Wait(oneshot::Receiver<CaughtUp>),
}

/// Pages that were read just before a channel begins: what its ring begins with.
pub struct Seed {
    /// The position before the first of them.
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
            outage: watch::Sender::new(None),
            numbers: AtomicU64::new(0),
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

    fn channels(&self) -> MutexGuard<'_, HashMap<JobId, Arc<Channel>>> {
        self.0.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn request(&self, request: TailRequest) {
        self.0.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        self.0.requested.notify_one();
    }

    /// A number that nobody else in this process has.
    pub fn listener_id(&self) -> ListenerId {
        ListenerId(self.0.numbers.fetch_add(1, Ordering::Relaxed))
    }

    // ---- for readers

    /// Joins at `cursor` where the job is live and its ring reaches back to it.
    pub fn join(&self, job: &JobId, cursor: &Cursor) -> Option<(Subscription, Place)> {
        let channels = self.channels();
        let channel = channels.get(job)?;
        let place = channel.find(cursor)?;
        Some((Subscription::new(channel), place))
    }

    /// The position after the newest event of a job that is live.
    pub fn newest(&self, job: &JobId) -> Option<Cursor> {
        self.channels().get(job).map(|channel| channel.newest().1)
    }

    /// Makes a reader live that was level with the source at `cursor` a moment ago.
    pub fn join_or_create(&self, job: &JobId, cursor: &Cursor, seed: Option<Seed>) -> Join {
        let mut channels = self.channels();
        if let Some(channel) = channels.get(job) {
            if let Some(place) = channel.find(cursor) {
                let subscription = Subscription::new(channel);
                return Join::CaughtUp(CaughtUp { missing: Vec::new(), subscription, place });
            }
            let (answer, wait) = oneshot::channel();
            self.request(TailRequest::Join(JoinRequest {
                job: job.clone(),
                after: cursor.clone(),
                attempts: 0,
                answer,
            }));
            return Join::Wait(wait);
        }
        let seed = seed.unwrap_or(Seed { base: cursor.clone(), segments: Vec::new() });
        let channel = Channel::new(job.clone(), Ring::new(seed.base));
        channels.insert(job.clone(), channel.clone());
        self.0.meters.channels.set(channels.len() as f64);
        self.append_and_evict(&channel, seed.segments, Instant::now(), channels.len());
        let (place, _) = channel.newest();
        let subscription = Subscription::new(&channel);
        // asked for last, and under the lock: nothing is published here before the place is known
        self.request(TailRequest::Watch { job: job.clone(), after: cursor.clone() });
        drop(channels);
        self.keep_within_total();
        Join::CaughtUp(CaughtUp { missing: Vec::new(), subscription, place })
    }

    pub fn outages(&self) -> watch::Receiver<Option<Arc<Outage>>> {
        self.0.outage.subscribe()
    }

    pub fn outage(&self) -> Option<Arc<Outage>> {
        self.0.outage.borrow().clone()
    }

    /// All live channels, for those who look in from outside.
    pub fn all(&self) -> Vec<Arc<Channel>> {
        self.channels().values().cloned().collect()
    }

    // ---- for the tail

    /// Returns when somebody asked something of the tail.
    pub async fn requested(&self) {
        self.0.requested.notified().await;
    }

    pub fn take_requests(&self) -> Vec<TailRequest> {
        std::mem::take(&mut self.0.requests.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds what was read to a job's ring and wakes whoever watches it.
    pub fn publish(&self, job: &JobId, segments: Vec<Arc<Segment>>, read_at: Instant) {
        let (channel, live) = {
            let channels = self.channels();
            let Some(channel) = channels.get(job).cloned() else { return };
            (channel, channels.len())
        };
        self.append_and_evict(&channel, segments, read_at, live);
        self.keep_within_total();
        channel.wake_all();
    }

    /// The job's watch is over: whoever watches is told so after its last event.
    pub fn finish(&self, job: &JobId, end: JobEnd) {
        let Some(channel) = self.channels().get(job).cloned() else { return };
        // first over, then gone: who finds it in the map finds it over
        channel.finish(end);
        self.remove(&channel);
        channel.wake_all();
    }

    /// Answers a join_request, whose channel has been brought to the same moment just now.
    pub fn complete_join(&self, join_request: JoinRequest, missing: Vec<Arc<Segment>>) {
        let channels = self.channels();
        let Some(channel) = channels.get(&join_request.job) else { return };
        let (place, _) = channel.newest();
        let subscription = Subscription::new(channel);
        drop(channels);
        // one who is gone gives its subscription back by dropping it
        let _ = join_request.answer.send(CaughtUp { missing, subscription, place });
    }

    pub fn is_live(&self, job: &JobId) -> bool {
        self.channels().contains_key(job)
    }

    /// Lets go of channels that nobody has watched for `hub.linger`; returns their jobs.
    pub fn sweep(&self, now: Instant) -> Vec<JobId> {
        let linger = self.0.limits.linger;
        let is_over = |channel: &Arc<Channel>| {
            channel.idle_since().is_some_and(|since| now.saturating_duration_since(since) >= linger)
        };
        let idle: Vec<Arc<Channel>> = {
            // taken out under the map's lock, where arriving readers would take it too
            let mut channels = self.channels();
            let idle: Vec<_> = channels.values().filter(|channel| is_over(channel)).cloned().collect();
            for channel in &idle {
                channels.remove(&channel.job);
            }
            self.0.meters.channels.set(channels.len() as f64);
            idle
        };
        for channel in &idle {
            self.uncount(channel);
        }
        idle.iter().map(|channel| channel.job.clone()).collect()
    }

    /// Whether the source answers; told once for each change.
    pub fn set_outage(&self, outage: Option<Outage>) {
        self.0.outage.send_replace(outage.map(Arc::new));
    }

    // ---- inside

    fn append_and_evict(&self, channel: &Channel, segments: Vec<Arc<Segment>>, read_at: Instant, live: usize) {
        let inner = &*self.0;
        let grown = channel.append(segments, read_at);
        inner.events.fetch_add(grown.events as i64, Ordering::Relaxed);
        inner.bytes.fetch_add(grown.bytes as i64, Ordering::Relaxed);
        self.evict(channel, self.share(live));
        inner.meters.ring_events.set(inner.events.load(Ordering::Relaxed) as f64);
        inner.meters.ring_bytes.set(inner.bytes.load(Ordering::Relaxed) as f64);
    }

    /// Bytes that each of so many live rings may hold.
    fn share(&self, live: usize) -> usize {
        let limits = &self.0.limits;
        limits.ring_bytes.as_u64().min(limits.total_bytes.as_u64() / live.max(1) as u64) as usize
    }

    /// There may be more channels than when the others were cut: then cuts them all to today's share.
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
        channels.remove(&channel.job);
        self.0.meters.channels.set(channels.len() as f64);
        drop(channels);
        self.uncount(channel);
    }

    /// What a channel that has left the map held is not counted any more.
    fn uncount(&self, channel: &Channel) {
        let (events, bytes, _) = channel.holds();
        let events = self.0.events.fetch_sub(events as i64, Ordering::Relaxed) - events as i64;
        let bytes = self.0.bytes.fetch_sub(bytes as i64, Ordering::Relaxed) - bytes as i64;
        self.0.meters.ring_events.set(events as f64);
        self.0.meters.ring_bytes.set(bytes as f64);
    }
}
