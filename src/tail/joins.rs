//! Readers that wait to be caught up with their channels. A read of the tail takes on a few, oldest first, so that they never
//! hold up the news of all jobs; readers that lack the same events count as one.

use crate::cursor::Cursor;
use crate::event::{Event, JobId};
use crate::hub::JoinRequest;
use crate::source::Joiner;
use std::collections::HashMap;

/// Different readers that one read catches up, at most.
const MAX_JOINS_PER_READ: usize = 32;
/// Reads that may fail to catch one reader up. After the last, it must replay again.
const MAX_JOIN_ATTEMPTS: u8 = 3;

/// All join requests that are not answered yet, oldest first.
#[derive(Default)]
pub struct JoinQueue {
    /// The requests that the present read is to answer: one entry for each of its joiners, in their order.
    asked: Vec<Vec<JoinRequest>>,
    waiting: Vec<JoinRequest>,
}

/// The events that a joiner lacks; `None` where the read could not say.
type Missing = Option<Vec<(Event, Cursor)>>;
/// The events that some readers lack, and the requests of those readers.
type Answered = (Vec<(Event, Cursor)>, Vec<JoinRequest>);

impl JoinQueue {
    pub fn push(&mut self, request: JoinRequest) {
        self.waiting.push(request);
    }

    /// True if there are requests that the present read does not answer.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Drops the requests for jobs that are not `live`. Their readers see that, and replay again. Then returns the joiners of
    /// the next read; those of a read that failed are among them.
    pub fn begin_read(&mut self, is_live: impl Fn(&JobId) -> bool) -> Vec<Joiner> {
        let mut joiners: Vec<Joiner> = Vec::new();
        let mut places: HashMap<(JobId, Cursor), usize> = HashMap::new();
        let asked_before = std::mem::take(&mut self.asked).into_iter().flatten();
        let all: Vec<JoinRequest> = asked_before.chain(std::mem::take(&mut self.waiting)).collect();
        for request in all {
            if !is_live(&request.job) {
                continue;
            }
            let key = (request.job.clone(), request.after.clone());
            match places.get(&key) {
                Some(place) => self.asked[*place].push(request),
                None if joiners.len() < MAX_JOINS_PER_READ => {
                    joiners.push(Joiner { job: request.job.clone(), after: request.after.clone() });
                    places.insert(key, self.asked.len());
                    self.asked.push(vec![request]);
                }
                None => self.waiting.push(request),
            }
        }
        joiners
    }

    /// Takes the result of the read that was begun last. Returns for each joiner that is caught up the events that it lacks,
    /// and the requests that get them.
    pub fn end_read(&mut self, caught_up: Vec<Missing>) -> Vec<Answered> {
        let answers = caught_up.into_iter().chain(std::iter::repeat_with(|| None));
        let mut done = Vec::new();
        for (requests, missing) in std::mem::take(&mut self.asked).into_iter().zip(answers) {
            match missing {
                Some(missing) => done.push((missing, requests)),
                // After too many attempts a request is dropped: its reader sees that, and replays again.
                None => self.waiting.extend(requests.into_iter().filter_map(|mut request| {
                    request.attempts += 1;
                    (request.attempts <= MAX_JOIN_ATTEMPTS).then_some(request)
                })),
            }
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::hub::model::{cursor, job};
    use crate::hub::{Hub, Join, TailRequest};

    /// A queue with a request for each of these numbers: a reader that has got the events up to it.
    fn queue(numbers: &[u32]) -> JoinQueue {
        let hub = Hub::new(config::Hub::default());
        let _first = hub.join_or_create(&job(), &cursor(0), None, None);
        let waits: Vec<Join> =
            numbers.iter().map(|number| hub.join_or_create(&job(), &cursor(*number), None, None)).collect();
        let mut queue = JoinQueue::default();
        for request in hub.take_requests() {
            if let TailRequest::Join(request) = request {
                queue.push(request);
            }
        }
        assert!(waits.iter().all(|join| matches!(join, Join::Wait(_))));
        queue
    }

    #[test]
    fn readers_that_lack_the_same_events_are_caught_up_by_one() {
        let mut queue = queue(&[7, 8, 7, 7, 8, 9]);
        assert_eq!(queue.begin_read(|_| true).len(), 3);
        let done = queue.end_read(vec![Some(Vec::new()), None, Some(Vec::new())]);
        assert_eq!(done.iter().map(|(_, requests)| requests.len()).collect::<Vec<_>>(), [3, 1]);
        assert!(queue.has_waiting(), "who could not be caught up waits for a later read");
        assert_eq!(queue.begin_read(|_| true).len(), 1);
    }

    #[test]
    fn one_read_takes_on_few_readers_and_a_read_that_failed_forgets_none() {
        let numbers: Vec<u32> = (1..=100).collect();
        let mut queue = queue(&numbers);
        let mut joined = 0;
        while joined < 100 {
            let failed = queue.begin_read(|_| true).len();
            let joiners = queue.begin_read(|_| true);
            assert_eq!(joiners.len(), failed);
            assert!(!joiners.is_empty() && joiners.len() <= MAX_JOINS_PER_READ);
            joined += queue.end_read(vec![Some(Vec::new()); joiners.len()]).len();
        }
        assert!(queue.begin_read(|_| true).is_empty());
    }

    #[test]
    fn a_reader_that_no_read_can_catch_up_is_let_go_and_so_are_those_of_a_channel_that_is_gone() {
        let mut queue = queue(&[7]);
        for _ in 0..=MAX_JOIN_ATTEMPTS {
            assert_eq!(queue.begin_read(|_| true).len(), 1);
            assert!(queue.end_read(vec![None]).is_empty());
        }
        assert!(queue.begin_read(|_| true).is_empty());
        let mut queue = self::queue(&[7, 8]);
        assert!(queue.begin_read(|_| false).is_empty() && !queue.has_waiting());
    }
}
