//! A stream as a body that actix or HTTP/2 serves: the opening and the replay. Then either the socket leaves actix, or the stream
//! stays here and is served from the ring.

use super::admission::{Reason, StreamPermit};
use super::connections::Registration;
use super::context::{Deadline, StreamContext};
use super::handoff::{HandoffSlot, LiveStream};
use super::reaction::{self, Notice, Reaction};
use super::socket::Stalled;
use crate::cursor::Cursor;
use crate::hub::{Listening, Outage, Overtaken, Place, Subscription};
use crate::replay::{Replay, Step};
use crate::shutdown::{Phase, ShutdownWatch};
use crate::sse::{self, Bye, Segment};
use crate::telemetry;
use crate::topic::Topic;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;
use tokio::time::sleep_until;

/// The bytes that a stream takes from the ring at a time, and one segment more: so much of what the ring has let go of is
/// kept for a peer that reads slowly.
const MAX_TAKEN: usize = 64 * 1024;

/// One stream while actix serves it. It yields bytes without chunk framing.
pub struct Body {
    streams: StreamContext,
    topic: Topic,
    /// None once the stream has left.
    permit: Option<StreamPermit>,
    /// None once the stream has left.
    registration: Option<Registration>,
    /// The way out of actix; None where the connection cannot leave, or has left.
    slot: Option<HandoffSlot>,
    stalled: Stalled,
    state: State,
    /// Bytes that actix has yet to take, before anything else happens.
    queue: VecDeque<Bytes>,
    outages: watch::Receiver<Option<Arc<Outage>>>,
    deadline: Deadline,
    told: Told,
}

/// The news of being live, as far as the peer has it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    /// It is told once it got the events up to here, which were in the ring when it joined.
    At(Place),
    Live,
}

enum State {
    Replaying {
        /// In a box, since few streams are in this state at a time.
        replay: Box<Replay>,
        /// A step that was taken already, and comes before the replay's next one.
        ready: Option<Step>,
    },
    /// Served from the ring, because the connection cannot leave actix.
    Live(Live),
    /// Nothing comes after the queue.
    Over,
    /// The socket has left actix.
    Left,
}

struct Live {
    listening: Listening,
    /// The next event to be sent, in the channel's ring.
    place: Place,
    /// The position at `place`.
    cursor: Cursor,
}

/// Something that a stream reacts to.
enum Event {
    Step(Step),
    /// The channel has grown, or ended.
    ChannelGrew,
    Outage(Arc<Outage>),
    /// Nothing was sent for a while.
    Heartbeat,
    /// The process begins to drain.
    Drain,
    /// The time of the stream is up, or its right to watch has ended.
    TimeIsUp,
}

impl Body {
    /// `first` is the replay's step that the request was answered by; `opening` is sent before it.
    pub fn new(
        streams: StreamContext,
        permit: StreamPermit,
        slot: Option<HandoffSlot>,
        stalled: Stalled,
        opening: Vec<Bytes>,
        replay: Replay,
        first: Step,
    ) -> Self {
        let deadline = streams.rules.age_deadline(Instant::now());
        let mut outages = streams.hub.outages();
        outages.mark_unchanged();
        Self {
            registration: Some(streams.registry.enter(&permit, replay.topic())),
            topic: replay.topic().clone(),
            permit: Some(permit),
            slot,
            stalled,
            state: State::Replaying { replay: Box::new(replay), ready: Some(first) },
            queue: opening.into(),
            outages,
            deadline,
            told: Told::Nothing,
            streams,
        }
    }

    /// Returns the next bytes; `None` at the end. It may be dropped while it waits.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.queue.pop_front() {
                return Some(bytes);
            }
            if matches!(self.state, State::Over) {
                return None;
            }
            if self.end_in_time() || self.read_ring() {
                continue;
            }
            let event = self.wait_for_event().await;
            self.handle(event);
        }
    }

    async fn wait_for_event(&mut self) -> Event {
        let heartbeat = Instant::now() + self.streams.rules.heartbeat;
        let (shutdown, deadline) = (&self.streams.shutdown, self.deadline);
        let (permit, registration) = (self.permit.as_ref(), self.registration.as_ref());
        match &mut self.state {
            State::Replaying { replay, ready } => tokio::select! {
                biased;
                step = next_step(replay, ready) => Event::Step(step),
                () = drain_begins(shutdown, deadline) => Event::Drain,
                () = time_is_up(permit, registration, deadline) => Event::TimeIsUp,
                () = sleep_until(heartbeat.into()) => Event::Heartbeat,
            },
            State::Live(live) => tokio::select! {
                () = live.listening.changed() => Event::ChannelGrew,
                outage = next_outage(&mut self.outages) => Event::Outage(outage),
                () = drain_begins(shutdown, deadline) => Event::Drain,
                () = time_is_up(permit, registration, deadline) => Event::TimeIsUp,
                () = sleep_until(heartbeat.into()) => Event::Heartbeat,
            },
            State::Over | State::Left => std::future::pending().await,
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Step(step) => {
                let reaction = reaction::on_replay_step(step, || self.streams.reconnect_delay());
                self.carry_out(reaction);
            }
            Event::ChannelGrew | Event::TimeIsUp => {} // Both are looked at next.
            Event::Outage(outage) => self.notify(reaction::on_outage(&outage)),
            Event::Heartbeat => self.queue.push_back(Bytes::from_static(sse::HEARTBEAT)),
            Event::Drain => self.deadline.drain_by(self.streams.drain_deadline()),
        }
    }

    /// Ends the stream if there is a reason of Jobcast's own. False if there is none.
    fn end_in_time(&mut self) -> bool {
        let Some(permit) = &self.permit else { return false };
        let is_revoked = self.registration.as_ref().is_some_and(Registration::is_revoked);
        let due = || reaction::due_bye(permit, self.deadline, Instant::now());
        let Some(reason) = is_revoked.then_some(Bye::Revoked).or_else(due) else { return false };
        self.notify(reaction::on_bye(reason, self.streams.reconnect_delay()));
        true
    }

    fn carry_out(&mut self, reaction: Reaction) {
        match reaction {
            Reaction::SendReplayed(segments) => self.queue_replayed(&segments),
            Reaction::GoLive { missing, notices, subscription, place, cursor } => {
                self.queue_replayed(&missing);
                self.queue.extend(notices.iter().map(|notice| notice.encode()));
                if self.told == Told::Nothing {
                    self.told = Told::At(subscription.channel().newest().0);
                }
                self.tell_live(place);
                self.go_live(subscription, place, cursor);
            }
            Reaction::Replay(cursor) => {
                self.note_cursor(Some(&cursor));
                let mut replay = self.streams.replay_after(self.topic.clone(), cursor);
                if let State::Live(live) = &self.state {
                    let channel = live.listening.channel();
                    let (statuses, over) = (channel.statuses_at(live.place), channel.over_at(live.place));
                    replay = replay.told(statuses, over, live.listening.told_faults());
                }
                self.state = State::Replaying { replay: Box::new(replay), ready: None };
            }
            Reaction::Notify(notice) => self.notify(notice),
        }
    }

    /// Says that the stream is live, if it was not said and the stream has come far enough.
    fn tell_live(&mut self, place: Place) {
        if let Told::At(live_at) = self.told
            && place >= live_at
        {
            self.told = Told::Live;
            self.queue.push_back(Bytes::from_static(sse::LIVE));
        }
    }

    fn notify(&mut self, notice: Notice) {
        self.note_cursor(None);
        self.note_cursor(notice.event.cursor());
        self.queue.push_back(notice.event.encode());
        if let Some(reason) = notice.closes {
            if let Some(permit) = &mut self.permit {
                permit.ends(reason);
            }
            self.state = State::Over;
        }
    }

    /// Goes on from `place` in the ring: on a delivery thread if the connection can leave, else here.
    fn go_live(&mut self, subscription: Subscription, place: Place, cursor: Cursor) {
        if self.slot.is_some() && !self.queue.is_empty() {
            // actix writes the end of the replay first, since what it writes after the stream has left is kept in memory.
            if let State::Replaying { ready, .. } = &mut self.state {
                *ready = Some(Step::Live { missing: Vec::new(), notices: Vec::new(), subscription, place, cursor });
            }
            return;
        }
        let (newest, _) = subscription.channel().newest();
        telemetry::REPLAYED.increment(&[("from", "ring")], newest.saturating_sub(place));
        let Some(slot) = self.slot.take() else {
            let listening = Listening::new(&self.streams.hub, subscription);
            self.state = State::Live(Live { listening, place, cursor });
            return;
        };
        self.note_cursor(Some(&cursor));
        if let Some(permit) = self.permit.take() {
            let registration = self.registration.take();
            let (deadline, is_told_live) = (self.deadline, self.told == Told::Live);
            slot.leave(LiveStream { permit, registration, deadline, subscription, place, cursor, is_told_live });
            self.state = State::Left;
        }
    }

    /// Queues what the ring holds after the stream's place, or changes the state where the ring cannot go on. False if there
    /// is nothing new, or the stream is not served from the ring.
    fn read_ring(&mut self) -> bool {
        let State::Live(live) = &mut self.state else { return false };
        let (unread, end) = match live.listening.channel().read_from(live.place) {
            Ok(mut unread) => {
                unread.run.limit(MAX_TAKEN);
                let end = live.place + unread.run.events() as Place;
                (unread, end)
            }
            Err(Overtaken) => {
                telemetry::OVERTAKEN.counter(&[]).increment(1);
                let cursor = live.cursor.clone();
                self.carry_out(Reaction::Replay(cursor));
                return true;
            }
        };
        match (unread.run.end(), unread.ended) {
            (Some(cursor), _) => {
                let mut skip = unread.run.skip;
                for segment in &unread.run.segments {
                    let events = std::mem::take(&mut skip)..segment.len();
                    self.queue.extend(events.map(|index| segment.event(index)));
                }
                (live.place, live.cursor) = (end, cursor);
                self.count_delivered(0);
                self.tell_live(end);
                true
            }
            (None, Some(end)) => {
                let cursor = live.cursor.clone();
                self.carry_out(reaction::on_end(&end, cursor));
                true
            }
            (None, None) => {
                let untold = live.listening.untold(&unread.faults);
                for fault in &untold {
                    self.notify(reaction::on_fault(&self.topic, fault));
                }
                !untold.is_empty()
            }
        }
    }

    fn queue_replayed(&mut self, segments: &[Arc<Segment>]) {
        let before = self.queue.len();
        for segment in segments {
            self.queue.extend((0..segment.len()).map(|index| segment.event(index)));
        }
        telemetry::REPLAYED.increment(&[("from", "source")], (self.queue.len() - before) as u64);
        self.count_delivered(before);
        if let (Some(permit), Some(last)) = (&mut self.permit, segments.last()) {
            permit.note_cursor(|| Some(last.end()));
        }
    }

    /// Notes, for the log, that the stream has come to `cursor`, or to its place in the ring where that is not given.
    fn note_cursor(&mut self, cursor: Option<&Cursor>) {
        let in_ring = match &self.state {
            State::Live(live) => Some(&live.cursor),
            State::Replaying { .. } | State::Over | State::Left => None,
        };
        if let Some(permit) = &mut self.permit {
            permit.note_cursor(|| cursor.or(in_ring).cloned());
        }
    }

    /// Counts the events that wait in the queue from index `from` on.
    fn count_delivered(&mut self, from: usize) {
        let events = self.queue.iter().skip(from);
        let (count, bytes) = (events.len() as u64, events.map(|event| event.len() as u64).sum());
        telemetry::DELIVERIES.counter(&[]).increment(count);
        telemetry::DELIVERED_BYTES.counter(&[]).increment(bytes);
        if let (Some(permit), Some(registration)) = (&mut self.permit, &self.registration) {
            permit.count(count, bytes);
            registration.count(count);
            registration.set_place(match &self.state {
                State::Live(live) => Some(live.place),
                State::Replaying { .. } | State::Over | State::Left => None,
            });
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.note_cursor(None);
        if let Some(permit) = self.permit.as_mut().filter(|_| self.stalled.is_set()) {
            permit.ends(Reason::Slow);
        }
    }
}

async fn next_step(replay: &mut Replay, ready: &mut Option<Step>) -> Step {
    match ready.take() {
        Some(step) => step,
        None => replay.next().await,
    }
}

/// Returns when the deadline has come, or the stream may not go on.
async fn time_is_up(permit: Option<&StreamPermit>, registration: Option<&Registration>, deadline: Deadline) {
    let reached = async {
        match deadline.at() {
            Some(at) => sleep_until(at.into()).await,
            None => std::future::pending().await,
        }
    };
    let ended = async {
        match permit.zip(registration) {
            Some((permit, registration)) => registration.ended(permit).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = reached => {}
        () = ended => {}
    }
}

/// Returns when the process begins to drain, unless the deadline knows of that already.
async fn drain_begins(shutdown: &ShutdownWatch, deadline: Deadline) {
    if deadline.is_draining() {
        std::future::pending().await
    }
    shutdown.reached(Phase::Draining).await;
}

/// Returns the next outage that the hub announces.
async fn next_outage(outages: &mut watch::Receiver<Option<Arc<Outage>>>) -> Arc<Outage> {
    while outages.changed().await.is_ok() {
        if let Some(outage) = outages.borrow_and_update().clone() {
            return outage;
        }
    }
    std::future::pending().await
}
