//! One open stream of a channel, and the way in which a task waits for the channel to grow.

use super::Hub;
use super::channel::{Channel, ChannelListener, Fault, ListenerId};
use std::sync::Arc;
use tokio::sync::Notify;

/// One open stream of a channel. The channel is kept while there is one, and `hub.linger` after the last was dropped.
pub struct Subscription {
    channel: Arc<Channel>,
    /// The number of the newest fault that the subscriber was told of.
    told: u64,
}

impl Subscription {
    pub(super) fn new(channel: &Arc<Channel>) -> Self {
        channel.arrive();
        Self { channel: channel.clone(), told: 0 }
    }

    pub fn channel(&self) -> &Arc<Channel> {
        &self.channel
    }

    /// Returns a fault of the channel if the subscriber is to be told of it, which it is once.
    pub fn untold<'a>(&mut self, fault: Option<&'a Fault>) -> Option<&'a Fault> {
        let fault = fault.filter(|fault| fault.number > self.told)?;
        self.told = fault.number;
        Some(fault)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.channel.depart();
    }
}

/// A subscription with a task that waits for the channel to grow.
pub struct Listening {
    subscription: Subscription,
    id: ListenerId,
    notify: Arc<TaskNotify>,
}

/// Wakes one task. It remembers a wake-up that comes while the task does not wait.
#[derive(Default)]
struct TaskNotify(Notify);

impl ChannelListener for TaskNotify {
    fn wake(&self, _: &Arc<Channel>) {
        self.0.notify_one();
    }
}

impl Listening {
    pub fn new(hub: &Hub, subscription: Subscription) -> Self {
        let (id, notify) = (hub.listener_id(), Arc::new(TaskNotify::default()));
        subscription.channel().listen(id, notify.clone());
        Self { subscription, id, notify }
    }

    pub fn channel(&self) -> &Arc<Channel> {
        self.subscription.channel()
    }

    /// As [`Subscription::untold`].
    pub fn untold<'a>(&mut self, fault: Option<&'a Fault>) -> Option<&'a Fault> {
        self.subscription.untold(fault)
    }

    /// Returns when the channel has grown or ended since this last returned.
    pub async fn changed(&self) {
        self.notify.0.notified().await;
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.channel().unlisten(self.id);
    }
}
