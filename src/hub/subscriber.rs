//! One open stream of a channel, and the way in which a task waits for the channel to grow.

use super::Hub;
use super::channel::{Channel, ChannelListener, Fault, ListenerId};
use crate::event::JobId;
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::Notify;

/// One open stream of a channel. The channel is kept while there is one, and `hub.linger` after the last was dropped.
pub struct Subscription {
    channel: Arc<Channel>,
    /// The number of the newest fault that the subscriber was told of.
    told: u64,
    /// The numbers of those that its replay had told it of.
    told_before: Vec<u64>,
}

impl Subscription {
    pub(super) fn new(channel: &Arc<Channel>) -> Self {
        channel.arrive();
        Self { channel: channel.clone(), told: 0, told_before: Vec::new() }
    }

    pub fn channel(&self) -> &Arc<Channel> {
        &self.channel
    }

    /// Returns those of the channel's present faults that the subscriber is to be told of, which it is once.
    pub fn untold(&mut self, faults: &[Fault]) -> Vec<Fault> {
        let is_untold = |fault: &&Fault| fault.number > self.told && !self.told_before.contains(&fault.number);
        let untold = faults.iter().filter(is_untold).cloned().collect();
        self.told = faults.last().map_or(self.told, |newest| self.told.max(newest.number));
        untold
    }

    /// Notes that the subscriber knows the present faults of these jobs.
    pub fn note_told(&mut self, jobs: &HashSet<JobId>) {
        let known = self.channel.faults().into_iter().filter(|fault| jobs.contains(&fault.job));
        self.told_before.extend(known.map(|fault| fault.number));
    }

    /// Returns the jobs whose present faults the subscriber knows.
    pub fn told_faults(&self) -> Vec<JobId> {
        let is_told = |fault: &Fault| fault.number <= self.told || self.told_before.contains(&fault.number);
        self.channel.faults().into_iter().filter(is_told).map(|fault| fault.job).collect()
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
    pub fn untold(&mut self, faults: &[Fault]) -> Vec<Fault> {
        self.subscription.untold(faults)
    }

    /// As [`Subscription::told_faults`].
    pub fn told_faults(&self) -> Vec<JobId> {
        self.subscription.told_faults()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::cursor::set::Size;
    use crate::error::{SourceCode, SourceError};
    use crate::hub::model::cursor;
    use crate::hub::{Join, Outage, Standpoint};
    use crate::topic::{Topic, Types};
    use std::time::{Duration, Instant};

    fn job(name: &str) -> JobId {
        name.parse().expect("an id")
    }

    fn subscription(hub: &Hub) -> Subscription {
        let topic = Topic::new(["a", "b", "c"].map(job), Types::All, Size::Short);
        let position = topic.position(vec![cursor(0).level(); 3]);
        match hub.join_or_create(&topic, &Standpoint { position, over: Vec::new() }, None, Vec::new()) {
            Join::CaughtUp(reader) => reader.subscription,
            Join::Wait(_) => panic!("the first reader makes the channel, and others stand at its place"),
        }
    }

    fn set_faults(hub: &Hub, jobs: &[&str]) {
        for name in jobs {
            let error = SourceError::new(SourceCode::Other, "reading", "a row", "mend it").of_job(job(name));
            let outage = Outage { error, since: Instant::now(), retry_in: Duration::from_secs(1) };
            hub.set_fault(&job(name), Some(&outage));
        }
    }

    /// The jobs whose faults a subscriber is told of now.
    fn told(subscriber: &mut Subscription) -> Vec<String> {
        let faults = subscriber.channel().faults();
        subscriber.untold(&faults).into_iter().map(|fault| fault.job.to_string()).collect()
    }

    #[test]
    fn each_job_of_a_set_that_cannot_be_read_is_told_once_however_many_there_are_and_once_more_when_it_was_mended() {
        let hub = Hub::new(config::Hub::default());
        let mut subscriber = subscription(&hub);
        set_faults(&hub, &["a", "b"]);
        assert_eq!(told(&mut subscriber), ["a", "b"]);
        // As each read of the tail says.
        set_faults(&hub, &["a", "b"]);
        assert_eq!(told(&mut subscriber), [""; 0]);
        hub.set_fault(&job("a"), None);
        set_faults(&hub, &["b"]);
        assert_eq!(told(&mut subscriber), [""; 0]);
        set_faults(&hub, &["a", "b"]);
        assert_eq!(told(&mut subscriber), ["a"]);
    }

    #[test]
    fn a_fault_that_a_replay_has_told_is_not_told_again_by_the_channel_nor_by_the_next_replay() {
        let hub = Hub::new(config::Hub::default());
        let _first = subscription(&hub);
        set_faults(&hub, &["a", "b"]);
        let mut subscriber = subscription(&hub);
        subscriber.note_told(&[job("a"), job("c")].into());
        assert_eq!(subscriber.told_faults(), [job("a")]);
        assert_eq!(told(&mut subscriber), ["b"]);
        set_faults(&hub, &["c"]);
        assert_eq!(subscriber.told_faults(), [job("a"), job("b")]);
        assert_eq!(told(&mut subscriber), ["c"], "a fault that begins later");
        hub.set_fault(&job("a"), None);
        set_faults(&hub, &["a"]);
        assert_eq!(told(&mut subscriber), ["a"], "another one of the same job");
    }
}
