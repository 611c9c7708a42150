//! One live job: its ring, and who is to be told when it grows.

use super::ring::{Overtaken, Place, Ring, Run, Volume};
use crate::cursor::Cursor;
use crate::event::JobId;
use crate::sse::{JobEnd, Segment};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Told once per batch that a channel has something new: a delivery thread, or a streaming body.
pub trait ChannelListener: Send + Sync {
    fn wake(&self, channel: &Arc<Channel>);
}

pub struct Channel {
    pub job: JobId,
    state: Mutex<State>,
    /// Open streams, wherever they are served.
    subscribers: AtomicUsize,
}

struct State {
    ring: Ring,
    end: Option<JobEnd>,
    /// When the newest events were read: what the time of a fan-out is counted from.
    read_at: Instant,
    /// Who has subscribers of this channel. Few: one for each delivery thread, one for each streaming body.
    listeners: Vec<(ListenerId, Arc<dyn ChannelListener>)>,
    /// When the last subscriber left.
    idle_since: Option<Instant>,
}

/// Tells listeners of one channel apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerId(pub u64);

/// What there is for a subscriber at a place.
pub struct Unread {
    pub run: Run,
    /// The place after the run.
    pub end: Place,
    pub read_at: Instant,
    /// The channel is over, once the run is written.
    pub ended: Option<JobEnd>,
}

impl Channel {
    pub(super) fn new(job: JobId, ring: Ring) -> Arc<Self> {
        let now = Instant::now();
        let state = State { ring, end: None, read_at: now, listeners: Vec::new(), idle_since: Some(now) };
        Arc::new(Self { job, state: Mutex::new(state), subscribers: AtomicUsize::new(0) })
    }

    /// Short, and never across an await. Nothing in here panics half-way, so a poisoned lock still holds the truth.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn subscribers(&self) -> usize {
        self.subscribers.load(Ordering::Relaxed)
    }

    /// Everything from `place` on.
    pub fn read_from(&self, place: Place) -> Result<Unread, Overtaken> {
        let state = self.state();
        Ok(Unread { run: state.ring.run(place)?, end: state.ring.end(), read_at: state.read_at, ended: state.end })
    }

    /// The place after `cursor`, where the ring reaches back to it.
    pub fn find(&self, cursor: &Cursor) -> Option<Place> {
        self.state().ring.find(cursor.as_str())
    }

    /// The place and the position after everything so far.
    pub fn newest(&self) -> (Place, Cursor) {
        let state = self.state();
        (state.ring.end(), state.ring.cursor())
    }

    /// From now on `listener` is woken; also now, if the channel is already over.
    pub fn listen(self: &Arc<Self>, id: ListenerId, listener: Arc<dyn ChannelListener>) {
        let is_over = {
            let mut state = self.state();
            state.listeners.push((id, listener.clone()));
            state.end.is_some()
        };
        if is_over {
            listener.wake(self);
        }
    }

    pub fn unlisten(&self, id: ListenerId) {
        self.state().listeners.retain(|(listener, _)| *listener != id);
    }

    pub(super) fn append(&self, segments: Vec<Arc<Segment>>, read_at: Instant) -> Volume {
        let mut state = self.state();
        let mut grown = Volume::default();
        for segment in segments {
            grown.events += segment.len();
            grown.bytes += segment.framed().len();
            state.ring.append(segment);
        }
        state.read_at = read_at;
        grown
    }

    pub(super) fn evict(&self, events: usize, bytes: usize) -> Volume {
        self.state().ring.evict(events, bytes)
    }

    pub(super) fn finish(&self, end: JobEnd) {
        self.state().end = Some(end);
    }

    pub fn ended(&self) -> Option<JobEnd> {
        self.state().end
    }

    pub(super) fn wake_all(self: &Arc<Self>) {
        // Woken outside of the lock: a listener may look into the channel at once.
        let listeners: Vec<Arc<dyn ChannelListener>> =
            self.state().listeners.iter().map(|(_, listener)| listener.clone()).collect();
        for listener in listeners {
            listener.wake(self);
        }
    }

    pub(super) fn arrive(&self) {
        self.subscribers.fetch_add(1, Ordering::Relaxed);
        self.state().idle_since = None;
    }

    pub(super) fn depart(&self) {
        let mut state = self.state();
        if self.subscribers.fetch_sub(1, Ordering::Relaxed) == 1 {
            state.idle_since = Some(Instant::now());
        }
    }

    pub(super) fn idle_since(&self) -> Option<Instant> {
        self.state().idle_since.filter(|_| self.subscribers() == 0)
    }

    /// When its newest events were read.
    pub fn last_read(&self) -> Instant {
        self.state().read_at
    }

    /// Held now: events and bytes; and the position after them.
    pub fn holds(&self) -> (usize, usize, Cursor) {
        let state = self.state();
        (state.ring.events(), state.ring.bytes(), state.ring.cursor())
    }
}
