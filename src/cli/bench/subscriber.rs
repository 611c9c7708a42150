//! One subscriber of the measurement: it reads its stream to the end and checks that each event of each of its jobs came
//! once, in the job's order.

use super::super::client::{Failure, Jobcast, Stream};
use super::progress::Counts;
use crate::cursor::Start;
use crate::event::JobId;
use crate::sse;
use hdrhistogram::Histogram;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Latency of all deliveries in microseconds, from one to an hour, to three digits. One histogram for each core, so that
/// subscribers seldom wait for each other.
pub struct Latency(Vec<Mutex<Histogram<u64>>>);

impl Latency {
    pub fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self((0..cores).filter_map(|_| Histogram::new_with_bounds(1, 3_600_000_000, 3).ok()).map(Mutex::new).collect())
    }

    fn record(&self, subscriber: usize, micros: u64) {
        if let Some(histogram) = self.0.get(subscriber % self.0.len().max(1)) {
            histogram.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(micros.max(1));
        }
    }

    /// All deliveries together; `None` if there can be no histogram of these bounds.
    pub fn total(&self) -> Option<Histogram<u64>> {
        let mut histograms = self.0.iter().map(|one| one.lock().unwrap_or_else(PoisonError::into_inner).clone());
        let mut total = histograms.next()?;
        for histogram in histograms {
            total.add(histogram).ok()?;
        }
        Some(total)
    }
}

/// Events that one or all subscribers received wrongly, and streams that failed.
#[derive(Default)]
pub struct Tally {
    pub lost: u64,
    pub repeated: u64,
    pub misordered: u64,
    /// Streams that failed, or ended before `stream.complete`.
    pub broken: u64,
    /// Error of the first of them.
    pub first_error: Option<StreamError>,
}

impl Tally {
    /// Waits for all subscribers; `None` if one of them panicked.
    pub async fn of_all(subscribers: &mut JoinSet<Self>) -> Option<Self> {
        let mut all = Self::default();
        while let Some(tally) = subscribers.join_next().await {
            all.add(tally.ok()?);
        }
        Some(all)
    }

    fn add(&mut self, other: Self) {
        self.lost += other.lost;
        self.repeated += other.repeated;
        self.misordered += other.misordered;
        self.broken += other.broken;
        self.first_error = self.first_error.take().or(other.first_error);
    }
}

/// Reason why a stream did not get to the end of its job.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error(transparent)]
    Connection(#[from] Failure),
    #[error("the jobs have ended")]
    JobsHaveEnded,
    #[error("the stream ended before its jobs did")]
    EndedEarly,
    #[error("{kind}: {data}")]
    Unexpected { kind: String, data: String },
    #[error("there came an event of the job {0}, which is not watched")]
    OfAnother(String),
    #[error("an event cannot be read: {0}")]
    BadEvent(#[from] serde_json::Error),
}

pub struct Subscriber {
    pub jobcast: Jobcast,
    /// Jobs that it watches, at least one.
    pub jobs: Vec<JobId>,
    /// Place among all subscribers, from 0.
    pub number: usize,
    /// Limits the streams that are being opened at the same time.
    pub opening: Arc<Semaphore>,
    pub latency: Arc<Latency>,
    pub counts: Arc<Counts>,
    /// Moment from which the times in events are counted.
    pub epoch: Instant,
}

impl Subscriber {
    /// Reads the stream to its end; `events` is how many each of its jobs has.
    pub async fn run(self, events: u64) -> Tally {
        let mut orders: HashMap<&str, Order> = self.jobs.iter().map(|job| (job.as_str(), Order::default())).collect();
        let ended = self.read(&mut orders).await;
        self.counts.ended.fetch_add(1, Ordering::Relaxed);
        let mut tally = Tally::default();
        for order in orders.into_values() {
            tally.add(order.finish(events));
        }
        if let Err(error) = ended {
            tally.broken = 1;
            tally.first_error = Some(error);
        }
        tally
    }

    async fn open(&self) -> Result<Option<Stream>, Failure> {
        let _permit = self.opening.acquire().await;
        match self.jobs.as_slice() {
            [job] => self.jobcast.stream(job, &Start::Beginning).await,
            jobs => self.jobcast.set_stream(jobs, &Start::Beginning).await,
        }
    }

    async fn read(&self, orders: &mut HashMap<&str, Order>) -> Result<(), StreamError> {
        let mut stream = self.open().await?.ok_or(StreamError::JobsHaveEnded)?;
        self.counts.connected.fetch_add(1, Ordering::Relaxed);
        let mut running = self.jobs.len();
        while let Some(message) = stream.next().await? {
            let Some(data) = message.data else { continue };
            match message.kind.as_str() {
                "stream.complete" if running == 1 => return Ok(()),
                "stream.complete" => running -= 1,
                "bench.event" => {
                    let event: Event = serde_json::from_str(&data)?;
                    let late = (self.epoch.elapsed().as_nanos() as u64).saturating_sub(event.payload.at);
                    self.latency.record(self.number, late / 1000);
                    self.counts.delivered.fetch_add(1, Ordering::Relaxed);
                    let order = orders.get_mut(event.job_id.as_str());
                    order.ok_or(StreamError::OfAnother(event.job_id))?.received(event.payload.n);
                }
                // These mean that something went wrong; of Jobcast's own others, the measurement needs none.
                "stream.error" | "stream.reset" | "stream.bye" => {
                    return Err(StreamError::Unexpected { kind: message.kind, data });
                }
                kind if sse::is_reserved(kind) => {}
                _ => return Err(StreamError::Unexpected { kind: message.kind, data }),
            }
        }
        Err(StreamError::EndedEarly)
    }
}

/// Order in which the numbered events of one job arrived.
#[derive(Default)]
struct Order {
    /// Number of the next event, if none is lost.
    next: u64,
    /// Numbers below `next` that have not arrived.
    missing: BTreeSet<u64>,
    repeated: u64,
    misordered: u64,
}

impl Order {
    fn received(&mut self, number: u64) {
        if number >= self.next {
            self.missing.extend(self.next..number);
            self.next = number + 1;
        } else if self.missing.remove(&number) {
            self.misordered += 1;
        } else {
            self.repeated += 1;
        }
    }

    fn finish(self, events: u64) -> Tally {
        Tally {
            lost: self.missing.len() as u64 + events.saturating_sub(self.next),
            repeated: self.repeated,
            misordered: self.misordered,
            ..Tally::default()
        }
    }
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    job_id: String,
    payload: Stamp,
}

#[derive(serde::Deserialize)]
struct Stamp {
    n: u64,
    /// Nanoseconds from the epoch to the moment at which the event was due.
    at: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_that_are_lost_repeated_or_out_of_order_are_told_apart() {
        let mut order = Order::default();
        for number in [0, 1, 4, 2, 2, 5] {
            order.received(number);
        }
        let tally = order.finish(8);
        assert_eq!((tally.lost, tally.repeated, tally.misordered), (3, 1, 1));
    }
}
