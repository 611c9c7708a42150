//! One open stream of a channel, and how a task waits for the channel's news.

use super::Hub;
use super::channel::{Channel, ChannelListener, ListenerId};
use std::sync::Arc;
use tokio::sync::Notify;

/// One open stream of a channel; the channel lingers when the last is dropped.
pub struct Subscription(Arc<Channel>);

impl Subscription {
    pub(super) fn new(channel: &Arc<Channel>) -> Self {
        channel.arrive();
        Self(channel.clone())
    }

    pub fn channel(&self) -> &Arc<Channel> {
        &self.0
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.0.depart();
    }
}

/// A subscription that one task listens on.
pub struct Listening {
    subscription: Subscription,
    id: ListenerId,
    bell: Arc<Bell>,
}

#[derive(Default)]
struct Bell(Notify);

impl ChannelListener for Bell {
    fn wake(&self, _: &Arc<Channel>) {
        self.0.notify_one();
    }
}

impl Listening {
    pub fn new(hub: &Hub, subscription: Subscription) -> Self {
        let (id, bell) = (hub.listener_id(), Arc::new(Bell::default()));
        subscription.channel().listen(id, bell.clone());
        Self { subscription, id, bell }
    }

    pub fn channel(&self) -> &Arc<Channel> {
        self.subscription.channel()
    }

    /// Returns when there is news, or was since the last time.
    pub async fn news(&self) {
        self.bell.0.notified().await;
    }

    /// The next [`Listening::news`] returns at once.
    pub fn look_again(&self) {
        self.bell.0.notify_one();
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.channel().unlisten(self.id);
    }
}
