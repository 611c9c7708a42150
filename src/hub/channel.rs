//! One live topic, a job or a set of jobs: its ring, and the listeners that are woken when it grows.

use super::ring::{Overtaken, Place, Ring, Run, Volume};
use super::{Ended, Outage, Published};
use crate::cursor::Cursor;
use crate::event::{JobId, JobStatus};
use crate::sse::{self, Segment};
use crate::topic::Topic;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A delivery thread or a task that has subscribers of a channel.
pub trait ChannelListener: Send + Sync {
    /// Called once for each batch of events, when the job's rows cannot be read, and when the channel ends. It may read the
    /// channel.
    fn wake(&self, channel: &Arc<Channel>);
}

pub struct Channel {
    pub id: ChannelId,
    pub topic: Topic,
    /// A std mutex: no critical section awaits. Locked after the hub's `channels`, never before.
    state: Mutex<State>,
    /// The number of open streams, wherever they are served. Also decides whether the channel is idle, so it changes together
    /// with `idle_since`.
    subscribers: AtomicUsize,
}

struct State {
    ring: Ring,
    /// The newest statuses, oldest first: several of one job alone, and the last of each job of a set.
    statuses: VecDeque<Told>,
    /// The jobs of a set that are complete, while others are not.
    over: Vec<Told>,
    /// None while the tail watches the topic. Once set, nothing is appended any more.
    end: Option<Ended>,
    /// The present faults of jobs' rows, the newest last.
    faults: Vec<Fault>,
    /// The number of faults so far.
    faults_so_far: u64,
    /// When the newest events were read from the source; the fan-out metric counts from here.
    read_at: Instant,
    /// Listeners that are woken when the channel grows or ends. There are few: one per delivery thread that has
    /// subscribers, one per streaming body.
    listeners: Vec<(ListenerId, Arc<dyn ChannelListener>)>,
    /// When the last subscriber left; None while there is one. The hub sweeps by it.
    idle_since: Option<Instant>,
}

/// A job's status, with the place from which on subscribers have been told it.
struct Told {
    from: Place,
    job: JobId,
    status: JobStatus,
}

/// The number of a channel; no other channel of this process has it, also not a later one of the same topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChannelId(pub u64);

/// The number of a listener, by which it is taken off again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerId(pub u64);

/// A time in which the source cannot read a job's own rows, while all other jobs go on.
#[derive(Clone)]
pub struct Fault {
    /// Counted from 1 in each channel, so that each subscriber is told once.
    pub number: u64,
    pub job: JobId,
    pub outage: Arc<Outage>,
}

/// The events after a subscriber's place.
pub struct Unread {
    pub run: Run,
    /// The place after the run.
    pub end: Place,
    /// When the newest of them were read from the source.
    pub read_at: Instant,
    /// Set if the channel has ended: nothing comes after the run.
    pub ended: Option<Ended>,
    /// The jobs of which nothing comes because their rows cannot be read; the newest last.
    pub faults: Vec<Fault>,
}

impl State {
    /// The most statuses of one job that are remembered.
    const MAX_STATUSES: usize = 8;

    fn append(&mut self, segment: Arc<Segment>, grown: &mut Volume) {
        grown.events += segment.len();
        grown.bytes += segment.framed().len();
        self.ring.append(segment);
    }

    /// Adds a status that all subscribers are told from here on.
    fn tell(&mut self, job: &JobId, status: JobStatus, grown: &mut Volume) {
        self.ring.outdate(job, sse::State::Status);
        self.append(Arc::new(Segment::status(job, status, self.ring.cursor())), grown);
        self.statuses.push_back(Told { from: self.ring.end(), job: job.clone(), status });
    }

    /// Forgets statuses that nobody will ask for.
    fn forget_statuses(&mut self, job: &JobId, is_set: bool) {
        let known = self.statuses.iter().filter(|told| told.job == *job).count();
        let most = if is_set { 1 } else { Self::MAX_STATUSES };
        if known > most
            && let Some(oldest) = self.statuses.iter().position(|told| told.job == *job)
        {
            self.statuses.remove(oldest);
        }
    }

    fn status_of(&self, job: &JobId) -> Option<JobStatus> {
        self.statuses.iter().rev().find(|told| told.job == *job).map(|told| told.status)
    }

    /// Adds one job's news.
    fn add(&mut self, news: Published, is_set: bool, grown: &mut Volume) {
        let Published { job, events, status, over, goes_on } = news;
        if goes_on {
            self.over.retain(|told| told.job != job);
            self.ring.outdate(&job, sse::State::End);
        }
        let change = status.filter(|status| self.status_of(&job) != Some(*status));
        if let Some(status) = change.filter(|status| !status.is_final()) {
            self.tell(&job, status, grown);
        }
        for segment in events {
            self.append(segment, grown);
        }
        if let Some(status) = change.filter(|status| status.is_final()) {
            self.tell(&job, status, grown);
        }
        if let Some(status) = over {
            self.append(Arc::new(Segment::end_of(&job, status, self.ring.cursor())), grown);
            self.over.push(Told { from: self.ring.end(), job: job.clone(), status });
        }
        self.forget_statuses(&job, is_set);
    }
}

impl Channel {
    /// A channel whose first reader has been told these statuses, and that these jobs are complete.
    pub(super) fn new(
        id: ChannelId,
        topic: Topic,
        ring: Ring,
        statuses: Vec<(JobId, JobStatus)>,
        over: Vec<(JobId, JobStatus)>,
    ) -> Arc<Self> {
        let (now, from) = (Instant::now(), ring.end());
        let told = |(job, status)| Told { from, job, status };
        let state = State {
            ring,
            statuses: statuses.into_iter().map(told).collect(),
            over: over.into_iter().map(told).collect(),
            end: None,
            faults: Vec::new(),
            faults_so_far: 0,
            read_at: now,
            listeners: Vec::new(),
            idle_since: Some(now),
        };
        Arc::new(Self { id, topic, state: Mutex::new(state), subscribers: AtomicUsize::new(0) })
    }

    /// Locks the state. No holder panics half-way through a change, so the state of a poisoned lock is whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn subscribers(&self) -> usize {
        self.subscribers.load(Ordering::Relaxed)
    }

    /// Returns everything from `place` on.
    pub fn read_from(&self, place: Place) -> Result<Unread, Overtaken> {
        let state = self.state();
        Ok(Unread {
            run: state.ring.run(place)?,
            end: state.ring.end(),
            read_at: state.read_at,
            ended: state.end.clone(),
            faults: state.faults.clone(),
        })
    }

    /// Returns the place after `cursor`, if the ring reaches back to it.
    pub fn find(&self, cursor: &Cursor) -> Option<Place> {
        self.state().ring.find(cursor.as_str())
    }

    /// Returns the place and the cursor after the newest event.
    pub fn newest(&self) -> (Place, Cursor) {
        let state = self.state();
        (state.ring.end(), state.ring.cursor())
    }

    /// Returns the statuses as subscribers at `place` have been told them, as far as they are known.
    pub fn statuses_at(&self, place: Place) -> Vec<(JobId, JobStatus)> {
        let state = self.state();
        let told = |job: &JobId| state.statuses.iter().rev().find(|told| told.job == *job && told.from <= place);
        self.topic.jobs().iter().filter_map(|job| Some((job.clone(), told(job)?.status))).collect()
    }

    /// Returns the newest statuses, as far as they are known.
    pub fn statuses(&self) -> Vec<(JobId, JobStatus)> {
        self.statuses_at(Place::MAX)
    }

    /// Returns the jobs of a set of which subscribers at `place` have been told that they are complete.
    pub fn over_at(&self, place: Place) -> Vec<(JobId, JobStatus)> {
        let state = self.state();
        state.over.iter().filter(|told| told.from <= place).map(|told| (told.job.clone(), told.status)).collect()
    }

    /// Wakes `listener` from now on. Wakes it at once if the channel has ended already, since nothing else would.
    pub fn listen(self: &Arc<Self>, id: ListenerId, listener: Arc<dyn ChannelListener>) {
        let has_ended = {
            let mut state = self.state();
            state.listeners.push((id, listener.clone()));
            state.end.is_some()
        };
        if has_ended {
            listener.wake(self);
        }
    }

    pub fn unlisten(&self, id: ListenerId) {
        self.state().listeners.retain(|(listener, _)| *listener != id);
    }

    /// Adds the news of some jobs to the ring, without waking anybody.
    pub(super) fn append(&self, news: Vec<Published>, read_at: Instant) -> Volume {
        let (mut state, mut grown) = (self.state(), Volume::default());
        let is_set = matches!(self.topic, Topic::Set(_));
        for one in news {
            state.add(one, is_set, &mut grown);
        }
        state.read_at = read_at;
        grown
    }

    /// Lets go of the oldest segments until the ring is within these limits.
    pub(super) fn evict(&self, events: usize, bytes: usize) -> Volume {
        self.state().ring.evict(events, bytes)
    }

    /// Marks the channel ended, without waking anybody.
    pub(super) fn finish(&self, end: Ended) {
        self.state().end = Some(end);
    }

    /// Sets or clears the fault of a job's rows, without waking anybody. True if it is a new one.
    pub(super) fn set_fault(&self, job: &JobId, fault: Option<Outage>) -> bool {
        let mut state = self.state();
        let Some(outage) = fault else {
            state.faults.retain(|known| known.job != *job);
            return false;
        };
        if state.faults.iter().any(|known| known.job == *job) {
            return false;
        }
        state.faults_so_far += 1;
        let fault = Fault { number: state.faults_so_far, job: job.clone(), outage: Arc::new(outage) };
        state.faults.push(fault);
        true
    }

    /// Returns the present faults.
    pub(super) fn faults(&self) -> Vec<Fault> {
        self.state().faults.clone()
    }

    pub fn ended(&self) -> Option<Ended> {
        self.state().end.clone()
    }

    pub(super) fn wake_all(self: &Arc<Self>) {
        // The listeners are woken outside of the lock, since one may read the channel at once.
        let listeners: Vec<Arc<dyn ChannelListener>> =
            self.state().listeners.iter().map(|(_, listener)| listener.clone()).collect();
        for listener in listeners {
            listener.wake(self);
        }
    }

    /// Counts a new subscriber. The caller holds the hub's lock, so that the channel cannot be swept meanwhile.
    pub(super) fn arrive(&self) {
        self.subscribers.fetch_add(1, Ordering::Relaxed);
        self.state().idle_since = None;
    }

    /// Counts a subscriber that has left.
    pub(super) fn depart(&self) {
        let mut state = self.state();
        if self.subscribers.fetch_sub(1, Ordering::Relaxed) == 1 {
            state.idle_since = Some(Instant::now());
        }
    }

    /// Returns when the last subscriber left, if there is none.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        self.state().idle_since.filter(|_| self.subscribers() == 0)
    }

    /// Returns when the newest events were read from the source.
    pub fn last_read(&self) -> Instant {
        self.state().read_at
    }

    /// Returns the number of events and bytes held, and the cursor after the newest.
    pub fn holds(&self) -> (usize, usize, Cursor) {
        let state = self.state();
        (state.ring.events(), state.ring.bytes(), state.ring.cursor())
    }
}
