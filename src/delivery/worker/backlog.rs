//! Subscribers whose sockets take less than there is to write. Such a subscriber leaves its group's members, so that the
//! others go on, and comes back once its backlog is written. The memory of all backlogs is bounded.

use super::Worker;
use super::subscriber::{Backlog, Blocked, FlushOutcome, NextPage, State};
use super::write::WriteOutcome;
use crate::cursor::Cursor;
use crate::delivery::admission::Reason;
use crate::delivery::reaction::{self, Notice, Reaction};
use crate::hub::Place;
use crate::sse::{self, Bye, ControlEvent};
use crate::topic::Topic;
use bytes::Bytes;
use mio::{Interest, Token};
use std::collections::HashMap;
use std::io::{self, Write};

impl Worker {
    /// Takes a member out of its group, because its socket did not take everything: `rest` is yet to be written. `place`
    /// and `cursor` are the position after `rest`.
    pub(super) fn start_lagging(&mut self, key: usize, place: Place, cursor: Cursor, rest: Bytes) {
        let state = std::mem::replace(&mut self.subscribers[key].state, State::Detached);
        let State::Member { mut membership, index, .. } = state else {
            debug_assert!(false, "only members start to lag");
            return;
        };
        self.remove_member(membership.group, index);
        membership.place = place;
        self.subscribers[key].state = State::Lagging { membership, cursor, backlog: Box::default() };
        self.push(key, rest);
        self.on_blocked(key);
    }

    /// Adds to a subscriber's backlog.
    pub(super) fn push(&mut self, key: usize, bytes: Bytes) {
        if let Some(backlog) = self.subscribers[key].state.backlog_mut() {
            self.backlog_bytes += bytes.len();
            backlog.push(bytes);
        }
    }

    /// Waits until the subscriber's socket is writable, because it has just taken less than there was.
    fn on_blocked(&mut self, key: usize) {
        while self.backlog_bytes > self.max_backlog_bytes {
            let largest = self.largest_backlog().unwrap_or(key);
            self.close(largest, Reason::Memory);
            if largest == key {
                return;
            }
        }
        let subscriber = &mut self.subscribers[key];
        let Some(backlog @ Backlog { blocked: None, .. }) = subscriber.state.backlog_mut() else { return };
        backlog.blocked = Some(Blocked::since(self.clock.now()));
        let both = Interest::READABLE | Interest::WRITABLE;
        if self.poll.registry().reregister(&mut subscriber.socket, Token(key), both).is_err() {
            self.remove(key);
        }
    }

    /// Returns the subscriber with the largest backlog, of the topic whose subscribers hold most together. It goes first where
    /// memory runs out, so that nobody pays for the slowness of another topic's subscribers, however many and small their
    /// backlogs are. The look at all subscribers is worth it, as each one ends a stream.
    fn largest_backlog(&self) -> Option<usize> {
        #[derive(Default, PartialEq, Eq, PartialOrd, Ord)]
        struct Held {
            total: usize,
            largest: usize,
            by: usize,
        }
        let mut by_topic: HashMap<Option<&Topic>, Held> = HashMap::new();
        for (key, subscriber) in &self.subscribers {
            let Some(backlog) = subscriber.state.backlog() else { continue };
            let (length, held) = (backlog.len(), by_topic.entry(subscriber.watched()).or_default());
            held.total += length;
            if length >= held.largest {
                (held.largest, held.by) = (length, key);
            }
        }
        by_topic.into_values().max().map(|held| held.by)
    }

    /// Goes on writing to a socket that was waited for.
    pub(super) fn on_writable(&mut self, key: usize) {
        let Some(subscriber) = self.subscribers.get_mut(key) else { return };
        let Some(backlog) = subscriber.state.backlog_mut() else { return };
        if backlog.blocked.take().is_none() {
            return;
        }
        if self.poll.registry().reregister(&mut subscriber.socket, Token(key), Interest::READABLE).is_err() {
            return self.remove(key);
        }
        self.flush(key);
    }

    /// Writes a subscriber's backlog, unless its socket is being waited for, and then goes on with what comes next.
    pub(super) fn flush(&mut self, key: usize) {
        let subscriber = &mut self.subscribers[key];
        let Some(backlog @ Backlog { blocked: None, .. }) = subscriber.state.backlog_mut() else { return };
        let (written, outcome) = backlog.write_to(&mut subscriber.socket);
        self.backlog_bytes -= written;
        if written > 0 {
            subscriber.last_write = self.clock.now();
        }
        match outcome {
            FlushOutcome::Complete => self.on_flushed(key),
            FlushOutcome::Blocked => self.on_blocked(key),
            FlushOutcome::Failed => self.remove(key),
        }
    }

    /// Goes on with a subscriber whose backlog is written.
    fn on_flushed(&mut self, key: usize) {
        let subscriber = &mut self.subscribers[key];
        match &mut subscriber.state {
            State::Lagging { .. } => self.catch_up(key),
            State::Replaying { next_page: NextPage::Requested, .. } => {}
            State::Replaying { next_page, requests, .. } => {
                *next_page = NextPage::Requested;
                let _ = requests.try_send(());
            }
            State::Closing { .. } => {
                subscriber.state = State::Closed { since: self.clock.now() };
                if subscriber.socket.shutdown(std::net::Shutdown::Write).is_err() {
                    self.remove(key);
                }
            }
            State::Member { .. } | State::Closed { .. } | State::Detached => {}
        }
    }

    /// Writes what the ring holds after the place of a lagging subscriber whose backlog is empty, and makes it a member.
    fn catch_up(&mut self, key: usize) {
        let State::Lagging { membership, cursor, .. } = &self.subscribers[key].state else { return };
        let (group, start, cursor) = (membership.group, membership.place, cursor.clone());
        let Ok(unread) = self.groups[group].channel.read_from(start) else {
            return self.start_replay(key, cursor);
        };
        let (events, outcome) = self.write_run(key, &unread.run, unread.run.skip);
        match outcome {
            WriteOutcome::Failed => self.remove(key),
            WriteOutcome::Blocked { rest, cursor: reached } => {
                if let State::Lagging { membership, cursor, .. } = &mut self.subscribers[key].state {
                    membership.place = start + events;
                    *cursor = reached.unwrap_or_else(|| cursor.clone());
                }
                self.push(key, rest);
                self.on_blocked(key);
            }
            WriteOutcome::Complete => {
                let reached = unread.run.end().unwrap_or(cursor);
                if unread.ended.is_none() && !self.subscribers[key].is_told_live {
                    return self.tell_live(key, unread.end, reached);
                }
                self.become_member(key, unread.end, reached.clone());
                if let Some(end) = unread.ended {
                    self.carry_out(key, reaction::on_end(&end, reached));
                } else if let State::Member { membership, .. } = &mut self.subscribers[key].state {
                    let topic = membership.subscription.channel().topic.clone();
                    let untold = membership.subscription.untold(&unread.faults);
                    self.tell_faults(key, &topic, &untold);
                }
            }
        }
    }

    /// Tells a lagging subscriber that it is live, since it was sent what the ring held, up to `place`.
    fn tell_live(&mut self, key: usize, place: Place, reached: Cursor) {
        let subscriber = &mut self.subscribers[key];
        subscriber.is_told_live = true;
        if let State::Lagging { membership, cursor, .. } = &mut subscriber.state {
            (membership.place, *cursor) = (place, reached);
        }
        self.push(key, sse::framed(sse::LIVE));
        self.flush(key);
    }

    /// Does what was decided for one subscriber.
    pub(super) fn carry_out(&mut self, key: usize, reaction: Reaction) {
        match reaction {
            Reaction::SendReplayed(segments) => {
                self.push_replayed(key, &segments);
                self.flush(key);
            }
            Reaction::GoLive { missing, notices, subscription, place, cursor } => {
                self.push_replayed(key, &missing);
                for notice in notices {
                    self.push(key, notice.encode_framed());
                }
                let backlog = self.detach(key).unwrap_or_default();
                self.attach(key, subscription, place, cursor, backlog);
            }
            Reaction::Replay(cursor) => self.start_replay(key, cursor),
            Reaction::Notify(notice) => self.send_notice(key, &notice),
        }
    }

    pub(super) fn send_notice(&mut self, key: usize, notice: &Notice) {
        match notice.closes {
            None => {
                self.subscribers[key].permit.note_cursor(|| notice.event.cursor().cloned());
                self.send_control(key, notice.event.encode_framed());
            }
            Some(reason) => self.send_last_and_close(key, &notice.event, reason),
        }
    }

    /// Closes a stream for a reason of Jobcast's own, unless it is gone.
    pub(super) fn send_bye(&mut self, key: usize, reason: Bye) {
        if self.subscribers.contains(key) {
            self.send_notice(key, &reaction::on_bye(reason, self.streams.reconnect_delay()));
        }
    }

    /// Sends bytes of Jobcast's own, after whatever is being written.
    pub(super) fn send_control(&mut self, key: usize, framed: Bytes) {
        let subscriber = &mut self.subscribers[key];
        let State::Member { membership, cursor, .. } = &subscriber.state else {
            if !subscriber.state.is_closing() {
                self.push(key, framed);
                self.flush(key);
            }
            return;
        };
        let written = match subscriber.socket.write(&framed) {
            Ok(written) if written == framed.len() => {
                subscriber.last_write = self.clock.now();
                return;
            }
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => return self.remove(key),
        };
        let place = membership.place;
        let cursor = cursor.clone().unwrap_or_else(|| self.groups[membership.group].cursor_at(place));
        self.start_lagging(key, place, cursor, framed.slice(written..));
    }

    /// Sends the last event of a stream, and closes it.
    pub(super) fn send_last_and_close(&mut self, key: usize, event: &ControlEvent, reason: Reason) {
        if self.subscribers[key].state.is_closing() {
            return;
        }
        self.note_cursor(key);
        let permit = &mut self.subscribers[key].permit;
        permit.note_cursor(|| event.cursor().cloned());
        permit.ends(reason);
        let backlog = self.detach(key).unwrap_or_default();
        self.subscribers[key].state = State::Closing { backlog };
        self.push(key, Bytes::from([&event.encode_framed()[..], sse::LAST_CHUNK].concat()));
        self.flush(key);
    }
}
