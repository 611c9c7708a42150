//! Findings about the ends of jobs: the statuses and types by which a job is over, and jobs that have several rows.

use super::super::error::QueryError;
use super::super::problem::set;
use super::super::sql;
use super::super::tables::{JobTable, RelationKind, Tables};
use super::Check;
use crate::config::FinalStatuses;
use crate::event::JobStatus;
use crate::source::Finding;

impl Check<'_> {
    pub(super) async fn check_ends(&mut self, tables: &Tables) -> Result<Vec<Finding>, QueryError> {
        let Some(jobs) = &tables.jobs else { return self.check_final_types(tables).await };
        let mut findings = self.check_statuses(jobs).await?;
        findings.extend(self.check_repeated_jobs(jobs).await?);
        Ok(findings)
    }

    async fn check_final_types(&mut self, tables: &Tables) -> Result<Vec<Finding>, QueryError> {
        if self.store.settings.final_types.all().next().is_some() {
            return Ok(vec![Finding::fine("a job ends by the type of an event: source.postgres.final_types")]);
        }
        let mend = self.final_types(tables).await?;
        Ok(vec![Finding::problem(
            "nothing says that a job has ended: there is neither a job table nor a final type, so that no stream completes",
            mend,
        )])
    }

    /// The types that end a job by their names, as lines of the settings file.
    pub(super) async fn final_types(&mut self, tables: &Tables) -> Result<String, QueryError> {
        let types = self.values(sql::check::types(tables)).await?;
        let named = |kind: &String| self.store.settings.types.get(kind).unwrap_or(kind).clone();
        let lines = final_lines("source.postgres.final_types", &FinalStatuses::default(), types.iter().map(named));
        Ok(match lines.is_empty() {
            true => set(
                "source.postgres.final_types.completed",
                vec!["job.completed"],
                "the types of the events that end a job, also .failed and .cancelled",
            ),
            false => lines,
        })
    }

    async fn check_statuses(&mut self, jobs: &JobTable) -> Result<Vec<Finding>, QueryError> {
        let settings = &self.store.settings;
        let (known, table) = (settings.statuses.clone(), settings.jobs_table.clone());
        let found = self.values(sql::check::statuses(jobs)).await?;
        let unknown: Vec<String> = found.into_iter().filter(|status| known.resolve(status).is_none()).collect();
        let (ending, others): (Vec<String>, Vec<String>) =
            unknown.into_iter().partition(|status| ends_by_its_name(status).is_some());
        let mut findings = Vec::new();
        if !ending.is_empty() {
            findings.push(Finding::problem(
                format!(
                    "{table} has statuses that no setting maps, and that end a job by their names: {}. Streams of such \
                     jobs never complete",
                    ending.join(", ")
                ),
                final_lines("source.postgres.statuses", &known, ending),
            ));
        }
        if !others.is_empty() {
            let named = others.join(", ");
            findings.push(Finding::fine(format!(
                "{table} has statuses that no setting maps, and that end no job: {named}"
            )));
        }
        Ok(findings)
    }

    /// Looks for a job with several rows, of which any could be the one whose status counts.
    async fn check_repeated_jobs(&mut self, jobs: &JobTable) -> Result<Option<Finding>, QueryError> {
        let settings = &self.store.settings;
        let Some(relation) = &self.catalogue.jobs else { return Ok(None) };
        if relation.find(&settings.job_columns.id).is_some_and(|id| id.is_unique) {
            return Ok(None);
        }
        let has_own_rows = !matches!(relation.kind, RelationKind::View | RelationKind::Other);
        let table = settings.jobs_table.clone();
        let Some(job) = self.values(sql::check::repeated_job(jobs)).await?.pop() else { return Ok(None) };
        let summary = format!("{table} has several rows for the job {job}: which of their statuses counts is chance");
        if !has_own_rows {
            return Ok(Some(Finding::problem(summary, "make the view such that it has one row for each job")));
        }
        let newest = format!("{table}_newest");
        let view = sql::quote_table(&newest);
        let (id, status) = (&jobs.id_name, &jobs.status_name);
        let mend = format!(
            "CREATE VIEW {view} AS SELECT DISTINCT ON ({id}) {id}, {status} FROM {} ORDER BY {id}, age(xmin);\n\
             GRANT SELECT ON {view} TO {};\n{}",
            jobs.name,
            self.reader,
            set("source.postgres.jobs_table", newest.as_str(), "the row that was written last")
        );
        Ok(Some(Finding::problem(summary, mend)))
    }
}

/// Lines of the settings file that add to `known` the texts that end a job by their names.
fn final_lines(setting: &str, known: &FinalStatuses, texts: impl IntoIterator<Item = String>) -> String {
    let mut all = known.clone();
    let mut added = [false; 3];
    for text in texts {
        let (list, is_added) = match ends_by_its_name(&text) {
            Some(JobStatus::Completed) => (&mut all.completed, &mut added[0]),
            Some(JobStatus::Failed) => (&mut all.failed, &mut added[1]),
            Some(JobStatus::Cancelled) => (&mut all.cancelled, &mut added[2]),
            _ => continue,
        };
        list.push(text);
        *is_added = true;
    }
    let lists = [("completed", all.completed), ("failed", all.failed), ("cancelled", all.cancelled)];
    let lines = lists.into_iter().zip(added).filter(|(_, is_added)| *is_added);
    lines.map(|((key, list), _)| set(&format!("{setting}.{key}"), list, "")).collect::<Vec<_>>().join("\n")
}

/// Returns the end that a status or a type speaks of in many systems.
fn ends_by_its_name(text: &str) -> Option<JobStatus> {
    let lower = text.to_lowercase();
    let is_one_of = |words: &str| {
        let last = lower.rsplit(['.', ':', '/']).next().unwrap_or(&lower);
        words.split(' ').any(|word| word == last)
    };
    if is_one_of("complete completed success successful succeeded succeed done finished passed") {
        Some(JobStatus::Completed)
    } else if is_one_of("fail failed failure error errored crashed fatal timeout timed_out timedout") {
        Some(JobStatus::Failed)
    } else if is_one_of("cancel cancelled canceled aborted killed skipped terminated revoked") {
        Some(JobStatus::Cancelled)
    } else {
        None
    }
}
