//! Change notifications: the servers tell which of the keys that we read have changed.
//!
//! With CLIENT TRACKING a server remembers the keys that a connection has read, and pushes one invalidation when one of
//! them changes ("Server-assisted client-side caching" in the Redis manual). Reading the key again arms it again. One
//! connection for each server so waits for all watched jobs at once, also in a Cluster, where an XREAD over streams of
//! several slots is refused. A change costs one read of the one job, and a new watch costs one read.
//!
//! An invalidation only wakes the tail up. It may be lost without harm, because the poll reads the streams as well.

use super::address::Address;
use super::reply::text;
use crate::telemetry;
use redis::aio::MultiplexedConnection;
use redis::{PushInfo, PushKind, RedisError, Value};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Invalidations received on all connections of the tail.
#[derive(Default)]
pub struct Invalidations {
    state: Mutex<State>,
    /// Wakes the tail when there are changes to take.
    changed: Notify,
}

#[derive(Default)]
struct State {
    changes: Changes,
    /// Servers that refused CLIENT TRACKING. While there is one, every poll reads all jobs.
    untracked_nodes: HashSet<Address>,
}

/// Changes since the last time that they were taken.
#[derive(Debug, Default)]
pub struct Changes {
    /// Keys that changed: each once, and none that was not read before.
    pub changed_keys: HashSet<String>,
    /// Any other key may have changed, too: a connection broke, and with it the server's memory of the keys, or the
    /// database was flushed.
    pub is_incomplete: bool,
}

impl Invalidations {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the function that a connection calls with everything that its server pushes.
    pub fn push_handler(self: Arc<Self>) -> impl Fn(PushInfo) -> Result<(), ()> + Send + Sync + 'static {
        move |push| {
            match (push.kind, &push.data[..]) {
                (PushKind::Invalidate, [Value::Array(keys)]) => {
                    self.state().changes.changed_keys.extend(keys.iter().filter_map(text).map(str::to_string));
                }
                // An invalidation without keys means that the database was flushed.
                (PushKind::Invalidate | PushKind::Disconnection, _) => self.state().changes.is_incomplete = true,
                _ => return Ok(()),
            }
            self.changed.notify_one();
            Ok(())
        }
    }

    /// Turns tracking on for a new connection. A server that refuses is polled instead, and the log says so once.
    pub async fn track(&self, node: &Address, connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
        let reply = connection.send_packed_command(redis::cmd("CLIENT").arg("TRACKING").arg("ON")).await?;
        if let Value::ServerError(error) = reply {
            if self.state().untracked_nodes.insert(node.clone()) {
                tracing::warn!(%node, %error, "the server does not tell what changed (CLIENT TRACKING); it is polled");
            }
        } else {
            self.state().untracked_nodes.remove(node);
        }
        telemetry::SOURCE_LISTENING.gauge(&[]).set(if self.has_untracked_nodes() { 0.0 } else { 1.0 });
        Ok(())
    }

    pub fn has_untracked_nodes(&self) -> bool {
        !self.state().untracked_nodes.is_empty()
    }

    /// Notes that a connection is gone, and that invalidations may have been lost with it.
    pub fn mark_incomplete(&self) {
        self.state().changes.is_incomplete = true;
        self.changed.notify_one();
    }

    pub fn take(&self) -> Changes {
        std::mem::take(&mut self.state().changes)
    }

    /// Returns when there are changes to take.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn changed_keys_are_taken_once_and_a_flush_or_a_lost_connection_makes_them_incomplete() {
        let invalidations = Arc::new(Invalidations::default());
        let handle = invalidations.clone().push_handler();
        let push = |kind, data| handle(PushInfo { kind, data }).expect("it never refuses a push");
        let key = |name: &str| Value::BulkString(name.as_bytes().to_vec());
        push(PushKind::Invalidate, vec![Value::Array(vec![key("a"), key("b")])]);
        push(PushKind::Invalidate, vec![Value::Array(vec![key("a")])]);
        invalidations.changed().await;
        let changes = invalidations.take();
        assert_eq!((changes.changed_keys.len(), changes.is_incomplete), (2, false));
        let changes = invalidations.take();
        assert_eq!((changes.changed_keys.len(), changes.is_incomplete), (0, false));
        for (kind, data) in [(PushKind::Invalidate, vec![Value::Nil]), (PushKind::Disconnection, Vec::new())] {
            push(kind, data);
            assert!(invalidations.take().is_incomplete);
        }
    }
}
