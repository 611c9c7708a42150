//! The clock of a delivery thread, and what is due for a subscriber by it. Times are counted in ticks, so that one look at
//! all subscribers serves every timer of each.

use super::Worker;
use super::subscriber::{State, Subscriber};
use crate::delivery::admission::Reason;
use crate::delivery::context::StreamRules;
use crate::delivery::reaction;
use crate::sse::{self, Bye};
use std::time::{Duration, Instant};

/// The time that a closed stream's peer has for closing its side.
const PEER_CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A moment, in ticks since the thread began.
pub type Tick = u32;

/// The thread's clock. It stands still within one round of the loop.
pub struct Clock {
    began: Instant,
    tick: Duration,
    now: Tick,
}

impl Clock {
    /// A clock that ticks often enough for these rules.
    pub fn new(rules: &StreamRules) -> Self {
        let tick = rules.heartbeat.min(rules.write_timeout) / 8;
        Self { began: Instant::now(), tick: tick.clamp(Duration::from_millis(10), Duration::from_millis(250)), now: 0 }
    }

    pub fn now(&self) -> Tick {
        self.now
    }

    /// Returns the time until the next tick.
    pub fn until_next(&self) -> Duration {
        (self.tick * (self.now + 1)).saturating_sub(self.began.elapsed())
    }

    /// Sets the clock; true if it has come to another tick.
    pub fn advance(&mut self) -> bool {
        let before = self.now;
        self.now = (self.began.elapsed().as_nanos() / self.tick.as_nanos()) as Tick;
        self.now != before
    }

    /// Returns `span` in ticks, rounded up.
    pub fn ticks(&self, span: Duration) -> u32 {
        span.as_nanos().div_ceil(self.tick.as_nanos()).try_into().unwrap_or(u32::MAX / 2)
    }
}

/// A timer of one subscriber that has run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// Nothing was written for a while.
    Heartbeat,
    /// The stream is to be closed for Jobcast's own reasons.
    Bye(Bye),
    /// The socket took nothing for `stream.write_timeout`.
    Slow,
    /// The peer of a closed stream did not close its side.
    PeerClose,
}

/// The present moment, and the lengths of the timers.
struct Timers {
    tick: Tick,
    instant: Instant,
    heartbeat: u32,
    write_timeout: u32,
    peer_close: u32,
}

impl Timers {
    fn due(&self, subscriber: &Subscriber) -> Option<Due> {
        if let State::Closed { since } = subscriber.state {
            return (self.tick - since >= self.peer_close).then_some(Due::PeerClose);
        }
        let blocked_since =
            subscriber.state.backlog().and_then(|backlog| backlog.blocked.as_ref()).map(|blocked| blocked.since);
        if blocked_since.is_some_and(|since| self.tick - since >= self.write_timeout) {
            return Some(Due::Slow);
        }
        if subscriber.state.is_closing() {
            return None;
        }
        if let Some(reason) = reaction::due_bye(&subscriber.permit, subscriber.deadline, self.instant) {
            return Some(Due::Bye(reason));
        }
        let is_silent = blocked_since.is_none() && self.tick - subscriber.last_write >= self.heartbeat;
        is_silent.then_some(Due::Heartbeat)
    }
}

impl Worker {
    /// Sends heartbeats, and closes the streams whose time is up.
    pub(super) fn run_timers(&mut self) {
        let timers = Timers {
            tick: self.clock.now(),
            instant: Instant::now(),
            heartbeat: self.clock.ticks(self.streams.rules.heartbeat),
            write_timeout: self.clock.ticks(self.streams.rules.write_timeout),
            peer_close: self.clock.ticks(PEER_CLOSE_TIMEOUT),
        };
        let due = |(key, subscriber)| Some((key, timers.due(subscriber)?));
        let all: Vec<(usize, Due)> = self.subscribers.iter().filter_map(due).collect();
        let heartbeat = sse::framed(sse::HEARTBEAT);
        for (key, due) in all {
            match due {
                Due::Heartbeat => self.send_control(key, heartbeat.clone()),
                Due::Bye(reason) => self.send_bye(key, reason),
                Due::Slow => self.close(key, Reason::Slow),
                Due::PeerClose => self.remove(key),
            }
        }
    }

    /// Sets the deadline of every stream within the time of the drain.
    pub(super) fn drain(&mut self) {
        self.is_draining = true;
        for key in self.keys() {
            self.subscribers[key].deadline.drain_by(self.streams.drain_deadline());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Grant, Withdrawal};
    use crate::delivery::admission::Admission;
    use crate::delivery::context::Deadline;
    use mio::net::{TcpListener, TcpStream};
    use std::sync::Arc;

    const TIMERS: [u32; 3] = [100, 200, 20];

    /// A subscriber without a channel, which holds this grant.
    fn subscriber(grant: &Arc<Grant>, deadline: Deadline) -> Subscriber {
        let listener = TcpListener::bind("127.0.0.1:0".parse().expect("an address")).expect("a listener");
        let socket = TcpStream::connect(listener.local_addr().expect("an address")).expect("a socket");
        let permit = Admission::new(1, 0, 1).admit(None).expect("room").with_grants([grant.clone()]);
        Subscriber { socket, permit, serial: 0, is_told_live: true, last_write: 0, deadline, state: State::Detached }
    }

    fn due_at(instant: Instant, subscriber: &Subscriber) -> Option<Due> {
        let [heartbeat, write_timeout, peer_close] = TIMERS;
        Timers { tick: 1, instant, heartbeat, write_timeout, peer_close }.due(subscriber)
    }

    #[test]
    fn a_stream_ends_when_its_grant_does_even_in_a_drain_and_says_goodbye_once() {
        let now = Instant::now();
        let later = now + Duration::from_secs(9);
        let expiring = Arc::new(Grant::new(None, Some(later)));
        let stream = subscriber(&expiring, Deadline::Never);
        assert_eq!((due_at(now, &stream), due_at(later, &stream)), (None, Some(Due::Bye(Bye::Expired))));
        let grant = Arc::new(Grant::new(None, None));
        let mut streams = [subscriber(&grant, Deadline::Age(later)), subscriber(&grant, Deadline::Drain(now))];
        assert_eq!(due_at(now, &streams[0]), None);
        grant.withdraw(Withdrawal::Revoked);
        for stream in &mut streams {
            assert_eq!(due_at(now, stream), Some(Due::Bye(Bye::Revoked)));
            stream.state = State::Closing { backlog: Box::default() };
            assert_eq!(due_at(now, stream), None);
        }
    }
}
