//! One subscriber of a delivery thread: its socket, and how it is being served just now.
//!
//! | state | gets | position |
//! |---|---|---|
//! | `Member` | each run of events, with its group | its own place; the cursor there is its group's, or its own |
//! | `Lagging` | its backlog, then the ring's events from its place on | its own place and cursor, after the backlog |
//! | `Replaying` | its backlog, then the next page of its replay | its replay's |
//! | `Closing` | its backlog, which ends with the end of the stream | none |
//! | `Closed` | nothing; the peer is to close its side | none |

use super::timers::Tick;
use crate::cursor::Cursor;
use crate::delivery::admission::StreamPermit;
use crate::delivery::context::Deadline;
use crate::hub::{Place, Subscription};
use crate::telemetry::{self, Held};
use crate::topic::Topic;
use bytes::Bytes;
use mio::net::TcpStream;
use std::collections::VecDeque;
use std::io::{self, Write};
use tokio::sync::mpsc;

pub struct Subscriber {
    pub socket: TcpStream,
    pub permit: StreamPermit,
    /// Tells it from an earlier subscriber with the same key, whose replay may still send a step.
    pub serial: u32,
    /// The peer knows that it is live.
    pub is_told_live: bool,
    /// When something was last written: heartbeats count from there.
    pub last_write: Tick,
    /// When Jobcast closes the stream for its own reasons.
    pub deadline: Deadline,
    pub state: State,
}

/// The way in which a subscriber is being served; see the table above.
pub enum State {
    Member {
        membership: Membership,
        /// Its index in the group's list of members.
        index: u32,
        /// The cursor at its place, where it is not its group's.
        cursor: Option<Cursor>,
    },
    Lagging {
        membership: Membership,
        /// The cursor at its place.
        cursor: Cursor,
        backlog: Box<Backlog>,
    },
    Replaying {
        topic: Topic,
        backlog: Box<Backlog>,
        next_page: NextPage,
        /// Asks the replay for its next step. The replay ends when this is dropped.
        requests: mpsc::Sender<()>,
    },
    Closing {
        backlog: Box<Backlog>,
    },
    Closed {
        since: Tick,
    },
    /// The state while it changes; no message ever finds it.
    Detached,
}

/// A subscriber's part in its channel.
pub struct Membership {
    pub subscription: Subscription,
    /// The key of its group on this thread.
    pub group: usize,
    /// The next event to be sent, in the channel's ring.
    pub place: Place,
}

/// The progress of a replay beside the backlog.
pub enum NextPage {
    /// The replay is reading it.
    Requested,
    /// It is to be requested as soon as the backlog is written, so that a slow subscriber holds one page at most.
    AfterBacklog,
}

/// Bytes that a subscriber's socket has yet to take.
#[derive(Default)]
pub struct Backlog {
    parts: VecDeque<Bytes>,
    /// Set while the socket takes nothing. It is waited for until it is writable again.
    pub blocked: Option<Blocked>,
}

/// A socket that takes nothing, counted as one for as long as this lives.
pub struct Blocked {
    pub since: Tick,
    _counted: Held,
}

impl Blocked {
    pub fn since(now: Tick) -> Self {
        Self { since: now, _counted: telemetry::BLOCKED.hold() }
    }
}

/// The end of an attempt to write a backlog.
pub enum FlushOutcome {
    Complete,
    /// The socket takes no more for now.
    Blocked,
    /// The socket is closed or broken.
    Failed,
}

impl State {
    pub fn backlog(&self) -> Option<&Backlog> {
        match self {
            Self::Lagging { backlog, .. } | Self::Replaying { backlog, .. } | Self::Closing { backlog } => {
                Some(backlog)
            }
            Self::Member { .. } | Self::Closed { .. } | Self::Detached => None,
        }
    }

    pub fn backlog_mut(&mut self) -> Option<&mut Backlog> {
        match self {
            Self::Lagging { backlog, .. } | Self::Replaying { backlog, .. } | Self::Closing { backlog } => {
                Some(backlog)
            }
            Self::Member { .. } | Self::Closed { .. } | Self::Detached => None,
        }
    }

    /// True once the end of the stream is written, or is part of the backlog. Nothing may be sent after it.
    pub fn is_closing(&self) -> bool {
        matches!(self, Self::Closing { .. } | Self::Closed { .. })
    }
}

impl Backlog {
    pub fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.parts.push_back(bytes);
        }
    }

    /// The number of bytes.
    pub fn len(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }

    /// Writes as much as the socket takes, and returns the number of bytes.
    pub fn write_to(&mut self, socket: &mut impl Write) -> (usize, FlushOutcome) {
        let mut total = 0;
        while let Some(first) = self.parts.front_mut() {
            match socket.write(first) {
                Ok(0) => return (total, FlushOutcome::Failed),
                Ok(written) => {
                    total += written;
                    let _ = first.split_to(written);
                    if first.is_empty() {
                        self.parts.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return (total, FlushOutcome::Blocked),
                Err(_) => return (total, FlushOutcome::Failed),
            }
        }
        (total, FlushOutcome::Complete)
    }
}
