//! A source and a tail in a few lines, for tests of what meets at the hub: one job whose events are numbered from 1, and
//! whose cursor after event n is `c{n}`.

use super::{Ended, Hub, JoinRequest, Published, TailRequest};
use crate::cursor::Cursor;
use crate::event::JobId;
use crate::sse::samples::segment;
use crate::sse::{JobEnd, Reset, Segment};
use crate::topic::Topic;
use rand::RngExt;
use rand::rngs::StdRng;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

pub fn job() -> JobId {
    "job".parse().expect("id")
}

pub fn topic() -> Topic {
    Topic::Job(job())
}

pub fn cursor(number: u32) -> Cursor {
    Cursor::trusted(&format!("c{number}"))
}

/// The number of the event that a cursor stands after.
pub fn number(cursor: &str) -> u32 {
    cursor.strip_prefix('c').and_then(|number| number.parse().ok()).expect("a cursor of this model")
}

/// The numbers of the events in segments.
pub fn numbers(segments: &[Arc<Segment>]) -> Vec<u32> {
    segments.iter().flat_map(|segment| (0..segment.len()).map(|index| number(segment.cursor(index)))).collect()
}

/// Events after `after` up to `until`, in segments of at most three.
pub fn segments(after: u32, until: u32) -> Vec<Arc<Segment>> {
    (after..until).step_by(3).map(|first| segment(first + 1..(first + 4).min(until + 1))).collect()
}

/// The source: so many events were written.
#[derive(Default)]
pub struct Source(AtomicU32);

impl Source {
    pub fn written(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }

    pub fn write(&self, events: u32) {
        self.0.fetch_add(events, Ordering::SeqCst);
    }
}

/// The loop of the tail, without a store.
#[derive(Default)]
pub struct Tail {
    watched: Option<u32>,
    join_requests: Vec<JoinRequest>,
}

impl Tail {
    /// Does one read, which may be cut short, and now and then ends the watch.
    pub fn step(&mut self, hub: &Hub, source: &Source, random: &mut StdRng) {
        for request in hub.take_requests() {
            match request {
                TailRequest::Watch { after, .. } => self.watched = Some(number(after.token().as_str())),
                TailRequest::Join(request) => self.join_requests.push(request),
            }
        }
        if !hub.sweep(Instant::now()).is_empty() {
            self.watched = None;
        }
        self.join_requests.retain(|request| hub.is_live(&request.topic));
        let Some(watched) = self.watched else { return };
        let written = source.written().max(watched);
        let moment = if random.random_bool(0.3) { random.random_range(watched..=written) } else { written };
        if moment > watched {
            let news = Published { events: segments(watched, moment), ..Published::nothing(job()) };
            hub.publish(&topic(), vec![news], Instant::now());
        }
        self.watched = Some(moment);
        for request in std::mem::take(&mut self.join_requests) {
            let after = number(request.after.token().as_str());
            if after <= moment {
                hub.complete_join(request, segments(after, moment));
            } else {
                self.join_requests.push(request);
            }
        }
        if random.random_bool(0.03) {
            self.watched = None;
            hub.finish(&topic(), Ended { job: job(), end: JobEnd::Lost(Reset::Rewound) });
        }
    }
}
