//! The limits on open streams, and the account of every open stream. actix does not count the sockets that have left it,
//! so the limits are kept here.

use crate::auth::{Grant, Withdrawal};
use crate::telemetry;
use metrics::{Gauge, Histogram};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::watch;

/// The count of open streams, against its limits; cheap to clone.
#[derive(Clone)]
pub struct Admission(Arc<Inner>);

struct Inner {
    max_streams: usize,
    /// The most streams of one address; 0 for no limit.
    max_per_ip: usize,
    /// The number of open streams. A drain waits until it is 0.
    open: watch::Sender<usize>,
    /// The number of open streams by address; empty where there is no limit on them.
    per_ip: Mutex<HashMap<IpAddr, usize>>,
    /// The next permit's number.
    next_number: AtomicU64,
    /// Random for each process, so that connection ids of two processes differ.
    prefix: u32,
    subscribers: Gauge,
    durations: Histogram,
}

/// The limit because of which a stream was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitReached {
    /// `http.max_connections`
    Process,
    /// `http.max_connections_per_ip`
    Address,
}

/// The reason for which a stream ended; the label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The peer left, or its network did.
    Gone,
    /// The job ended, and all of its events were sent.
    Complete,
    /// Its socket took nothing for `stream.write_timeout`.
    Slow,
    /// It was slow when slow subscribers held all the memory that they may.
    Memory,
    /// The process is shutting down.
    Drain,
    /// It reached `stream.max_age`.
    Age,
    /// The credentials that it was opened with ran out.
    Expired,
    /// The caller lost the right to watch, or an operator closed it.
    Revoked,
    /// The source failed in a way that trying again does not help.
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
            Self::Expired => "expired",
            Self::Revoked => "revoked",
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
            next_number: AtomicU64::new(0),
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
        let number = inner.next_number.fetch_add(1, Ordering::Relaxed);
        Ok(StreamPermit { admission: self.clone(), grant: None, number, since: Instant::now(), ip, reason: None })
    }

    /// Returns the number of open streams.
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
    /// The right to watch that it was opened with; None where nobody is asked for one.
    grant: Option<Arc<Grant>>,
    number: u64,
    since: Instant,
    ip: Option<IpAddr>,
    /// The reason to be counted when it ends. None until the request is answered with a stream.
    reason: Option<Reason>,
}

impl StreamPermit {
    /// Ties the stream to the right to watch that it was opened with.
    pub fn with_grant(mut self, grant: impl Into<Option<Arc<Grant>>>) -> Self {
        self.grant = grant.into();
        self
    }

    pub fn grant(&self) -> Option<&Arc<Grant>> {
        self.grant.as_ref()
    }

    /// Returns the reason for which the right to watch has ended, if it has.
    pub fn withdrawal(&self, now: Instant) -> Option<Withdrawal> {
        self.grant.as_ref()?.ended(now)
    }

    /// The id in `X-Jobcast-Connection` and in the logs.
    pub fn id(&self) -> String {
        format!("{:08x}-{:x}", self.admission.0.prefix, self.number)
    }

    /// Returns when the stream was admitted.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Counts a subscriber, since the request is now answered with a stream.
    pub fn begins(&mut self) {
        self.reason = Some(Reason::Gone);
        self.admission.0.subscribers.increment(1.0);
    }

    /// Sets the reason for which it is about to end. The first reason stays.
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
