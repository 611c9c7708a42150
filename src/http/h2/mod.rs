//! HTTP/2, by the `h2` crate itself and not by actix: actix stands on `h2` 0.3, for whose RUSTSEC-2026-0258 (empty DATA
//! frames without end) there is no fix. Each request is turned into a call of the same actix app that serves HTTP/1.1
//! ([`exchange`]), so that there is one set of routes, handlers and checks.
//!
//! One task serves a connection and all of its requests, as futures and not as tasks: an event for 300 streams of one
//! browser wakes it once, and goes out in one write. Dropping it drops them all. Its memory and its work are bounded by:
//!
//! - [`MAX_STREAMS`] requests at a time, whose heads are within [`MAX_HEAD_BYTES`];
//! - [`STREAM_WINDOW`] and [`CONNECTION_WINDOW`] of content that was sent to us and not read yet;
//! - [`SEND_BUFFER`] of each answer that waits for the socket. An answer whose window stays shut for
//!   `stream.write_timeout` is ended, and so is the connection if the socket takes nothing for so long;
//! - an allowance of frames that cost their sender nothing ([`frames`]), and `h2`'s own limits on them;
//! - `http.header_timeout` for each head and each frame that has begun, and 75 seconds without any request.

mod exchange;
mod frames;

pub use exchange::Exchange;

use crate::shutdown::{Phase, ShutdownWatch};
use crate::telemetry;
use bytes::Bytes;
use frames::{Counted, Frames};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Sleep, sleep_until, timeout};

/// Requests of one connection at a time. Browsers open up to 256; more are for proxies that share a connection.
const MAX_STREAMS: u32 = 500;
/// Size of a request's head, at most, counted as RFC 9113 does in section 6.5.2.
const MAX_HEAD_BYTES: u32 = 64 * 1024;
/// Content of one request that is not read yet, at most.
const STREAM_WINDOW: u32 = 64 * 1024;
/// Content of all requests of a connection that is not read yet, at most.
const CONNECTION_WINDOW: u32 = 256 * 1024;
/// Bytes of one answer that wait for the socket, at most.
const SEND_BUFFER: usize = 16 * 1024;
/// Time for saying goodbye to a connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The times that a connection may take.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// For each head, the connection's own included, and until its first request.
    pub header: Duration,
    /// Without a request, after the first one.
    pub keep_alive: Duration,
    /// For an answer whose window is shut.
    pub write: Duration,
}

/// Serves a connection to its end. `answer` answers one request.
pub async fn serve<T, F>(io: T, times: Times, shutdown: ShutdownWatch, answer: impl Fn(Exchange) -> F)
where
    T: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = ()>,
{
    let frames = Frames::new();
    let handshake = builder().handshake(Counted::new(io, frames.clone()));
    let Ok(Ok(connection)) = timeout(times.header, handshake).await else { return };
    let mut serving = Serving {
        connection,
        exchanges: FuturesUnordered::new(),
        frames,
        times,
        state: State::New,
        idle_since: Instant::now(),
        timer: Box::pin(sleep_until(Instant::now().into())),
    };
    let mut draining = Box::pin(shutdown.reached(Phase::Draining));
    let mut is_draining = false;
    poll_fn(|cx| {
        is_draining = is_draining || draining.as_mut().poll(cx).is_ready();
        serving.poll(cx, is_draining, &answer)
    })
    .await;
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(MAX_STREAMS)
        // A page that opens its streams and closes them at once is no flood; the allowance tells them apart.
        .max_pending_accept_reset_streams(MAX_STREAMS as usize)
        .max_header_list_size(MAX_HEAD_BYTES)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER);
    builder
}

/// One connection with the requests that are being answered.
struct Serving<T, F> {
    connection: Connection<Counted<T>, Bytes>,
    exchanges: FuturesUnordered<F>,
    frames: Frames,
    times: Times,
    state: State,
    /// The moment since which no request is being answered, if none is.
    idle_since: Instant,
    /// Comes at the connection's deadline.
    timer: Pin<Box<Sleep>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No request has come yet.
    New,
    Open,
    /// The peer is told to open another connection (GOAWAY). Requests that have come are answered to their end.
    Leaving,
    /// The connection is closed at this moment, if the peer has not taken its leave by then.
    Closing(Instant),
}

impl<T, F> Serving<T, F>
where
    T: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = ()>,
{
    /// Goes on with everything. Ready when the connection is over.
    fn poll(&mut self, cx: &mut Context<'_>, is_draining: bool, answer: &impl Fn(Exchange) -> F) -> Poll<()> {
        loop {
            // First the answers, then the connection: it sends in one write what they have said.
            self.poll_exchanges(cx);
            match self.connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    self.accept(request, respond, answer);
                    continue;
                }
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(%error, "an HTTP/2 connection failed");
                    return Poll::Ready(());
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => {}
            }
            if self.frames.is_exhausted() && !matches!(self.state, State::Closing(_)) {
                self.break_off();
                continue;
            }
            // A client that drains with us has been told to come back, and comes back over another connection.
            if is_draining && self.state == State::Open {
                self.leave();
                continue;
            }
            let Some(deadline) = self.deadline() else { return Poll::Pending };
            if self.timer.deadline() != deadline.into() {
                self.timer.as_mut().reset(deadline.into());
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            match self.state {
                State::Closing(_) => return Poll::Ready(()),
                State::New | State::Open | State::Leaving => self.close(),
            }
        }
    }

    fn poll_exchanges(&mut self, cx: &mut Context<'_>) {
        let mut has_ended = false;
        while let Poll::Ready(Some(())) = self.exchanges.poll_next_unpin(cx) {
            has_ended = true;
        }
        if has_ended && self.exchanges.is_empty() {
            self.idle_since = Instant::now();
        }
    }

    fn accept(
        &mut self,
        request: ::http::Request<RecvStream>,
        respond: SendResponse<Bytes>,
        answer: &impl Fn(Exchange) -> F,
    ) {
        if self.state == State::New {
            self.state = State::Open;
        }
        let exchange = Exchange { request, respond, frames: self.frames.clone(), write_timeout: self.times.write };
        self.exchanges.push(answer(exchange));
    }

    /// Returns the moment at which the connection is closed if nothing more happens on it.
    fn deadline(&self) -> Option<Instant> {
        if let State::Closing(at) = self.state {
            return Some(at);
        }
        let allowed = if self.state == State::New { self.times.header } else { self.times.keep_alive };
        let idle = self.exchanges.is_empty().then(|| self.idle_since + allowed);
        let unfinished = self.frames.unfinished_since().map(|since| since + self.times.header);
        idle.into_iter().chain(unfinished).min()
    }

    /// Asks the peer to open another connection for its next requests.
    fn leave(&mut self) {
        self.connection.graceful_shutdown();
        self.state = State::Leaving;
    }

    /// Ends a connection that takes too long: without a request, it is told so; in the middle of a frame, cut off.
    fn close(&mut self) {
        self.connection.abrupt_shutdown(Reason::NO_ERROR);
        self.end();
    }

    /// Ends a connection whose peer floods it.
    fn break_off(&mut self) {
        tracing::debug!("an HTTP/2 connection is closed: a flood of frames that ask for nothing");
        telemetry::HTTP2_FLOODS.counter(&[]).increment(1);
        self.connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
        self.end();
    }

    fn end(&mut self) {
        self.exchanges.clear();
        self.state = State::Closing(Instant::now() + CLOSE_TIMEOUT);
    }
}
