//! The delivery threads of the process, as everybody else sees them: a place to hand streams over to.

use super::context::StreamContext;
use super::worker::{HandedOver, Inbox, Message, Worker};
use crate::hub::Outage;
use crate::supervise::Supervisor;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

/// The subscribers of a channel up to which all are served by one thread, so that one wake-up serves them all. Further ones
/// are spread over all threads.
const SPREAD_FROM: usize = 256;

/// All delivery threads; cheap to clone.
#[derive(Clone)]
pub struct Threads(Arc<Inner>);

struct Inner {
    /// One for each thread.
    inboxes: Vec<Arc<Inbox>>,
    /// The thread that takes the next subscriber of a channel which is spread over all.
    next: AtomicUsize,
}

impl Threads {
    /// Starts `count` threads. Their replays run on `runtime`; subscribers that take events slower than they come hold at
    /// most `backlog_bytes`, over all threads.
    pub fn start(
        count: usize,
        streams: &StreamContext,
        backlog_bytes: usize,
        runtime: &tokio::runtime::Handle,
        supervisor: &Supervisor,
    ) -> io::Result<(Self, Vec<JoinHandle<()>>)> {
        let (mut inboxes, mut handles) = (Vec::new(), Vec::new());
        for number in 0..count {
            let (worker, inbox) = Worker::new(streams.clone(), backlog_bytes / count, runtime.clone())?;
            let name = format!("delivery-{number}");
            #[cfg(feature = "fault-injection")]
            Self::inject_faults(&name, &inbox, runtime);
            handles.push(supervisor.thread(name, move || worker.run())?);
            inboxes.push(inbox);
        }
        Ok((Self(Arc::new(Inner { inboxes, next: AtomicUsize::new(0) })), handles))
    }

    /// Makes a thread fail when its fault strikes.
    #[cfg(feature = "fault-injection")]
    fn inject_faults(part: &str, inbox: &Arc<Inbox>, runtime: &tokio::runtime::Handle) {
        let (part, inbox) = (part.to_string(), inbox.clone());
        runtime.spawn(async move { inbox.post(Message::Fault(crate::supervise::fault::struck(&part).await)) });
    }

    /// Gives a stream to one of the threads.
    pub fn adopt(&self, handed_over: HandedOver) {
        let channel = handed_over.stream.subscription.channel();
        let number = if channel.subscribers() < SPREAD_FROM {
            channel.id.0 as usize
        } else {
            self.0.next.fetch_add(1, Ordering::Relaxed)
        };
        self.0.inboxes[number % self.0.inboxes.len()].post(Message::Adopt(Box::new(handed_over)));
    }

    /// Sends every stream the news that the source does not answer.
    pub fn announce_outage(&self, outage: &Arc<Outage>) {
        self.broadcast(|| Message::Outage(outage.clone()));
    }

    /// Closes every stream, spread over the time for it.
    pub fn drain(&self) {
        self.broadcast(|| Message::Drain);
    }

    /// Ends the threads, and closes the streams that they still hold.
    pub fn stop(&self) {
        self.broadcast(|| Message::Stop);
    }

    fn broadcast(&self, message: impl Fn() -> Message) {
        for inbox in &self.0.inboxes {
            inbox.post(message());
        }
    }
}
