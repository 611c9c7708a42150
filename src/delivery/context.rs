//! The settings and the parts of the process that every stream is served with.

use super::admission::Admission;
use super::connections::Registry;
use crate::config;
use crate::cursor::Cursor;
use crate::hub::Hub;
use crate::replay::{Pages, Replay};
use crate::shutdown::ShutdownWatch;
use crate::sse::Bye;
use crate::topic::Topic;
use rand::RngExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time between two reconnecting clients after a drain, so that the next process is not overrun.
const RECONNECT_SPACING: Duration = Duration::from_millis(4);

/// The settings that hold for every stream, however it is delivered.
#[derive(Clone, Debug)]
pub struct StreamRules {
    /// The client's wait before it reconnects.
    pub retry: Duration,
    /// The silence after which a comment is sent.
    pub heartbeat: Duration,
    /// The longest time that a socket may take nothing.
    pub write_timeout: Duration,
    /// The age at which a stream is closed; zero for no limit.
    pub max_age: Duration,
    /// The time over which a shutdown spreads the closing of streams.
    pub drain: Duration,
}

impl StreamRules {
    pub fn new(stream: &config::Stream, shutdown: &config::Shutdown) -> Self {
        let config::Stream { retry, heartbeat, write_timeout, max_age, .. } = stream.clone();
        Self { retry, heartbeat, write_timeout, max_age, drain: shutdown.drain }
    }

    /// Returns the deadline of a stream that opened at `since`. The age is cut by up to a tenth, so that streams that were
    /// opened together are not closed together.
    pub fn age_deadline(&self, since: Instant) -> Deadline {
        if self.max_age.is_zero() {
            return Deadline::Never;
        }
        Deadline::Age(since + self.max_age.mul_f64(rand::rng().random_range(0.9..=1.0)))
    }

    /// Returns the time over which `open` streams are closed: `drain`, or less where they are few.
    fn span(drain: Duration, open: usize) -> Duration {
        drain.min(RECONNECT_SPACING.saturating_mul(open.try_into().unwrap_or(u32::MAX)))
    }

    /// Picks the time after which one of `open` streams is closed in a drain that may take so long, so that they are not all
    /// closed at once.
    fn drain_delay(drain: Duration, open: usize) -> Duration {
        Self::span(drain, open).mul_f64(rand::rng().random_range(0.0..0.9))
    }

    /// Picks the wait of one of `open` clients before it reconnects, so that they do not all come back at once.
    pub fn reconnect_delay(&self, open: usize) -> Duration {
        let most = self.retry.max(Self::span(self.drain, open)).max(Duration::from_secs(1));
        Duration::from_millis(500) + most.mul_f64(rand::rng().random_range(0.0..1.0))
    }
}

/// The parts of the process that streams are made with; cheap to clone.
#[derive(Clone)]
pub struct StreamContext {
    pub hub: Hub,
    pub pages: Arc<Pages>,
    pub rules: StreamRules,
    pub admission: Admission,
    /// The streams that actix serves.
    pub registry: Registry,
    pub shutdown: ShutdownWatch,
}

impl StreamContext {
    /// Picks the wait before a client reconnects that Jobcast turns away or closes.
    pub fn reconnect_delay(&self) -> Duration {
        self.rules.reconnect_delay(self.admission.open())
    }

    /// Picks the moment at which one stream is closed in a drain that begins now.
    pub fn drain_deadline(&self) -> Instant {
        let drain = self.shutdown.drain_time(self.rules.drain);
        Instant::now() + StreamRules::drain_delay(drain, self.admission.open())
    }

    /// Starts a replay of everything after `cursor`, one of this process' own for the topic.
    pub fn replay_after(&self, topic: Topic, cursor: Cursor) -> Replay {
        Replay::after_token(self.pages.clone(), self.hub.clone(), topic, cursor)
    }
}

/// The moment at which Jobcast closes a stream for its own reasons. It goes with the stream from actix to a delivery
/// thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    Never,
    /// The stream will have reached its greatest age.
    Age(Instant),
    /// The process is draining. Once this is set, the stream is closed for no other reason.
    Drain(Instant),
}

impl Deadline {
    /// Begins the drain: the stream is closed at `at`, or sooner where it had to be closed sooner anyway.
    pub fn drain_by(&mut self, at: Instant) {
        *self = Self::Drain(self.at().map_or(at, |sooner| sooner.min(at)));
    }

    pub fn is_draining(self) -> bool {
        matches!(self, Self::Drain(_))
    }

    pub fn at(self) -> Option<Instant> {
        match self {
            Self::Never => None,
            Self::Age(at) | Self::Drain(at) => Some(at),
        }
    }

    /// Returns the reason for closing the stream now, if its time has come.
    pub fn reached(self, now: Instant) -> Option<Bye> {
        match self {
            Self::Age(at) if at <= now => Some(Bye::Age),
            Self::Drain(at) if at <= now => Some(Bye::Drain),
            Self::Never | Self::Age(_) | Self::Drain(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_never_postpones_the_end_of_a_stream_and_gives_it_its_reason() {
        let now = Instant::now();
        let (soon, later) = (now + Duration::from_secs(1), now + Duration::from_secs(2));
        for (before, at, closed_at) in
            [(Deadline::Never, later, later), (Deadline::Age(soon), later, soon), (Deadline::Age(later), soon, soon)]
        {
            let mut deadline = before;
            deadline.drain_by(at);
            assert_eq!(deadline, Deadline::Drain(closed_at), "{before:?}");
            assert_eq!(deadline.reached(now), None);
            assert_eq!(deadline.reached(closed_at), Some(Bye::Drain));
        }
        assert_eq!(Deadline::Age(soon).reached(soon), Some(Bye::Age));
        assert_eq!(Deadline::Never.reached(later), None);
    }
}
