//! How events reach sockets. actix answers a stream's request and replays what was missed ([`body`]); then the socket
//! leaves actix ([`handoff`]) and lives on a delivery thread ([`thread`]), which costs it some hundred bytes and no task.
//! What cannot leave (HTTP/1.0 now; TLS and HTTP/2) stays a streaming body over the same channel.

pub mod admission;
pub mod body;
pub mod handoff;
pub mod thread;

use crate::config;
use crate::error::SourceError;
use crate::hub::Outage;
use crate::sse;
use bytes::Bytes;
use rand::RngExt;
use std::time::Duration;

/// Browsers that come back at this pace are no burden to whoever is next.
const RECONNECT_SPACING: Duration = Duration::from_millis(4);

/// What holds for every stream, however it is delivered.
#[derive(Clone, Debug)]
pub struct StreamRules {
    pub retry: Duration,
    pub heartbeat: Duration,
    pub write_timeout: Duration,
    /// Zero: none.
    pub max_age: Duration,
    pub drain: Duration,
}

impl StreamRules {
    pub fn new(stream: &config::Stream, shutdown: &config::Shutdown) -> Self {
        let config::Stream { retry, heartbeat, write_timeout, max_age, .. } = stream.clone();
        Self { retry, heartbeat, write_timeout, max_age, drain: shutdown.drain }
    }

    /// The age at which a stream is closed, if any: up to a tenth early, so that streams opened together part.
    pub fn age_limit(&self) -> Option<Duration> {
        (!self.max_age.is_zero()).then(|| self.max_age.mul_f64(rand::rng().random_range(0.9..=1.0)))
    }

    /// How long closing so many streams takes: the drain, or less where they are few.
    fn span(&self, open: usize) -> Duration {
        self.drain.min(RECONNECT_SPACING.saturating_mul(open.try_into().unwrap_or(u32::MAX)))
    }

    /// When one of so many streams is closed, so that they are not all closed at once.
    pub fn drain_delay(&self, open: usize) -> Duration {
        self.span(open).mul_f64(rand::rng().random_range(0.0..0.9))
    }

    /// When one of so many comes back after Jobcast closed: not all in the same second.
    pub fn reconnect_delay(&self, open: usize) -> Duration {
        let most = self.retry.max(self.span(open)).max(Duration::from_secs(1));
        Duration::from_millis(500) + most.mul_f64(rand::rng().random_range(0.0..1.0))
    }
}

/// What a stream is told of the source's failure.
pub fn failure(error: &SourceError, retry_in: Duration) -> Bytes {
    let retryable = error.is_retryable();
    sse::error(error.code.as_str(), &error.to_string(), retryable, retryable.then_some(retry_in))
}

pub fn outage(outage: &Outage) -> Bytes {
    failure(&outage.error, outage.retry_in)
}
