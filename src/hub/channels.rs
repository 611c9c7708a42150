//! The live channels by topic, and the number of jobs that they have together: a set counts as each of its jobs.

use super::channel::Channel;
use crate::topic::Topic;
use std::collections::HashMap;
use std::sync::Arc;

/// Invariant: `jobs` is the number of jobs of all topics.
#[derive(Default)]
pub struct Channels {
    by_topic: HashMap<Topic, Arc<Channel>>,
    jobs: usize,
}

impl Channels {
    pub fn len(&self) -> usize {
        self.by_topic.len()
    }

    /// The jobs of all topics together.
    pub fn jobs(&self) -> usize {
        self.jobs
    }

    pub fn get(&self, topic: &Topic) -> Option<&Arc<Channel>> {
        self.by_topic.get(topic)
    }

    pub fn contains(&self, topic: &Topic) -> bool {
        self.by_topic.contains_key(topic)
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Channel>> {
        self.by_topic.values()
    }

    /// Adds the channel of a topic that has none.
    pub fn insert(&mut self, channel: Arc<Channel>) {
        self.jobs += channel.topic.jobs().len();
        let before = self.by_topic.insert(channel.topic.clone(), channel);
        debug_assert!(before.is_none(), "a topic has one channel");
    }

    pub fn remove(&mut self, topic: &Topic) {
        if let Some(channel) = self.by_topic.remove(topic) {
            self.jobs -= channel.topic.jobs().len();
        }
    }
}
