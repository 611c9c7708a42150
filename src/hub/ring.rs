//! The newest events of one job, encoded, shared by all of its subscribers. A subscriber is a [`Place`] in it, never a
//! copy of it, so a slow reader costs a number.
//!
//! Invariants: places only grow; `start..end` are exactly the events held; `base` is the cursor before the first.

use crate::cursor::Cursor;
use crate::event::JobId;
use crate::sse::{Mark, Segment, State};
use std::collections::VecDeque;
use std::sync::Arc;

/// The sequence number, counted from the channel's creation, of the next event to deliver.
pub type Place = u64;

#[derive(Debug)]
pub struct Ring {
    /// Oldest first, each with the place of its first event.
    segments: VecDeque<(Place, Arc<Segment>)>,
    /// The place after the newest event.
    end: Place,
    /// The bytes of all segments, with their framing.
    bytes: usize,
    /// The cursor before the oldest event.
    base: Cursor,
}

/// Consecutive segments of a ring. The first `skip` events of the first segment do not belong to it.
#[derive(Clone, Debug, Default)]
pub struct Run {
    pub segments: Vec<Arc<Segment>>,
    pub skip: usize,
}

/// The ring no longer holds the next event of a subscriber, who must replay it from the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overtaken;

/// The number of events, and of bytes with their framing, that a ring took in or let go of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    pub events: usize,
    pub bytes: usize,
}

impl Ring {
    /// An empty ring at `base`.
    pub fn new(base: Cursor) -> Self {
        Self { segments: VecDeque::new(), end: 0, bytes: 0, base }
    }

    pub fn start(&self) -> Place {
        self.segments.front().map_or(self.end, |(first, _)| *first)
    }

    pub fn end(&self) -> Place {
        self.end
    }

    pub fn events(&self) -> usize {
        (self.end - self.start()) as usize
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The cursor after the newest event.
    pub fn cursor(&self) -> Cursor {
        self.segments.back().map_or_else(|| self.base.clone(), |(_, last)| last.end())
    }

    pub fn append(&mut self, segment: Arc<Segment>) {
        debug_assert!(!segment.is_empty());
        self.bytes += segment.framed().len();
        let first = self.end;
        self.end += segment.len() as Place;
        self.segments.push_back((first, segment));
    }

    /// Makes comments of what is held of this state of the job: one of the past would only confuse those who come later.
    pub fn outdate(&mut self, job: &JobId, state: State) {
        for (_, segment) in &mut self.segments {
            if let Some(outdated) = segment.outdated(job, state) {
                *segment = Arc::new(outdated);
            }
        }
    }

    /// Lets go of the oldest segments until the ring is within these limits. The newest segment stays whatever its size,
    /// since otherwise no subscriber could be served it from the ring.
    pub fn evict(&mut self, events: usize, bytes: usize) -> Volume {
        let mut gone = Volume::default();
        while self.segments.len() > 1 && (self.events() > events || self.bytes > bytes) {
            let Some((_, oldest)) = self.segments.pop_front() else { break };
            self.bytes -= oldest.framed().len();
            gone.events += oldest.len();
            gone.bytes += oldest.framed().len();
            self.base = oldest.end();
        }
        gone
    }

    /// Returns everything from `place` to the end.
    pub fn run(&self, place: Place) -> Result<Run, Overtaken> {
        debug_assert!(place <= self.end, "a subscriber is ahead of its events");
        if place < self.start() {
            return Err(Overtaken);
        }
        let first = self.segments.partition_point(|(first, segment)| first + segment.len() as Place <= place);
        let segments: Vec<_> = self.segments.range(first..).map(|(_, segment)| segment.clone()).collect();
        let skip = self.segments.get(first).map_or(0, |(first, _)| (place - first) as usize);
        Ok(Run { segments, skip })
    }

    /// Returns the place after the event whose cursor is `token`, if the ring reaches back to it.
    pub fn find(&self, token: &str) -> Option<Place> {
        let (mut held, mark) = (self.segments.iter().rev(), Mark::of(token));
        let found = held.find_map(|(first, segment)| Some(first + segment.find(token, mark)? as Place + 1));
        found.or_else(|| (self.base.as_str() == token).then(|| self.start()))
    }
}

impl Run {
    pub fn events(&self) -> usize {
        self.segments.iter().map(|segment| segment.len()).sum::<usize>() - self.skip
    }

    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Keeps only the first segments, which have at least `bytes` together if there are so many.
    pub fn limit(&mut self, bytes: usize) {
        let mut kept = 0;
        let enough = self.segments.iter().position(|segment| {
            kept += segment.framed().len();
            kept >= bytes
        });
        self.segments.truncate(enough.map_or(self.segments.len(), |last| last + 1));
    }

    /// The cursor after the last event; None if there is none.
    pub fn end(&self) -> Option<Cursor> {
        self.segments.last().map(|segment| segment.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sse::samples::segment;

    #[test]
    fn every_position_that_the_ring_reaches_back_to_gives_exactly_the_rest() {
        let mut ring = Ring::new(Cursor::trusted("c0"));
        for piece in [1..4, 4..5, 5..11, 11..13] {
            ring.append(segment(piece));
        }
        assert_eq!(ring.evict(9, usize::MAX), Volume { events: 3, bytes: segment(1..4).framed().len() });
        assert_eq!(ring.find("c2"), None);
        assert_eq!(ring.run(2).map(|run| run.events()), Err(Overtaken));
        for number in 3..=12 {
            let place = ring.find(&format!("c{number}")).expect("held");
            let run = ring.run(place).expect("held");
            let mut all = run.segments.iter().flat_map(|s| (0..s.len()).map(|i| s.cursor(i).to_string()));
            let rest: Vec<String> = all.by_ref().skip(run.skip).collect();
            assert_eq!(rest, (number + 1..13).map(|n| format!("c{n}")).collect::<Vec<_>>());
        }
        assert_eq!(ring.cursor().as_str(), "c12");
    }

    #[test]
    fn the_newest_events_stay_whatever_their_size() {
        let mut ring = Ring::new(Cursor::trusted("c0"));
        ring.append(segment(1..3));
        ring.append(segment(3..5));
        ring.evict(1, 1);
        assert_eq!((ring.start(), ring.end()), (2, 4));
    }
}
