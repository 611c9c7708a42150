//! One live job: its ring, and the listeners that are woken when it grows.

use super::ring::{Overtaken, Place, Ring, Run, Volume};
use super::{Outage, Published};
use crate::cursor::Cursor;
use crate::event::{JobId, JobStatus};
use crate::sse::{JobEnd, Segment};
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
    pub job: JobId,
    /// A std mutex: no critical section awaits. Locked after the hub's `channels`, never before.
    state: Mutex<State>,
    /// The number of open streams, wherever they are served. Also decides whether the channel is idle, so it changes together
    /// with `idle_since`.
    subscribers: AtomicUsize,
}

struct State {
    ring: Ring,
    /// The newest statuses of the job, oldest first, each with the place from which on subscribers have been told it.
    statuses: VecDeque<(Place, JobStatus)>,
    /// None while the tail watches the job. Once set, nothing is appended any more.
    end: Option<JobEnd>,
    /// The present fault of the job's rows, if there is one.
    fault: Option<Fault>,
    /// The number of faults so far.
    faults: u64,
    /// When the newest events were read from the source; the fan-out metric counts from here.
    read_at: Instant,
    /// Listeners that are woken when the channel grows or ends. There are few: one per delivery thread that has
    /// subscribers, one per streaming body.
    listeners: Vec<(ListenerId, Arc<dyn ChannelListener>)>,
    /// When the last subscriber left; None while there is one. The hub sweeps by it.
    idle_since: Option<Instant>,
}

/// The number of a channel; no other channel of this process has it, also not a later one of the same job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChannelId(pub u64);

/// The number of a listener, by which it is taken off again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerId(pub u64);

/// A time in which the source cannot read the job's own rows, while all other jobs go on.
#[derive(Clone)]
pub struct Fault {
    /// Counted from 1 in each channel, so that each subscriber is told once.
    pub number: u64,
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
    pub ended: Option<JobEnd>,
    /// Set while nothing comes because the job's rows cannot be read.
    pub fault: Option<Fault>,
}

impl State {
    /// The most statuses that are remembered.
    const MAX_STATUSES: usize = 8;

    fn append(&mut self, segment: Arc<Segment>, grown: &mut Volume) {
        grown.events += segment.len();
        grown.bytes += segment.framed().len();
        self.ring.append(segment);
    }

    /// Adds a status that all subscribers are told from here on.
    fn tell(&mut self, job: &JobId, status: JobStatus, grown: &mut Volume) {
        self.ring.outdate_statuses();
        self.append(Arc::new(Segment::status(job, status, self.ring.cursor())), grown);
        self.statuses.push_back((self.ring.end(), status));
        if self.statuses.len() > Self::MAX_STATUSES {
            self.statuses.pop_front();
        }
    }
}

impl Channel {
    pub(super) fn new(id: ChannelId, job: JobId, ring: Ring, status: Option<JobStatus>) -> Arc<Self> {
        let now = Instant::now();
        let (listeners, idle_since) = (Vec::new(), Some(now));
        let statuses = status.map(|status| (ring.end(), status)).into_iter().collect();
        let state = State { ring, statuses, end: None, fault: None, faults: 0, read_at: now, listeners, idle_since };
        Arc::new(Self { id, job, state: Mutex::new(state), subscribers: AtomicUsize::new(0) })
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
            ended: state.end,
            fault: state.fault.clone(),
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

    /// Returns the job's status as subscribers at `place` have been told it; `None` where it is not known.
    pub fn status_at(&self, place: Place) -> Option<JobStatus> {
        let state = self.state();
        state.statuses.iter().rev().find(|(from, _)| *from <= place).map(|(_, status)| *status)
    }

    /// Returns the job's newest status, if it is known.
    pub fn status(&self) -> Option<JobStatus> {
        self.state().statuses.back().map(|(_, status)| *status)
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

    /// Adds events and a status to the ring, without waking anybody.
    pub(super) fn append(&self, news: Published, read_at: Instant) -> Volume {
        let mut state = self.state();
        let change = news.status.filter(|status| state.statuses.back().is_none_or(|(_, last)| last != status));
        let mut grown = Volume::default();
        if let Some(status) = change.filter(|status| !status.is_final()) {
            state.tell(&self.job, status, &mut grown);
        }
        for segment in news.events {
            state.append(segment, &mut grown);
        }
        if let Some(status) = change.filter(|status| status.is_final()) {
            state.tell(&self.job, status, &mut grown);
        }
        state.read_at = read_at;
        grown
    }

    /// Lets go of the oldest segments until the ring is within these limits.
    pub(super) fn evict(&self, events: usize, bytes: usize) -> Volume {
        self.state().ring.evict(events, bytes)
    }

    /// Marks the channel ended, without waking anybody.
    pub(super) fn finish(&self, end: JobEnd) {
        self.state().end = Some(end);
    }

    /// Sets or clears the fault of the job's rows, without waking anybody. True if it is a new one.
    pub(super) fn set_fault(&self, fault: Option<Outage>) -> bool {
        let mut state = self.state();
        match (fault, &state.fault) {
            (Some(outage), None) => {
                state.faults += 1;
                state.fault = Some(Fault { number: state.faults, outage: Arc::new(outage) });
                true
            }
            (Some(_), Some(_)) => false,
            (None, _) => {
                state.fault = None;
                false
            }
        }
    }

    pub fn ended(&self) -> Option<JobEnd> {
        self.state().end
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
