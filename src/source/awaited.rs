//! Jobs that readers wait for, because a store that is looked at as a whole does not know them yet.

use crate::event::JobId;
use std::collections::BTreeSet;

#[derive(Default)]
pub struct AwaitedJobs {
    jobs: BTreeSet<JobId>,
    /// Some of them were not looked for since they came: they may have been there before the last look.
    has_new: bool,
}

impl AwaitedJobs {
    pub fn replace(&mut self, jobs: Vec<JobId>) {
        self.has_new |= jobs.iter().any(|job| !self.jobs.contains(job));
        self.jobs = jobs.into_iter().collect();
    }

    pub fn jobs(&self) -> impl Iterator<Item = &JobId> {
        self.jobs.iter()
    }

    pub fn has_new(&self) -> bool {
        self.has_new
    }

    /// Notes that a look has found those that are there.
    pub fn were_looked_for(&mut self) {
        self.has_new = false;
    }
}
