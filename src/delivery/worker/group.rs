//! The subscribers of one channel on one thread, and the delivery of a run of events to all of them.

use super::Worker;
use super::subscriber::State;
use super::write::{self, RunCursor, WriteOutcome};
use crate::cursor::Cursor;
use crate::delivery::reaction;
use crate::hub::{Channel, ChannelId, Fault, ListenerId, Place, Run, Unread};
use crate::topic::Topic;
use std::sync::Arc;

/// The subscribers of one channel on this thread.
pub struct Group {
    pub channel: Arc<Channel>,
    /// The id by which the channel knows this thread's inbox.
    pub listener: ListenerId,
    /// The keys of those who take each run together.
    pub members: Vec<usize>,
    /// The number of members and of those who lag.
    pub attached: usize,
    /// The place up to which all members have been served, and the cursor there. A member may be further already.
    pub place: Place,
    pub cursor: Cursor,
    pub state: GroupState,
    /// The number of the newest fault of the job's rows that all members were told of.
    told: u64,
}

/// The work that a group has.
pub enum GroupState {
    /// The ring holds nothing new, as far as is known.
    Idle,
    /// It waits for its turn to look into the ring.
    Queued,
    /// The worker is just serving its members, and holds the delivery.
    Delivering,
    /// It waits for its turn to serve the rest of its members.
    Paused(Delivery),
}

/// One run of events on its way to all members of a group.
pub struct Delivery {
    /// The run, and the place after it.
    unread: Unread,
    /// The group's place before the run.
    start: Place,
    /// The cursor after the run.
    end_cursor: Cursor,
    /// The members below this index are still to be served. It counts down, so that the one who takes the place of a
    /// member that leaves has been served already.
    remaining: usize,
    /// The channel has grown since the run was taken out of its ring.
    has_more: bool,
}

impl Group {
    fn new(channel: Arc<Channel>, listener: ListenerId, place: Place, cursor: Cursor) -> Self {
        Self { channel, listener, members: Vec::new(), attached: 0, place, cursor, state: GroupState::Idle, told: 0 }
    }

    /// True where nothing refers to the group any more: no subscriber, and no place in the worker's queue.
    pub fn is_unused(&self) -> bool {
        self.attached == 0 && matches!(self.state, GroupState::Idle)
    }

    /// True while no delivery is under way, so that all members stand at the group's place or have a cursor of their own.
    fn is_between_deliveries(&self) -> bool {
        matches!(self.state, GroupState::Idle | GroupState::Queued)
    }

    /// The cursor of a member at `place` that has none of its own.
    pub fn cursor_at(&self, place: Place) -> Cursor {
        match &self.state {
            GroupState::Paused(delivery) if place == delivery.unread.end => delivery.end_cursor.clone(),
            _ => self.cursor.clone(),
        }
    }
}

impl Worker {
    /// Returns the channel's group on this thread, which is made if it is the first subscriber's.
    pub(super) fn group_of(&mut self, channel: &Arc<Channel>, place: Place, cursor: &Cursor) -> usize {
        if let Some(group) = self.by_channel.get(&channel.id) {
            return *group;
        }
        let listener = self.streams.hub.listener_id();
        let group = self.groups.insert(Group::new(channel.clone(), listener, place, cursor.clone()));
        self.by_channel.insert(channel.id, group);
        // Before the first look into the ring, so that whatever is added after that look wakes this thread.
        channel.listen(listener, self.inbox.clone());
        group
    }

    pub(super) fn drop_group(&mut self, group: usize) {
        let group = self.groups.remove(group);
        group.channel.unlisten(group.listener);
        self.by_channel.remove(&group.channel.id);
    }

    /// Makes a lagging subscriber a member. It has been sent everything up to `place`.
    pub(super) fn become_member(&mut self, key: usize, place: Place, cursor: Cursor) {
        let state = std::mem::replace(&mut self.subscribers[key].state, State::Detached);
        let State::Lagging { mut membership, .. } = state else {
            debug_assert!(false, "only those who lag become members");
            return;
        };
        membership.place = place;
        let group = &mut self.groups[membership.group];
        let is_empty = group.members.is_empty();
        let cursor = match group.is_between_deliveries() {
            true if is_empty => {
                (group.place, group.cursor) = (place, cursor);
                None
            }
            // The same place has the same cursor, of which one copy is enough.
            true if group.place == place => None,
            _ => Some(cursor),
        };
        let index = group.members.len() as u32;
        group.members.push(key);
        self.subscribers[key].state = State::Member { membership, index, cursor };
    }

    /// Takes a member out of its group's list.
    pub(super) fn remove_member(&mut self, group: usize, index: u32) {
        let members = &mut self.groups[group].members;
        members.swap_remove(index as usize);
        if let Some(moved) = members.get(index as usize)
            && let State::Member { index: moved_index, .. } = &mut self.subscribers[*moved].state
        {
            *moved_index = index;
        }
    }

    /// Queues the channel's group for a look into the ring.
    pub(super) fn on_channel_grew(&mut self, channel: ChannelId) {
        let Some(id) = self.by_channel.get(&channel) else { return };
        let group = &mut self.groups[*id];
        match &mut group.state {
            GroupState::Idle => {
                group.state = GroupState::Queued;
                self.queue.push_back(*id);
            }
            GroupState::Paused(delivery) => delivery.has_more = true,
            GroupState::Queued | GroupState::Delivering => {}
        }
    }

    /// Serves as many of a group's members as the round's budget allows. Queues the group again where there is more to do.
    pub(super) fn deliver_to_group(&mut self, id: usize, budget: &mut usize) {
        let mut delivery = match std::mem::replace(&mut self.groups[id].state, GroupState::Delivering) {
            GroupState::Paused(delivery) => delivery,
            _ => match self.begin_delivery(id) {
                Some(delivery) => delivery,
                None => return,
            },
        };
        while delivery.remaining > 0 && *budget > 0 {
            *budget -= 1;
            delivery.remaining -= 1;
            // Members may have left meanwhile.
            if let Some(key) = self.groups[id].members.get(delivery.remaining) {
                self.deliver(*key, &delivery);
            }
        }
        let group = &mut self.groups[id];
        if delivery.remaining > 0 {
            group.state = GroupState::Paused(delivery);
            self.queue.push_back(id);
            return;
        }
        if !delivery.unread.run.is_empty() {
            self.meters.fanout.record(delivery.unread.read_at.elapsed());
        }
        (group.place, group.cursor) = (delivery.unread.end, delivery.end_cursor);
        if group.attached == 0 {
            self.drop_group(id);
        } else if delivery.has_more {
            group.state = GroupState::Queued;
            self.queue.push_back(id);
        } else {
            group.state = GroupState::Idle;
        }
    }

    /// Takes what is new out of the ring. Leaves the group idle where there is nothing to deliver.
    fn begin_delivery(&mut self, id: usize) -> Option<Delivery> {
        let group = &mut self.groups[id];
        group.state = GroupState::Idle;
        if group.attached == 0 {
            self.drop_group(id);
            return None;
        }
        let Ok(unread) = group.channel.read_from(group.place) else {
            self.replay_members(id);
            return None;
        };
        let newest_fault = unread.faults.last().map_or(0, |fault| fault.number);
        let has_fault = newest_fault > group.told;
        if unread.run.is_empty() && unread.ended.is_none() && !has_fault {
            return None;
        }
        group.told = group.told.max(newest_fault);
        group.state = GroupState::Delivering;
        let end_cursor = unread.run.end().unwrap_or_else(|| group.cursor.clone());
        Some(Delivery { start: group.place, remaining: group.members.len(), end_cursor, unread, has_more: false })
    }

    /// Replays the source for all members, because the ring moved on past them while this thread was busy with others.
    fn replay_members(&mut self, id: usize) {
        let group = &mut self.groups[id];
        let (place, newest) = group.channel.newest();
        group.place = place;
        let overtaken_at = std::mem::replace(&mut group.cursor, newest);
        for key in group.members.clone() {
            let State::Member { cursor, .. } = &mut self.subscribers[key].state else { continue };
            let cursor = cursor.take().unwrap_or_else(|| overtaken_at.clone());
            self.start_replay(key, cursor);
        }
    }

    /// Writes to one member what a delivery brings.
    fn deliver(&mut self, key: usize, delivery: &Delivery) {
        let State::Member { membership, .. } = &self.subscribers[key].state else { return };
        let (group, place) = (membership.group, membership.place);
        if place < delivery.unread.end {
            let skip = delivery.unread.run.skip + (place - delivery.start) as usize;
            let (events, outcome) = self.write_run(key, &delivery.unread.run, skip);
            let State::Member { membership, cursor, .. } = &mut self.subscribers[key].state else { return };
            match outcome {
                WriteOutcome::Failed => return self.remove(key),
                WriteOutcome::Blocked { rest, cursor: reached } => {
                    let reached = reached.or(cursor.take()).unwrap_or_else(|| self.groups[group].cursor.clone());
                    return self.start_lagging(key, place + events, reached, rest);
                }
                WriteOutcome::Complete => {
                    membership.place = delivery.unread.end;
                    *cursor = None;
                }
            }
        }
        if let Some(end) = &delivery.unread.ended {
            return self.carry_out(key, reaction::on_end(end, delivery.end_cursor.clone()));
        }
        if !delivery.unread.faults.is_empty()
            && let State::Member { membership, cursor, .. } = &mut self.subscribers[key].state
        {
            // Its own from here on, since the group's is still that before the delivery.
            cursor.get_or_insert_with(|| delivery.end_cursor.clone());
            let topic = membership.subscription.channel().topic.clone();
            let untold = membership.subscription.untold(&delivery.unread.faults);
            self.tell_faults(key, &topic, &untold);
        }
    }

    /// Tells a subscriber of faults of jobs' rows, as long as it is there.
    pub(super) fn tell_faults(&mut self, key: usize, topic: &Topic, faults: &[Fault]) {
        for fault in faults {
            if !self.subscribers.contains(key) {
                return;
            }
            self.send_notice(key, &reaction::on_fault(topic, fault));
        }
    }

    /// Writes the events of `run` from number `skip` on, and returns the number of events written.
    pub(super) fn write_run(&mut self, key: usize, run: &Run, skip: usize) -> (u64, WriteOutcome) {
        let subscriber = &mut self.subscribers[key];
        let written = write::write_run(&mut subscriber.socket, RunCursor::new(&run.segments, skip));
        if written.bytes > 0 {
            subscriber.last_write = self.clock.now();
        }
        subscriber.permit.count(written.events, written.bytes);
        self.delivered.events += written.events;
        self.delivered.bytes += written.bytes;
        (written.events, written.outcome)
    }
}
