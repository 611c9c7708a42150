//! What servers say by themselves: that a key which was read has changed.
//!
//! With CLIENT TRACKING a server remembers which keys a connection has read, and tells it once when one of them changes
//! ("Server-assisted client-side caching"); to read it again is to be told again. So one connection per server waits for
//! everything that is watched, whatever the slots of a Cluster (an XREAD over streams of several slots is refused there), a
//! change costs what the one job costs and not an XREAD over all of them, and a new watch costs one read.
//!
//! What is heard is a wake-up, never the truth: the poll reads on its own.

use super::address::Address;
use super::entry::text;
use redis::aio::MultiplexedConnection;
use redis::{PushInfo, PushKind, RedisError, Value};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

#[derive(Default)]
pub struct Hearing {
    heard: Mutex<Heard>,
    rung: Notify,
}

#[derive(Debug, Default)]
pub struct Heard {
    /// Keys that changed. No more than were read, each once.
    pub keys: HashSet<String>,
    /// A connection is gone, and with it what its server remembered; or everything changed.
    pub is_lost: bool,
    /// Servers that do not tell.
    deaf: HashSet<Address>,
}

impl Hearing {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What hands on what comes on one connection.
    pub fn ear(self: Arc<Self>) -> impl Fn(PushInfo) -> Result<(), ()> + Send + Sync + 'static {
        move |info| {
            match (info.kind, &info.data[..]) {
                (PushKind::Invalidate, [Value::Array(keys)]) => {
                    let mut heard = self.heard();
                    heard.keys.extend(keys.iter().filter_map(text).map(str::to_string));
                }
                // all keys at once: the database was flushed
                (PushKind::Invalidate | PushKind::Disconnection, _) => self.heard().is_lost = true,
                _ => return Ok(()),
            }
            self.rung.notify_one();
            Ok(())
        }
    }

    /// Asks a server to tell. One that does not know how, or may not, is polled.
    pub async fn listen(&self, node: &Address, link: &mut MultiplexedConnection) -> Result<(), RedisError> {
        let answer = link.send_packed_command(redis::cmd("CLIENT").arg("TRACKING").arg("ON")).await?;
        match answer {
            Value::ServerError(error) => {
                if self.heard().deaf.insert(node.clone()) {
                    tracing::warn!(%node, %error, "the server does not tell what changed (CLIENT TRACKING); it is polled");
                }
            }
            _ => {
                self.heard().deaf.remove(node);
            }
        }
        Ok(())
    }

    pub fn is_deaf(&self) -> bool {
        !self.heard().deaf.is_empty()
    }

    pub fn lost(&self) {
        self.heard().is_lost = true;
        self.rung.notify_one();
    }

    /// What was heard since the last time.
    pub fn take(&self) -> Heard {
        let mut heard = self.heard();
        let deaf = heard.deaf.clone();
        std::mem::replace(&mut *heard, Heard { deaf, ..Heard::default() })
    }

    /// Returns when there is something to take.
    pub async fn rung(&self) {
        self.rung.notified().await;
    }
}
