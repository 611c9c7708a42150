//! Who may hold a connection, and the account of every open stream. Sockets that left actix do not count there, so the
//! limits are kept here.

use crate::telemetry;
use metrics::{Gauge, Histogram};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::watch;

/// Counts open streams; cheap to clone.
#[derive(Clone)]
pub struct Admission(Arc<Inner>);

struct Inner {
    max_streams: usize,
    /// 0: no limit.
    max_per_ip: usize,
    open: watch::Sender<usize>,
    per_ip: Mutex<HashMap<IpAddr, usize>>,
    numbers: AtomicU64,
    /// Random for each process, so that connection ids of two processes differ.
    prefix: u32,
    subscribers: Gauge,
    durations: Histogram,
}

/// Why a stream was not admitted; the outcome in metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitReached {
    /// `http.max_connections`
    Process,
    /// `http.max_connections_per_ip`
    Address,
}

/// Why a stream ended; the label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The peer left, or its network did.
    Gone,
    /// The job ended.
    Complete,
    /// Its socket took nothing for `stream.write_timeout`.
    Slow,
    /// Slow subscribers held all the memory that they may.
    Memory,
    Drain,
    Age,
    /// The source failed in a way that trying again cannot mend.
    Failed,
}

impl Reason {
    fn as_str(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Complete => "complete",
            Self::Slow => "slow",
            Self::Memory => "memory",
            Self::Drain => "drain",
            Self::Age => "age",
            Self::Failed => "failed",
        }
    }
}

impl Admission {
    pub fn new(max_streams: usize, max_per_ip: usize) -> Self {
        Self(Arc::new(Inner {
            max_streams,
            max_per_ip,
            open: watch::Sender::new(0),
            per_ip: Mutex::default(),
            numbers: AtomicU64::new(0),
            prefix: rand::random(),
            subscribers: telemetry::SUBSCRIBERS.gauge(&[]),
            durations: telemetry::STREAM_DURATION.histogram(),
        }))
    }

    /// Counts one more stream, from `ip` where it is known, until the permit is dropped.
    pub fn admit(&self, ip: Option<IpAddr>) -> Result<StreamPermit, LimitReached> {
        let inner = &self.0;
        let ip = ip.filter(|_| inner.max_per_ip > 0);
        if let Some(ip) = ip {
            let mut per_ip = inner.per_ip.lock().unwrap_or_else(PoisonError::into_inner);
            let open = per_ip.entry(ip).or_default();
            if *open >= inner.max_per_ip {
                return Err(LimitReached::Address);
            }
            *open += 1;
        }
        let admitted = inner.open.send_if_modified(|open| {
            let fits = *open < inner.max_streams;
            *open += usize::from(fits);
            fits
        });
        if !admitted {
            self.leave_ip(ip);
            return Err(LimitReached::Process);
        }
        let number = inner.numbers.fetch_add(1, Ordering::Relaxed);
        Ok(StreamPermit { admission: self.clone(), number, since: Instant::now(), ip, reason: None })
    }

    pub fn open(&self) -> usize {
        *self.0.open.borrow()
    }

    /// Returns when no stream is open.
    pub async fn empty(&self) {
        let _ = self.0.open.subscribe().wait_for(|open| *open == 0).await;
    }

    fn leave_ip(&self, ip: Option<IpAddr>) {
        let Some(ip) = ip else { return };
        let mut per_ip = self.0.per_ip.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = per_ip.get_mut(&ip) {
            *open -= 1;
            if *open == 0 {
                per_ip.remove(&ip);
            }
        }
    }
}

/// One open stream, from its admission to its end, wherever it is served.
pub struct StreamPermit {
    admission: Admission,
    number: u64,
    since: Instant,
    ip: Option<IpAddr>,
    /// None until it is answered with a stream.
    reason: Option<Reason>,
}

impl StreamPermit {
    /// The id in `X-Jobcast-Connection` and in the logs.
    pub fn id(&self) -> String {
        format!("{:08x}-{:x}", self.admission.0.prefix, self.number)
    }

    pub fn since(&self) -> Instant {
        self.since
    }

    /// It is answered with a stream: from now on it is a subscriber.
    pub fn begins(&mut self) {
        self.reason = Some(Reason::Gone);
        self.admission.0.subscribers.increment(1.0);
    }

    /// Says why it is about to end; the first to say so is right.
    pub fn ends(&mut self, reason: Reason) {
        if self.reason == Some(Reason::Gone) {
            self.reason = Some(reason);
        }
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        let inner = &self.admission.0;
        inner.open.send_modify(|open| *open -= 1);
        self.admission.leave_ip(self.ip);
        let Some(reason) = self.reason else { return };
        inner.subscribers.decrement(1.0);
        let open_for = self.since.elapsed();
        inner.durations.record(open_for);
        telemetry::DISCONNECTS.increment(&[("reason", reason.as_str())], 1);
        tracing::debug!(connection = self.id(), reason = reason.as_str(), ?open_for, "stream ended");
    }
}
