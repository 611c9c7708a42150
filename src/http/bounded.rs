//! The public listener's connections while actix has them: they are counted against the limit of their address, and none of
//! them waits for its peer without an end.
//!
//! actix bounds the time of a connection's first head, and the silence between two requests; a later head that drips, or a
//! body that nobody reads, it would wait for without an end. It also reads ahead while a request is at work, and turns in
//! circles once its buffer is full.

use super::client_address::counted;
use super::limits::Refusal;
use super::server::KEEP_ALIVE;
use crate::delivery::admission::Admission;
use crate::telemetry;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// Bytes that a client may send behind a request at work. With a head behind them they are less than the 128 KiB of actix's
/// buffer, which would not be read on if it were full.
const MAX_AHEAD: usize = 64 * 1024;
/// Bytes of a head, at most. actix reads them at once with a body's beginning, and is asked to look after each so many.
const MAX_HEAD: usize = 56 * 1024;
/// The answer to a head that has more.
const TOO_LARGE: &[u8] =
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
/// Connections without a stream that one address may have besides its streams: browsers open a few ahead.
const SPARE_FOR_ADDRESS: usize = 16;

/// The connections that actix or HTTP/2 has, and their numbers by address; cheap to clone. How many there may be in all, with
/// those that have left, `Admission` decides.
#[derive(Clone)]
pub struct OpenConnections(Arc<Inner>);

struct Inner {
    admission: Admission,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    all: usize,
    /// By address; empty where there is no limit on them.
    by_ip: HashMap<IpAddr, usize>,
}

impl OpenConnections {
    pub fn new(admission: Admission) -> Self {
        Self(Arc::new(Inner { admission, open: Mutex::default() }))
    }

    /// Counts one more connection until the permit is dropped. `peer` is None where its number is not limited, as that of a
    /// trusted proxy.
    pub fn admit(&self, peer: Option<IpAddr>) -> Result<ConnectionPermit, Refusal> {
        let max_streams = self.0.admission.max_per_ip();
        let peer = peer.map(counted).filter(|_| max_streams > 0);
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peer {
            let of_peer = open.by_ip.entry(peer).or_default();
            if *of_peer >= max_streams + SPARE_FOR_ADDRESS {
                return Err(Refusal::AddressConnections);
            }
            *of_peer += 1;
        }
        open.all += 1;
        telemetry::OPEN_CONNECTIONS.gauge(&[]).set(open.all as f64);
        Ok(ConnectionPermit { connections: self.clone(), peer })
    }

    /// Tells if they are more than half of all that may be open: then none is kept after its answer.
    fn is_crowded(&self) -> bool {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner).all > self.0.admission.max_connections() / 2
    }
}

/// One open connection.
pub struct ConnectionPermit {
    connections: OpenConnections,
    peer: Option<IpAddr>,
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut open = self.connections.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.all -= 1;
        telemetry::OPEN_CONNECTIONS.gauge(&[]).set(open.all as f64);
        let Some(peer) = self.peer else { return };
        if let Some(of_peer) = open.by_ip.get_mut(&peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                open.by_ip.remove(&peer);
            }
        }
    }
}

/// The state that a connection shares with the handlers of its requests. All of it lives on one actix worker.
#[derive(Clone)]
pub struct Progress(Rc<Requests>);

struct Requests {
    connections: OpenConnections,
    /// The number of requests whose heads have arrived.
    begun: Cell<u64>,
    /// The number of those that are not answered yet.
    at_work: Cell<usize>,
    /// Set if the newest of them has a body that nobody has taken yet. actix reads it only as fast as it is taken.
    has_body: Cell<bool>,
    /// Bytes that were read since the connection was idle, less those of the requests that have begun. What is left is the
    /// beginning of another, or a body that nobody took. A head counts as its usual form, so this may be a few too many.
    left_over: Cell<isize>,
    /// Wakes the task that reads the connection.
    reader: RefCell<Option<Waker>>,
}

impl Progress {
    fn new(connections: OpenConnections) -> Self {
        let (begun, at_work, has_body, left_over, reader) = Default::default();
        Self(Rc::new(Requests { connections, begun, at_work, has_body, left_over, reader }))
    }

    /// Notes that a request with a head of so many bytes is at work, until the answer is dropped.
    pub fn begin(&self, head: usize, has_body: bool) -> Busy {
        self.note_bytes(-(head as isize));
        self.0.begun.set(self.0.begun.get() + 1);
        self.0.at_work.set(self.0.at_work.get() + 1);
        self.0.has_body.set(has_body);
        Busy(self.clone())
    }

    /// Notes that the newest request's body, of so many bytes, was read to its end.
    pub fn take_body(&self, bytes: usize) {
        self.note_bytes(-(bytes as isize));
        self.0.has_body.set(false);
    }

    fn note_bytes(&self, bytes: isize) {
        self.0.left_over.set(self.0.left_over.get() + bytes);
    }

    fn has_left_over(&self) -> bool {
        self.0.left_over.get() > 0
    }

    /// Tells if so many connections are open that none is kept for a next request.
    pub fn is_crowded(&self) -> bool {
        self.0.connections.is_crowded()
    }

    fn is_at_work(&self) -> bool {
        self.0.at_work.get() > 0
    }

    fn set_reader(&self, reader: &Waker) {
        let mut known = self.0.reader.borrow_mut();
        if known.as_ref().is_none_or(|known| !known.will_wake(reader)) {
            *known = Some(reader.clone());
        }
    }
}

/// A request at work on a connection.
pub struct Busy(Progress);

impl Drop for Busy {
    fn drop(&mut self) {
        let requests = &self.0.0;
        requests.at_work.set(requests.at_work.get() - 1);
        // The rest of what has begun to come must do so within its time, which begins at the next read.
        if let Some(reader) = requests.reader.take().filter(|_| self.0.has_left_over()) {
            reader.wake();
        }
    }
}

/// A connection whose peer is not waited for without an end. It shows actix the end of the file when it has had enough.
pub struct Bounded<C> {
    connection: C,
    progress: Progress,
    header_timeout: Duration,
    since: Instant,
    wait: Option<Wait>,
    /// Bytes that were read while requests were at work.
    ahead: usize,
    peer: Option<IpAddr>,
    _permit: ConnectionPermit,
}

/// The wait for a request to begin.
struct Wait {
    /// The number of requests before it.
    before: u64,
    /// As long as an idle connection is kept. From its first byte on, or if something is left over, as long as a head may
    /// take.
    end: Pin<Box<Sleep>>,
    /// Bytes that were read of its head.
    received: usize,
    /// Set once actix was asked to look after [`MAX_HEAD`] bytes. A head that was whole would have begun the request.
    was_shown: bool,
}

impl<C> Bounded<C> {
    pub fn new(connection: C, permit: ConnectionPermit, header_timeout: Duration, peer: Option<IpAddr>) -> Self {
        let progress = Progress::new(permit.connections.clone());
        let (since, wait, ahead) = (Instant::now(), None, 0);
        Self { connection, progress, header_timeout, since, wait, ahead, peer, _permit: permit }
    }

    pub fn connection(&self) -> &C {
        &self.connection
    }

    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }
}

impl Wait {
    fn new(before: u64, time: Duration) -> Self {
        let end = Box::pin(sleep_until(Instant::now() + time));
        Self { before, end, received: 0, was_shown: false }
    }

    /// Notes bytes of a head, of which the first begin the time in which it must arrive.
    fn note(&mut self, bytes: usize, header_timeout: Duration, cx: &mut Context<'_>) {
        if self.received == 0 && bytes > 0 {
            self.end.as_mut().reset(Instant::now() + header_timeout);
            // Polled, so that its end wakes the connection.
            let _ = self.end.as_mut().poll(cx);
        }
        self.received += bytes;
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> Bounded<C> {
    /// Reads what comes while a request is at work: its body, or a bounded part of what follows it.
    fn poll_behind(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.progress.0.has_body.get() {
            let bytes = ready!(read_at_most(&mut self.connection, usize::MAX, cx, buffer))?;
            self.progress.note_bytes(bytes as isize);
            return Poll::Ready(Ok(()));
        }
        if self.ahead >= MAX_AHEAD {
            Refusal::Pipelined.note(self.peer);
            return Poll::Ready(Ok(()));
        }
        let bytes = ready!(read_at_most(&mut self.connection, MAX_AHEAD - self.ahead, cx, buffer))?;
        self.progress.note_bytes(bytes as isize);
        self.ahead += bytes;
        Poll::Ready(Ok(()))
    }

    /// Reads the head of a request, which has not begun.
    fn poll_head(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (begun, has_left_over) = (self.progress.0.begun.get(), self.progress.has_left_over());
        let wait = match &mut self.wait {
            Some(wait) if wait.before == begun => wait,
            wait => wait.insert(Wait::new(begun, if has_left_over { self.header_timeout } else { KEEP_ALIVE })),
        };
        if wait.end.as_mut().poll(cx).is_ready() {
            if wait.received > 0 || has_left_over {
                Refusal::HeadTimeout.note(self.peer);
            }
            return Poll::Ready(Ok(()));
        }
        // Behind a request there may be the rest of a body that nobody wanted; actix bounds that. A head is bounded here,
        // since actix reads no more, and waits, once its buffer is full.
        let is_body = begun > 0 && self.progress.0.has_body.get();
        if !is_body && wait.received >= MAX_HEAD {
            if std::mem::replace(&mut wait.was_shown, true) {
                Refusal::Head.note(self.peer);
                // An answer to an earlier request may still be on its way.
                if begun == 0 {
                    let _ = Pin::new(&mut self.connection).poll_write(cx, TOO_LARGE)?;
                }
                return Poll::Ready(Ok(()));
            }
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let most = if is_body { usize::MAX } else { MAX_HEAD - wait.received };
        let bytes = ready!(read_at_most(&mut self.connection, most, cx, buffer))?;
        if wait.received == 0 && !has_left_over {
            self.progress.0.left_over.set(0);
        }
        self.progress.note_bytes(bytes as isize);
        wait.note(bytes, self.header_timeout, cx);
        Poll::Ready(Ok(()))
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> AsyncRead for Bounded<C> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.progress.set_reader(cx.waker());
        if self.progress.is_at_work() {
            return self.poll_behind(cx, buffer);
        }
        self.ahead = 0;
        self.poll_head(cx, buffer)
    }
}

/// Reads at most so many bytes, and returns how many there were.
fn read_at_most(
    connection: &mut (impl AsyncRead + Unpin),
    most: usize,
    cx: &mut Context<'_>,
    buffer: &mut ReadBuf<'_>,
) -> Poll<io::Result<usize>> {
    let most = most.min(buffer.remaining());
    let mut part = ReadBuf::new(buffer.initialize_unfilled_to(most));
    ready!(Pin::new(connection).poll_read(cx, &mut part))?;
    let bytes = part.filled().len();
    buffer.advance(bytes);
    Poll::Ready(Ok(bytes))
}

impl<C> Drop for Bounded<C> {
    fn drop(&mut self) {
        // actix has answered this one, with a 408.
        let is_first = self.progress.0.begun.get() == 0 && self.wait.as_ref().is_some_and(|wait| wait.received > 0);
        if is_first && self.since.elapsed() >= self.header_timeout {
            Refusal::HeadTimeout.note(self.peer);
        }
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Bounded<C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(cx)
    }
}
