//! Writing a run of segments to a socket without copying it. [`RunCursor`] is the pure part: it knows how far a run has
//! been written, and how many events that is.

use crate::cursor::Cursor;
use crate::sse::Segment;
use bytes::Bytes;
use std::io::{self, IoSlice, Write};
use std::sync::Arc;

/// The most slices of one `writev`.
const MAX_SLICES: usize = 64;

/// A byte position in consecutive segments.
#[derive(Clone, Debug)]
pub struct RunCursor<'a> {
    segments: &'a [Arc<Segment>],
    /// The index of the segment that the position is in; the number of segments at the end.
    segment: usize,
    /// The offset in that segment.
    offset: usize,
}

impl<'a> RunCursor<'a> {
    /// The position before event `skip`, counted from the first segment's first event.
    pub fn new(segments: &'a [Arc<Segment>], skip: usize) -> Self {
        let (mut segment, mut skip) = (0, skip);
        while segments.get(segment).is_some_and(|segment| skip >= segment.len()) {
            skip -= segments[segment].len();
            segment += 1;
        }
        let offset = segments.get(segment).map_or(0, |segment| segment.offset(skip));
        Self { segments, segment, offset }
    }

    /// The next bytes to write, as at most [`MAX_SLICES`] slices. None at the end.
    pub fn slices(&self) -> impl ExactSizeIterator<Item = &'a [u8]> {
        let rest = &self.segments[self.segment..];
        let offset = self.offset;
        rest[..rest.len().min(MAX_SLICES)].iter().enumerate().map(move |(index, segment)| {
            let bytes = &segment.framed()[..];
            if index == 0 { &bytes[offset..] } else { bytes }
        })
    }

    /// Moves on by `written` bytes, and returns the number of events that end there or before.
    pub fn advance(&mut self, mut written: usize) -> u64 {
        let mut events = 0;
        while written > 0 {
            let segment = &self.segments[self.segment];
            let event = segment.event_at(self.offset);
            let left = segment.framed().len() - self.offset;
            if written < left {
                self.offset += written;
                return events + (segment.event_at(self.offset) - event) as u64;
            }
            written -= left;
            events += (segment.len() - event) as u64;
            (self.segment, self.offset) = (self.segment + 1, 0);
        }
        events
    }

    /// The unwritten rest of an event that is partly written, and the cursor after that event.
    pub fn partial_event(&self) -> Option<(&'a [u8], Cursor)> {
        let segment = self.segments.get(self.segment)?;
        let event = segment.event_at(self.offset);
        let rest = &segment.framed()[self.offset..segment.offset(event + 1)];
        (self.offset > segment.offset(event)).then(|| (rest, Cursor::trusted(segment.cursor(event))))
    }

    /// The cursor after the last event before this position, which must be at an event's beginning. None if that event is
    /// not in these segments.
    pub fn cursor(&self) -> Option<Cursor> {
        if self.offset > 0 {
            let segment = &self.segments[self.segment];
            return Some(Cursor::trusted(segment.cursor(segment.event_at(self.offset) - 1)));
        }
        self.segment.checked_sub(1).map(|before| self.segments[before].end())
    }
}

/// The end of an attempt to write a run.
#[derive(Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// Everything is written.
    Complete,
    /// The socket takes no more for now. A partly written event counts as written, and `rest` is its remainder. `cursor`
    /// is the position after it; None if nothing was written and the run does not know its own beginning.
    Blocked { rest: Bytes, cursor: Option<Cursor> },
    /// The socket is closed or broken.
    Failed,
}

/// The number of events and bytes written, and why it is not more.
#[derive(Debug, PartialEq, Eq)]
pub struct Written {
    pub events: u64,
    pub bytes: u64,
    pub outcome: WriteOutcome,
}

/// Writes from `at` to the end of its run, or until the socket takes no more.
pub fn write_run(socket: &mut impl Write, mut at: RunCursor<'_>) -> Written {
    let (mut events, mut bytes) = (0, 0);
    let outcome = loop {
        if at.slices().len() == 0 {
            break WriteOutcome::Complete;
        }
        match write_once(socket, &at) {
            Ok(0) => break WriteOutcome::Failed,
            Ok(written) => {
                bytes += written as u64;
                events += at.advance(written);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                break match at.partial_event() {
                    Some((rest, cursor)) => {
                        events += 1;
                        // A copy, so that a slow subscriber does not keep the whole segment in memory.
                        WriteOutcome::Blocked { rest: Bytes::copy_from_slice(rest), cursor: Some(cursor) }
                    }
                    None => WriteOutcome::Blocked { rest: Bytes::new(), cursor: at.cursor() },
                };
            }
            Err(_) => break WriteOutcome::Failed,
        }
    };
    Written { events, bytes, outcome }
}

/// One `write`, or one `writev` where the rest of the run is in several segments.
fn write_once(socket: &mut impl Write, at: &RunCursor<'_>) -> io::Result<usize> {
    let mut from = at.slices();
    let count = from.len();
    match from.next() {
        Some(only) if count == 1 => socket.write(only),
        first => {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            for (slice, bytes) in slices.iter_mut().zip(first.into_iter().chain(from)) {
                *slice = IoSlice::new(bytes);
            }
            socket.write_vectored(&slices[..count])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sse::samples::segment;

    /// Segments of so many events each; the events' cursors are c1, c2, …
    fn segments(lengths: &[u32]) -> Vec<Arc<Segment>> {
        let mut next = 1;
        let mut segment_of = |length| {
            let first = next;
            next += length;
            segment(first..next)
        };
        lengths.iter().map(|length| segment_of(*length)).collect()
    }

    /// The offsets of all events' ends in the whole run.
    fn ends(segments: &[Arc<Segment>]) -> Vec<usize> {
        let mut before = 0;
        let mut ends = Vec::new();
        for segment in segments {
            ends.extend((1..=segment.len()).map(|index| before + segment.offset(index)));
            before += segment.framed().len();
        }
        ends
    }

    /// A socket that takes so many bytes with each write, then none.
    struct Socket {
        takes: std::vec::IntoIter<usize>,
        taken: Vec<u8>,
        writes: usize,
    }

    impl Socket {
        fn new(takes: &[usize]) -> Self {
            let takes = Vec::from(takes).into_iter();
            Self { takes, taken: Vec::new(), writes: 0 }
        }
    }

    impl Write for Socket {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.write_vectored(&[IoSlice::new(bytes)])
        }

        fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
            self.writes += 1;
            let takes = self.takes.next().ok_or(io::ErrorKind::WouldBlock)?;
            let before = self.taken.len();
            self.taken.extend(slices.iter().flat_map(|slice| slice.iter()).take(takes));
            Ok(self.taken.len() - before)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_split_of_the_bytes_in_two_writes_counts_the_same_events() {
        let run = segments(&[3, 1, 2]);
        let ends = ends(&run);
        let all: Vec<u8> = run.iter().flat_map(|segment| segment.framed().to_vec()).collect();
        for skip in 0..=6 {
            let start = if skip == 0 { 0 } else { ends[skip - 1] };
            for first in 0..=all.len() - start {
                for second in 0..=all.len() - start - first {
                    let mut at = RunCursor::new(&run, skip);
                    let counted = at.advance(first) + at.advance(second);
                    let reached = start + first + second;
                    let expected = ends.iter().filter(|end| **end > start && **end <= reached).count() as u64;
                    assert_eq!(counted, expected, "{skip} {first} {second}");
                    let left: Vec<u8> = at.slices().flatten().copied().collect();
                    assert_eq!(left, all[reached..], "{skip} {first} {second}");
                }
            }
        }
    }

    #[test]
    fn a_socket_that_blocks_at_any_byte_leaves_the_rest_of_one_event_and_the_cursor_after_it() {
        let run = segments(&[3, 1, 2]);
        let ends = ends(&run);
        let total = *ends.last().expect("events");
        for taken in 1..total {
            for takes in [vec![taken], vec![1, taken - 1], vec![taken - 1, 1]] {
                let takes: Vec<usize> = takes.into_iter().filter(|takes| *takes > 0).collect();
                let mut socket = Socket::new(&takes);
                let written = write_run(&mut socket, RunCursor::new(&run, 0));
                let counted = ends.partition_point(|end| *end < taken) + 1;
                assert_eq!((written.events, written.bytes), (counted as u64, taken as u64), "{takes:?}");
                let WriteOutcome::Blocked { rest, cursor } = written.outcome else { panic!("not blocked") };
                assert_eq!(cursor, Some(Cursor::trusted(&format!("c{counted}"))), "{takes:?}");
                assert_eq!(socket.taken.len() + rest.len(), ends[counted - 1], "{takes:?}");
                // The next write goes on with the following event, and nothing is between.
                let mut next = Socket::new(&[usize::MAX]);
                assert_eq!(write_run(&mut next, RunCursor::new(&run, counted)).events as usize, 6 - counted);
                let all = [&socket.taken[..], &rest[..], &next.taken[..]].concat();
                assert_eq!(all, run.iter().flat_map(|segment| segment.framed().to_vec()).collect::<Vec<_>>());
            }
        }
        let written = write_run(&mut Socket::new(&[total]), RunCursor::new(&run, 0));
        assert_eq!(written, Written { events: 6, bytes: total as u64, outcome: WriteOutcome::Complete });
    }

    #[test]
    fn a_socket_that_blocks_between_two_vectored_writes_knows_the_cursor_where_it_stands() {
        let run = segments(&[2; MAX_SLICES + 1]);
        let first: usize = run[..MAX_SLICES].iter().map(|segment| segment.framed().len()).sum();
        let mut socket = Socket::new(&[usize::MAX]);
        let written = write_run(&mut socket, RunCursor::new(&run, 0));
        let cursor = Some(Cursor::trusted(&format!("c{}", 2 * MAX_SLICES)));
        let outcome = WriteOutcome::Blocked { rest: Bytes::new(), cursor };
        assert_eq!(written, Written { events: 2 * MAX_SLICES as u64, bytes: first as u64, outcome });
    }

    #[test]
    fn one_segment_costs_one_write_and_many_segments_one_for_each_64() {
        for (lengths, writes) in [(vec![5], 1), (vec![1; MAX_SLICES], 1), (vec![1; 2 * MAX_SLICES + 1], 3)] {
            let run = segments(&lengths);
            let mut socket = Socket::new(&[usize::MAX; 4]);
            assert_eq!(write_run(&mut socket, RunCursor::new(&run, 0)).outcome, WriteOutcome::Complete);
            assert_eq!(socket.writes, writes);
        }
        let nothing = write_run(&mut Socket::new(&[]), RunCursor::new(&segments(&[2]), 2));
        assert_eq!(nothing, Written { events: 0, bytes: 0, outcome: WriteOutcome::Complete });
    }
}
