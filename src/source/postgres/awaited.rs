//! Jobs that readers wait for, because the tables do not know them yet; and the ids of jobs as the database spells them.

use super::sql::IdColumn;
use crate::event::JobId;
use std::collections::{BTreeSet, HashMap};

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

    /// Returns them by their ids as the columns spell them.
    pub fn by_spelling(&self, columns: [Option<&IdColumn>; 2]) -> HashMap<String, Vec<&JobId>> {
        let mut spelled: HashMap<String, Vec<&JobId>> = HashMap::new();
        for job in &self.jobs {
            for id in columns.iter().flatten().filter_map(|column| column.canonical(job.as_str())) {
                spelled.entry(id.into_owned()).or_default().push(job);
            }
        }
        spelled
    }
}

/// Returns the jobs whose id a column spells in another way than their readers, by its spelling.
pub fn other_spellings<'a>(
    column: Option<&IdColumn>,
    jobs: impl Iterator<Item = &'a JobId>,
) -> HashMap<String, Vec<&'a JobId>> {
    let mut others: HashMap<String, Vec<&JobId>> = HashMap::new();
    let Some(column) = column else { return others };
    for job in jobs {
        if let Some(spelled) = column.canonical(job.as_str()).filter(|spelled| *spelled != job.as_str()) {
            others.entry(spelled.into_owned()).or_default().push(job);
        }
    }
    others
}
