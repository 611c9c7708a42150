//! Readers that wait to be caught up with their channels, and channels that wait to be caught up with the tail. A read of the
//! tail takes on a few, oldest first, so that they never hold up the news of all jobs; readers that lack the same events count
//! as one.

use crate::cursor::Cursor;
use crate::event::{Event, JobId};
use crate::hub::{JoinRequest, Standpoint};
use crate::source::Joiner;
use crate::topic::Topic;
use std::collections::{HashMap, HashSet};

/// Joiners of one read, at most: a reader of a set brings one for each of its jobs.
const MAX_JOINS_PER_READ: usize = 512;
/// Places in the source from which one read catches up, at most. Joiners of a set that stand at one place are read together, as
/// far as the source can.
const MAX_PLACES_PER_READ: usize = 32;
/// Reads that may fail to catch one reader up. After the last, it must replay again.
const MAX_JOIN_ATTEMPTS: u8 = 3;

/// All join requests that are not answered yet, oldest first.
#[derive(Default)]
pub struct JoinQueue {
    /// The requests that the present read is to answer.
    asked: Vec<Asked>,
    waiting: Vec<Ask>,
    /// Channels that too many reads could not catch up.
    given_up: Vec<Topic>,
}

/// A reader or a channel that lacks events.
struct Ask {
    topic: Topic,
    after: Standpoint,
    attempts: u8,
    /// None for a channel.
    reader: Option<JoinRequest>,
}

/// Those who lack the same events, and have the next joiners of the read: one for each of these jobs.
struct Asked {
    asks: Vec<Ask>,
    jobs: Vec<usize>,
}

/// The events that a joiner lacks; `None` where the read could not say.
type Missing = Option<Vec<(Event, Cursor)>>;

/// Those who are caught up once they have these events.
pub struct CaughtUp {
    pub topic: Topic,
    pub after: Standpoint,
    /// A channel is among them.
    pub has_channel: bool,
    pub readers: Vec<JoinRequest>,
    /// By the place of the job among the topic's.
    pub missing: Vec<(usize, Vec<(Event, Cursor)>)>,
}

impl JoinQueue {
    pub fn push(&mut self, request: JoinRequest) {
        let (topic, after) = (request.topic.clone(), request.after.clone());
        self.waiting.push(Ask { topic, after, attempts: 0, reader: Some(request) });
    }

    pub fn push_channel(&mut self, topic: Topic, after: Standpoint) {
        self.waiting.push(Ask { topic, after, attempts: 0, reader: None });
    }

    /// True if there are requests that the present read does not answer.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Drops the requests for topics that are not `live`, and those that no read can answer, since they lack something of a
    /// job that is not watched any more. Their readers see that, and replay again. Then returns the joiners of the next read;
    /// those of a read that failed are among them.
    pub fn begin_read(&mut self, is_live: impl Fn(&Topic) -> bool, is_watched: impl Fn(&JobId) -> bool) -> Vec<Joiner> {
        let mut joiners: Vec<Joiner> = Vec::new();
        let (mut known, mut places): (HashMap<(Topic, Cursor), usize>, _) = (HashMap::new(), 0);
        let asked_before = std::mem::take(&mut self.asked).into_iter().flat_map(|asked| asked.asks);
        let all: Vec<Ask> = asked_before.chain(std::mem::take(&mut self.waiting)).collect();
        for ask in all {
            let Some(jobs) = jobs_to_ask(&ask, &is_live, &is_watched) else { continue };
            let key = (ask.topic.clone(), ask.after.token().clone());
            let more = places_of(&ask, &jobs);
            let has_room = joiners.len() + jobs.len() <= MAX_JOINS_PER_READ && places + more <= MAX_PLACES_PER_READ;
            if let Some(index) = known.get(&key) {
                self.asked[*index].asks.push(ask);
            } else if joiners.is_empty() || has_room {
                places += more;
                let cursors = ask.after.position.cursors(&ask.topic);
                let joiner =
                    |index: &usize| Joiner { job: ask.topic.jobs()[*index].clone(), after: cursors[*index].clone() };
                joiners.extend(jobs.iter().map(joiner));
                known.insert(key, self.asked.len());
                self.asked.push(Asked { asks: vec![ask], jobs });
            } else {
                self.waiting.push(ask);
            }
        }
        joiners
    }

    /// Takes the result of the read that was begun last. Returns those who are caught up, with the events that they lack.
    pub fn end_read(&mut self, caught_up: Vec<Missing>) -> Vec<CaughtUp> {
        let mut answers = caught_up.into_iter().chain(std::iter::repeat_with(|| None));
        let mut done = Vec::new();
        for Asked { asks, jobs } in std::mem::take(&mut self.asked) {
            let answer: Vec<Missing> = answers.by_ref().take(jobs.len()).collect();
            let missing: Option<Vec<_>> = jobs.into_iter().zip(answer).map(|(job, one)| Some((job, one?))).collect();
            match (missing, asks.first()) {
                (Some(missing), Some(first)) => {
                    let (topic, after) = (first.topic.clone(), first.after.clone());
                    let has_channel = asks.iter().any(|ask| ask.reader.is_none());
                    let readers = asks.into_iter().filter_map(|ask| ask.reader).collect();
                    done.push(CaughtUp { topic, after, has_channel, readers, missing });
                }
                _ => self.put_back(asks),
            }
        }
        done
    }

    /// Lets those who could not be caught up wait for the next read. After too many attempts a request is dropped: a reader
    /// sees that, and replays again, and a channel is to be ended.
    fn put_back(&mut self, asks: Vec<Ask>) {
        for mut ask in asks {
            ask.attempts += 1;
            match ask.reader {
                _ if ask.attempts <= MAX_JOIN_ATTEMPTS => self.waiting.push(ask),
                Some(_) => {}
                None => self.given_up.push(ask.topic),
            }
        }
    }

    /// Returns the channels that could not be caught up.
    pub fn take_given_up(&mut self) -> Vec<Topic> {
        std::mem::take(&mut self.given_up)
    }

    /// Lets readers wait whose channel is still behind.
    pub fn put_readers_back(&mut self, readers: Vec<JoinRequest>) {
        readers.into_iter().for_each(|request| self.push(request));
    }
}

/// The number of places at which these jobs stand.
fn places_of(ask: &Ask, jobs: &[usize]) -> usize {
    let levels = &ask.after.position.levels;
    let places: HashSet<_> = jobs.iter().filter_map(|index| levels.get(*index)).collect();
    places.len().max(1)
}

/// The jobs to ask for; `None` where nobody needs the answer any more, or no read has it.
fn jobs_to_ask(
    ask: &Ask,
    is_live: &impl Fn(&Topic) -> bool,
    is_watched: &impl Fn(&JobId) -> bool,
) -> Option<Vec<usize>> {
    let jobs = ask.topic.jobs();
    let can_know = |job: &JobId| is_watched(job) || ask.after.is_over(job);
    let is_of_use = is_live(&ask.topic) && jobs.iter().all(can_know);
    is_of_use.then(|| (0..jobs.len()).filter(|index| is_watched(&jobs[*index])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::hub::model::{cursor, topic};
    use crate::hub::{Hub, Join, TailRequest};

    /// A queue with a request for each of these numbers: a reader that has got the events up to it.
    fn queue(numbers: &[u32]) -> JoinQueue {
        let hub = Hub::new(config::Hub::default());
        let _first = hub.join_or_create(&topic(), &Standpoint::of_job(cursor(0)), None, Vec::new());
        let waits: Vec<Join> = numbers
            .iter()
            .map(|number| hub.join_or_create(&topic(), &Standpoint::of_job(cursor(*number)), None, Vec::new()))
            .collect();
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
        assert_eq!(queue.begin_read(|_| true, |_| true).len(), 3);
        let done = queue.end_read(vec![Some(Vec::new()), None, Some(Vec::new())]);
        assert_eq!(done.iter().map(|caught_up| caught_up.readers.len()).collect::<Vec<_>>(), [3, 1]);
        assert!(queue.has_waiting(), "who could not be caught up waits for a later read");
        assert_eq!(queue.begin_read(|_| true, |_| true).len(), 1);
    }

    #[test]
    fn one_read_takes_on_few_readers_and_a_read_that_failed_forgets_none() {
        let numbers: Vec<u32> = (1..=100).collect();
        let mut queue = queue(&numbers);
        let mut joined = 0;
        while joined < 100 {
            let failed = queue.begin_read(|_| true, |_| true).len();
            let joiners = queue.begin_read(|_| true, |_| true);
            assert_eq!(joiners.len(), failed);
            assert!(!joiners.is_empty() && joiners.len() <= MAX_PLACES_PER_READ);
            joined += queue.end_read(vec![Some(Vec::new()); joiners.len()]).len();
        }
        assert!(queue.begin_read(|_| true, |_| true).is_empty());
    }

    #[test]
    fn a_reader_that_no_read_can_catch_up_is_let_go_and_so_are_those_of_a_channel_that_is_gone() {
        let mut queue = queue(&[7]);
        for _ in 0..=MAX_JOIN_ATTEMPTS {
            assert_eq!(queue.begin_read(|_| true, |_| true).len(), 1);
            assert!(queue.end_read(vec![None]).is_empty());
        }
        assert!(queue.begin_read(|_| true, |_| true).is_empty());
        let mut queue = self::queue(&[7, 8]);
        assert!(queue.begin_read(|_| false, |_| true).is_empty() && !queue.has_waiting());
    }
}
