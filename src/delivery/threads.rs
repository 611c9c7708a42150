//! The delivery threads of the process, as everybody else sees them: a place to hand streams over to.

use super::connections::{Filter, Listed};
use super::context::StreamContext;
use super::worker::{HandedOver, Inbox, Message, Worker};
use crate::hub::Outage;
use crate::supervise::Supervisor;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc::{self, UnboundedSender};

/// The subscribers of a channel up to which all are served by one thread, so that one wake-up serves them all. Further ones
/// are spread over all threads.
const SPREAD_FROM: usize = 256;

/// The longest wait for a thread's answer to an operator.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// A delivery thread has not answered in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a delivery thread has not answered within {ANSWER_TIMEOUT:?}: it is busy, or stands still")]
pub struct NoAnswer;

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

    /// Lists the streams that `filter` allows, at most `limit` of each thread.
    pub async fn list(&self, filter: &Arc<Filter>, limit: usize) -> Result<Vec<Listed>, NoAnswer> {
        self.ask(|answer| Message::List { filter: filter.clone(), limit, answer }).await
    }

    /// Closes the streams that `filter` allows, and returns their number. Where a thread is late it closes them all the same.
    pub async fn revoke(&self, filter: &Arc<Filter>) -> Result<usize, NoAnswer> {
        let closed = self.ask(|answer| Message::Revoke { filter: filter.clone(), answer }).await?;
        Ok(closed.into_iter().sum())
    }

    /// Returns once every thread has answered, which shows that none stands still.
    pub async fn answer(&self) -> Result<(), NoAnswer> {
        self.ask(Message::Answer).await.map(|_: Vec<()>| ())
    }

    /// Sends each thread a question, and waits for the answers of all.
    async fn ask<T>(&self, question: impl Fn(UnboundedSender<T>) -> Message) -> Result<Vec<T>, NoAnswer> {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        self.broadcast(|| question(sender.clone()));
        let (count, mut answers) = (self.0.inboxes.len(), Vec::new());
        let gather = async {
            while answers.len() < count {
                answers.extend(receiver.recv().await);
            }
        };
        tokio::time::timeout(ANSWER_TIMEOUT, gather).await.map_err(|_| NoAnswer)?;
        Ok(answers)
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
