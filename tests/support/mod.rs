//! What black-box tests work with: the built binary as a user starts it, and a client that sees every byte.

pub mod daemon;
pub mod flap;
pub mod http;
pub mod postgres;
pub mod redis;
pub mod sse;

pub use daemon::Daemon;
pub use http::Answer;
pub use postgres::{Pooler, Postgres};
pub use redis::{Cluster, Redis, Sentinel};
pub use sse::{Message, Stream};

use std::time::{Duration, Instant};

/// Longer than anything that is waited for should ever take; what is late by so much has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Looks again and again until `found` finds something.
pub async fn eventually<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = found().await {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} for this in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The numbers that [`Daemon::write`] put into the payloads.
pub fn numbers(messages: &[Message]) -> Vec<u64> {
    messages.iter().map(Message::number).collect()
}
