//! The limits on open streams, and the account of every open stream. actix does not count the sockets that have left it,
//! so the limits are kept here.

use crate::auth::{Grant, Withdrawal};
use crate::cursor::Cursor;
use crate::event::JobId;
use crate::logging::ACCESS;
use crate::telemetry;
use metrics::{Gauge, Histogram};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::watch;

/// The count of open streams, against its limits; cheap to clone.
#[derive(Clone)]
pub struct Admission(Arc<Inner>);

struct Inner {
    max_streams: AtomicUsize,
    /// The most streams of one address; 0 for no limit.
    max_per_ip: AtomicUsize,
    /// The most public connections, with and without a stream, so that files are left for everything else.
    max_connections: AtomicUsize,
    /// The number of open public connections, wherever they are served.
    connections: AtomicUsize,
    /// The number of open streams. A drain waits until it is 0.
    open: watch::Sender<usize>,
    /// The number of open streams by address, of those that were opened while there was a limit on them.
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
    /// Admits so many streams, so many of them from one address, and so many connections in all.
    pub fn new(max_streams: usize, max_per_ip: usize, max_connections: usize) -> Self {
        show_limits(max_streams, max_per_ip, max_connections);
        Self(Arc::new(Inner {
            max_connections: AtomicUsize::new(max_connections),
            connections: AtomicUsize::new(0),
            max_streams: AtomicUsize::new(max_streams),
            max_per_ip: AtomicUsize::new(max_per_ip),
            open: watch::Sender::new(0),
            per_ip: Mutex::default(),
            next_number: AtomicU64::new(0),
            prefix: rand::random(),
            subscribers: telemetry::SUBSCRIBERS.gauge(&[]),
            durations: telemetry::STREAM_DURATION.histogram(),
        }))
    }

    /// The most streams of one address; 0 for no limit.
    pub fn max_per_ip(&self) -> usize {
        self.0.max_per_ip.load(Ordering::Relaxed)
    }

    /// The most public connections, with and without a stream.
    pub fn max_connections(&self) -> usize {
        self.0.max_connections.load(Ordering::Relaxed)
    }

    /// Counts one more connection, until what is returned is dropped. None if there is no room for it.
    pub fn connect(&self) -> Option<CountedConnection> {
        let open = self.0.connections.fetch_add(1, Ordering::Relaxed);
        let counted = CountedConnection { admission: self.clone(), is_kept: false };
        (open < self.max_connections()).then_some(counted)
    }

    fn disconnect(&self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts one more stream, from `ip` where it is known, until the permit is dropped.
    pub fn admit(&self, ip: Option<IpAddr>) -> Result<StreamPermit, LimitReached> {
        let inner = &self.0;
        let (max_streams, max_per_ip) = self.limits();
        let counted_ip = ip.filter(|_| max_per_ip > 0);
        if let Some(ip) = counted_ip {
            let mut per_ip = inner.per_ip.lock().unwrap_or_else(PoisonError::into_inner);
            let open = per_ip.entry(ip).or_default();
            if *open >= max_per_ip {
                return Err(LimitReached::Address);
            }
            *open += 1;
        }
        let admitted = inner.open.send_if_modified(|open| {
            let fits = *open < max_streams;
            *open += usize::from(fits);
            fits
        });
        if !admitted {
            self.leave_ip(counted_ip);
            return Err(LimitReached::Process);
        }
        Ok(StreamPermit {
            admission: self.clone(),
            grants: Box::default(),
            job: None,
            number: inner.next_number.fetch_add(1, Ordering::Relaxed),
            since: Instant::now(),
            delivered: 0,
            bytes: 0,
            ip,
            is_ip_counted: counted_ip.is_some(),
            has_connection: false,
            reason: None,
            logged: None,
        })
    }

    fn limits(&self) -> (usize, usize) {
        (self.0.max_streams.load(Ordering::Relaxed), self.0.max_per_ip.load(Ordering::Relaxed))
    }

    /// Changes the limits. Streams that are open stay open. Those that were opened without a limit for each address are not
    /// counted for it.
    pub fn set_limits(&self, max_streams: usize, max_per_ip: usize, max_connections: usize) {
        self.0.max_connections.store(max_connections, Ordering::Relaxed);
        self.0.max_streams.store(max_streams, Ordering::Relaxed);
        self.0.max_per_ip.store(max_per_ip, Ordering::Relaxed);
        show_limits(max_streams, max_per_ip, max_connections);
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

fn show_limits(streams: usize, address_streams: usize, connections: usize) {
    for (of, limit) in [("streams", streams), ("address_streams", address_streams), ("connections", connections)] {
        telemetry::LIMIT.set(&[("of", of)], limit as f64);
    }
}

/// One open connection of the public listener. A stream that leaves actix takes it over.
pub struct CountedConnection {
    admission: Admission,
    is_kept: bool,
}

impl Drop for CountedConnection {
    fn drop(&mut self) {
        if !self.is_kept {
            self.admission.disconnect();
        }
    }
}

/// The request that a stream answers, as the log names it.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The request's id.
    pub request: String,
    /// The proxy that it came through.
    pub peer: Option<IpAddr>,
}

/// Fields of the access log's line at a stream's end that are kept for it alone.
struct Logged {
    origin: Origin,
    /// The position that the stream has come to, as far as it was noted.
    cursor: Option<Cursor>,
}

/// One open stream, from its admission to its end, wherever it is served.
pub struct StreamPermit {
    admission: Admission,
    /// The rights to watch that it was opened with, one for each job; empty where nobody is asked for one.
    grants: Box<[Arc<Grant>]>,
    /// The job that it is about, or the first of a set; None until the request is answered with a stream.
    job: Option<JobId>,
    number: u64,
    since: Instant,
    /// The number of events that were written to it, as far as 32 bits can count.
    delivered: u32,
    /// Their bytes, as they were framed.
    bytes: u64,
    ip: Option<IpAddr>,
    is_ip_counted: bool,
    /// The stream is all that is left of its connection, and counts for it.
    has_connection: bool,
    /// The reason to be counted when it ends. None until the request is answered with a stream.
    reason: Option<Reason>,
    /// None where there is no access log, so that a stream costs nothing for it.
    logged: Option<Box<Logged>>,
}

impl StreamPermit {
    /// Ties the stream to the rights to watch that it was opened with.
    pub fn with_grants(mut self, grants: impl IntoIterator<Item = Arc<Grant>>) -> Self {
        self.grants = grants.into_iter().collect();
        self
    }

    pub fn grants(&self) -> &[Arc<Grant>] {
        &self.grants
    }

    /// Returns the reason for which a right to watch has ended, if one has.
    pub fn withdrawal(&self, now: Instant) -> Option<Withdrawal> {
        self.grants.iter().find_map(|grant| grant.ended(now))
    }

    /// The id in `X-Jobcast-Connection` and in the logs.
    pub fn id(&self) -> String {
        format!("{:08x}-{:x}", self.admission.0.prefix, self.number)
    }

    /// Returns when the stream was admitted.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// The caller's name, where its credentials have one.
    pub fn subject(&self) -> Option<&str> {
        self.grants.first()?.subject()
    }

    /// The address that the request came from, where it is known.
    pub fn address(&self) -> Option<IpAddr> {
        self.ip
    }

    /// Takes the connection over whose only stream this is.
    pub fn keep(&mut self, mut connection: CountedConnection) {
        self.has_connection = true;
        connection.is_kept = true;
    }

    /// Counts events that were written to the stream, and their bytes.
    pub fn count(&mut self, events: u64, bytes: u64) {
        self.bytes += bytes;
        self.delivered = self.delivered.saturating_add(events.try_into().unwrap_or(u32::MAX));
    }

    pub fn delivered(&self) -> u32 {
        self.delivered
    }

    /// Counts a subscriber, since the request is now answered with a stream. `origin` is kept for the access log, and None
    /// where there is none.
    pub fn begins(&mut self, job: &JobId, origin: Option<Origin>) {
        self.job = Some(job.clone());
        self.logged = origin.map(|origin| Box::new(Logged { origin, cursor: None }));
        self.reason = Some(Reason::Gone);
        self.admission.0.subscribers.increment(1.0);
    }

    /// Notes the position that the stream has come to, where the access log will tell it. Called once for a page of history,
    /// and when a stream leaves its ring or ends, never for a delivery.
    pub fn note_cursor(&mut self, cursor: impl FnOnce() -> Option<Cursor>) {
        if let Some(logged) = &mut self.logged
            && let Some(cursor) = cursor()
        {
            logged.cursor = Some(cursor);
        }
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
        if self.has_connection {
            self.admission.disconnect();
        }
        self.admission.leave_ip(self.ip.filter(|_| self.is_ip_counted));
        let Some(reason) = self.reason else { return };
        inner.subscribers.decrement(1.0);
        let open_for = self.since.elapsed();
        inner.durations.record(open_for);
        telemetry::DISCONNECTS.increment(&[("reason", reason.as_str())], 1);
        let logged = self.logged.as_deref();
        tracing::info!(
            target: ACCESS,
            request = logged.map(|logged| logged.origin.request.as_str()),
            peer = logged.and_then(|logged| logged.origin.peer).map(tracing::field::display),
            connection = self.id(),
            job = self.job.as_ref().map(JobId::as_str),
            address = self.ip.map(tracing::field::display),
            subject = self.subject(),
            reason = reason.as_str(),
            seconds = open_for.as_secs_f64(),
            events = self.delivered,
            bytes = self.bytes,
            cursor = logged.and_then(|logged| logged.cursor.as_ref()).map(Cursor::as_str),
            "stream ended"
        );
    }
}
