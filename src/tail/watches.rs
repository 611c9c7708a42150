//! The topics that the tail serves, and the jobs that it watches for them: each job once, however many topics have it.

use crate::cursor::Level;
use crate::event::JobId;
use crate::hub::Standpoint;
use crate::source::{Source, Tail};
use crate::sse::JobEnd;
use crate::topic::Topic;
use std::collections::{HashMap, HashSet};

/// Invariant: a job is in `by_job` exactly while the source's tail watches it, with the topics that it is watched for.
#[derive(Default)]
pub struct Watches {
    topics: HashMap<Topic, Watched>,
    by_job: HashMap<JobId, Vec<Topic>>,
}

/// A live topic, as far as the tail has published to it.
pub struct Watched {
    /// The position of a set in each of its jobs, after everything that was published to it. Empty for one job alone.
    pub positions: Vec<Level>,
    /// The beginning of each job of a set. Empty for one job alone.
    pub beginnings: Vec<Level>,
    /// The jobs that are complete. They are watched on, since they may go on while others do.
    over: HashSet<JobId>,
    /// Events that were not wanted since the last token was published.
    pub skipped: usize,
    /// Some of its jobs were watched before, and stand further than it does: nothing is published to it until a read has
    /// caught it up.
    pub is_behind: bool,
}

impl Watched {
    pub fn is_over(&self, job: &JobId) -> bool {
        self.over.contains(job)
    }

    /// Takes note of a job that goes on. False if it was not over.
    pub fn goes_on(&mut self, job: &JobId) -> bool {
        self.over.remove(job)
    }
}

impl Watches {
    /// Begins to serve a topic from this position on. True if it is behind, so that a read must catch it up.
    pub fn begin(&mut self, topic: &Topic, after: &Standpoint, source: &dyn Source, tail: &mut dyn Tail) -> bool {
        let mut over = HashSet::new();
        let mut is_behind = false;
        for (job, cursor) in topic.jobs().iter().zip(after.position.cursors(topic)) {
            let is_over = after.is_over(job);
            if is_over {
                over.insert(job.clone());
            }
            match self.by_job.get_mut(job) {
                Some(topics) => {
                    if !is_over {
                        // The others may have been told its end.
                        tail.watch(job.clone(), cursor);
                    }
                    topics.push(topic.clone());
                    is_behind = true;
                }
                None => {
                    tail.watch(job.clone(), cursor);
                    self.by_job.insert(job.clone(), vec![topic.clone()]);
                }
            }
        }
        let positions = after.position.levels.to_vec();
        let with_positions = topic.jobs().iter().zip(&positions);
        let beginnings = with_positions.map(|(job, _)| source.beginning(job).level()).collect();
        let watched = Watched { positions, beginnings, over, skipped: 0, is_behind };
        self.topics.insert(topic.clone(), watched);
        is_behind
    }

    /// Stops serving a topic. Returns the jobs that are not watched any more.
    pub fn end(&mut self, topic: &Topic, tail: &mut dyn Tail) -> Vec<JobId> {
        if self.topics.remove(topic).is_none() {
            return Vec::new();
        }
        let mut unwatched = Vec::new();
        for job in topic.jobs() {
            let Some(topics) = self.by_job.get_mut(job) else { continue };
            topics.retain(|other| other != topic);
            if topics.is_empty() {
                self.by_job.remove(job);
                tail.unwatch(job);
                unwatched.push(job.clone());
            }
        }
        unwatched
    }

    /// Notes the end of a job. Where it is lost, the source has stopped its watch.
    pub fn job_ended(&mut self, job: &JobId, end: JobEnd) {
        let topics = match end {
            JobEnd::Complete(_) => self.by_job.get(job).cloned(),
            JobEnd::Lost(_) => self.by_job.remove(job),
        };
        for topic in topics.unwrap_or_default() {
            if let Some(watched) = self.topics.get_mut(&topic) {
                watched.over.insert(job.clone());
            }
        }
    }

    pub fn is_watched(&self, job: &JobId) -> bool {
        self.by_job.contains_key(job)
    }

    /// Returns the topics that a job is watched for.
    pub fn topics_of(&self, job: &JobId) -> &[Topic] {
        self.by_job.get(job).map_or(&[], Vec::as_slice)
    }

    pub fn get(&self, topic: &Topic) -> Option<&Watched> {
        self.topics.get(topic)
    }

    pub fn get_mut(&mut self, topic: &Topic) -> Option<&mut Watched> {
        self.topics.get_mut(topic)
    }
}
