//! The socket of a connection that actix or HTTP/2 serves, in the clear or under TLS. A peer that takes nothing for
//! `stream.write_timeout` is cut off here, whichever protocol it speaks.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};
use tokio_rustls::server::TlsStream;

/// Tells the streams of a connection that they end because their peer has taken nothing for too long.
#[derive(Clone, Default)]
pub struct Stalled {
    connection: Rc<Cell<bool>>,
    stream: Rc<Cell<bool>>,
}

impl Stalled {
    /// The view of one of several streams, which may also stall by itself.
    pub fn of_stream(&self) -> Self {
        Self { connection: self.connection.clone(), stream: Rc::default() }
    }

    /// Notes that this stream has stalled.
    pub fn set(&self) {
        self.stream.set(true);
    }

    pub fn is_set(&self) -> bool {
        self.connection.get() || self.stream.get()
    }
}

/// A TCP socket with a limit on the time in which it takes nothing.
pub struct Socket {
    tcp: TcpStream,
    write_timeout: Duration,
    /// Runs while the socket takes nothing.
    timer: Option<Pin<Box<Sleep>>>,
    stalled: Stalled,
}

impl Socket {
    pub fn new(tcp: TcpStream, write_timeout: Duration) -> Self {
        Self { tcp, write_timeout, timer: None, stalled: Stalled::default() }
    }

    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    pub fn into_tcp(self) -> TcpStream {
        self.tcp
    }

    pub fn stalled(&self) -> Stalled {
        self.stalled.clone()
    }

    /// Passes on the outcome of a write, and turns one that waits for too long into a failure.
    fn timed<T>(&mut self, written: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.timer = None;
            return written;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(self.write_timeout)));
        ready!(timer.as_mut().poll(cx));
        self.stalled.connection.set(true);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, into)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write(cx, bytes);
        self.timed(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write_vectored(cx, slices);
        self.timed(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

/// The bytes of HTTP/1.1 on a socket.
pub enum Transport {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

impl Transport {
    pub fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }
}

macro_rules! either {
    ($transport:expr, $inner:ident => $call:expr) => {
        match $transport {
            Transport::Plain(socket) => {
                let $inner = Pin::new(socket);
                $call
            }
            Transport::Tls(stream) => {
                let $inner = Pin::new(&mut **stream);
                $call
            }
        }
    };
}

impl AsyncRead for Transport {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(&mut *self, inner => inner.poll_read(cx, into))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        either!(&mut *self, inner => inner.poll_write(cx, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(&mut *self, inner => inner.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(&mut *self, inner => inner.poll_shutdown(cx))
    }
}
