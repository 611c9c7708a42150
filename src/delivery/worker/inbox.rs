//! The messages that other threads and tasks send to a delivery thread, and the queue that they go through.

use crate::cursor::Cursor;
use crate::delivery::admission::StreamPermit;
use crate::delivery::connections::{Filter, Listed, Registration};
use crate::delivery::context::Deadline;
use crate::hub::{Channel, ChannelListener, Outage, Place, Subscription};
use crate::replay::Step;
use mio::Waker;
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc::UnboundedSender;

/// A live stream that a delivery thread can take over.
pub struct LiveStream {
    pub permit: StreamPermit,
    /// Its entry among the streams that actix serves, until a thread has it.
    pub registration: Option<Registration>,
    pub deadline: Deadline,
    pub subscription: Subscription,
    /// The next event to be sent, in the channel's ring.
    pub place: Place,
    /// The position at `place`, from which to replay if the ring overtakes the stream.
    pub cursor: Cursor,
    /// Its peer knows that it is live; else it is told after what the ring holds.
    pub is_told_live: bool,
}

/// A live stream on its way to a delivery thread.
pub struct HandedOver {
    pub stream: LiveStream,
    pub socket: TcpStream,
    /// The bytes that actix wrote after the stream was live: the end of the replay, usually empty.
    pub unsent: Vec<u8>,
}

/// A message to a delivery thread.
pub enum Message {
    /// Serve this stream from now on.
    Adopt(Box<HandedOver>),
    /// The channel has grown, has ended, or has a fault.
    ChannelGrew(Arc<Channel>),
    /// The replay of one subscriber has come to its next step.
    ReplayStep { to: SubscriberId, step: Step },
    /// The replay of one subscriber panicked.
    ReplayFailed(SubscriberId),
    /// The source does not answer.
    Outage(Arc<Outage>),
    /// Answer, to show that the thread goes on.
    Answer(UnboundedSender<()>),
    /// List the streams that the filter allows, at most `limit`.
    List { filter: Arc<Filter>, limit: usize, answer: UnboundedSender<Listed> },
    /// Close the streams that the filter allows, and answer with their number.
    Revoke { filter: Arc<Filter>, answer: UnboundedSender<usize> },
    /// Close all streams, spread over the time for it.
    Drain,
    /// Close all streams now, and end.
    Stop,
    /// Fail, as a test wants.
    #[cfg(feature = "fault-injection")]
    Fault(crate::supervise::fault::Kind),
}

/// One subscriber of one thread. Its key alone may belong to another by the time that a message arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriberId {
    pub key: usize,
    pub serial: u32,
}

/// The message queue of one delivery thread.
pub struct Inbox {
    messages: Mutex<Vec<Message>>,
    /// Ends the thread's wait for its sockets.
    waker: Waker,
}

impl Inbox {
    pub fn new(waker: Waker) -> Self {
        Self { messages: Mutex::default(), waker }
    }

    /// Queues a message, and wakes the thread if it is the first one.
    pub fn post(&self, message: Message) {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        messages.push(message);
        if messages.len() == 1
            && let Err(error) = self.waker.wake()
        {
            tracing::error!(%error, "a delivery thread cannot be woken");
        }
    }

    /// Returns all messages, oldest first.
    pub fn take(&self) -> Vec<Message> {
        std::mem::take(&mut self.messages.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ChannelListener for Inbox {
    fn wake(&self, channel: &Arc<Channel>) {
        self.post(Message::ChannelGrew(channel.clone()));
    }
}
