//! A delivery thread: a slab of sockets, one poll, and writes. Awake, it gives each subscriber of a channel all that lies
//! between its place and the ring's end, in one write of shared memory; a turn does a bounded amount of that, so that
//! one busy job does not keep the others waiting.
//!
//! A subscriber whose socket takes no more *lags*: it leaves its channel's members, keeps the rest of a half-written
//! event and the cursor after it, and comes back when it has caught up. One that the ring has overtaken meanwhile is
//! fed pages by a small task, one at a time.
//!
//! Invariants: members of a group do not lag; every member stands at the group's place, or at the end of its turn, or
//! keeps the cursor of its own place; a lagging subscriber's place is where it goes on once `out` is written.

use super::admission::{Reason, StreamPermit};
use super::body::StreamContext;
use super::handoff::{Parcel, Stream};
use super::{failure, outage};
use crate::cursor::Cursor;
use crate::event::JobId;
use crate::hub::{Channel, ChannelListener, ListenerId, Outage, Place, Run, Subscription, Unread};
use crate::replay::{Replay, Step};
use crate::sse::{self, Bye, JobEnd};
use crate::telemetry;
use bytes::Bytes;
use metrics::{Counter, Histogram};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};
use slab::Slab;
use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice, Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Writes between two looks at everybody else.
const TURN: usize = 256;
/// Slices of one `writev`.
const SLICES: usize = 64;
/// A channel with more subscribers than this is spread over all threads; below, one wake-up serves it.
const SPREAD_FROM: usize = 256;
/// How long a closed stream's peer may take to close its side.
const LAST_WORDS: Duration = Duration::from_secs(2);
const WAKE: Token = Token(usize::MAX);

/// All delivery threads; cheap to clone.
#[derive(Clone)]
pub struct Threads(Arc<Inner>);

struct Inner {
    mailboxes: Vec<Arc<Mailbox>>,
    next: AtomicUsize,
}

enum Letter {
    Adopt(Box<Parcel>),
    Wake(Arc<Channel>),
    /// What a feeder found for one subscriber.
    Fed {
        key: usize,
        serial: u32,
        job: JobId,
        step: Step,
    },
    Outage(Arc<Outage>),
    Drain,
    Stop,
}

struct Mailbox {
    letters: Mutex<Vec<Letter>>,
    waker: Waker,
}

impl Mailbox {
    fn post(&self, letter: Letter) {
        let mut letters = self.letters.lock().unwrap_or_else(PoisonError::into_inner);
        letters.push(letter);
        if letters.len() == 1
            && let Err(error) = self.waker.wake()
        {
            tracing::error!(%error, "a delivery thread cannot be woken");
        }
    }

    fn take(&self) -> Vec<Letter> {
        std::mem::take(&mut self.letters.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ChannelListener for Mailbox {
    fn wake(&self, channel: &Arc<Channel>) {
        self.post(Letter::Wake(channel.clone()));
    }
}

impl Threads {
    /// Starts them; feeders run on `runtime`. Lagging subscribers of all threads together hold at most `lag_bytes`.
    pub fn start(
        count: usize,
        streams: &StreamContext,
        lag_bytes: usize,
        runtime: &tokio::runtime::Handle,
    ) -> io::Result<(Self, Vec<JoinHandle<()>>)> {
        let (mut mailboxes, mut handles) = (Vec::new(), Vec::new());
        for number in 0..count {
            let poll = Poll::new()?;
            let waker = Waker::new(poll.registry(), WAKE)?;
            let mailbox = Arc::new(Mailbox { letters: Mutex::default(), waker });
            let worker = Worker::new(poll, mailbox.clone(), streams.clone(), lag_bytes / count, runtime.clone());
            let thread = std::thread::Builder::new().name(format!("delivery-{number}"));
            handles.push(thread.spawn(move || worker.run())?);
            mailboxes.push(mailbox);
        }
        Ok((Self(Arc::new(Inner { mailboxes, next: AtomicUsize::new(0) })), handles))
    }

    pub fn adopt(&self, parcel: Parcel) {
        let channel = parcel.stream.subscription.channel();
        let number = match channel.subscribers() {
            0..SPREAD_FROM => Arc::as_ptr(channel) as usize / 64,
            _ => self.0.next.fetch_add(1, Ordering::Relaxed),
        };
        self.0.mailboxes[number % self.0.mailboxes.len()].post(Letter::Adopt(Box::new(parcel)));
    }

    /// Tells every stream that the source went away.
    pub fn tell(&self, outage: &Arc<Outage>) {
        self.0.mailboxes.iter().for_each(|mailbox| mailbox.post(Letter::Outage(outage.clone())));
    }

    /// Closes every stream, spread over the time for it.
    pub fn drain(&self) {
        self.0.mailboxes.iter().for_each(|mailbox| mailbox.post(Letter::Drain));
    }

    /// Ends the threads, and whatever they still hold.
    pub fn stop(&self) {
        self.0.mailboxes.iter().for_each(|mailbox| mailbox.post(Letter::Stop));
    }
}

/// One subscriber.
struct Conn {
    socket: TcpStream,
    permit: StreamPermit,
    /// None while it is fed.
    subscription: Option<Subscription>,
    /// Of its group, and its index among the group's members.
    group: usize,
    index: u32,
    serial: u32,
    place: Place,
    /// Where it differs from the group's.
    cursor: Option<Cursor>,
    /// Ticks.
    quiet_since: u32,
    close_at: Option<u32>,
    lag: Option<Box<Lag>>,
}

/// Not a member: waits for its socket, or for pages.
struct Lag {
    out: VecDeque<Bytes>,
    /// The position at the subscriber's place.
    cursor: Cursor,
    then: Then,
    is_blocked: bool,
    /// When the socket last took something. Ticks.
    since: u32,
    /// The feeder is at work on the next page.
    has_asked: bool,
}

/// What comes when `out` is written.
enum Then {
    /// On from its place in the ring.
    Rejoin,
    /// The next page.
    Feed(mpsc::Sender<()>),
    Close,
    /// Our side is shut; its peer is to close, too.
    Closed,
}

/// The subscribers of one channel on this thread.
struct Group {
    channel: Arc<Channel>,
    listener: ListenerId,
    members: Vec<usize>,
    /// Members, and those who lag.
    attached: usize,
    place: Place,
    cursor: Cursor,
    turn: Option<Turn>,
    is_queued: bool,
    /// Its turn is being taken just now.
    is_busy: bool,
}

/// One run on its way to all members.
struct Turn {
    ahead: Unread,
    start: Place,
    end_cursor: Cursor,
    /// Members below this index are still to be visited. Downwards, so that one who leaves is replaced by one who was
    /// visited already.
    next: usize,
}

struct Worker {
    poll: Poll,
    mailbox: Arc<Mailbox>,
    streams: StreamContext,
    runtime: tokio::runtime::Handle,
    conns: Slab<Conn>,
    groups: Slab<Group>,
    by_channel: HashMap<usize, usize>,
    turns: VecDeque<usize>,
    serial: u32,
    began: Instant,
    tick: Duration,
    now: u32,
    is_draining: bool,
    lag_bytes: usize,
    max_lag_bytes: usize,
    delivered: u64,
    delivered_bytes: u64,
    meters: Meters,
}

struct Meters {
    deliveries: Counter,
    bytes: Counter,
    fanout: Histogram,
    overtaken: Counter,
}

enum Wrote {
    All,
    /// So many events, the last perhaps half: then its rest.
    Some {
        events: u64,
        rest: Bytes,
        cursor: Option<Cursor>,
    },
    Gone,
}

impl Worker {
    fn new(
        poll: Poll,
        mailbox: Arc<Mailbox>,
        streams: StreamContext,
        max_lag_bytes: usize,
        runtime: tokio::runtime::Handle,
    ) -> Self {
        let rules = &streams.rules;
        let tick = rules.heartbeat.min(rules.write_timeout) / 8;
        Self {
            tick: tick.clamp(Duration::from_millis(10), Duration::from_millis(250)),
            poll,
            mailbox,
            streams,
            runtime,
            conns: Slab::new(),
            groups: Slab::new(),
            by_channel: HashMap::new(),
            turns: VecDeque::new(),
            serial: 0,
            began: Instant::now(),
            now: 0,
            is_draining: false,
            lag_bytes: 0,
            max_lag_bytes,
            delivered: 0,
            delivered_bytes: 0,
            meters: Meters {
                deliveries: telemetry::DELIVERIES.counter(&[]),
                bytes: telemetry::DELIVERED_BYTES.counter(&[]),
                fanout: telemetry::FANOUT.histogram(),
                overtaken: telemetry::OVERTAKEN.counter(&[]),
            },
        }
    }

    fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        loop {
            let wait = match (self.turns.is_empty(), self.conns.is_empty()) {
                (false, _) => Some(Duration::ZERO),
                (true, true) => None,
                (true, false) => Some((self.tick * (self.now + 1)).saturating_sub(self.began.elapsed())),
            };
            if let Err(error) = self.poll.poll(&mut events, wait)
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "a delivery thread cannot wait for its sockets and ends");
                return;
            }
            let now = (self.began.elapsed().as_nanos() / self.tick.as_nanos()) as u32;
            let is_due = now != std::mem::replace(&mut self.now, now);
            for event in events.iter().filter(|event| event.token() != WAKE) {
                let key = event.token().0;
                if event.is_readable() || event.is_read_closed() || event.is_error() {
                    self.hear(key);
                }
                if event.is_writable() {
                    self.writable(key);
                }
            }
            for letter in self.mailbox.take() {
                match letter {
                    Letter::Adopt(parcel) => self.adopt(*parcel),
                    Letter::Wake(channel) => self.woken(&channel),
                    Letter::Fed { key, serial, job, step } => self.fed(key, serial, &job, step),
                    Letter::Outage(outage) => self.tell_all(&outage),
                    Letter::Drain => self.drain(),
                    Letter::Stop => return self.stop(),
                }
            }
            if is_due {
                self.look_at_the_clock();
            }
            let mut budget = TURN;
            while let Some(group) = self.turns.pop_front() {
                self.take_turn(group, &mut budget);
                if budget == 0 {
                    break;
                }
            }
            self.meters.deliveries.increment(std::mem::take(&mut self.delivered));
            self.meters.bytes.increment(std::mem::take(&mut self.delivered_bytes));
        }
    }

    fn ticks(&self, span: Duration) -> u32 {
        span.as_nanos().div_ceil(self.tick.as_nanos()).try_into().unwrap_or(u32::MAX / 2)
    }

    // ---- coming and going

    fn adopt(&mut self, parcel: Parcel) {
        let Parcel { stream: Stream { permit, subscription, place, cursor }, socket, unsent } = parcel;
        let mut socket = TcpStream::from_std(socket);
        let entry = self.conns.vacant_entry();
        let key = entry.key();
        if let Err(error) = self.poll.registry().register(&mut socket, Token(key), Interest::READABLE) {
            tracing::warn!(%error, "a stream's socket cannot be waited for");
            return;
        }
        self.serial = self.serial.wrapping_add(1);
        let age = self.streams.rules.age_limit().map(|age| age.saturating_sub(permit.since().elapsed()));
        entry.insert(Conn {
            socket,
            permit,
            subscription: None,
            group: usize::MAX,
            index: u32::MAX,
            serial: self.serial,
            place,
            cursor: None,
            quiet_since: self.now,
            close_at: None,
            lag: None,
        });
        self.conns[key].close_at = age.map(|age| self.now + self.ticks(age));
        if self.is_draining {
            self.set_drain(key);
        }
        self.settle(key, subscription, place, cursor, Bytes::from(unsent));
    }

    /// Makes a subscriber one of its channel's, at `place`, once `first` is written.
    fn settle(&mut self, key: usize, subscription: Subscription, place: Place, cursor: Cursor, first: Bytes) {
        let channel = subscription.channel().clone();
        let address = Arc::as_ptr(&channel) as usize;
        let group = match self.by_channel.get(&address) {
            Some(group) => *group,
            None => {
                let listener = self.streams.hub.listener_id();
                let group = self.groups.insert(Group {
                    channel: channel.clone(),
                    listener,
                    members: Vec::new(),
                    attached: 0,
                    place,
                    cursor: cursor.clone(),
                    turn: None,
                    is_queued: false,
                    is_busy: false,
                });
                self.by_channel.insert(address, group);
                // before the first look into the ring: whatever comes after that wakes us
                channel.listen(listener, self.mailbox.clone());
                group
            }
        };
        self.groups[group].attached += 1;
        let conn = &mut self.conns[key];
        conn.subscription = Some(subscription);
        conn.group = group;
        conn.place = place;
        if first.is_empty() {
            self.catch_up(key, cursor);
        } else {
            conn.cursor = Some(cursor);
            self.lag(key, Then::Rejoin);
            self.push(key, first);
            self.flush(key);
        }
    }

    /// Gives a subscriber that does not lag what the ring has, and makes it a member. `cursor` is that of its place.
    fn catch_up(&mut self, key: usize, cursor: Cursor) {
        let group = self.conns[key].group;
        let Ok(ahead) = self.groups[group].channel.read_from(self.conns[key].place) else {
            return self.feed(key, cursor);
        };
        let start = self.conns[key].place;
        match self.write_run(key, &ahead.run, ahead.run.skip) {
            Wrote::Gone => self.remove(key),
            Wrote::Some { events, rest, cursor: reached } => {
                let conn = &mut self.conns[key];
                conn.place = start + events;
                conn.cursor = Some(reached.unwrap_or(cursor));
                self.lag(key, Then::Rejoin);
                self.push(key, rest);
                self.blocked(key);
            }
            Wrote::All => {
                let reached = ahead.run.end().unwrap_or(cursor);
                let (conn, group) = (&mut self.conns[key], &mut self.groups[group]);
                conn.place = ahead.end;
                if group.members.is_empty() && !group.is_busy && group.turn.is_none() {
                    (group.place, group.cursor) = (ahead.end, reached.clone());
                } else {
                    conn.cursor = Some(reached.clone());
                }
                conn.index = group.members.len() as u32;
                group.members.push(key);
                if let Some(end) = ahead.ended {
                    self.end(key, end, reached);
                }
            }
        }
    }

    /// Takes a subscriber out of its group's members; it stays attached.
    fn leave_members(&mut self, key: usize) {
        let conn = &mut self.conns[key];
        if conn.index == u32::MAX {
            return;
        }
        let index = std::mem::replace(&mut conn.index, u32::MAX) as usize;
        let members = &mut self.groups[conn.group].members;
        members.swap_remove(index);
        if let Some(moved) = members.get(index) {
            self.conns[*moved].index = index as u32;
        }
    }

    fn detach(&mut self, key: usize) {
        self.leave_members(key);
        let conn = &mut self.conns[key];
        let group = std::mem::replace(&mut conn.group, usize::MAX);
        conn.subscription = None;
        let Some(entry) = self.groups.get_mut(group) else { return };
        entry.attached -= 1;
        // a group that is queued or in a turn is let go of when that is done
        if entry.attached == 0 && !entry.is_queued && !entry.is_busy && entry.turn.is_none() {
            self.drop_group(group);
        }
    }

    fn drop_group(&mut self, group: usize) {
        let group = self.groups.remove(group);
        group.channel.unlisten(group.listener);
        self.by_channel.remove(&(Arc::as_ptr(&group.channel) as usize));
    }

    fn remove(&mut self, key: usize) {
        self.detach(key);
        let mut conn = self.conns.remove(key);
        if let Some(lag) = &conn.lag {
            self.lag_bytes -= lag.out.iter().map(Bytes::len).sum::<usize>();
        }
        let _ = self.poll.registry().deregister(&mut conn.socket);
    }

    fn close(&mut self, key: usize, reason: Reason) {
        self.conns[key].permit.ends(reason);
        self.remove(key);
    }

    /// The peer sent something, which nobody wants, or left.
    fn hear(&mut self, key: usize) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let mut nobody_wants = [0; 1024];
        // bounded: a peer that talks on and on has its turn again
        for _ in 0..16 {
            match conn.socket.read(&mut nobody_wants) {
                Ok(0) => return self.remove(key),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.remove(key),
            }
        }
        // nobody sends a reader of a stream that much
        self.remove(key);
    }

    // ---- live

    fn woken(&mut self, channel: &Arc<Channel>) {
        let Some(group) = self.by_channel.get(&(Arc::as_ptr(channel) as usize)) else { return };
        let entry = &mut self.groups[*group];
        if !std::mem::replace(&mut entry.is_queued, true) && entry.turn.is_none() {
            self.turns.push_back(*group);
        }
    }

    /// Does some of a group's work; queues it again where there is more.
    fn take_turn(&mut self, group: usize, budget: &mut usize) {
        if self.groups[group].turn.is_none() && !self.begin_turn(group) {
            return;
        }
        let Some(mut turn) = self.groups[group].turn.take() else { return };
        self.groups[group].is_busy = true;
        while turn.next > 0 && *budget > 0 {
            *budget -= 1;
            turn.next -= 1;
            // members may have left meanwhile
            if let Some(key) = self.groups[group].members.get(turn.next) {
                self.deliver(*key, &turn);
            }
        }
        let entry = &mut self.groups[group];
        entry.is_busy = false;
        if turn.next > 0 {
            entry.turn = Some(turn);
            self.turns.push_back(group);
            return;
        }
        if !turn.ahead.run.is_empty() {
            self.meters.fanout.record(turn.ahead.read_at.elapsed());
        }
        entry.place = turn.ahead.end;
        entry.cursor = turn.end_cursor;
        if entry.attached == 0 {
            self.drop_group(group);
        } else if entry.is_queued {
            self.turns.push_back(group);
        }
    }

    /// Takes what is new out of the ring; false where there is nothing to do.
    fn begin_turn(&mut self, group: usize) -> bool {
        let entry = &mut self.groups[group];
        entry.is_queued = false;
        if entry.attached == 0 {
            self.drop_group(group);
            return false;
        }
        let Ok(ahead) = entry.channel.read_from(entry.place) else {
            // the ring moved on while this thread was busy with others
            let overtaken = entry.members.clone();
            let cursor = entry.cursor.clone();
            let (place, newest) = entry.channel.newest();
            (entry.place, entry.cursor) = (place, newest);
            for key in overtaken {
                let own = self.conns[key].cursor.take();
                self.feed(key, own.unwrap_or_else(|| cursor.clone()));
            }
            return false;
        };
        if ahead.run.is_empty() && ahead.ended.is_none() {
            return false;
        }
        let end_cursor = ahead.run.end().unwrap_or_else(|| entry.cursor.clone());
        entry.turn = Some(Turn { start: entry.place, next: entry.members.len(), end_cursor, ahead });
        true
    }

    /// Gives one member what a turn brings.
    fn deliver(&mut self, key: usize, turn: &Turn) {
        let place = self.conns[key].place;
        if place < turn.ahead.end {
            let skip = turn.ahead.run.skip + (place - turn.start) as usize;
            match self.write_run(key, &turn.ahead.run, skip) {
                Wrote::Gone => return self.remove(key),
                Wrote::Some { events, rest, cursor } => {
                    let known = self.conns[key].cursor.take();
                    let group_cursor = || self.groups[self.conns[key].group].cursor.clone();
                    let cursor = cursor.or(known).unwrap_or_else(group_cursor);
                    let conn = &mut self.conns[key];
                    conn.place = place + events;
                    conn.cursor = Some(cursor);
                    self.lag(key, Then::Rejoin);
                    self.push(key, rest);
                    self.blocked(key);
                    return;
                }
                Wrote::All => {
                    let conn = &mut self.conns[key];
                    conn.place = turn.ahead.end;
                    conn.cursor = None;
                }
            }
        }
        if let Some(end) = turn.ahead.ended {
            self.end(key, end, turn.end_cursor.clone());
        }
    }

    fn end(&mut self, key: usize, end: JobEnd, cursor: Cursor) {
        match end {
            JobEnd::Complete(status) => {
                let Some(subscription) = &self.conns[key].subscription else { return };
                let farewell = sse::complete(&subscription.channel().job, status, &cursor);
                self.farewell(key, &farewell, Reason::Complete);
            }
            // the source says what is lost, and gives all there is
            JobEnd::Lost(_) => self.feed(key, cursor),
        }
    }

    /// Writes the events of `run` from the `skip`th on to a subscriber that does not lag.
    fn write_run(&mut self, key: usize, run: &Run, skip: usize) -> Wrote {
        let conn = &mut self.conns[key];
        // where to begin: a segment, and an offset in it
        let (mut at, mut ahead) = (0, skip);
        while run.segments.get(at).is_some_and(|segment| ahead >= segment.len()) {
            ahead -= run.segments[at].len();
            at += 1;
        }
        let mut offset = run.segments.get(at).map_or(0, |segment| segment.offset(ahead));
        let mut events = 0;
        let mut cursor = None;
        while let [first, rest @ ..] = &run.segments[at..] {
            let rest = &rest[..rest.len().min(SLICES - 1)];
            let mut wanted = first.framed().len() - offset;
            let wrote = if rest.is_empty() {
                conn.socket.write(&first.framed()[offset..])
            } else {
                let mut slices = [IoSlice::new(&[]); SLICES];
                slices[0] = IoSlice::new(&first.framed()[offset..]);
                for (slice, segment) in slices[1..].iter_mut().zip(rest) {
                    *slice = IoSlice::new(segment.framed());
                    wanted += segment.framed().len();
                }
                conn.socket.write_vectored(&slices[..=rest.len()])
            };
            let mut wrote = match wrote {
                Ok(0) => return Wrote::Gone,
                Ok(wrote) => wrote,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // the event at hand, if it is half in the air, counts as given: its rest is kept
                    let event = first.event_at(offset);
                    let mut half = Bytes::new();
                    if offset > first.offset(event) {
                        events += 1;
                        cursor = Some(Cursor::trusted(first.cursor(event)));
                        half = Bytes::copy_from_slice(&first.framed()[offset..first.offset(event + 1)]);
                    }
                    self.delivered += events;
                    return Wrote::Some { events, rest: half, cursor };
                }
                Err(_) => return Wrote::Gone,
            };
            conn.quiet_since = self.now;
            self.delivered_bytes += wrote as u64;
            if wrote == wanted {
                events += (first.len() - first.event_at(offset)) as u64;
                events += rest.iter().map(|segment| segment.len() as u64).sum::<u64>();
                (at, offset) = (at + 1 + rest.len(), 0);
                continue;
            }
            while wrote > 0 {
                let segment = &run.segments[at];
                let before = segment.event_at(offset);
                let step = wrote.min(segment.framed().len() - offset);
                (wrote, offset) = (wrote - step, offset + step);
                let after = segment.event_at(offset);
                events += (after - before) as u64;
                if after > before {
                    cursor = Some(Cursor::trusted(segment.cursor(after - 1)));
                }
                if offset == segment.framed().len() {
                    (at, offset) = (at + 1, 0);
                }
            }
        }
        self.delivered += events;
        Wrote::All
    }

    // ---- lagging

    /// Takes a subscriber out of the members: it has something to write first. Its cursor must be known.
    fn lag(&mut self, key: usize, then: Then) {
        self.leave_members(key);
        let conn = &mut self.conns[key];
        let of_group = |group: &Group| match &group.turn {
            Some(turn) if conn.place == turn.ahead.end => turn.end_cursor.clone(),
            _ => group.cursor.clone(),
        };
        let cursor = conn.cursor.take().or_else(|| self.groups.get(conn.group).map(of_group));
        match (&mut conn.lag, cursor) {
            (Some(lag), _) => lag.then = then,
            (None, Some(cursor)) => {
                let lag =
                    Lag { out: VecDeque::new(), cursor, then, is_blocked: false, since: self.now, has_asked: true };
                conn.lag = Some(Box::new(lag));
            }
            (None, None) => debug_assert!(false, "a subscriber without a cursor"),
        }
    }

    fn push(&mut self, key: usize, bytes: Bytes) {
        if let Some(lag) = self.conns[key].lag.as_mut().filter(|_| !bytes.is_empty()) {
            self.lag_bytes += bytes.len();
            lag.out.push_back(bytes);
        }
    }

    /// Its socket takes no more for now.
    fn blocked(&mut self, key: usize) {
        if self.lag_bytes > self.max_lag_bytes {
            return self.close(key, Reason::Memory);
        }
        let conn = &mut self.conns[key];
        let Some(lag) = &mut conn.lag else { return };
        if !std::mem::replace(&mut lag.is_blocked, true) {
            lag.since = self.now;
            let both = Interest::READABLE | Interest::WRITABLE;
            if self.poll.registry().reregister(&mut conn.socket, Token(key), both).is_err() {
                self.remove(key);
            }
        }
    }

    fn writable(&mut self, key: usize) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Some(lag) = conn.lag.as_mut().filter(|lag| lag.is_blocked) else { return };
        lag.is_blocked = false;
        if self.poll.registry().reregister(&mut conn.socket, Token(key), Interest::READABLE).is_err() {
            return self.remove(key);
        }
        self.flush(key);
    }

    /// Writes what a lagging subscriber has to be given, then does what comes then.
    fn flush(&mut self, key: usize) {
        let conn = &mut self.conns[key];
        let Some(lag) = &mut conn.lag else { return };
        if lag.is_blocked {
            return;
        }
        while let Some(first) = lag.out.front_mut() {
            match conn.socket.write(first) {
                Ok(0) => return self.remove(key),
                Ok(wrote) => {
                    self.lag_bytes -= wrote;
                    lag.since = self.now;
                    conn.quiet_since = self.now;
                    let _ = first.split_to(wrote);
                    if first.is_empty() {
                        lag.out.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return self.blocked(key),
                Err(_) => return self.remove(key),
            }
        }
        match &mut lag.then {
            Then::Feed(ask) => {
                if !std::mem::replace(&mut lag.has_asked, true) {
                    let _ = ask.try_send(());
                }
            }
            Then::Rejoin => {
                let Some(lag) = conn.lag.take() else { return };
                self.catch_up(key, lag.cursor);
            }
            Then::Close => {
                lag.then = Then::Closed;
                lag.since = self.now;
                if conn.socket.shutdown(std::net::Shutdown::Write).is_err() {
                    self.remove(key);
                }
            }
            Then::Closed => {}
        }
    }

    /// Feeds a subscriber from the source until its ring reaches back to it.
    fn feed(&mut self, key: usize, cursor: Cursor) {
        self.meters.overtaken.increment(1);
        let Some(job) = self.conns[key].subscription.as_ref().map(|own| own.channel().job.clone()) else { return };
        let (ask, asked) = mpsc::channel(1);
        self.conns[key].cursor = Some(cursor.clone());
        self.lag(key, Then::Feed(ask));
        self.detach(key);
        let serial = self.conns[key].serial;
        let StreamContext { pages, hub, .. } = self.streams.clone();
        let replay = Replay::after(pages, hub, job, cursor);
        self.runtime.spawn(feeder(replay, self.mailbox.clone(), key, serial, asked));
    }

    /// What a feeder found.
    fn fed(&mut self, key: usize, serial: u32, job: &JobId, step: Step) {
        // another subscriber may have its key by now
        let Some(conn) = self.conns.get_mut(key).filter(|conn| conn.serial == serial) else { return };
        let Some(lag) = conn.lag.as_mut().filter(|lag| matches!(lag.then, Then::Feed(_))) else { return };
        lag.has_asked = false;
        match step {
            Step::Events(segments) => self.push_replayed(key, &segments),
            Step::Live { missing, subscription, place, cursor } => {
                self.push_replayed(key, &missing);
                // what is still to be written goes first
                let lag = self.conns[key].lag.take();
                let out = lag.map(|lag| lag.out).unwrap_or_default();
                let first: Bytes = out.iter().flatten().copied().collect();
                self.lag_bytes -= first.len();
                return self.settle(key, subscription, place, cursor, first);
            }
            Step::Complete(status, cursor) => {
                return self.farewell(key, &sse::complete(job, status, &cursor), Reason::Complete);
            }
            Step::Reset(reason, beginning) => {
                telemetry::RESUMES.increment(&[("from", "reset")], 1);
                self.push(key, sse::framed(&sse::reset(reason, &beginning)));
            }
            Step::NoSuchJob => {
                let bye = self.streams.bye(Bye::Age);
                return self.farewell(key, &bye, Reason::Failed);
            }
            Step::Outage(error, retry_in) => {
                let told = failure(&error, retry_in);
                if !error.is_retryable() {
                    return self.farewell(key, &told, Reason::Failed);
                }
                self.push(key, sse::framed(&told));
            }
        }
        self.flush(key);
    }

    fn push_replayed(&mut self, key: usize, segments: &[Arc<sse::Segment>]) {
        for segment in segments {
            self.delivered += segment.len() as u64;
            self.delivered_bytes += segment.framed().len() as u64;
            telemetry::REPLAYED.increment(&[("from", "source")], segment.len() as u64);
            self.push(key, segment.framed().clone());
        }
    }

    // ---- all of them

    /// Its last words are said, or on their way.
    fn is_leaving(&self, key: usize) -> bool {
        self.conns[key].lag.as_ref().is_some_and(|lag| matches!(lag.then, Then::Close | Then::Closed))
    }

    /// Writes one of Jobcast's own messages, after whatever is being written.
    fn say(&mut self, key: usize, framed: Bytes) {
        if self.is_leaving(key) {
            return;
        }
        let conn = &mut self.conns[key];
        if conn.lag.is_none() {
            match conn.socket.write(&framed) {
                Ok(wrote) if wrote == framed.len() => {
                    conn.quiet_since = self.now;
                    return;
                }
                Ok(wrote) => {
                    self.lag(key, Then::Rejoin);
                    self.push(key, framed.slice(wrote..));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.lag(key, Then::Rejoin);
                    self.push(key, framed);
                }
                Err(_) => return self.remove(key),
            }
            self.blocked(key);
        } else {
            self.push(key, framed);
            self.flush(key);
        }
    }

    /// The last words of a stream, and its end.
    fn farewell(&mut self, key: usize, plain: &Bytes, reason: Reason) {
        if self.is_leaving(key) {
            return;
        }
        let framed = [&sse::framed(plain)[..], sse::LAST_CHUNK].concat();
        self.conns[key].permit.ends(reason);
        self.lag(key, Then::Close);
        self.detach(key);
        self.push(key, Bytes::from(framed));
        self.flush(key);
    }

    fn tell_all(&mut self, now: &Outage) {
        let told = outage(now);
        let framed = sse::framed(&told);
        for key in self.keys() {
            if now.error.is_retryable() {
                self.say(key, framed.clone());
            } else {
                self.farewell(key, &told, Reason::Failed);
            }
        }
    }

    fn keys(&self) -> Vec<usize> {
        self.conns.iter().map(|(key, _)| key).collect()
    }

    fn drain(&mut self) {
        self.is_draining = true;
        for key in self.keys() {
            self.set_drain(key);
        }
    }

    fn set_drain(&mut self, key: usize) {
        let at = self.now + self.ticks(self.streams.rules.drain_delay(self.streams.admission.open()));
        let conn = &mut self.conns[key];
        conn.close_at = Some(conn.close_at.map_or(at, |age| age.min(at)));
    }

    fn look_at_the_clock(&mut self) {
        let (heartbeat, write_timeout) =
            (self.ticks(self.streams.rules.heartbeat), self.ticks(self.streams.rules.write_timeout));
        let last_words = self.ticks(LAST_WORDS);
        let now = self.now;
        enum Due {
            Heartbeat,
            Bye,
            Slow,
            Closed,
        }
        let due = |conn: &Conn| match &conn.lag {
            Some(lag) if matches!(lag.then, Then::Closed) => (now - lag.since >= last_words).then_some(Due::Closed),
            Some(lag) if lag.is_blocked && now - lag.since >= write_timeout => Some(Due::Slow),
            Some(lag) if matches!(lag.then, Then::Close) => None,
            _ if conn.close_at.is_some_and(|at| now >= at) => Some(Due::Bye),
            Some(lag) if lag.is_blocked => None,
            _ => (now - conn.quiet_since >= heartbeat).then_some(Due::Heartbeat),
        };
        let all: Vec<(usize, Due)> = self.conns.iter().filter_map(|(key, conn)| Some((key, due(conn)?))).collect();
        let heartbeat = sse::framed(sse::HEARTBEAT);
        for (key, due) in all {
            match due {
                Due::Heartbeat => self.say(key, heartbeat.clone()),
                Due::Slow => self.close(key, Reason::Slow),
                Due::Closed => self.remove(key),
                Due::Bye => {
                    let (bye, reason) = match self.is_draining {
                        true => (Bye::Drain, Reason::Drain),
                        false => (Bye::Age, Reason::Age),
                    };
                    let bye = self.streams.bye(bye);
                    self.farewell(key, &bye, reason);
                }
            }
        }
    }

    fn stop(mut self) {
        for key in self.keys() {
            self.close(key, Reason::Drain);
        }
    }
}

/// Sends steps to the thread, each when the one before has been written. Ends when the subscriber is gone.
async fn feeder(mut replay: Replay, to: Arc<Mailbox>, key: usize, serial: u32, mut asked: mpsc::Receiver<()>) {
    loop {
        let step = tokio::select! {
            step = replay.next() => step,
            () = gone(&mut asked) => return,
        };
        let is_last = matches!(step, Step::Live { .. } | Step::Complete(..) | Step::NoSuchJob);
        to.post(Letter::Fed { key, serial, job: replay.job().clone(), step });
        if is_last || asked.recv().await.is_none() {
            return;
        }
    }
}

/// Returns when the subscriber has gone; takes nothing that was asked.
async fn gone(asked: &mut mpsc::Receiver<()>) {
    while !asked.is_closed() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
