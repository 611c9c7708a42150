//! The ids of jobs as the database spells them.

use super::sql::IdColumn;
use crate::event::JobId;
use std::collections::HashMap;

/// Returns jobs by their ids as the columns spell them.
pub fn spellings<'a>(
    columns: [Option<&IdColumn>; 2],
    jobs: impl Iterator<Item = &'a JobId>,
) -> HashMap<String, Vec<&'a JobId>> {
    let mut spelled: HashMap<String, Vec<&JobId>> = HashMap::new();
    for job in jobs {
        for id in columns.iter().flatten().filter_map(|column| column.canonical(job.as_str())) {
            spelled.entry(id.into_owned()).or_default().push(job);
        }
    }
    spelled
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
