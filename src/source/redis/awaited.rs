//! Jobs that readers wait for, because they have no key yet. A server remembers the keys that it was asked for, also those
//! that it does not have, and so tells when one is made.

use super::Store;
use super::connections::{Nodes, Request};
use super::reply::number;
use super::topology::NodeError;
use crate::event::JobId;
use redis::{Value, cmd};
use std::collections::{BTreeSet, HashMap};

/// Jobs asked for at once.
const MAX_JOBS_PER_REQUEST: usize = 256;

#[derive(Default)]
pub struct AwaitedJobs {
    jobs: BTreeSet<JobId>,
    /// The job of each key.
    by_key: HashMap<String, JobId>,
    /// Those to ask for in the next read: new ones, and those of which a key may have been made.
    due: BTreeSet<JobId>,
}

/// The answers of the servers.
#[derive(Default)]
pub struct Found {
    /// The jobs that have a key. It may be of another type, and then no page knows the job.
    pub appeared: Vec<JobId>,
    pub answers: usize,
    /// The error of a server that did not answer.
    pub error: Option<NodeError>,
}

impl AwaitedJobs {
    pub fn replace(&mut self, jobs: Vec<JobId>, keys: impl Fn(&JobId) -> Vec<String>) {
        let jobs: BTreeSet<JobId> = jobs.into_iter().collect();
        self.due.retain(|job| jobs.contains(job));
        self.by_key.retain(|_, job| jobs.contains(job));
        for job in jobs.difference(&self.jobs) {
            self.due.insert(job.clone());
            self.by_key.extend(keys(job).into_iter().map(|key| (key, job.clone())));
        }
        self.jobs = jobs;
    }

    /// Notes that a key has changed.
    pub fn note_change(&mut self, key: &str) {
        self.due.extend(self.by_key.get(key).cloned());
    }

    /// Notes that any of them may have appeared.
    pub fn queue_all(&mut self) {
        self.due.clone_from(&self.jobs);
    }

    /// Asks for those that are due. Those of which a server did not answer stay due.
    pub async fn find(&mut self, store: &Store, nodes: &Nodes) -> Found {
        let mut found = Found::default();
        let due: Vec<JobId> = self.due.iter().cloned().collect();
        for jobs in due.chunks(MAX_JOBS_PER_REQUEST) {
            let keys = jobs.iter().flat_map(|job| store.keys(job).into_iter().flatten().map(move |key| (job, key)));
            let (asked, requests): (Vec<&JobId>, Vec<Request>) = keys
                .map(|(job, key)| {
                    let mut exists = cmd("EXISTS");
                    exists.arg(&key);
                    (job, Request::new(&key, vec![exists]))
                })
                .unzip();
            self.due.retain(|job| !jobs.contains(job));
            for (job, replies) in asked.into_iter().zip(nodes.send(&requests).await) {
                let replies = match replies {
                    Ok(replies) => replies,
                    Err(error) => {
                        self.due.insert(job.clone());
                        found.error = Some(error);
                        continue;
                    }
                };
                found.answers += 1;
                let is_missing = |reply: &Value| number(reply) == Some(0);
                // Where the user may not ask so, a page answers.
                if !replies.first().is_some_and(is_missing) {
                    found.appeared.push(job.clone());
                }
            }
        }
        found
    }
}
