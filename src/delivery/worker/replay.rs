//! Subscribers that their ring has overtaken. A task of the runtime replays the source for each, one page at a time, until
//! the ring reaches back to it.

use super::Worker;
use super::inbox::{Inbox, Message, SubscriberId};
use super::subscriber::{NextPage, State, Subscriber};
use crate::cursor::Cursor;
use crate::delivery::admission::Reason;
use crate::delivery::reaction;
use crate::replay::{Replay, Step};
use crate::sse::Segment;
use crate::supervise::guarded;
use crate::telemetry;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

impl Worker {
    /// Leaves the ring, and replays everything after `cursor` from the source.
    pub(super) fn start_replay(&mut self, key: usize, cursor: Cursor) {
        self.meters.overtaken.increment(1);
        self.subscribers[key].permit.note_cursor(|| Some(cursor.clone()));
        let (State::Member { membership, .. } | State::Lagging { membership, .. }) = &self.subscribers[key].state
        else {
            debug_assert!(false, "only a subscriber of a channel can be overtaken");
            return;
        };
        let channel = membership.subscription.channel();
        let (topic, place) = (channel.topic.clone(), membership.place);
        let (statuses, over) = (channel.statuses_at(place), channel.over_at(place));
        let faults = membership.subscription.told_faults();
        let (requests, requested) = mpsc::channel(1);
        let backlog = self.detach(key).unwrap_or_default();
        self.subscribers[key].state =
            State::Replaying { topic: topic.clone(), backlog, next_page: NextPage::Requested, requests };
        let to = SubscriberId { key, serial: self.subscribers[key].serial };
        let replay = self.streams.replay_after(topic, cursor).told(statuses, over, faults);
        let inbox = self.inbox.clone();
        self.runtime.spawn(async move {
            if guarded("replay", run_replay(replay, &inbox, to, requested)).await.is_err() {
                inbox.post(Message::ReplayFailed(to));
            }
        });
    }

    /// Closes a stream whose replay panicked, so that its client comes back with its cursor.
    pub(super) fn on_replay_failed(&mut self, to: SubscriberId) {
        let is_replaying =
            |known: &&Subscriber| known.serial == to.serial && matches!(known.state, State::Replaying { .. });
        if self.subscribers.get(to.key).filter(is_replaying).is_some() {
            self.close(to.key, Reason::Failed);
        }
    }

    /// Takes a step of a replay. It is ignored where its subscriber has left, or is not replaying any more.
    pub(super) fn on_replay_step(&mut self, to: SubscriberId, step: Step) {
        let Some(subscriber) = self.subscribers.get_mut(to.key).filter(|known| known.serial == to.serial) else {
            return;
        };
        let State::Replaying { next_page, .. } = &mut subscriber.state else { return };
        *next_page = NextPage::AfterBacklog;
        let reaction = reaction::on_replay_step(step, || self.streams.reconnect_delay());
        self.carry_out(to.key, reaction);
    }

    pub(super) fn push_replayed(&mut self, key: usize, segments: &[Arc<Segment>]) {
        for segment in segments {
            let (events, bytes) = (segment.len() as u64, segment.framed().len() as u64);
            self.subscribers[key].permit.count(events, bytes);
            self.delivered.events += events;
            self.delivered.bytes += bytes;
            telemetry::REPLAYED.increment(&[("from", "source")], events);
            self.push(key, segment.framed().clone());
        }
        if let Some(last) = segments.last() {
            self.subscribers[key].permit.note_cursor(|| Some(last.end()));
        }
    }
}

/// Sends the steps of a replay to the thread: the first at once, each other when it is requested. Ends when the subscriber is
/// gone, or live again.
async fn run_replay(mut replay: Replay, inbox: &Inbox, to: SubscriberId, mut requested: mpsc::Receiver<()>) {
    loop {
        let step = tokio::select! {
            step = replay.next() => step,
            () = subscriber_left(&requested) => return,
        };
        let is_last = matches!(step, Step::Live { .. } | Step::Complete { .. } | Step::NoSuchJob);
        inbox.post(Message::ReplayStep { to, step });
        if is_last || requested.recv().await.is_none() {
            return;
        }
    }
}

/// Returns when the thread has dropped its side. It only looks, since receiving here could take a request.
async fn subscriber_left(requested: &mpsc::Receiver<()>) {
    while !requested.is_closed() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
