//! A stream as a body that actix serves: the opening, the replay, then either its socket leaves, or it stays and is fed
//! from the ring here.

use super::admission::{Admission, Reason, Visit};
use super::handoff::{Slot, Stream};
use super::{Rules, failure, outage};
use crate::cursor::Cursor;
use crate::event::JobId;
use crate::hub::{Ahead, Hub, Listening, Outage, Overtaken, Place, Subscription};
use crate::replay::{Pages, Replay, Step};
use crate::shutdown::{Leaving, Phase};
use crate::sse::{self, Bye, End, Segment};
use crate::telemetry;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::sleep_until;

/// What every stream of this process is made with.
#[derive(Clone)]
pub struct Streams {
    pub hub: Hub,
    pub pages: Arc<Pages>,
    pub rules: Rules,
    pub admission: Admission,
    pub leaving: Leaving,
}

impl Streams {
    /// When to come back after Jobcast closed: not all in the same second.
    pub fn come_back(&self) -> Duration {
        self.rules.come_back(self.admission.open())
    }

    /// The farewell of a stream that Jobcast closes for its own reasons.
    pub fn bye(&self, reason: Bye) -> Bytes {
        sse::bye(reason, self.come_back())
    }
}

/// One stream while actix serves it. Yields unframed bytes.
pub struct Body {
    streams: Streams,
    job: JobId,
    /// None once the stream has left.
    visit: Option<Visit>,
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
        streams: Streams,
        visit: Visit,
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
            visit: Some(visit),
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
            let (leaving, is_draining) = (self.streams.leaving.clone(), self.draining);
            let drain = async {
                match is_draining {
                    false => leaving.reached(Phase::Draining).await,
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
                    let at = Instant::now() + self.streams.rules.spread(self.streams.admission.open());
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
                telemetry::REPLAYED.add(&[("from", "source")], count(&segments));
                queue(&mut self.queue, &segments);
            }
            Step::Live { missing, subscription, place, cursor } => {
                telemetry::REPLAYED.add(&[("from", "source")], count(&missing));
                queue(&mut self.queue, &missing);
                let (newest, _) = subscription.channel().newest();
                if self.slot.is_none() {
                    telemetry::REPLAYED.add(&[("from", "ring")], newest.saturating_sub(place));
                    self.state =
                        State::Live(Live { listening: Listening::new(&self.streams.hub, subscription), place, cursor });
                } else if self.queue.is_empty() {
                    telemetry::REPLAYED.add(&[("from", "ring")], newest.saturating_sub(place));
                    self.leave(subscription, place, cursor);
                } else if let State::Replaying { next, .. } = &mut self.state {
                    // the replay's last events first
                    *next = Some(Step::Live { missing: Vec::new(), subscription, place, cursor });
                }
            }
            Step::Complete(status, cursor) => self.over(End::Complete(status), cursor),
            Step::Reset(reason, beginning) => {
                telemetry::RESUMES.add(&[("from", "reset")], 1);
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
        if let (Some(slot), Some(visit)) = (self.slot.take(), self.visit.take()) {
            slot.leave(Stream { visit, subscription, place, cursor });
            self.state = State::Left;
        }
    }

    fn news(&mut self) {
        let State::Live(live) = &mut self.state else { return };
        let (channel, place, cursor) = (live.listening.channel(), live.place, live.cursor.clone());
        match channel.ahead(place) {
            Err(Overtaken) => {
                telemetry::OVERTAKEN.counts(&[]).increment(1);
                self.replay_after(cursor);
            }
            Ok(Ahead { run, over: Some(end), .. }) if run.is_empty() => self.over(end, cursor),
            // the ring has more, or there was nothing after all
            Ok(_) => {}
        }
    }

    fn replay_after(&mut self, cursor: Cursor) {
        let Streams { pages, hub, .. } = self.streams.clone();
        let replay = Replay::after(pages, hub, self.job.clone(), cursor);
        self.state = State::Replaying { replay, next: None };
    }

    fn over(&mut self, end: End, cursor: Cursor) {
        match end {
            End::Complete(status) => self.finish(sse::complete(&self.job, status, &cursor), Reason::Complete),
            // the source says what is lost, and gives all there is
            End::Lost(_) => self.replay_after(cursor),
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
        if let Some(visit) = &mut self.visit {
            visit.ends(reason);
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
        let Ok(ahead) = self.listening.channel().ahead(self.place) else {
            self.listening.look_again(); // closer
            return false;
        };
        let Some(end) = ahead.run.end() else { return false };
        if ahead.over.is_some() {
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
    telemetry::DELIVERIES.counts(&[]).increment(events);
    telemetry::DELIVERED_BYTES.counts(&[]).increment(bytes);
}

fn count(segments: &[Arc<Segment>]) -> u64 {
    segments.iter().map(|segment| segment.len() as u64).sum()
}
