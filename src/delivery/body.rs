//! A stream as a body that actix serves: the opening, the replay, then either its socket leaves, or it stays and is fed
//! from the ring here.

use super::admission::{Admission, Reason, StreamPermit};
use super::handoff::{Slot, Stream};
use super::{StreamRules, failure, outage};
use crate::cursor::Cursor;
use crate::event::JobId;
use crate::hub::{Hub, Listening, Outage, Overtaken, Place, Subscription, Unread};
use crate::replay::{Pages, Replay, Step};
use crate::shutdown::{Phase, ShutdownWatch};
use crate::sse::{self, Bye, JobEnd, Segment};
use crate::telemetry;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::sleep_until;

/// What every stream of this process is made with.
#[derive(Clone)]
pub struct StreamContext {
    pub hub: Hub,
    pub pages: Arc<Pages>,
    pub rules: StreamRules,
    pub admission: Admission,
    pub shutdown: ShutdownWatch,
}

impl StreamContext {
    /// When to come back after Jobcast closed: not all in the same second.
    pub fn reconnect_delay(&self) -> Duration {
        self.rules.reconnect_delay(self.admission.open())
    }

    /// The farewell of a stream that Jobcast closes for its own reasons.
    pub fn bye(&self, reason: Bye) -> Bytes {
        sse::bye(reason, self.reconnect_delay())
    }
}

/// One stream while actix serves it. Yields unframed bytes.
pub struct Body {
    streams: StreamContext,
    job: JobId,
    /// None once the stream has left.
    permit: Option<StreamPermit>,
    /// Where the socket can leave actix.
    slot: Option<Slot>,
    state: State,
    queue: VecDeque<Bytes>,
    outages: watch::Receiver<Option<Arc<Outage>>>,
    close_at: Option<Instant>,
    draining: bool,
}

enum State {
    Replaying {
        replay: Replay,
        next: Option<Step>,
    },
    Live(Live),
    /// Nothing more, once the queue is empty.
    Over,
    /// The socket has left.
    Left,
}

struct Live {
    listening: Listening,
    place: Place,
    cursor: Cursor,
}

impl Body {
    /// `first` is what the replay said when the request was answered; `opening` goes before it.
    pub fn new(
        streams: StreamContext,
        permit: StreamPermit,
        slot: Option<Slot>,
        opening: Vec<Bytes>,
        replay: Replay,
        first: Step,
    ) -> Self {
        let close_at = streams.rules.age_limit().map(|age| Instant::now() + age);
        let mut outages = streams.hub.outages();
        outages.mark_unchanged();
        Self {
            job: replay.job().clone(),
            permit: Some(permit),
            slot,
            state: State::Replaying { replay, next: Some(first) },
            queue: opening.into(),
            outages,
            close_at,
            draining: false,
            streams,
        }
    }

    /// The next bytes; `None` at the end. May be dropped while it waits.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.queue.pop_front() {
                return Some(bytes);
            }
            let heartbeat = Instant::now() + self.streams.rules.heartbeat;
            let close_at = self.close_at;
            let by_age = async {
                match close_at {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let (shutdown, is_draining) = (self.streams.shutdown.clone(), self.draining);
            let drain = async {
                match is_draining {
                    false => shutdown.reached(Phase::Draining).await,
                    true => std::future::pending().await,
                }
            };
            let step = match &mut self.state {
                State::Over => return None,
                State::Left => std::future::pending().await,
                State::Replaying { replay, next } => tokio::select! {
                    biased;
                    step = async { match next.take() { Some(step) => step, None => replay.next().await } } => Wait::Step(step),
                    () = drain => Wait::Drain,
                    () = by_age => Wait::Close,
                    () = sleep_until(heartbeat.into()) => Wait::Heartbeat,
                },
                State::Live(live) => {
                    if live.more(&mut self.queue) {
                        continue;
                    }
                    tokio::select! {
                        () = live.listening.news() => Wait::News,
                        () = drain => Wait::Drain,
                        () = by_age => Wait::Close,
                        changed = self.outages.changed() => Wait::Outage(changed.is_ok()),
                        () = sleep_until(heartbeat.into()) => Wait::Heartbeat,
                    }
                }
            };
            match step {
                Wait::Step(step) => self.step(step),
                Wait::News => self.news(),
                Wait::Heartbeat => self.queue.push_back(Bytes::from_static(sse::HEARTBEAT)),
                Wait::Outage(is_told) => self.outage(is_told),
                Wait::Drain => {
                    self.draining = true;
                    let at = Instant::now() + self.streams.rules.drain_delay(self.streams.admission.open());
                    self.close_at = Some(self.close_at.map_or(at, |age| age.min(at)));
                }
                Wait::Close => {
                    let (bye, reason) = match self.draining {
                        true => (Bye::Drain, Reason::Drain),
                        false => (Bye::Age, Reason::Age),
                    };
                    self.finish(self.streams.bye(bye), reason);
                }
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Events(segments) => {
                telemetry::REPLAYED.increment(&[("from", "source")], count(&segments));
                queue(&mut self.queue, &segments);
            }
            Step::Live { missing, subscription, place, cursor } => {
                telemetry::REPLAYED.increment(&[("from", "source")], count(&missing));
                queue(&mut self.queue, &missing);
                let (newest, _) = subscription.channel().newest();
                if self.slot.is_none() {
                    telemetry::REPLAYED.increment(&[("from", "ring")], newest.saturating_sub(place));
                    self.state =
                        State::Live(Live { listening: Listening::new(&self.streams.hub, subscription), place, cursor });
                } else if self.queue.is_empty() {
                    telemetry::REPLAYED.increment(&[("from", "ring")], newest.saturating_sub(place));
                    self.leave(subscription, place, cursor);
                } else if let State::Replaying { next, .. } = &mut self.state {
                    // the replay's last events first
                    *next = Some(Step::Live { missing: Vec::new(), subscription, place, cursor });
                }
            }
            Step::Complete(status, cursor) => self.over(JobEnd::Complete(status), cursor),
            Step::Reset(reason, beginning) => {
                telemetry::RESUMES.increment(&[("from", "reset")], 1);
                self.queue.push_back(sse::reset(reason, &beginning));
            }
            // It was there when the stream began: deleted since.
            Step::NoSuchJob => self.finish(self.streams.bye(Bye::Age), Reason::Failed),
            Step::Outage(error, retry_in) => {
                let told = failure(&error, retry_in);
                if error.is_retryable() { self.queue.push_back(told) } else { self.finish(told, Reason::Failed) }
            }
        }
    }

    fn leave(&mut self, subscription: Subscription, place: Place, cursor: Cursor) {
        if let (Some(slot), Some(permit)) = (self.slot.take(), self.permit.take()) {
            slot.leave(Stream { permit, subscription, place, cursor });
            self.state = State::Left;
        }
    }

    fn news(&mut self) {
        let State::Live(live) = &mut self.state else { return };
        let (channel, place, cursor) = (live.listening.channel(), live.place, live.cursor.clone());
        match channel.read_from(place) {
            Err(Overtaken) => {
                telemetry::OVERTAKEN.counter(&[]).increment(1);
                self.replay_after(cursor);
            }
            Ok(Unread { run, ended: Some(end), .. }) if run.is_empty() => self.over(end, cursor),
            // the ring has more, or there was nothing after all
            Ok(_) => {}
        }
    }

    fn replay_after(&mut self, cursor: Cursor) {
        let StreamContext { pages, hub, .. } = self.streams.clone();
        let replay = Replay::after(pages, hub, self.job.clone(), cursor);
        self.state = State::Replaying { replay, next: None };
    }

    fn over(&mut self, end: JobEnd, cursor: Cursor) {
        match end {
            JobEnd::Complete(status) => self.finish(sse::complete(&self.job, status, &cursor), Reason::Complete),
            // the source says what is lost, and gives all there is
            JobEnd::Lost(_) => self.replay_after(cursor),
        }
    }

    fn outage(&mut self, is_told: bool) {
        let now = self.outages.borrow_and_update().clone().filter(|_| is_told);
        let Some(now) = now else { return };
        if now.error.is_retryable() {
            self.queue.push_back(outage(&now));
        } else {
            self.finish(outage(&now), Reason::Failed);
        }
    }

    fn finish(&mut self, farewell: Bytes, reason: Reason) {
        self.queue.push_back(farewell);
        if let Some(permit) = &mut self.permit {
            permit.ends(reason);
        }
        self.state = State::Over;
    }
}

enum Wait {
    Step(Step),
    News,
    Heartbeat,
    Outage(bool),
    Drain,
    Close,
}

impl Live {
    /// Takes what the ring has; false where there is nothing new, or it does not reach back any more.
    fn more(&mut self, to: &mut VecDeque<Bytes>) -> bool {
        let Ok(ahead) = self.listening.channel().read_from(self.place) else {
            self.listening.look_again(); // closer
            return false;
        };
        let Some(end) = ahead.run.end() else { return false };
        if ahead.ended.is_some() {
            self.listening.look_again(); // once more, after these
        }
        let mut skip = ahead.run.skip;
        for segment in &ahead.run.segments {
            to.extend((std::mem::take(&mut skip)..segment.len()).map(|index| segment.event(index)));
        }
        delivered(ahead.run.events() as u64, to.iter().map(|bytes| bytes.len() as u64).sum());
        (self.place, self.cursor) = (ahead.end, end);
        true
    }
}

fn queue(to: &mut VecDeque<Bytes>, segments: &[Arc<Segment>]) {
    let before = to.len();
    for segment in segments {
        to.extend((0..segment.len()).map(|index| segment.event(index)));
    }
    delivered((to.len() - before) as u64, to.iter().skip(before).map(|bytes| bytes.len() as u64).sum());
}

fn delivered(events: u64, bytes: u64) {
    telemetry::DELIVERIES.counter(&[]).increment(events);
    telemetry::DELIVERED_BYTES.counter(&[]).increment(bytes);
}

fn count(segments: &[Arc<Segment>]) -> u64 {
    segments.iter().map(|segment| segment.len() as u64).sum()
}
