//! The socket leaves actix: a connection that, once its stream is live, keeps what actix still writes, tells actix that
//! the peer is done, and, when actix lets go of it, goes to a delivery thread with its place in the ring.

use super::admission::StreamPermit;
use super::thread::Threads;
use crate::cursor::Cursor;
use crate::hub::{Place, Subscription};
use std::cell::RefCell;
use std::io;
use std::net::TcpStream;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A live stream that a delivery thread can take over.
pub struct Stream {
    pub permit: StreamPermit,
    pub subscription: Subscription,
    pub place: Place,
    /// The position at `place`, for the case that the ring moves on meanwhile.
    pub cursor: Cursor,
}

/// A stream and its socket, on the way to a delivery thread.
pub struct Parcel {
    pub stream: Stream,
    pub socket: TcpStream,
    /// What actix wrote after the stream was live: the end of the replay, mostly nothing.
    pub unsent: Vec<u8>,
}

/// What the connection and the handler of its request share. Both live on one actix worker.
#[derive(Clone, Default)]
pub struct Slot(Rc<RefCell<State>>);

#[derive(Default)]
struct State {
    leaving: Option<Stream>,
    unsent: Vec<u8>,
    flushed: bool,
}

impl Slot {
    /// From here on the connection leaves actix. The body must yield nothing more.
    pub fn leave(&self, stream: Stream) {
        self.0.borrow_mut().leaving = Some(stream);
    }
}

/// A TCP connection that actix serves until it is to leave.
pub struct Connection {
    /// None only while it is being dropped.
    socket: Option<tokio::net::TcpStream>,
    slot: Slot,
    threads: Threads,
}

impl Connection {
    pub fn new(socket: tokio::net::TcpStream, threads: Threads) -> Self {
        Self { socket: Some(socket), slot: Slot::default(), threads }
    }

    pub fn slot(&self) -> Slot {
        self.slot.clone()
    }

    fn socket(&mut self) -> io::Result<Pin<&mut tokio::net::TcpStream>> {
        self.socket.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.slot.0.borrow().flushed {
            return Poll::Ready(Ok(())); // end of file: actix lets go
        }
        self.socket()?.poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        {
            let mut state = self.slot.0.borrow_mut();
            if state.leaving.is_some() {
                state.unsent.extend_from_slice(bytes);
                return Poll::Ready(Ok(bytes.len()));
            }
        }
        self.socket()?.poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        {
            let mut state = self.slot.0.borrow_mut();
            if state.leaving.is_some() {
                state.flushed = true;
                cx.waker().wake_by_ref(); // to read the end of file
                return Poll::Ready(Ok(()));
            }
        }
        self.socket()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.slot.0.borrow().leaving.is_some() {
            return Poll::Ready(Ok(())); // the socket lives on
        }
        self.socket()?.poll_shutdown(cx)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut state = self.slot.0.borrow_mut();
        let (Some(stream), Some(socket)) = (state.leaving.take(), self.socket.take()) else { return };
        // Not flushed: actix gave up on its own accord, before all of the replay was written.
        if !state.flushed {
            return;
        }
        match socket.into_std() {
            Ok(socket) => self.threads.adopt(Parcel { stream, socket, unsent: std::mem::take(&mut state.unsent) }),
            Err(error) => tracing::warn!(%error, "a connection could not be handed over"),
        }
    }
}
