//! A delivery thread: a slab of sockets, one poll, and writes. When a channel has grown, each of its subscribers is sent
//! all that lies between its place and the ring's end, in one write of shared memory. One round of the loop does a bounded
//! amount of that, so that a busy job does not keep the others waiting.
//!
//! This file has the loop, and how subscribers come and go. `group` delivers to all subscribers of a channel, `backlog`
//! looks after those whose sockets take no more, `replay` after those whom the ring has overtaken, `timers` after
//! heartbeats and deadlines, `connections` lists and closes them for an operator; `write` writes a run, `subscriber` has the
//! states, `inbox` the messages from outside.

mod backlog;
mod connections;
mod group;
mod inbox;
mod replay;
mod subscriber;
mod timers;
mod write;

pub use inbox::{HandedOver, Inbox, LiveStream, Message};

use super::admission::Reason;
use super::context::StreamContext;
use super::reaction::{self, Notice};
use crate::cursor::Cursor;
use crate::hub::{ChannelId, Outage, Place, Subscription};
use crate::sse::Bye;
use crate::telemetry;
use bytes::Bytes;
use group::Group;
use metrics::{Counter, Gauge, Histogram};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};
use slab::Slab;
use std::collections::{HashMap, VecDeque};
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;
use subscriber::{Backlog, Membership, State, Subscriber};
use timers::Clock;

/// Subscribers that are served between two looks at messages and sockets.
const DELIVERIES_PER_ROUND: usize = 256;
/// Most reads of 1 KB for one readable event; a peer that fills them all is closed.
const MAX_READS: usize = 16;
/// The poll's token for messages; the other tokens are the keys of subscribers.
const INBOX: Token = Token(usize::MAX);

pub struct Worker {
    poll: Poll,
    inbox: Arc<Inbox>,
    streams: StreamContext,
    /// Runs the replays.
    runtime: tokio::runtime::Handle,
    subscribers: Slab<Subscriber>,
    groups: Slab<Group>,
    /// The key of each channel's group.
    by_channel: HashMap<ChannelId, usize>,
    /// The groups that have work, each once. See [`group::GroupState`].
    queue: VecDeque<usize>,
    /// The serial of the newest subscriber.
    serial: u32,
    clock: Clock,
    is_draining: bool,
    /// The bytes in the backlogs of all subscribers.
    backlog_bytes: usize,
    /// The most bytes that they may hold together.
    max_backlog_bytes: usize,
    /// Counted in this round, and not yet in the metrics.
    delivered: Delivered,
    meters: Meters,
}

#[derive(Default)]
struct Delivered {
    events: u64,
    bytes: u64,
}

struct Meters {
    deliveries: Counter,
    bytes: Counter,
    fanout: Histogram,
    overtaken: Counter,
    backlog: Gauge,
    /// The bytes that `backlog` was told of.
    backlog_told: usize,
}

impl Worker {
    /// Makes a worker whose backlogs hold at most so many bytes, and the inbox through which it is reached.
    pub fn new(
        streams: StreamContext,
        max_backlog_bytes: usize,
        runtime: tokio::runtime::Handle,
    ) -> io::Result<(Self, Arc<Inbox>)> {
        let poll = Poll::new()?;
        let inbox = Arc::new(Inbox::new(Waker::new(poll.registry(), INBOX)?));
        let worker = Self {
            clock: Clock::new(&streams.rules),
            poll,
            inbox: inbox.clone(),
            streams,
            runtime,
            subscribers: Slab::new(),
            groups: Slab::new(),
            by_channel: HashMap::new(),
            queue: VecDeque::new(),
            serial: 0,
            is_draining: false,
            backlog_bytes: 0,
            max_backlog_bytes,
            delivered: Delivered::default(),
            meters: Meters {
                deliveries: telemetry::DELIVERIES.counter(&[]),
                bytes: telemetry::DELIVERED_BYTES.counter(&[]),
                fanout: telemetry::FANOUT.histogram(),
                overtaken: telemetry::OVERTAKEN.counter(&[]),
                backlog: telemetry::BACKLOG_BYTES.gauge(&[]),
                backlog_told: 0,
            },
        };
        Ok((worker, inbox))
    }

    /// Serves until it is told to stop.
    pub fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        loop {
            if let Err(error) = self.poll.poll(&mut events, self.longest_wait())
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "a delivery thread cannot wait for its sockets and ends");
                return;
            }
            let has_ticked = self.clock.advance();
            for event in events.iter().filter(|event| event.token() != INBOX) {
                let key = event.token().0;
                if event.is_readable() || event.is_read_closed() || event.is_error() {
                    self.on_readable(key);
                }
                if event.is_writable() {
                    self.on_writable(key);
                }
            }
            for message in self.inbox.take() {
                match message {
                    Message::Adopt(handed_over) => self.adopt(*handed_over),
                    Message::ChannelGrew(channel) => self.on_channel_grew(channel.id),
                    Message::ReplayStep { to, step } => self.on_replay_step(to, step),
                    Message::ReplayFailed(to) => self.on_replay_failed(to),
                    Message::Outage(outage) => self.on_outage(&outage),
                    Message::Answer(to) => {
                        let _ = to.send(());
                    }
                    Message::List { filter, limit, answer } => {
                        let _ = answer.send(self.list(&filter, limit));
                    }
                    Message::Revoke { filter, answer } => {
                        let _ = answer.send(self.revoke(&filter));
                    }
                    Message::Drain => self.drain(),
                    Message::Stop => return self.stop(),
                    #[cfg(feature = "fault-injection")]
                    Message::Fault(kind) => return crate::supervise::fault::fail(kind),
                }
            }
            if has_ticked {
                self.run_timers();
            }
            let mut budget = DELIVERIES_PER_ROUND;
            while budget > 0
                && let Some(group) = self.queue.pop_front()
            {
                self.deliver_to_group(group, &mut budget);
            }
            self.count_round();
        }
    }

    /// Tells the metrics of what this round has changed.
    fn count_round(&mut self) {
        let Delivered { events, bytes } = std::mem::take(&mut self.delivered);
        self.meters.deliveries.increment(events);
        self.meters.bytes.increment(bytes);
        let told = std::mem::replace(&mut self.meters.backlog_told, self.backlog_bytes);
        if told != self.backlog_bytes {
            self.meters.backlog.increment(self.backlog_bytes as f64 - told as f64);
        }
    }

    /// Returns the longest time that the thread may sleep; None where only a message can bring work.
    fn longest_wait(&self) -> Option<Duration> {
        if !self.queue.is_empty() {
            return Some(Duration::ZERO);
        }
        (!self.subscribers.is_empty()).then(|| self.clock.until_next())
    }

    fn adopt(&mut self, handed_over: HandedOver) {
        let HandedOver { stream, socket, unsent } = handed_over;
        let LiveStream { permit, registration, mut deadline, subscription, place, cursor, is_told_live } = stream;
        let mut socket = TcpStream::from_std(socket);
        let entry = self.subscribers.vacant_entry();
        let key = entry.key();
        if let Err(error) = self.poll.registry().register(&mut socket, Token(key), Interest::READABLE) {
            tracing::warn!(%error, "a stream's socket cannot be waited for");
            return;
        }
        if self.is_draining {
            deadline.drain_by(self.streams.drain_deadline());
        }
        self.serial = self.serial.wrapping_add(1);
        let last_write = self.clock.now();
        let (serial, state) = (self.serial, State::Detached);
        entry.insert(Subscriber { socket, permit, serial, is_told_live, last_write, deadline, state });
        let mut backlog = Box::<Backlog>::default();
        self.backlog_bytes += unsent.len();
        backlog.push(Bytes::from(unsent));
        self.attach(key, subscription, place, cursor, backlog);
        if registration.is_some_and(|registration| registration.is_revoked()) {
            self.send_bye(key, Bye::Revoked);
        }
    }

    /// Makes a detached subscriber one of its channel's, at `place`. Its backlog is written first.
    fn attach(&mut self, key: usize, subscription: Subscription, place: Place, cursor: Cursor, backlog: Box<Backlog>) {
        let group = self.group_of(subscription.channel(), place, &cursor);
        self.groups[group].attached += 1;
        let membership = Membership { subscription, group, place };
        self.subscribers[key].state = State::Lagging { membership, cursor, backlog };
        self.flush(key);
    }

    /// Takes a subscriber out of its channel, and returns its backlog. The caller puts it into its next state.
    fn detach(&mut self, key: usize) -> Option<Box<Backlog>> {
        let (membership, backlog) = match std::mem::replace(&mut self.subscribers[key].state, State::Detached) {
            State::Member { membership, index, .. } => {
                self.remove_member(membership.group, index);
                (membership, None)
            }
            State::Lagging { membership, backlog, .. } => (membership, Some(backlog)),
            State::Replaying { backlog, .. } | State::Closing { backlog } => return Some(backlog),
            State::Closed { .. } | State::Detached => return None,
        };
        let group = &mut self.groups[membership.group];
        group.attached -= 1;
        if group.is_unused() {
            self.drop_group(membership.group);
        }
        backlog
    }

    /// Notes, for the log, the position that a subscriber has come to, as far as its state says it.
    fn note_cursor(&mut self, key: usize) {
        let groups = &self.groups;
        let Subscriber { permit, state, .. } = &mut self.subscribers[key];
        permit.note_cursor(|| match state {
            State::Member { membership: Membership { group, place, .. }, cursor, .. } => {
                Some(cursor.clone().unwrap_or_else(|| groups[*group].cursor_at(*place)))
            }
            State::Lagging { cursor, .. } => Some(cursor.clone()),
            State::Replaying { .. } | State::Closing { .. } | State::Closed { .. } | State::Detached => None,
        });
    }

    /// Forgets a subscriber, and closes its socket.
    fn remove(&mut self, key: usize) {
        self.note_cursor(key);
        let backlog = self.detach(key);
        self.backlog_bytes -= backlog.map_or(0, |backlog| backlog.len());
        let mut subscriber = self.subscribers.remove(key);
        let _ = self.poll.registry().deregister(&mut subscriber.socket);
    }

    /// Closes a stream without another word.
    fn close(&mut self, key: usize, reason: Reason) {
        self.subscribers[key].permit.ends(reason);
        self.remove(key);
    }

    /// Takes what the peer sent, which nobody wants, and notices that it has left.
    fn on_readable(&mut self, key: usize) {
        let Some(subscriber) = self.subscribers.get_mut(key) else { return };
        let mut unwanted = [0; 1024];
        for _ in 0..MAX_READS {
            match subscriber.socket.read(&mut unwanted) {
                Ok(0) => return self.remove(key),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.remove(key),
            }
        }
        self.remove(key);
    }

    fn on_outage(&mut self, outage: &Outage) {
        let Notice { event, closes } = reaction::on_outage(outage);
        let framed = event.encode_framed();
        for key in self.keys() {
            match closes {
                None => self.send_control(key, framed.clone()),
                Some(reason) => self.send_last_and_close(key, &event, reason),
            }
        }
    }

    fn keys(&self) -> Vec<usize> {
        self.subscribers.iter().map(|(key, _)| key).collect()
    }

    fn stop(mut self) {
        for key in self.keys() {
            self.close(key, Reason::Drain);
        }
    }
}
