//! The way of a socket out of actix. Once its stream is live, a [`Connection`] keeps what actix still writes, shows actix
//! the end of the file, and, when actix drops it, gives its socket to a delivery thread with the stream's place in the ring.

use super::admission::CountedConnection;
use super::socket::{Stalled, Transport};
use super::threads::Threads;
use super::worker::HandedOver;
pub use super::worker::LiveStream;
use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The state that a connection shares with the handler of its request. Both live on one actix worker.
#[derive(Clone, Default)]
pub struct HandoffSlot(Rc<RefCell<State>>);

/// The three steps of leaving actix.
#[derive(Default)]
enum State {
    /// actix reads and writes the socket.
    #[default]
    Serving,
    /// The stream is live, and actix writes what is left of the replay into `unsent`.
    Leaving { stream: LiveStream, unsent: Vec<u8> },
    /// actix has written everything. It reads the end of the file, and drops the connection.
    Flushed { stream: LiveStream, unsent: Vec<u8> },
}

impl HandoffSlot {
    /// Makes the connection leave actix. The body must yield nothing more.
    pub fn leave(&self, stream: LiveStream) {
        *self.0.borrow_mut() = State::Leaving { stream, unsent: Vec::new() };
    }
}

/// A connection that actix serves until its stream leaves.
pub struct Connection {
    /// None only while the connection is being dropped.
    transport: Option<Transport>,
    /// None once a stream has it.
    counted: Option<CountedConnection>,
    slot: HandoffSlot,
    stalled: Stalled,
    threads: Threads,
}

impl Connection {
    pub fn new(transport: Transport, counted: CountedConnection, threads: Threads) -> Self {
        let stalled = transport.socket().stalled();
        Self { transport: Some(transport), counted: Some(counted), slot: HandoffSlot::default(), stalled, threads }
    }

    /// The way out of actix; None under TLS, whose keys the delivery threads do not have.
    pub fn slot(&self) -> Option<HandoffSlot> {
        matches!(self.transport, Some(Transport::Plain(_))).then(|| self.slot.clone())
    }

    pub fn stalled(&self) -> Stalled {
        self.stalled.clone()
    }

    fn transport(&mut self) -> io::Result<Pin<&mut Transport>> {
        self.transport.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if matches!(*self.slot.0.borrow(), State::Flushed { .. }) {
            return Poll::Ready(Ok(())); // The end of the file: actix drops the connection.
        }
        self.transport()?.poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let State::Leaving { unsent, .. } | State::Flushed { unsent, .. } = &mut *self.slot.0.borrow_mut() {
            unsent.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        self.transport()?.poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        {
            let mut state = self.slot.0.borrow_mut();
            match std::mem::take(&mut *state) {
                State::Serving => {}
                State::Leaving { stream, unsent } | State::Flushed { stream, unsent } => {
                    *state = State::Flushed { stream, unsent };
                    cx.waker().wake_by_ref(); // Actix is woken, so that it reads the end of the file.
                    return Poll::Ready(Ok(()));
                }
            }
        }
        self.transport()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !matches!(*self.slot.0.borrow(), State::Serving) {
            return Poll::Ready(Ok(())); // The socket lives on.
        }
        self.transport()?.poll_shutdown(cx)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // A stream that is Leaving but not Flushed is dropped with its socket: actix gave up on the connection of its own
        // accord, before all of the replay was written.
        let State::Flushed { mut stream, unsent } = std::mem::take(&mut *self.slot.0.borrow_mut()) else { return };
        let Some(Transport::Plain(socket)) = self.transport.take() else { return };
        if let Some(counted) = self.counted.take() {
            stream.permit.keep(counted);
        }
        match socket.into_tcp().into_std() {
            Ok(socket) => self.threads.adopt(HandedOver { stream, socket, unsent }),
            Err(error) => tracing::warn!(%error, "a connection could not be handed over"),
        }
    }
}
