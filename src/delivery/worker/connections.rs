//! The subscribers of a delivery thread as an operator lists and closes them.

use super::Worker;
use super::subscriber::{State, Subscriber};
use crate::delivery::connections::{Connection, Filter, Listed};
use crate::sse::Bye;
use crate::topic::Topic;

impl Worker {
    /// Lists the streams that `filter` allows, at most `limit`.
    pub(super) fn list(&self, filter: &Filter, limit: usize) -> Listed {
        let mut listed = Listed::default();
        for (subscriber, topic) in self.subscribers.iter().filter_map(|(_, one)| Some((one, one.watched()?))) {
            if !filter.allows(&subscriber.permit, topic) {
                continue;
            }
            listed.total += 1;
            if listed.connections.len() < limit {
                listed.connections.push(Connection::new(&subscriber.permit, topic, subscriber.lag()));
            }
        }
        listed
    }

    /// Closes the streams that `filter` allows, and returns their number.
    pub(super) fn revoke(&mut self, filter: &Filter) -> usize {
        let is_chosen = |one: &Subscriber| one.watched().is_some_and(|topic| filter.allows(&one.permit, topic));
        let chosen: Vec<usize> =
            self.subscribers.iter().filter(|(_, one)| is_chosen(one)).map(|(key, _)| key).collect();
        for key in &chosen {
            self.send_bye(*key, Bye::Revoked);
        }
        chosen.len()
    }
}

impl Subscriber {
    /// Returns what it watches; None if it is closed.
    pub fn watched(&self) -> Option<&Topic> {
        match &self.state {
            State::Member { membership, .. } | State::Lagging { membership, .. } => {
                Some(&membership.subscription.channel().topic)
            }
            State::Replaying { topic, .. } => Some(topic),
            State::Closing { .. } | State::Closed { .. } | State::Detached => None,
        }
    }

    /// Returns the number of published events that it has yet to be sent, where it is served from a ring.
    fn lag(&self) -> Option<u64> {
        let (State::Member { membership, .. } | State::Lagging { membership, .. }) = &self.state else { return None };
        Some(membership.subscription.channel().newest().0.saturating_sub(membership.place))
    }
}
