//! Counts the frames of an HTTP/2 connection before anything reads them. Most kinds of frames cost their sender nothing
//! and the server some work, and a peer that sends nothing else floods it (RFC 9113, section 10.5). Each such frame takes
//! from an allowance, which time fills again, and which frames of ours that ask for such an answer fill as well. A
//! connection that has used it up is closed.
//!
//! Only the nine bytes at the beginning of each frame are read here (RFC 9113, section 4.1); `h2` reads the rest.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The text that an HTTP/2 connection begins with has so many bytes (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;
const HEADER_BYTES: usize = 9;
/// The allowance at the beginning and at most: a thousand resets, or ten thousand window updates, at once.
const MAX_ALLOWANCE: u32 = 10_000;
/// The allowance that a second gives.
const ALLOWANCE_PER_SECOND: u32 = 1_000;
/// The updates that a client may send for one DATA frame of ours: of the stream's window, and of the connection's.
const UPDATES_PER_DATA: u32 = 2;
/// The smallest DATA frame of ours that gives anything, since a peer that opens its windows by single bytes would pay for
/// its floods by our answers. All events are larger.
const MIN_DATA_THAT_GIVES: usize = 64;
/// DATA frames below this size take something.
const SMALL_DATA: u32 = 256;

/// Kinds of frames that are treated apart (RFC 9113, section 6).
mod kind {
    pub const DATA: u8 = 0x0;
    pub const HEADERS: u8 = 0x1;
    pub const RST_STREAM: u8 = 0x3;
    pub const SETTINGS: u8 = 0x4;
    pub const PUSH_PROMISE: u8 = 0x5;
    pub const PING: u8 = 0x6;
    pub const CONTINUATION: u8 = 0x9;
}
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

/// The beginning of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FrameHead {
    length: u32,
    kind: u8,
    flags: u8,
}

impl FrameHead {
    fn parse(bytes: [u8; HEADER_BYTES]) -> Self {
        let [high, middle, low, kind, flags, ..] = bytes;
        Self { length: u32::from_be_bytes([0, high, middle, low]), kind, flags }
    }

    /// The part of the allowance that the frame takes.
    fn cost(self) -> u32 {
        match self.kind {
            kind::DATA if self.flags & END_STREAM != 0 => 0,
            kind::DATA if self.length == 0 => 10,
            kind::DATA => u32::from(self.length < SMALL_DATA),
            // The work that was begun for a request is lost with its reset; settings go over all streams.
            kind::RST_STREAM | kind::SETTINGS | kind::CONTINUATION => 10,
            kind::PING => 5,
            _ => 1,
        }
    }

    fn ends_headers(self) -> bool {
        self.flags & END_HEADERS != 0
    }
}

/// The progress of reading frames' beginnings.
struct Parser {
    /// Bytes to pass over: of the preface, or of a frame's content.
    skip: usize,
    header: [u8; HEADER_BYTES],
    /// Bytes of `header` that are there.
    filled: usize,
    place: Where,
}

/// The frame, or block of frames, that the next byte belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    /// None: everything that has begun is complete.
    Between,
    /// The content of a request, which may take its time.
    Data,
    /// Anything else, such as the head of a request, which has begun then.
    Within { since: Instant },
}

impl Parser {
    fn new(now: Instant) -> Self {
        Self { skip: PREFACE_BYTES, header: [0; HEADER_BYTES], filled: 0, place: Where::Within { since: now } }
    }

    /// Reads on, and returns the sum of what the frames cost that begin in these bytes.
    fn read(&mut self, mut bytes: &[u8], now: Instant) -> u32 {
        let mut cost = 0_u32;
        while !bytes.is_empty() {
            if self.skip > 0 {
                let passed = self.skip.min(bytes.len());
                (self.skip, bytes) = (self.skip - passed, &bytes[passed..]);
                self.end_frame();
                continue;
            }
            if self.filled == 0 && self.place == Where::Between {
                self.place = Where::Within { since: now };
            }
            let taken = (HEADER_BYTES - self.filled).min(bytes.len());
            self.header[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            (self.filled, bytes) = (self.filled + taken, &bytes[taken..]);
            if self.filled == HEADER_BYTES {
                let frame = FrameHead::parse(self.header);
                cost = cost.saturating_add(frame.cost());
                (self.filled, self.skip) = (0, frame.length as usize);
                if frame.kind == kind::DATA {
                    self.place = Where::Data;
                }
                self.end_frame();
            }
        }
        cost
    }

    /// Ends the present frame if all of it has been passed over. A block of headers goes on until it says that it ends.
    fn end_frame(&mut self) {
        if self.skip > 0 {
            return;
        }
        let frame = FrameHead::parse(self.header);
        let is_block = matches!(frame.kind, kind::HEADERS | kind::PUSH_PROMISE | kind::CONTINUATION);
        if !is_block || frame.ends_headers() {
            self.place = Where::Between;
        }
    }
}

/// The account of one connection, which its streams share.
#[derive(Clone)]
pub struct Frames(Rc<RefCell<Account>>);

struct Account {
    parser: Parser,
    allowance: u32,
    filled_at: Instant,
    is_exhausted: bool,
}

impl Frames {
    pub fn new() -> Self {
        let now = Instant::now();
        let account =
            Account { parser: Parser::new(now), allowance: MAX_ALLOWANCE, filled_at: now, is_exhausted: false };
        Self(Rc::new(RefCell::new(account)))
    }

    /// Notes a DATA frame of ours, for which the client will send updates of its windows.
    pub fn sent_data(&self, bytes: usize) {
        if bytes >= MIN_DATA_THAT_GIVES {
            self.0.borrow_mut().give(UPDATES_PER_DATA);
        }
    }

    /// Returns true if the peer has used up its allowance. Nothing more is read from it then.
    pub fn is_exhausted(&self) -> bool {
        self.0.borrow().is_exhausted
    }

    /// Returns the moment at which the frame, or the request's head, began that has not arrived in full.
    pub fn unfinished_since(&self) -> Option<Instant> {
        match self.0.borrow().parser.place {
            Where::Within { since } => Some(since),
            Where::Between | Where::Data => None,
        }
    }

    fn received(&self, bytes: &[u8]) {
        self.0.borrow_mut().take(bytes, Instant::now());
    }
}

impl Account {
    fn give(&mut self, more: u32) {
        self.allowance = self.allowance.saturating_add(more).min(MAX_ALLOWANCE);
    }

    fn take(&mut self, bytes: &[u8], now: Instant) {
        let cost = self.parser.read(bytes, now);
        let passed = now.duration_since(self.filled_at);
        let given = passed.as_millis().saturating_mul(u128::from(ALLOWANCE_PER_SECOND)) / 1000;
        if given > 0 {
            self.filled_at = now;
            self.give(u32::try_from(given).unwrap_or(MAX_ALLOWANCE));
        }
        match self.allowance.checked_sub(cost) {
            Some(left) => self.allowance = left,
            None => self.is_exhausted = true,
        }
    }
}

/// A connection whose incoming frames are counted.
pub struct Counted<T> {
    inner: T,
    frames: Frames,
}

impl<T> Counted<T> {
    pub fn new(inner: T, frames: Frames) -> Self {
        Self { inner, frames }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Counted<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.frames.is_exhausted() {
            return Poll::Pending; // Whoever serves the connection looks at the account after each poll, and closes it.
        }
        let before = into.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, into);
        self.frames.received(&into.filled()[before..]);
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES + length];
        bytes[1..3].copy_from_slice(&(length as u16).to_be_bytes());
        (bytes[3], bytes[4]) = (kind, flags);
        bytes
    }

    fn connection() -> Vec<u8> {
        vec![b'p'; PREFACE_BYTES]
    }

    #[test]
    fn frames_are_found_however_the_bytes_are_cut() {
        let mut bytes = connection();
        for (kind, flags, length) in [
            (kind::SETTINGS, 0, 6),
            (kind::HEADERS, END_HEADERS, 40),
            (kind::DATA, 0, 0),
            (kind::DATA, 0, 300),
            (kind::DATA, END_STREAM, 0),
            (kind::PING, 0, 8),
            (kind::HEADERS, 0, 0),
            (kind::CONTINUATION, END_HEADERS, 7),
            (0x77, 0, 1),
        ] {
            bytes.extend(frame(kind, flags, length));
        }
        let expected = 10 + 1 + 10 + 5 + 1 + 10 + 1;
        for size in 1..bytes.len() {
            let mut parser = Parser::new(Instant::now());
            let cost: u32 = bytes.chunks(size).map(|piece| parser.read(piece, Instant::now())).sum();
            assert_eq!((cost, parser.place), (expected, Where::Between), "in pieces of {size}");
        }
    }

    #[test]
    fn a_head_that_never_ends_is_known_by_its_beginning_and_content_may_take_its_time() {
        let begun = Instant::now();
        let later = begun + Duration::from_secs(3);
        let mut parser = Parser::new(begun);
        parser.read(&connection(), begun);
        assert_eq!(parser.place, Where::Between);
        parser.read(&frame(kind::HEADERS, 0, 10), begun);
        for _ in 0..3 {
            parser.read(&frame(kind::CONTINUATION, 0, 1), later);
            assert_eq!(parser.place, Where::Within { since: begun });
        }
        parser.read(&frame(kind::CONTINUATION, END_HEADERS, 1), later);
        parser.read(&frame(kind::DATA, 0, 10)[..12], later);
        assert_eq!(parser.place, Where::Data);
    }

    #[test]
    fn an_allowance_is_used_up_by_a_flood_and_filled_by_time_and_by_our_own_frames() {
        let frames = Frames::new();
        let begun = frames.0.borrow().filled_at;
        let mut send = connection();
        send.extend(frame(kind::RST_STREAM, 0, 4).repeat(1_000));
        frames.0.borrow_mut().take(&send, begun);
        assert!(!frames.is_exhausted());
        let updates = frame(0x8, 0, 4).repeat(1_000);
        frames.0.borrow_mut().take(&updates, begun + Duration::from_secs(1));
        for _ in 0..500 {
            frames.sent_data(64);
            frames.sent_data(63);
        }
        frames.0.borrow_mut().take(&updates, begun + Duration::from_secs(1));
        assert!(!frames.is_exhausted());
        frames.0.borrow_mut().take(&frame(0x8, 0, 4), begun + Duration::from_secs(1));
        assert!(frames.is_exhausted());
    }
}
