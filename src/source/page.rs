//! A page of events under construction, filled up to a limit.

use super::Limit;
use crate::cursor::Cursor;
use crate::event::Event;

/// Events of one job, in the order of delivery, up to a [`Limit`].
///
/// Invariant: at least one event is taken, however large it is; otherwise a reader would never get past it.
#[derive(Debug)]
pub struct PageBuilder {
    limit: Limit,
    events: Vec<(Event, Cursor)>,
    bytes: usize,
}

impl PageBuilder {
    pub fn new(limit: Limit) -> Self {
        Self { limit, events: Vec::new(), bytes: 0 }
    }

    /// Adds an event, with the position after it. The caller asks [`PageBuilder::is_full`] first.
    pub fn push(&mut self, event: Event, cursor: Cursor) {
        self.bytes += event.payload.as_json().len();
        self.events.push((event, cursor));
    }

    pub fn is_full(&self) -> bool {
        !self.events.is_empty() && self.limit.is_reached_by(self.events.len(), self.bytes)
    }

    /// The number of events that it holds.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The bytes of payload that it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The position after the newest event; `None` where it holds none.
    pub fn end(&self) -> Option<&Cursor> {
        self.events.last().map(|(_, cursor)| cursor)
    }

    pub fn into_events(self) -> Vec<(Event, Cursor)> {
        self.events
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{JobId, Payload};

    /// Pushes events with payloads of `size` bytes until the page is full, and returns how many it took.
    fn taken(limit: Limit, size: usize) -> usize {
        let job: JobId = "job".parse().expect("an id");
        let mut page = PageBuilder::new(limit);
        while !page.is_full() && page.len() < 100 {
            let payload = Payload::from_text(format!("\"{}\"", "x".repeat(size - 2)));
            let event = Event { payload, ..Event::sample(job.clone(), page.len().to_string()) };
            page.push(event, Cursor::seal('t', &job, &[]));
        }
        page.into_events().len()
    }

    #[test]
    fn a_page_stops_at_the_first_limit_that_it_reaches_but_takes_one_event() {
        assert_eq!(taken(Limit { events: 7, bytes: 1000 }, 10), 7);
        assert_eq!(taken(Limit { events: 50, bytes: 99 }, 10), 10);
        assert_eq!(taken(Limit { events: 50, bytes: 100 }, 10), 11, "the limit itself still fits");
        assert_eq!(taken(Limit { events: 50, bytes: 5 }, 10), 1);
        assert_eq!(taken(Limit { events: 0, bytes: 0 }, 10), 1);
    }
}
